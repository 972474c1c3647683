//! A process on a host, and what it took: processor time, and memory at its most.

use anyhow::{Context, Result, bail};

use crate::Host;

/// Linux' USER_HZ.
const TICKS: f64 = 100.0;

/// One that runs for as long as it is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured<'a> {
    host: &'a Host,
    pid: u32,
}

impl<'a> Measured<'a> {
    /// The oldest whose command line begins so.
    pub(super) fn find(host: &'a Host, command: &str) -> Result<Self> {
        let text = host.sh(&format!("pgrep -o -f '^{command}'"))?;
        let pid = text.parse().with_context(|| format!("{} runs no {command}", host.name))?;
        Ok(Self { host, pid })
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
        let text = self.host.sh(&format!("cat /proc/{}/stat", self.pid))?;
        let fields: Vec<f64> = text
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        // After the name: state (no number), then ten others, then user and system time.
        match fields.get(10..12) {
            Some([user, system]) => Ok((user + system) / TICKS),
            _ => bail!("read {text}"),
        }
    }
}
