//! Builds a container's root: the image with a writable layer, the kernel's file systems, devices, volumes; and enters it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use kvmlet_protocol::{ErrorKind, Failure};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstatfs, makedev, mkdirat, mknodat, open, stat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
};

use crate::boot::{ROOT, SHM};
use crate::failure::{Attempt, fail};
use crate::files::{self, Kind};
use crate::spawn::{Bind, Root};
use crate::sys::{self, MountAttributes};

const PROC_SUPER_MAGIC: i64 = 0x9fa0;
/// Hidden from containers, as by the other runtimes.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What they may read only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Builds it in this process's own mount name space and makes it `/`. The working directory is made too.
pub(crate) fn enter(root: &Root, cwd: &str) -> Result<(), Failure> {
    rustix::process::umask(Mode::empty());
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).attempt("make the mounts private")?;
    // Before the root covers the place where they are made.
    let mut devices = device_files().attempt("make the container's devices")?;
    if root.privileged {
        devices.extend(all_devices().attempt("find the guest's devices")?);
    }
    let overlay = overlay(root).attempt("mount the container's root")?;
    move_mount(&overlay, "", CWD, ROOT, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).attempt("mount the container's root")?;
    let top = open(ROOT, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).attempt("open the container's root")?;
    system(&top, root.privileged).attempt("mount the kernel's file systems")?;
    dev(&top, &devices, root.privileged).attempt("make the container's devices")?;
    if !root.privileged && !root.unmasked {
        restrict(&top).attempt("restrict the container's view of the kernel")?;
    }
    root.binds.iter().try_for_each(|b| bind(&top, b))?;
    if !cwd.is_empty() {
        files::ensure(&top, cwd, Kind::Directory, 0o755).wanted(format_args!("create the working directory {cwd}"))?;
    }
    if root.read_only {
        sys::mount_setattr(&overlay, MountAttributes::READ_ONLY, false).attempt("make the container's root read-only")?;
    }
    pivot(&top).attempt("enter the container's root")
}

fn overlay(root: &Root) -> io::Result<OwnedFd> {
    let (upper, work) = (root.upper.join("upper"), root.upper.join("work"));
    let options = [
        ("source", Path::new("overlay")),
        ("lowerdir", &root.lower),
        ("upperdir", &upper),
        ("workdir", &work),
    ];
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        fsconfig_set_string(&fs, name, value)?;
    }
    // The layer goes with the machine: nothing is gained by writing it to the disk on every fsync.
    rustix::mount::fsconfig_set_flag(&fs, "volatile")?;
    fsconfig_create(&fs)?;
    let attributes = if root.privileged {
        MountAttrFlags::empty()
    } else {
        MountAttrFlags::MOUNT_ATTR_NODEV
    };
    Ok(fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn new_mount(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", kind)?;
    for (name, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(&fs, *name)?;
        } else {
            fsconfig_set_string(&fs, *name, *value)?;
        }
    }
    fsconfig_create(&fs)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn attach(mount: impl AsFd, at: impl AsFd) -> rustix::io::Result<()> {
    move_mount(
        mount,
        "",
        at,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// The place of one of the system's own mounts, which the image must not redirect with a link.
fn system_place(top: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(top, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(top, name, flags, Mode::empty()).map_err(io::Error::from)
}

fn system(top: &OwnedFd, writable: bool) -> io::Result<()> {
    let strict = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let kernel = if writable {
        strict
    } else {
        strict | MountAttrFlags::MOUNT_ATTR_RDONLY
    };
    attach(new_mount("proc", &[], strict)?, system_place(top, "proc")?)?;
    attach(new_mount("sysfs", &[], kernel)?, system_place(top, "sys")?)?;
    attach(new_mount("cgroup2", &[], kernel)?, files::open(top, "/sys/fs/cgroup")?)?;
    Ok(())
}

/// The devices, each as a mount of its own. They have a file system of their own, without room, which `df` does not list.
fn device_files() -> io::Result<Vec<(String, OwnedFd)>> {
    let nodes = new_mount("tmpfs", &[("mode", "755"), ("size", "0")], MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    move_mount(&nodes, "", CWD, ROOT, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let make = |&(name, major, minor): &(&'static str, u32, u32)| {
        mknodat(
            &nodes,
            name,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(major, minor),
        )?;
        let device = open_tree(&nodes, name, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        Ok((name.to_owned(), device))
    };
    DEVICES.iter().map(make).collect()
}

/// The guest's own devices besides those that every container has, in /dev and the directories there.
fn all_devices() -> io::Result<Vec<(String, OwnedFd)>> {
    let mut found = Vec::new();
    let mut directories = vec![String::new()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(format!("/dev/{directory}"))? {
            let entry = entry?;
            let (Ok(name), kind) = (entry.file_name().into_string(), entry.file_type()?) else {
                continue;
            };
            let name = format!("{directory}{name}");
            if kind.is_dir() {
                // These every container has of its own.
                if !matches!(name.as_str(), "pts" | "shm" | "mqueue") {
                    directories.push(format!("{name}/"));
                }
                continue;
            }
            let own = DEVICES.iter().any(|d| d.0 == name) || DEVICE_LINKS.iter().any(|l| l.1 == name);
            if !own && (kind.is_char_device() || kind.is_block_device()) {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                let device = open_tree(CWD, format!("/dev/{name}"), flags)?;
                found.push((name, device));
            }
        }
    }
    Ok(found)
}

/// /dev takes no devices but those given, so that a container which may make some (CAP_MKNOD is usual) cannot reach the guest's
/// disks by them, unless it is to have all of the guest.
fn dev(top: &OwnedFd, devices: &[(String, OwnedFd)], any: bool) -> io::Result<()> {
    let strict = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID;
    if !any {
        flags |= MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    let dev = new_mount("tmpfs", &[("mode", "755"), ("size", "65536k")], flags)?;
    attach(&dev, system_place(top, "dev")?)?;
    for (name, device) in devices {
        attach(device, files::ensure(&dev, name, Kind::File, 0o755)?)?;
    }
    for (target, name) in DEVICE_LINKS {
        symlinkat(target, &dev, name)?;
    }
    let place = |name: &str| files::ensure(&dev, name, Kind::Directory, 0o755);
    let pts = new_mount(
        "devpts",
        &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")],
        strict,
    )?;
    attach(pts, place("pts")?)?;
    attach(clone(&open(SHM, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)?, place("shm")?)?;
    match new_mount("mqueue", &[], strict | MountAttrFlags::MOUNT_ATTR_NODEV) {
        Ok(queues) => attach(queues, place("mqueue")?)?,
        // A kernel without message queues: programs get that answer from mq_open as well.
        Err(Errno::NODEV) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

fn restrict(top: &OwnedFd) -> io::Result<()> {
    let empty = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    for path in MASKED {
        let Some(place) = present(top, path)? else { continue };
        match files::kind_of(&place)? {
            Kind::Directory => attach(new_mount("tmpfs", &[("size", "0"), ("mode", "755")], empty)?, place)?,
            Kind::File => attach(clone(&files::open(top, "/dev/null")?)?, place)?,
        }
    }
    for path in READ_ONLY {
        let Some(place) = present(top, path)? else { continue };
        let copy = clone(&place)?;
        sys::mount_setattr(&copy, MountAttributes::READ_ONLY, true)?;
        attach(copy, place)?;
    }
    Ok(())
}

fn present(top: &OwnedFd, path: &str) -> io::Result<Option<OwnedFd>> {
    match files::open(top, path) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// A detached copy of what is at `place`, with the mounts below it.
fn clone(place: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    open_tree(place, "", flags)
}

fn bind(top: &OwnedFd, bind: &Bind) -> Result<(), Failure> {
    let destination = &bind.destination;
    let what = format!("mount {destination}");
    if destination.split('/').all(|part| matches!(part, "" | "." | "..")) {
        return Err(fail(ErrorKind::BadContainer, format!("{destination:?} cannot be a volume's place")));
    }
    let volume = open(&bind.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).attempt(&what)?;
    let source = if bind.sub_path.is_empty() {
        volume
    } else if bind.image {
        // As the kubelet and container runtimes word it.
        let missing = format!("ImageVolumeMountFailed: {what}: the image has no {:?}", bind.sub_path);
        files::open(&volume, &bind.sub_path).map_err(io::Error::from).wanted(missing)?
    } else {
        let mode = stat(&bind.source).attempt(&what)?.st_mode & 0o7777;
        let missing = format!("{what}: create {:?} in the volume", bind.sub_path);
        files::ensure(&volume, &bind.sub_path, Kind::Directory, mode).wanted(missing)?
    };
    let kind = files::kind_of(&source).attempt(&what)?;
    let place = files::ensure(top, destination, kind, 0o755).wanted(&what)?;
    if fstatfs(&place).attempt(&what)?.f_type == PROC_SUPER_MAGIC {
        return Err(fail(
            ErrorKind::BadContainer,
            format!("{destination:?} cannot be mounted because it is inside /proc"),
        ));
    }
    if files::kind_of(&place).attempt(&what)? != kind {
        let message = format!("{what}: are you trying to mount a directory onto a file (or vice-versa)?");
        return Err(fail(ErrorKind::BadContainer, message));
    }
    let copy = clone(&source).attempt(&what)?;
    if bind.read_only {
        let plain = MountAttributes::READ_ONLY.and(MountAttributes::NODEV);
        let attributes = if bind.image { plain.and(MountAttributes::NOEXEC) } else { plain };
        sys::mount_setattr(&copy, attributes, true).attempt(&what)?;
    }
    attach(copy, place).wanted(what)
}

/// Makes `top` the root, and takes the guest's own root away.
fn pivot(top: &OwnedFd) -> io::Result<()> {
    const HERE: &CStr = c".";
    rustix::process::fchdir(top)?;
    rustix::process::pivot_root(HERE, HERE)?;
    // Both lie on the same place now, the old one above.
    unmount(HERE, UnmountFlags::DETACH)?;
    rustix::process::chdir(Path::new("/")).map_err(io::Error::from)
}
