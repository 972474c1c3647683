//! What a guest's disk, network and vsock carry, beside QEMU's microvm with the same guest in turn: its first process is `kvmlet-load` in place of
//! the agent.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    FOLDER, Options, Row,
    command_line::{self, CommandLine, Machine},
    median, stopwatch, traffic,
};
use crate::{Cluster, Host, HostKind, artifacts, progress::say};

/// Times each monitor is measured, in turn; medians.
const ROUNDS: usize = 3;
/// The same beside a monitor that carries a stream in one of two ways from run to run, by a seventh apart.
const MORE_ROUNDS: usize = 9;
/// For each figure, milliseconds.
const TIME: u64 = 1500;
/// On the host's disk, as a pod's are; all of it in the host's page cache.
const DISK: &str = "/var/lib/kvmlet/bench-disk";
/// Its size, MiB.
const DISK_SIZE: u64 = 256;
const TAP: &str = "kvmlet-bench";
const QEMU: &str = "QEMU microvm";
/// Of what vhost-net carries.
const LEAST_OF_VHOST: f64 = 0.8;

type Figures = BTreeMap<String, f64>;

pub(super) fn disk(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    let (host, bench, initramfs) = prepare(cluster)?;
    host.sh(&format!("dd if=/dev/zero of={DISK} bs=1M count={DISK_SIZE} status=none && sync"))?;
    let machine = Machine {
        initramfs: &initramfs,
        disk: Some(DISK),
        tap: None,
    };
    let lines = [
        command_line::kvmlet(machine),
        command_line::qemu(machine, "", ""),
        command_line::qemu(machine, ",aio=io_uring", ""),
    ];
    let time = TIME.to_string();
    let what = ["--what", "disk", "--time", &time];
    let mut figures = in_turn(host, &bench, &what, &lines[..2], ROUNDS);
    let mut peers = vec![(QEMU, Some(1.0))];
    // Reported beside, where this host's QEMU and kernel have it.
    match (&mut figures, in_turn(host, &bench, &what, &lines[2..], ROUNDS)) {
        (Ok(figures), Ok(more)) => {
            figures.extend(more);
            peers.push(("QEMU microvm, io_uring", None));
        }
        (_, Err(error)) => say(format_args!("QEMU with io_uring is not measured: {error:#}")),
        (Err(_), _) => {}
    }
    host.sh(&format!("rm -f {DISK}"))?;
    let mut rows = rows(host, "block", &traffic::DISK, &figures?, &peers)?;
    rows.iter_mut().filter(|row| row.name.contains("1 MiB")).for_each(Row::in_megabytes);
    Ok(rows)
}

pub(super) fn net(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    network(cluster, Some(TIME))
}

/// The same work, judged by processor time where the clock is an emulator's.
pub(super) fn net_work(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    network(cluster, None)
}

/// Each figure for so many milliseconds, or a given amount of each.
fn network(cluster: &Cluster, time: Option<u64>) -> Result<Vec<Row>> {
    let (host, bench, initramfs) = prepare(cluster)?;
    let machine = Machine {
        initramfs: &initramfs,
        disk: None,
        tap: Some(TAP),
    };
    let mut lines = vec![command_line::kvmlet(machine), command_line::qemu(machine, "", ",vhost=off")];
    let mut peers = vec![("QEMU microvm, tap without vhost", None)];
    if host.run(&["sh", "-c", "modprobe -q vhost_net; test -c /dev/vhost-net"])?.code == 0 {
        lines.push(command_line::qemu(machine, "", ",vhost=on"));
        let judged = time.is_some() == (host.kind == HostKind::Native);
        peers.push(("QEMU microvm, vhost-net", judged.then_some(LEAST_OF_VHOST)));
    }
    let words = time.map(|time| ["--time".to_owned(), time.to_string()]);
    let mut what = vec!["--what", "net", "--tap", TAP];
    what.extend(words.iter().flatten().map(String::as_str));
    let figures = in_turn(host, &bench, &what, &lines, ROUNDS)?;
    streams(
        host,
        if time.is_some() { "net" } else { "net, a processor second" },
        &figures,
        &peers,
    )
}

pub(super) fn vsock(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    let (host, bench, initramfs) = prepare(cluster)?;
    let machine = Machine {
        initramfs: &initramfs,
        disk: None,
        tap: None,
    };
    let lines = [command_line::kvmlet(machine), command_line::qemu(machine, "", "")];
    let figures = in_turn(host, &bench, &["--what", "vsock", "--time", &TIME.to_string()], &lines, ROUNDS)?;
    streams(host, "vsock", &figures, &[("QEMU microvm, vhost-vsock", None)])
}

/// Network and vsock beside a monitor of another kind, by processor time: each figure at least the other's.
pub(super) fn beside(cluster: &Cluster, peer: &'static str, theirs: impl Fn(Machine<'_>) -> Result<CommandLine>) -> Result<Vec<Row>> {
    let (host, bench, initramfs) = prepare(cluster)?;
    let mut rows = Vec::new();
    for (what, arguments, tap) in [
        ("net", &["--what", "net", "--tap", TAP][..], Some(TAP)),
        ("vsock", &["--what", "vsock"], None),
    ] {
        let machine = Machine {
            initramfs: &initramfs,
            disk: None,
            tap,
        };
        let theirs = theirs(machine)?;
        let lines = [
            command_line::kvmlet(machine),
            match tap {
                Some(tap) => with_tap(theirs, tap),
                None => theirs,
            },
        ];
        let figures = in_turn(host, &bench, arguments, &lines, MORE_ROUNDS)?;
        rows.extend(streams(
            host,
            &format!("{what}, a processor second"),
            &figures,
            &[(peer, Some(1.0))],
        )?);
    }
    Ok(rows)
}

/// A monitor that makes no tap.
fn with_tap(line: CommandLine, tap: &str) -> CommandLine {
    let script = format!("ip tuntap add {tap} mode tap vnet_hdr && exec \"$@\"");
    CommandLine {
        argv: [command_line::words(&["sh", "-c", &script, "sh"]), line.argv].concat(),
        way: line.way,
    }
}

fn prepare(cluster: &Cluster) -> Result<(&Host, String, String)> {
    let host = cluster.host(0)?;
    let bench = super::prepare(host)?;
    let initramfs = format!("{FOLDER}/load.cpio");
    host.put_file(&initramfs, 0o644, &artifacts::load_initramfs(&scratch(&cluster.state.root))?)?;
    Ok((host, bench, initramfs))
}

fn scratch(root: &Path) -> PathBuf {
    root.join("bench-load")
}

/// Medians of each monitor's figures.
fn in_turn(host: &Host, bench: &str, what: &[&str], lines: &[CommandLine], rounds: usize) -> Result<Vec<Figures>> {
    let mut seen = vec![Vec::new(); lines.len()];
    for round in 1..=rounds {
        for (line, seen) in lines.iter().zip(&mut seen) {
            let arguments = [&["traffic", "--way", &line.way], what].concat();
            seen.push(stopwatch::<Figures>(host, bench, &arguments, &line.argv)?);
        }
        say(format_args!("round {round} of {rounds}"));
    }
    let median_of = |samples: Vec<Figures>| -> Figures {
        let names = samples.first().into_iter().flat_map(BTreeMap::keys);
        let of = |name: &String| median(samples.iter().filter_map(|sample| sample.get(name).copied()).collect());
        names.map(|name| (name.clone(), of(name))).collect()
    };
    Ok(seen.into_iter().map(median_of).collect())
}

fn streams(host: &Host, what: &str, figures: &[Figures], peers: &[(&'static str, Option<f64>)]) -> Result<Vec<Row>> {
    let mut rows = rows(host, what, &traffic::STREAM, figures, peers)?;
    rows.iter_mut()
        .filter(|row| row.name.contains("stream"))
        .for_each(Row::in_megabytes);
    Ok(rows)
}

/// Ours beside each peer, whose least ratio may be given.
fn rows(host: &Host, what: &str, names: &[&str], figures: &[Figures], peers: &[(&'static str, Option<f64>)]) -> Result<Vec<Row>> {
    let (ours, theirs) = figures.split_first().context("nothing was measured")?;
    let mut rows = Vec::new();
    for name in names {
        for ((peer, least), theirs) in peers.iter().zip(theirs) {
            let value = |figures: &Figures| figures.get(*name).copied().with_context(|| format!("{name} was not measured"));
            let row = Row::new(host.kind, format!("{what}: {name}"), "1/s", value(ours)?).beside(peer, value(theirs)?);
            rows.push(match least {
                Some(least) => row.at_least(*least),
                None => row,
            });
        }
    }
    Ok(rows)
}
