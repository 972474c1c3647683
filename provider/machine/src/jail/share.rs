//! The jail of a shared directory's process: the directory is its root, it has the machine's user, and of root's capabilities those that owning
//! files takes. Everything else is as in a machine's jail.

use std::{fs::File, os::fd::OwnedFd};

use kvmlet_protocol::SHARED_FILE;
use nix::mount::{MsFlags, mount};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, open},
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
    thread::CapabilitySet,
};

use super::{
    JailError, check, filters,
    root::{COVERED, NONE, enter, leave_namespaces, private_mounts},
    step,
    walls::{self, Limits},
};

/// What owning files takes: making them for others, and going where their owners may.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// What a confined process serves from.
#[derive(Debug)]
pub struct SharedRoot {
    /// The root.
    pub root: OwnedFd,
    /// Directory of the process's own descriptors, as a mount of its own.
    pub descriptors: OwnedFd,
}

/// Confines the calling process, which has one thread and is the first of its pid namespace. `what` is a directory, which becomes the root,
/// or a plain file, which becomes the only one in it; what is mounted below it is not part of it.
pub fn confine_share(what: OwnedFd, read_only: bool, uid: u32, limits: &Limits) -> Result<SharedRoot, JailError> {
    check(uid)?;
    let kind = FileType::from_raw_mode(fstat(&what).map_err(step("look at what is shared"))?.st_mode);
    // While the host's mounts are the process's own: a copy of the one mount, from there on.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let shared = open_tree(&what, "", flags | OpenTreeFlags::AT_EMPTY_PATH).map_err(step("copy the mount of what is shared"))?;
    drop(what);
    leave_namespaces()?;
    private_mounts()?;
    // A mount of this one directory: nothing of the host's procfs can be reached from it.
    let descriptors = open_tree(CWD, "/proc/self/fd", flags).map_err(step("keep the directory of descriptors"))?;
    cover(&shared, kind, read_only)?;
    enter()?;
    let root = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(step("open the root"))?;
    rustix::process::umask(Mode::empty());
    walls::limit(limits, u64::MAX)?;
    kvmlet_fs::keep_capabilities().map_err(step("keep capabilities as another user"))?;
    walls::change_user(uid, KEPT)?;
    walls::landlock(walls::Files::Root)?;
    filters::enter_share()?;
    Ok(SharedRoot { root, descriptors })
}

/// Mounts what is shared over [`COVERED`].
fn cover(shared: &OwnedFd, kind: FileType, read_only: bool) -> Result<(), JailError> {
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let attach = |place: &str| {
        move_mount(shared, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(step("mount what is shared"))?;
        // What the host mounts below from here on stays the host's.
        mount(NONE, place, NONE, MsFlags::MS_PRIVATE, NONE).map_err(step("make the mount private"))?;
        let written = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        restrict(place, strict | written)
    };
    if kind == FileType::Directory {
        return attach(COVERED);
    }
    let size = Some("size=4k,nr_inodes=3,mode=0755");
    mount(Some("share"), COVERED, Some("tmpfs"), strict, size).map_err(step("mount an empty root"))?;
    let place = format!("{COVERED}/{SHARED_FILE}");
    File::create(&place).map_err(step("make the shared file's place"))?;
    attach(&place)?;
    restrict(COVERED, strict | MsFlags::MS_RDONLY)
}

fn restrict(place: &str, flags: MsFlags) -> Result<(), JailError> {
    let again = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(NONE, place, NONE, again | flags, NONE).map_err(step("restrict what is shared"))
}
