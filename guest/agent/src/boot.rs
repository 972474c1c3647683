//! The first moments of the guest: mounts, control groups, listening sockets; and its end.

use std::ffi::CStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use kvmlet_protocol::{CONTROL_PORT, LOG_PORT};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move, unmount};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, reboot};
use vsock::{VMADDR_CID_ANY, VsockListener};

use crate::agent::Agent;
use crate::{cgroup, device, reaper, server, watchdog};

/// Where a helper mounts the root of its container, in its own mount name space.
pub(crate) const ROOT: &str = "/run/kvmlet/root";
/// The pod's shared memory.
pub(crate) const SHM: &str = "/run/kvmlet/shm";
/// Open files for the agent, and for containers that set no limit; their processes are bounded by their cgroups.
const OPEN_FILES: u64 = 1 << 20;

/// The agent's program: never ends but with the machine.
pub(crate) fn main() -> i32 {
    if std::process::id() != 1 {
        // The only case with standard streams; when they are closed there is nobody to tell.
        drop(writeln!(
            io::stderr(),
            "kvmlet-agent is the first process of a guest of kvmlet and runs nowhere else"
        ));
        return 1;
    }
    std::panic::set_hook(Box::new(|panic| say(&panic.to_string())));
    if let Err(e) = start() {
        say(&format!("cannot start: {e}"));
        halt();
    }
    reaper::run()
}

/// A line in the kernel's log, which is the console's too when there is one.
pub(crate) fn say(line: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // Nothing is left to try when the kernel's own log fails.
        // One write is one record.
        drop(log.write_all(format!("<3>kvmlet-agent: {line}\n").as_bytes()));
    }
}

fn start() -> io::Result<()> {
    // First of all, so that a host that dials early is answered late and not refused.
    let control = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, CONTROL_PORT)?;
    let log = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, LOG_PORT)?;
    mount_all()?;
    cgroup::prepare()?;
    for (resource, most) in [(Resource::Nofile, Some(OPEN_FILES)), (Resource::Nproc, None)] {
        setrlimit(
            resource,
            Rlimit {
                current: most,
                maximum: most,
            },
        )?;
    }
    let agent = Arc::new(Agent::new(&fs::read_to_string("/proc/cmdline")?));
    let fed_for = Arc::clone(&agent);
    server::listen("control", control, move |connection| server::control(&agent, connection))?;
    server::listen("log", log, server::log)?;
    watchdog::start(fed_for)
}

fn mount_all() -> io::Result<()> {
    leave_rootfs()?;
    let strict = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mounts: [(&str, &str, MountFlags, Option<&CStr>); 6] = [
        ("/dev", "devtmpfs", MountFlags::NOSUID, Some(c"mode=755")),
        ("/proc", "proc", strict, None),
        ("/sys", "sysfs", strict, None),
        (cgroup::MOUNT, "cgroup2", strict, None),
        ("/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755")),
        (SHM, "tmpfs", strict, Some(c"mode=1777,size=64m")),
    ];
    for (at, kind, flags, options) in mounts {
        fs::create_dir_all(at)?;
        mount(kind, at, kind, flags, options).map_err(|e| io::Error::other(format!("mount {at}: {e}")))?;
        if at == "/dev" {
            open_streams()?;
        }
    }
    fs::create_dir_all("/dev/pts")?;
    mount(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(c"mode=620,ptmxmode=666,gid=5"),
    )?;
    fs::create_dir_all("/dev/shm")?;
    mount_bind(SHM, "/dev/shm")?;
    fs::create_dir_all(ROOT)
}

/// Nothing can be pivoted away from the kernel's first root: put a mount of the same files above it, and live in that.
fn leave_rootfs() -> io::Result<()> {
    const NEXT: &str = "/root";
    fs::create_dir_all(NEXT)?;
    mount_bind("/", NEXT)?;
    std::env::set_current_dir(NEXT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}

/// A kernel without a console starts its first process without standard streams; a later descriptor must not take their numbers.
fn open_streams() -> io::Result<()> {
    loop {
        let null: OwnedFd = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
        if std::os::fd::AsRawFd::as_raw_fd(&null) > 2 {
            return Ok(());
        }
        // It is a standard stream now, for ever.
        std::mem::forget(null);
    }
}

/// Ends everything in order: containers, disks, machine.
pub(crate) fn power_off() -> ! {
    if let Err(e) = cgroup::kill_pod() {
        say(&format!("kill the containers: {e}"));
    }
    rustix::fs::sync();
    if Path::new(device::SCRATCH).exists() {
        // Busy when something of the pod still ends: its content goes with the pod, and it was just written.
        let _ = unmount(device::SCRATCH, UnmountFlags::DETACH);
    }
    halt()
}

fn halt() -> ! {
    loop {
        if let Err(e) = reboot(RebootCommand::PowerOff) {
            say(&format!("power off: {e}"));
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
