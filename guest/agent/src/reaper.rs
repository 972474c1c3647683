//! Waits for every process that ends below the agent, its own children and adopted orphans, and tells who asked for it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitOptions, WaitStatus, pidfd_open, wait, waitid};

/// How a process ended, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Exit code; 128 + signal when a signal ended it.
    pub(crate) code: i32,
    /// The signal, or 0.
    pub(crate) signal: i32,
    /// Nanoseconds since 1970.
    pub(crate) at: u64,
}

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Child {
    /// Its number in the guest.
    pub(crate) pid: u32,
    /// It, whatever becomes of the number.
    pub(crate) pidfd: OwnedFd,
    /// Tells its end, once.
    pub(crate) ended: Receiver<Ended>,
}

static WAITED_FOR: LazyLock<Mutex<BTreeMap<i32, Sender<Ended>>>> = LazyLock::new(Mutex::default);
static SPAWNED: Condvar = Condvar::new();

fn waited_for() -> MutexGuard<'static, BTreeMap<i32, Sender<Ended>>> {
    WAITED_FOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Starts a process that inherits `kept` besides its standard streams. The only place that starts any: under one lock, so that no
/// other child inherits `kept` too, and none is reaped before it is known.
pub(crate) fn spawn(command: &mut Command, kept: OwnedFd) -> io::Result<Child> {
    let mut waited_for = waited_for();
    fcntl_setfd(&kept, FdFlags::empty())?;
    let spawned = command.spawn();
    drop(kept);
    let child = spawned?;
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let (tell, ended) = channel();
    waited_for.insert(pid.as_raw_nonzero().get(), tell);
    SPAWNED.notify_all();
    Ok(Child {
        pid: child.id(),
        pidfd,
        ended,
    })
}

/// Reaps for ever.
pub(crate) fn run() -> ! {
    loop {
        // Wait without reaping: the process must stay a zombie until `spawn` has opened its pidfd.
        match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => {
                // No child at all: sleep until one is started. Orphans come only from children.
                let waited_for = waited_for();
                if waited_for.is_empty() {
                    drop(SPAWNED.wait(waited_for).unwrap_or_else(PoisonError::into_inner));
                }
                continue;
            }
        }
        let mut waited_for = waited_for();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(tell) = waited_for.remove(&pid.as_raw_nonzero().get()) {
                // Nobody listens when the start failed; then nobody needs to know.
                let _ = tell.send(ended(status));
            }
        }
    }
}

fn ended(status: WaitStatus) -> Ended {
    let signal = status.terminating_signal().unwrap_or(0);
    let code = status.exit_status().unwrap_or(128 + signal);
    Ended { code, signal, at: now() }
}

/// The program of a process that holds a process name space: its first process, below which the kernel reaps orphans by itself.
pub(crate) fn hold() -> i32 {
    drop(fs::write("/proc/self/oom_score_adj", "-998"));
    crate::sys::ignore_children();
    loop {
        std::thread::park();
    }
}
