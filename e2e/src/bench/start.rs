//! A machine's cold start, from the making of its process to the agent's answer, its memory at that moment and its system calls; beside QEMU's
//! microvm with the same kernel, initramfs, command line and kinds of devices, in turn, on the same host. On real hardware it is the time that
//! is judged; where the host is emulated its seconds are the emulator's, so there it is the processor's time.

use anyhow::Result;

use super::{
    Options, Row,
    command_line::{self, CommandLine, MEMORY, Machine},
    guest::Sample,
    median, stopwatch,
};
use crate::{Cluster, Host, HostKind};

const PEER: &str = "QEMU microvm";
/// Of the peer's, time or processor time.
const MOST_TIME: f64 = 0.75;
/// Private memory of a machine's process, bytes.
pub(super) const MOST_PRIVATE: f64 = (3 << 20) as f64;

pub(super) fn rows(cluster: &Cluster, options: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    let bench = super::prepare(host)?;
    let (ours, theirs) = both();
    let (mut ours_seen, mut theirs_seen) = (Vec::new(), Vec::new());
    // The first of each reads its program for the first time and is not counted.
    for round in 0..=options.starts {
        let (a, b) = (start(host, &bench, &ours)?, start(host, &bench, &theirs)?);
        if round > 0 {
            ours_seen.push(a);
            theirs_seen.push(b);
        }
    }
    let (ours, theirs) = (ours_seen, theirs_seen);
    let of = |samples: &[Sample], figure: fn(&Sample) -> f64| median(samples.iter().map(figure).collect());
    let row =
        |name: &str, unit, figure: fn(&Sample) -> f64| Row::new(host.kind, name, unit, of(&ours, figure)).beside(PEER, of(&theirs, figure));
    let alone = |name: &str, unit, figure: fn(&Sample) -> f64| Row::new(host.kind, name, unit, of(&ours, figure));
    let time = row("machine start, process to agent's hello", "s", |sample| sample.seconds);
    let work = row("machine start, processor time", "s", |sample| sample.cpu_seconds);
    let (time, work) = match host.kind {
        HostKind::Native => (time.at_most(MOST_TIME), work),
        HostKind::Emulated => (time, work.at_most(MOST_TIME)),
    };
    Ok(vec![
        time,
        work,
        alone("machine process, private memory without guest RAM", "bytes", |sample| {
            sample.memory.private as f64
        })
        .at_most(MOST_PRIVATE),
        row("the same, beside the peer", "bytes", |sample| sample.memory.private as f64),
        row("guest RAM taken from the host at the agent's hello", "bytes", |sample| {
            sample.memory.ram as f64
        }),
        row("guest memory in use at the agent's hello, by the guest", "bytes", |sample| {
            sample.guest_used as f64
        }),
    ])
}

/// A count: once each.
pub(super) fn calls(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    let bench = super::prepare(host)?;
    let count = |line: &CommandLine| stopwatch::<u64>(host, &bench, &["calls", "--way", &line.way], &line.argv);
    let (ours, theirs) = both();
    let row = Row::new(
        host.kind,
        "system calls of a start to the agent's hello",
        "calls",
        count(&ours)? as f64,
    );
    Ok(vec![row.beside(PEER, count(&theirs)? as f64).at_most(1.0)])
}

fn both() -> (CommandLine, CommandLine) {
    (command_line::kvmlet(Machine::PLAIN), command_line::qemu(Machine::PLAIN, "", ""))
}

pub(super) fn start(host: &Host, bench: &str, line: &CommandLine) -> Result<Sample> {
    let ram = (MEMORY << 20).to_string();
    stopwatch(host, bench, &["start", "--way", &line.way, "--ram", &ram], &line.argv)
}
