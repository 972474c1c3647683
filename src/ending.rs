//! How programs are asked to end, and what the daemon tells while it takes its time.

use std::time::Duration;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tracing::info;

use crate::systemd;

/// How often a host that leaves says how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

/// What the daemon is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// By SIGTERM: to leave, where the configuration says so.
    Leave,
    /// By SIGINT: to end, and nothing else.
    End,
}

impl Asked {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Leave => "SIGTERM",
            Self::End => "SIGINT",
        }
    }
}

/// Signals that ask for an end.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Leave,
            _ = self.interrupt.recv() => Asked::End,
        }
    }
}

/// Tells for ever how far a host is that leaves: the log, and whoever waits for the daemon's end.
pub(crate) async fn tell(progress: watch::Receiver<String>) {
    let mut every = interval(PROGRESS);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut logged = String::new();
    loop {
        every.tick().await;
        let words = progress.borrow().clone();
        // Whoever waits has to hear again, also what is no news.
        systemd::leaving(&words);
        if words != logged {
            info!("leaving: {words}");
            logged = words;
        }
    }
}
