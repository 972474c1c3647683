//! A machine's cold start, from the making of its process to the agent's answer, its memory at that moment and its system calls; beside QEMU's
//! microvm with the same kernel, initramfs, command line and kinds of devices, in turn, on the same host. On real hardware it is the time that
//! is judged; where the host is emulated, it is the processor's time, on a host where that is what was carried out.

use anyhow::Result;

use super::{
    FOLDER, Options, Row,
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
    let samples = in_turn(host, &bench, options.starts, &both())?;
    Ok(judged(host, "machine start, process to agent's hello", (PEER, &samples), MOST_TIME))
}

/// How long starts took, and the processor's time of it: of the peer's, the one or the other at most so much.
pub(super) fn judged(host: &Host, name: &str, samples: (&'static str, &Samples), most: f64) -> Vec<Row> {
    by_kind(host.kind, reported(host, name, samples), most)
}

/// The same without a limit.
pub(super) fn reported(host: &Host, name: &str, samples: (&'static str, &Samples)) -> (Row, Row) {
    let time = beside(host, name, "s", samples, |sample| sample.seconds);
    let work = beside(host, &format!("{name}, processor time"), "s", samples, |sample| sample.processor);
    (time, work)
}

/// A time and the processor's time of the same thing. On real hardware it is the time that may be so much at most; where the host is emulated,
/// it is the processor's, as what the emulator has carried out.
pub(super) fn by_kind(kind: HostKind, (time, work): (Row, Row), most: f64) -> Vec<Row> {
    match kind {
        HostKind::Native => vec![time.at_most(most), work],
        HostKind::Emulated => vec![time, work.at_most(most)],
    }
}

/// Beside another machine, which runs the same program: what they share is there once a host.
pub(super) fn memory(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    let said = format!("{FOLDER}/other");
    let other = command_line::held(&[]).join(" ");
    let begin = format!(
        "mkdir -p {FOLDER}; sleep 300 | {other} >/dev/null 2>{said} & echo $(jobs -p) $!; until grep -q answered {said}; do sleep 0.2; done"
    );
    let bench = super::prepare(host)?;
    let processes = host.sh(&begin)?;
    let measured = in_turn(host, &bench, 1, &both());
    host.sh(&format!("kill {processes}; rm {said}"))?;
    let samples = measured?;
    let row = |name: &str, figure: fn(&Sample) -> f64| beside(host, name, "bytes", (PEER, &samples), figure);
    let beside = row("the same, beside the peer", |sample| sample.memory.private as f64);
    Ok(vec![
        Row::new(
            host.kind,
            "machine process, private memory without guest RAM",
            "bytes",
            beside.value,
        )
        .at_most(MOST_PRIVATE),
        beside,
        row("guest RAM taken from the host at the agent's hello", |sample| {
            sample.memory.ram as f64
        }),
        row("guest memory in use at the agent's hello, by the guest", |sample| {
            sample.guest_used as f64
        }),
    ])
}

/// Of ours, and of a peer's.
pub(super) type Samples = (Vec<Sample>, Vec<Sample>);

/// So many starts of ours and of the peer. The first of each reads its program for the first time and is not counted.
pub(super) fn in_turn(host: &Host, bench: &str, starts: usize, (ours, theirs): &(CommandLine, CommandLine)) -> Result<Samples> {
    let pairs = (0..=starts).map(|_| Ok((start(host, bench, ours)?, start(host, bench, theirs)?)));
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    Ok(pairs.into_iter().skip(1).unzip())
}

/// Medians.
pub(super) fn beside(
    host: &Host,
    name: &str,
    unit: &'static str,
    (peer, (ours, theirs)): (&'static str, &Samples),
    figure: fn(&Sample) -> f64,
) -> Row {
    let of = |samples: &[Sample]| median(samples.iter().map(figure).collect());
    Row::new(host.kind, name, unit, of(ours)).beside(peer, of(theirs))
}

pub(super) fn calls(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    let bench = super::prepare(host)?;
    let name = "system calls of a start to the agent's hello";
    Ok(vec![calls_beside(host, &bench, name, (PEER, &both()))?])
}

/// A count: once each.
pub(super) fn calls_beside(
    host: &Host,
    bench: &str,
    name: &str,
    (peer, (ours, theirs)): (&'static str, &(CommandLine, CommandLine)),
) -> Result<Row> {
    let count = |line: &CommandLine| stopwatch::<u64>(host, bench, &["calls", "--way", &line.way], &line.argv);
    let row = Row::new(host.kind, name, "calls", count(ours)? as f64);
    Ok(row.beside(peer, count(theirs)? as f64).at_most(1.0))
}

fn both() -> (CommandLine, CommandLine) {
    (command_line::kvmlet(Machine::PLAIN), command_line::qemu(Machine::PLAIN, "", ""))
}

fn start(host: &Host, bench: &str, line: &CommandLine) -> Result<Sample> {
    let ram = (MEMORY << 20).to_string();
    stopwatch(host, bench, &["start", "--way", &line.way, "--ram", &ram], &line.argv)
}
