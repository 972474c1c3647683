//! Runs on a host: measures one start of a machine monitor until the agent in its guest has answered the first frame of a connection. One
//! client for all monitors; only the way to the guest differs.

use std::{io::Write, process::Stdio, thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use kvmlet_protocol::{CONTROL_PORT, Hello, MAX_GUEST_FRAME, OLDEST_VERSION, Request, Response, VERSION, Welcome, read_frame, write_frame};
use serde::{Deserialize, Serialize};

use super::{
    monitor::Monitor,
    smaps::{self, Usage},
    way::{Connection, Way},
};

/// What one start cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// From before the process was made to the agent's answer.
    pub(crate) seconds: f64,
    /// Processor time of the whole process until the answer, its guest's among it.
    pub(crate) processor: f64,
    /// Memory at the answer.
    pub(crate) memory: Usage,
    /// What the guest says it has, bytes.
    pub(crate) guest_total: u64,
    /// What of it is not available any more, bytes.
    pub(crate) guest_used: u64,
}

/// What taking up a snapshot cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Resumed {
    /// From before the process was made to the agent's answer.
    pub(crate) seconds: f64,
    /// Processor time of the whole process until the answer, its guest's among it.
    pub(crate) processor: f64,
}

/// What one start cost by kvmlet's own word.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Own {
    /// From before the process was made to the agent's answer.
    pub(crate) seconds: f64,
    /// Of these, until the process began to make its machine.
    pub(crate) process: f64,
    /// Processor time of the whole process until the answer, its guest's among it.
    pub(crate) processor: f64,
    /// Memory of the whole process, guest included, that no file and no other process has, bytes; some time after the answer.
    pub(crate) anonymous: u64,
}

/// Starts `argv`, measures, ends it. `ram` is what the guest was given, bytes.
pub(super) fn start(way: &Way, ram: u64, argv: &[String]) -> Result<Sample> {
    way.clear();
    let mut monitor = Monitor::start(argv, Stdio::inherit())?;
    let (mut stream, seconds) = monitor.wait(|| greet(way))?;
    let processor = monitor.processor_seconds()?;
    let memory = smaps::parse(&monitor.proc("smaps")?, ram);
    let (total, available) = stats(&mut stream)?;
    drop(monitor);
    Ok(Sample {
        seconds,
        processor,
        memory,
        guest_total: total,
        guest_used: total.saturating_sub(available),
    })
}

/// Starts `argv`, a `kvmlet vm --probe --hold`, so many times one after the other, and lets all run: processor seconds of each until its answer.
pub(super) fn beside_each_other(count: usize, argv: &[String]) -> Result<Vec<f64>> {
    let mut running = Vec::with_capacity(count);
    (0..count)
        .map(|_| {
            let mut monitor = Monitor::start(argv, Stdio::piped())?;
            monitor.said()?;
            let processor = monitor.processor_seconds()?;
            running.push(monitor);
            Ok(processor)
        })
        .collect()
}

/// Starts `argv`, a `kvmlet vm --probe --hold`, lets its guest idle for so long, measures, ends it.
pub(super) fn own(idle: Duration, argv: &[String]) -> Result<Own> {
    let mut monitor = Monitor::start(argv, Stdio::piped())?;
    let said = monitor.said()?;
    let processor = monitor.processor_seconds()?;
    thread::sleep(idle);
    Ok(Own {
        seconds: said.seconds,
        process: said.seconds - said.inside,
        processor,
        anonymous: smaps::anonymous(&monitor.proc("smaps_rollup")?)?,
    })
}

/// The first frame of a connection, and the agent's answer.
pub(super) fn greet(way: &Way) -> Result<Connection> {
    let mut stream = way.connect(CONTROL_PORT)?;
    let hello = Hello {
        oldest: OLDEST_VERSION,
        newest: VERSION,
    };
    write_frame(&mut stream, &hello).context("greet the agent")?;
    let welcome: Welcome = read_frame(&mut stream, MAX_GUEST_FRAME).context("hear the agent")?;
    ensure!(welcome.version == VERSION, "the agent speaks another version");
    Ok(stream)
}

fn stats(stream: &mut (impl std::io::Read + Write)) -> Result<(u64, u64)> {
    write_frame(stream, &Request::Stats).context("ask for figures")?;
    match read_frame(stream, MAX_GUEST_FRAME).context("hear the guest's figures")? {
        Response::Stats(stats) => Ok((stats.memory_total, stats.memory_available)),
        other => bail!("the agent answered {other:?}"),
    }
}
