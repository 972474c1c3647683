//! Namespaces of the process's own, and a root in which nothing is: an empty, read-only tmpfs. No user namespace: it would open more of the
//! kernel than it closes.

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rustix::process::{chdir, pivot_root};

use super::{JailError, step};

/// A directory that exists on every host (the process has read it before) and can be covered within the own mount namespace.
pub(super) const COVERED: &str = "/proc";

/// Mounts, IPC, host name and network are the process's own from here on; the network has not even a loopback that is up. The pid namespace
/// was made by whoever started the process.
pub(super) fn leave_namespaces() -> Result<(), JailError> {
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWNET;
    unshare(own).map_err(step("leave the host's namespaces"))
}

pub(super) const NONE: Option<&str> = None;

/// Nothing that is mounted or unmounted from here on reaches the host.
pub(super) fn private_mounts() -> Result<(), JailError> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).map_err(step("make mounts private"))
}

/// Puts the process into an empty root and detaches everything else.
pub(super) fn empty_root() -> Result<(), JailError> {
    private_mounts()?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let empty = Some("size=4k,nr_inodes=2,mode=0555");
    mount(Some("jail"), COVERED, Some("tmpfs"), flags, empty).map_err(step("mount an empty root"))?;
    enter()
}

/// Makes what covers [`COVERED`] the root.
pub(super) fn enter() -> Result<(), JailError> {
    chdir(COVERED).map_err(step("go to the new root"))?;
    // The old root lies on top of the new one for the moment between these two.
    pivot_root(".", ".").map_err(step("change the root (a host that runs from its initramfs has none to change)"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("detach the host's files"))?;
    chdir("/").map_err(step("go to the root"))
}
