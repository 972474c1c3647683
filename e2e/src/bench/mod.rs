//! What kvmlet costs in time and memory, beside a peer where there is one: measured in the rig's own hosts, printed as a table, kept as
//! `target/bench.json`. Each part measures one thing and answers rows; a row knows its limit, and a bench over a limit fails.

mod admission;
mod burst;
mod command_line;
mod copies;
mod devices;
pub mod exits;
mod guest;
mod image;
mod logs;
mod measure;
mod monitor;
mod peers;
mod pods;
mod process;
mod resume;
mod reviews;
mod smaps;
mod ssh;
mod start;
mod traffic;
mod way;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::{Serialize, de::DeserializeOwned};

pub use self::measure::Measure;

use crate::{
    Cluster, ClusterOptions, Host, HostKind,
    paths::{THIS_PROGRAM, repository, write},
    progress::{say, step},
};

/// A folder of each host that is in memory, for what is read while a clock runs.
const FOLDER: &str = "/run/kvmlet/bench";
/// For one measurement inside a host.
const DEADLINE: Duration = Duration::from_secs(240);

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Pods to create at once.
    pub pods: usize,
    /// Times to start a machine, and its peer in turn.
    pub starts: usize,
    /// Only parts whose name contains this.
    pub filter: String,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    value: f64,
    peer: Option<&'static str>,
    peer_value: Option<f64>,
    ratio: Option<f64>,
    kvm: HostKind,
    /// The most that the value may be, or the ratio where there is a peer.
    #[serde(skip)]
    limit: Option<f64>,
    /// The least that the ratio may be.
    #[serde(skip)]
    least: Option<f64>,
}

impl Row {
    fn new(kvm: HostKind, name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self {
            name: name.into(),
            unit,
            value,
            peer: None,
            peer_value: None,
            ratio: None,
            kvm,
            limit: None,
            least: None,
        }
    }

    fn beside(self, peer: &'static str, value: f64) -> Self {
        Self {
            peer: Some(peer),
            peer_value: Some(value),
            ratio: Some(self.value / value),
            ..self
        }
    }

    fn at_most(self, limit: f64) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    fn at_least(self, least: f64) -> Self {
        Self {
            least: Some(least),
            ..self
        }
    }

    /// Of a row in bytes a second.
    fn in_megabytes(&mut self) {
        self.unit = "MB/s";
        self.value /= 1e6;
        self.peer_value = self.peer_value.map(|value| value / 1e6);
    }

    /// Whether it is outside of its limit.
    fn is_off(&self) -> bool {
        let value = self.ratio.unwrap_or(self.value);
        self.limit.is_some_and(|limit| value > limit) || self.least.is_some_and(|least| value < least)
    }
}

/// A named group of rows.
struct Part {
    name: &'static str,
    /// Measured where the same work always takes the same time, since it compares the work of monitors.
    counted: bool,
    measure: fn(&Cluster, &Options) -> Result<Vec<Row>>,
}

const PARTS: [Part; 18] = [
    Part {
        name: "exits until the agent's hello",
        counted: false,
        measure: exits::rows,
    },
    Part {
        name: "machine start",
        counted: true,
        measure: start::rows,
    },
    Part {
        name: "machine memory",
        counted: false,
        measure: start::memory,
    },
    Part {
        name: "system calls",
        counted: true,
        measure: start::calls,
    },
    Part {
        name: "copies of a template",
        counted: true,
        measure: copies::rows,
    },
    Part {
        name: "starts at once",
        counted: false,
        measure: copies::at_once,
    },
    Part {
        name: "block device",
        counted: false,
        measure: devices::disk,
    },
    Part {
        name: "network",
        counted: false,
        measure: devices::net,
    },
    Part {
        name: "network by processor time",
        counted: true,
        measure: devices::net_work,
    },
    Part {
        name: "vsock",
        counted: false,
        measure: devices::vsock,
    },
    Part {
        name: "peers",
        counted: true,
        measure: peers::rows,
    },
    Part {
        name: "peers' network and vsock",
        counted: true,
        measure: peers::traffic,
    },
    Part {
        name: "image conversion",
        counted: false,
        measure: image::conversion,
    },
    Part {
        name: "admission",
        counted: false,
        measure: admission::rows,
    },
    Part {
        name: "second pod of an image",
        counted: false,
        measure: image::second_pod,
    },
    Part {
        name: "pods created at once",
        counted: false,
        measure: pods::rows,
    },
    Part {
        name: "log of a container",
        counted: false,
        measure: |cluster, _| logs::rows(cluster),
    },
    Part {
        name: "burst",
        counted: true,
        measure: burst::rows,
    },
];

/// Measures, prints and keeps all figures; whether all were within their limits.
pub fn run(options: &Options) -> Result<bool> {
    let cluster = Cluster::up(&ClusterOptions {
        memory: Some(10 << 10),
        ..ClusterOptions::default()
    })?;
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    let (counted, others): (Vec<_>, Vec<_>) = PARTS
        .iter()
        .filter(|part| part.name.contains(&options.filter))
        .partition(|part| part.counted);
    let mut measure = |part: &Part, cluster: &Cluster| {
        match step(part.name, || (part.measure)(cluster, options)) {
            Ok(more) => rows.extend(more),
            // The other figures are still worth having.
            Err(error) => failed.push(format!("{}: {error:#}", part.name)),
        }
    };
    if !counted.is_empty() {
        let host = cluster.counted()?;
        counted.into_iter().for_each(|part| measure(part, &host.cluster));
    }
    others.into_iter().for_each(|part| measure(part, &cluster));
    println!("{}", table(&rows));
    if std::env::var(peers::VARIABLE).is_err() {
        println!(
            "no {} given: nothing is compared with Firecracker or Cloud Hypervisor",
            peers::VARIABLE
        );
    }
    let file = repository().join("target/bench.json");
    write(&file, serde_json::to_vec_pretty(&rows).context("describe the figures")?)?;
    say(format_args!("the figures are in {}", file.display()));
    for error in &failed {
        say(format_args!("not measured: {error}"));
    }
    Ok(failed.is_empty() && !rows.iter().any(Row::is_off))
}

/// This program on the host, as it is now, and what peers need of the host's kernel.
fn prepare(host: &Host) -> Result<String> {
    host.sh(&format!("mkdir -p {FOLDER} && modprobe -q vhost_vsock; test -c /dev/vhost-vsock"))?;
    let path = format!("{FOLDER}/kvmlet-e2e");
    host.put_file(&path, 0o755, Path::new(THIS_PROGRAM))?;
    Ok(path)
}

/// What this program measures on the host, of a monitor.
fn stopwatch<T: DeserializeOwned>(host: &Host, bench: &str, which: &[&str], argv: &[String]) -> Result<T> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let all = [&[bench, "measure"], which, &["--"], &argv].concat();
    let output = host.run_with(&all, b"", DEADLINE)?;
    ensure!(output.code == 0, "{}: {}", argv[0], output.error_text());
    serde_json::from_slice(&output.stdout).with_context(|| format!("read {}", output.text()))
}

/// The middle one, or the lower of the two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    percentile(&values, 50)
}

/// Of sorted values, by nearest rank.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

fn table(rows: &[Row]) -> String {
    let number = |value: f64| {
        if value.fract() == 0.0 {
            format!("{value:.0}")
        } else {
            format!("{value:.3}")
        }
    };
    let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
    let mut cells = vec![["figure", "value", "unit", "peer's", "ratio", "limit", "peer"].map(str::to_owned)];
    cells.extend(rows.iter().map(|row| {
        let mark = if row.is_off() { " MISSED" } else { "" };
        let limit = match row.least {
            Some(least) => format!(">= {}", number(least)),
            None => optional(row.limit),
        };
        [
            row.name.clone(),
            number(row.value),
            row.unit.to_owned(),
            optional(row.peer_value),
            optional(row.ratio),
            format!("{limit}{mark}"),
            row.peer.unwrap_or("-").to_owned(),
        ]
    }));
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    let line = |row: &[String; 7]| {
        let padded = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            1 | 3 | 4 => format!("{cell:>width$}"),
            _ => format!("{cell:width$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    cells.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert_eq!((percentile(&sorted, 50), percentile(&sorted, 95)), (2.0, 4.0));
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
    }

    #[test]
    fn with_a_peer_the_limit_is_on_the_ratio() {
        let row = Row::new(HostKind::Emulated, "start", "s", 3.0).at_most(1.0);
        assert!(row.is_off());
        assert!(!row.clone().beside("other", 4.0).is_off());
        assert!(row.beside("other", 2.0).is_off());
    }

    #[test]
    fn a_rate_has_a_least_ratio() {
        let row = Row::new(HostKind::Emulated, "reads", "1/s", 7.0).beside("other", 10.0);
        assert!(row.clone().at_least(0.8).is_off());
        assert!(!row.at_least(0.7).is_off());
    }

    #[test]
    fn a_row_is_kept_with_the_agreed_keys() {
        let row = Row::new(HostKind::Emulated, "start", "s", 1.0).beside("other", 2.0).at_most(1.0);
        let text = serde_json::to_value(&row).unwrap();
        let expected = serde_json::json!({
            "name": "start", "unit": "s", "value": 1.0, "peer": "other", "peer_value": 2.0, "ratio": 0.5, "kvm": "emulated"
        });
        assert_eq!(text, expected);
    }
}
