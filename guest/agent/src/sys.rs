//! The system calls for which rustix has no safe function: the only module with unsafe code. It decides nothing.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::thread::UnshareFlags;

/// The entry of the program. Rust's own would abort PID 1 when the kernel could open no console for it and /dev/null is not there yet.
#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main() -> libc::c_int {
    // SAFETY: SIG_IGN is no handler that could run, and no other thread exists yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    crate::run()
}

/// Gives the calling thread name spaces of its own.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: callers pass NEWNS, NEWPID, NEWCGROUP (and FS, implied): none of them takes descriptors away from other threads.
    unsafe { rustix::thread::unshare_unsafe(flags & !UnshareFlags::FILES) }.map_err(io::Error::from)
}

/// Grows a mounted ext4 file system to `blocks` of its blocks; nothing happens when it has that many.
pub(crate) fn ext4_resize(mounted: impl AsFd, blocks: u64) -> io::Result<()> {
    /// `_IOW('f', 16, __u64)`
    const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;
    // SAFETY: the request reads one u64 through the pointer, which is that of a live u64.
    let result = unsafe { libc::ioctl(mounted.as_fd().as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    check(result.into()).map(drop)
}

/// Gives the kernel's random number generator bytes that nobody else knows, has it count them, and makes it forget what it would have said next.
pub(crate) fn reseed(random: impl AsFd, entropy: &[u8]) -> io::Result<()> {
    /// `_IOW('R', 3, int[2])`
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    /// `_IO('R', 7)`
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    let length = i32::try_from(entropy.len()).map_err(io::Error::other)?;
    // struct rand_pool_info: bits, bytes, and the bytes.
    let bits = length.checked_mul(8).ok_or(io::ErrorKind::InvalidInput)?;
    let mut pool = [bits.to_ne_bytes(), length.to_ne_bytes()].concat();
    pool.extend_from_slice(entropy);
    // SAFETY: the request reads two numbers and as many bytes as the second says, all of which `pool` has.
    check(unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDADDENTROPY, pool.as_ptr()) }.into())?;
    // SAFETY: the request has no argument.
    check(unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDRESEEDCRNG) }.into()).map(drop)
}

/// How long a watchdog may be left unfed, seconds.
pub(crate) fn watchdog_timeout(watchdog: impl AsFd) -> io::Result<u32> {
    /// `_IOR('W', 7, int)`
    const WDIOC_GETTIMEOUT: libc::Ioctl = 0x8004_5707u32 as libc::Ioctl;
    let mut seconds: libc::c_int = 0;
    // SAFETY: the request writes one int through the pointer, which is that of a live int.
    let result = unsafe { libc::ioctl(watchdog.as_fd().as_raw_fd(), WDIOC_GETTIMEOUT, &raw mut seconds) };
    check(result.into())?;
    u32::try_from(seconds).map_err(io::Error::other)
}

/// The attributes of a mount that [`mount_setattr`] sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MountAttributes(u64);

impl MountAttributes {
    /// No device file works.
    pub(crate) const NODEV: Self = Self(libc::MOUNT_ATTR_NODEV);
    /// No program of it runs.
    pub(crate) const NOEXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);
    /// Nothing can be written.
    pub(crate) const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);

    /// Both.
    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Sets attributes of the mount at `mount`, with `recursive` of all below it.
pub(crate) fn mount_setattr(mount: impl AsFd, attributes: MountAttributes, recursive: bool) -> io::Result<()> {
    let wanted = libc::mount_attr {
        attr_set: attributes.0,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a literal with its NUL, `wanted` lives through the call and its size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}

/// Sends any signal, real-time ones too.
pub(crate) fn pidfd_send_signal(process: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call; a null siginfo is allowed and means "as kill does".
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_fd().as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(result).map(drop)
}

/// Installs a seccomp filter on the calling thread with these SECCOMP_FILTER_FLAG_*, without setting no_new_privs.
pub(crate) fn seccomp(filter: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: `program` and the filter it points to live through the call; the kernel only reads them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    check(result).map(drop)
}

/// Becomes another program; comes back only with an error.
pub(crate) fn execve(path: &CString, args: &[CString], env: &[CString]) -> io::Error {
    let args: Vec<_> = args.iter().map(|a| a.as_ptr()).chain([ptr::null()]).collect();
    let env: Vec<_> = env.iter().map(|e| e.as_ptr()).chain([ptr::null()]).collect();
    // SAFETY: all three point to NUL-terminated strings, in arrays that end with a null, alive through the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// The descriptor that the parent left open at `number`. To be called once, by a process that has opened nothing itself.
pub(crate) fn inherited(number: i32) -> Option<OwnedFd> {
    if number < 3 {
        return None;
    }
    // SAFETY: no code of this process has opened a descriptor yet, so that nothing else owns this number.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Default disposition of all signals and an empty mask: what the agent ignores must not be inherited.
pub(crate) fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is no handler; numbers that cannot be set are refused by the kernel.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero sigset_t is the empty set of this platform's C library.
    let empty: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `empty` lives through the call, and the old set is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, ptr::null_mut()) };
}

/// Lets the kernel reap this process's children.
pub(crate) fn ignore_children() {
    // SAFETY: SIG_IGN is no handler that could run.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
