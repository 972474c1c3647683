//! Machines that are made of a snapshot, beside our own cold starts in the same run: how long one takes, what it holds in memory once its guest
//! idles, and how many start in a second, alone and at once.

use anyhow::Result;

use super::{FOLDER, Options, Row, command_line::held, guest::Own, measure::Many, median, stopwatch};
use crate::{Cluster, Host, HostKind};

const COLD: &str = "our cold start";
/// Of a cold start's time. On real hardware reading the kernel costs nothing beside the guest's boot.
const MOST_EMULATED: f64 = 0.2;
const MOST_NATIVE: f64 = 0.1;
/// Memory that is a machine's own, with its guest idle, bytes.
const MOST_COLD: f64 = (40 << 20) as f64;
const MOST_COPY: f64 = (12 << 20) as f64;
/// After the agent's hello, milliseconds: free pages are reported every two seconds.
const IDLE: &str = "5000";
/// Starts at once.
const EMULATED_COLD: [usize; 3] = [1, 4, 16];
const MANY: [usize; 3] = [1, 10, 100];
/// What a machine may need, for choosing how many, bytes.
const ROOM: u64 = 64 << 20;

/// How often, for medians.
const ROUNDS: usize = 5;

pub(super) fn rows(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    let bench = super::prepare(host)?;
    let template = take(host)?;
    let measured = measure(host, &bench, &template);
    host.sh(&format!("rm -rf {template}"))?;
    measured
}

fn measure(host: &Host, bench: &str, template: &str) -> Result<Vec<Row>> {
    let (cold, copy) = (held(&[]), held(&["--from", template]));
    let (mut colds, mut copies) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let own = |argv: &[String]| stopwatch::<Own>(host, bench, &["own", "--idle", if round == 0 { "0" } else { IDLE }], argv);
        let (a, b) = (own(&cold)?, own(&copy)?);
        // The first of each reads files for the first time.
        if round > 0 {
            colds.push(a);
            copies.push(b);
        }
    }
    let of = |samples: &[Own], figure: fn(&Own) -> f64| median(samples.iter().map(figure).collect());
    let row = |name: &str, unit, value| Row::new(host.kind, name, unit, value);
    let most = match host.kind {
        HostKind::Native => MOST_NATIVE,
        HostKind::Emulated => MOST_EMULATED,
    };
    let seconds = |samples: &[Own]| of(samples, |sample| sample.seconds);
    Ok(vec![
        row("copy of a template, process to agent's hello", "s", seconds(&copies))
            .beside(COLD, seconds(&colds))
            .at_most(most),
        row("of it the process's own start", "s", of(&copies, |sample| sample.process)),
        row(
            "copy's own memory, guest idle",
            "bytes",
            of(&copies, |sample| sample.anonymous as f64),
        )
        .at_most(MOST_COPY),
        row(
            "cold machine's own memory, guest idle",
            "bytes",
            of(&colds, |sample| sample.anonymous as f64),
        )
        .at_most(MOST_COLD),
    ])
}

pub(super) fn at_once(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    let bench = super::prepare(host)?;
    let template = take(host)?;
    let kibibytes: u64 = host.sh("awk '/MemAvailable/ { print $2 }' /proc/meminfo")?.trim().parse()?;
    let available = kibibytes << 10;
    let cold = if host.kind == HostKind::Native { MANY } else { EMULATED_COLD };
    let mut rows = Vec::new();
    let mut measure = |what: &str, argv: &[String], count: usize| -> Result<()> {
        let count_text = count.to_string();
        let many: Many = stopwatch(host, &bench, &["many", "--count", &count_text], argv)?;
        let row = |name: &str, unit, value: f64| Row::new(host.kind, format!("{count} {what} at once: {name}"), unit, value);
        rows.extend([
            row("starts a second", "1/s", count as f64 / many.seconds),
            row("median of one", "s", median(many.each)),
            row("host's processors used", "%", many.busy * 100.0),
            row("host's memory taken by one", "bytes", many.memory as f64 / count as f64),
        ]);
        Ok(())
    };
    let fits = |count: &usize| *count as u64 * ROOM < available;
    let (plain, copy) = (held(&[]), held(&["--from", &template]));
    let cold = cold
        .into_iter()
        .filter(fits)
        .try_for_each(|count| measure("cold starts", &plain, count));
    let copies = cold.and_then(|()| MANY.into_iter().filter(fits).try_for_each(|count| measure("copies", &copy, count)));
    host.sh(&format!("rm -rf {template}"))?;
    copies.map(|()| rows)
}

/// A template of the plain machine, in memory.
pub(super) fn take(host: &Host) -> Result<String> {
    let template = format!("{FOLDER}/template");
    let argv = held(&["--take", &template]);
    let script = argv.iter().filter(|word| *word != "--hold").map(|word| format!("'{word}' "));
    host.sh(&script.collect::<String>())?;
    Ok(template)
}
