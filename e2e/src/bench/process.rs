//! A process on a host, and what it took: processor time, and memory at its most.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::{time::ClockId, unistd::Pid};

use crate::Host;

/// One that runs for as long as it is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured<'a> {
    host: &'a Host,
    /// This program on the host.
    bench: &'a str,
    pid: u32,
}

impl<'a> Measured<'a> {
    /// The oldest whose command line begins so. `bench` is this program on the host.
    pub(super) fn find(host: &'a Host, bench: &'a str, command: &str) -> Result<Self> {
        let text = host.sh(&format!("pgrep -o -f '^{command}'"))?;
        let pid = text.parse().with_context(|| format!("{} runs no {command}", host.name))?;
        Ok(Self { host, bench, pid })
    }

    /// Its most of memory counts from now on.
    pub(super) fn forget_peak(&self) -> Result<()> {
        self.host.sh(&format!("echo 5 >/proc/{}/clear_refs", self.pid)).map(drop)
    }

    /// Bytes that it had at most.
    pub(super) fn peak(&self) -> Result<f64> {
        let text = self
            .host
            .sh(&format!("awk '/VmHWM/ {{print $2 * 1024}}' /proc/{}/status", self.pid))?;
        text.parse().with_context(|| format!("read {text}"))
    }

    /// Of processors, so far.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let output = self
            .host
            .run(&[self.bench, "measure", "processor", "--pid", &self.pid.to_string()])?;
        ensure!(output.code == 0, "{}", output.error_text());
        output.text().trim().parse().with_context(|| format!("read {}", output.text()))
    }
}

/// What all threads of a process have run so far, those too that have ended, in seconds: CLOCK_PROCESS_CPUTIME_ID of another process.
pub(super) fn seconds(pid: Pid) -> Result<f64> {
    let clock = ClockId::pid_cpu_clock_id(pid).with_context(|| format!("find the clock of process {pid}"))?;
    let now = clock.now().with_context(|| format!("read the clock of process {pid}"))?;
    Ok(Duration::from(now).as_secs_f64())
}
