//! Machines that are made of a snapshot, beside our own cold starts in the same run: how long one takes, what it holds in memory once its guest
//! idles, and how many start in a second, alone and at once.

use anyhow::{Result, ensure};

use super::{FOLDER, Options, Row, command_line::held, guest::Own, measure::Many, median, start, stopwatch};
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
/// Copies one after the other, which all run on; and of these how many at the beginning and at the end are compared.
const BESIDE_EACH_OTHER: usize = 100;
const COMPARED: usize = 10;
/// Of the first ones' processor time, that of the last ones.
const FLAT: f64 = 1.1;
/// Starts at once.
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
    let beside = |name: &str, figure: fn(&Own) -> f64| row(name, "s", of(&copies, figure)).beside(COLD, of(&colds, figure));
    let name = "copy of a template, process to agent's hello";
    let time = beside(name, |sample| sample.seconds);
    let work = beside(&format!("{name}, processor time"), |sample| sample.processor);
    let mut rows = start::by_kind(host.kind, (time, work), most);
    rows.extend([
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
    ]);
    rows.push(flat(host, bench, &copy)?);
    Ok(rows)
}

/// Whether a copy costs the same beside many others.
fn flat(host: &Host, bench: &str, copy: &[String]) -> Result<Row> {
    let count = BESIDE_EACH_OTHER.to_string();
    let each: Vec<f64> = stopwatch(host, bench, &["beside-each-other", "--count", &count], copy)?;
    ensure!(each.len() == BESIDE_EACH_OTHER, "{} copies were started", each.len());
    let before_last = BESIDE_EACH_OTHER - COMPARED;
    let (first, last) = (&each[..COMPARED], &each[before_last..]);
    let name = format!("a copy beside {before_last} others and more, processor time");
    let row = Row::new(host.kind, name, "s", median(last.to_vec()));
    Ok(row.beside("the first ones", median(first.to_vec())).at_most(FLAT))
}

pub(super) fn at_once(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    let bench = super::prepare(host)?;
    let template = take(host)?;
    let kibibytes: u64 = host.sh("awk '/MemAvailable/ { print $2 }' /proc/meminfo")?.trim().parse()?;
    let available = kibibytes << 10;
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
    let cold = MANY
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
