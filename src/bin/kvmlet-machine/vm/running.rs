//! A machine by hand on a thread of its own, and the signals that end it.

use std::thread::{self, JoinHandle};

use anyhow::anyhow;
use nix::sys::signal::{SigSet, Signal};
use vmm_lib::{Machine, exit::MachineReport, machine::Handle};

/// A machine that runs.
pub(super) struct Running {
    /// Reaches it.
    pub(super) handle: Handle,
    thread: JoinHandle<MachineReport>,
}

impl Running {
    /// Runs a machine, and calls `ended` behind it. Signals stop it.
    pub(super) fn start(machine: Machine, ended: impl FnOnce() + Send + 'static) -> anyhow::Result<Self> {
        let handle = machine.handle();
        stop_on_signals(handle.clone(), || {})?;
        let thread = thread::Builder::new().name("machine".into()).spawn(move || {
            let report = machine.run();
            ended();
            report
        })?;
        Ok(Self { handle, thread })
    }

    /// Stops it, if it still runs, and waits for its end.
    pub(super) fn stop(self) -> anyhow::Result<MachineReport> {
        self.handle.stop();
        self.thread.join().map_err(|_| anyhow!("the machine's thread panicked"))
    }
}

/// Has SIGINT, SIGTERM, SIGHUP and SIGQUIT stop a machine in place of this process, and calls `resized` when its terminal has another size. To
/// be called before any thread is made: they inherit the mask.
pub(super) fn stop_on_signals(handle: Handle, mut resized: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            match signal {
                Signal::SIGWINCH => resized(),
                _ => handle.stop(),
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(())
}
