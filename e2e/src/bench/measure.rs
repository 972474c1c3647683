//! The bench's stopwatches: what `kvmlet-e2e measure` runs inside a host. Each starts machine monitors, measures, ends them and prints JSON.

use std::{fs, process::Stdio, sync::Barrier, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{guest, monitor::Monitor, process, resume, reviews, traffic, way::Way};

/// One stopwatch.
#[derive(Debug, Subcommand)]
pub enum Measure {
    /// One start to the agent's answer.
    Start {
        /// unix:PATH or vsock:CID.
        #[arg(long)]
        way: Way,
        /// The guest's memory, bytes.
        #[arg(long)]
        ram: u64,
        /// The machine monitor.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// One `kvmlet vm --probe --hold`, which says itself when the agent has answered.
    Own {
        /// Milliseconds for which the guest idles before its memory is looked at.
        #[arg(long)]
        idle: u64,
        /// The machine monitor.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// The same, one after the other, all of which run on.
    BesideEachOther {
        /// How many.
        #[arg(long)]
        count: usize,
        /// The machine monitor.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// The same, many at once; all of them run until the last has answered.
    Many {
        /// How many.
        #[arg(long)]
        count: usize,
        /// The machine monitor.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// System calls of one start to the agent's answer, and to its end right after.
    Calls {
        /// unix:PATH or vsock:CID.
        #[arg(long)]
        way: Way,
        /// The machine monitor.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// A guest's disk, network or vsock.
    Traffic {
        /// Which.
        #[arg(long)]
        what: traffic::What,
        /// unix:PATH or vsock:CID.
        #[arg(long)]
        way: Way,
        /// The tap that the monitor makes.
        #[arg(long)]
        tap: Option<String>,
        /// Milliseconds for each figure; without, a given amount of each is measured by the processor time that it takes.
        #[arg(long)]
        time: Option<u64>,
        /// The machine monitor.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// A Firecracker that takes up a snapshot, to the agent's answer; without one it boots and makes it first.
    Resume {
        /// The Firecracker.
        program: String,
        /// The directory with its configuration, where the snapshot is or comes to be.
        folder: String,
    },
    /// Processor seconds of a process so far.
    Processor {
        /// Which.
        #[arg(long)]
        pid: i32,
    },
    /// Reviews to the admission webhook, so many a second.
    Reviews(reviews::Load),
}

/// Many starts at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Many {
    /// From the first process to the last answer.
    pub(super) seconds: f64,
    /// Each one's, sorted.
    pub(super) each: Vec<f64>,
    /// How much of the host's processors was used meanwhile, 0 to 1.
    pub(super) busy: f64,
    /// How much less memory the host had at last, bytes.
    pub(super) memory: u64,
}

impl Measure {
    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        let text = match self {
            Self::Start { way, ram, argv } => serde_json::to_string(&guest::start(way, *ram, argv)?),
            Self::Own { idle, argv } => serde_json::to_string(&guest::own(Duration::from_millis(*idle), argv)?),
            Self::BesideEachOther { count, argv } => serde_json::to_string(&guest::beside_each_other(*count, argv)?),
            Self::Many { count, argv } => serde_json::to_string(&many(*count, argv)?),
            Self::Calls { way, argv } => serde_json::to_string(&calls(way, argv)?),
            Self::Traffic {
                what,
                way,
                tap,
                time,
                argv,
            } => serde_json::to_string(&traffic::measure(
                *what,
                way,
                tap.as_deref(),
                time.map(Duration::from_millis),
                argv,
            )?),
            Self::Resume { program, folder } => serde_json::to_string(&resume::run(program, folder.as_ref())?),
            Self::Processor { pid } => serde_json::to_string(&process::seconds(Pid::from_raw(*pid))?),
            Self::Reviews(load) => serde_json::to_string(&load.run()?),
        };
        println!("{}", text?);
        Ok(())
    }
}

fn many(count: usize, argv: &[String]) -> Result<Many> {
    let (memory, processors) = (available()?, processors()?);
    let (begin, end) = (Barrier::new(count + 1), Barrier::new(count + 1));
    thread::scope(|scope| {
        let one = || {
            begin.wait();
            let said = Monitor::start(argv, Stdio::piped()).and_then(|mut monitor| Ok((monitor.said()?.seconds, monitor)));
            // All meet here, those too that failed; until the others are through, the machine stays.
            end.wait();
            end.wait();
            said.map(|(seconds, _)| seconds)
        };
        let machines: Vec<_> = (0..count).map(|_| scope.spawn(one)).collect();
        begin.wait();
        let begun = std::time::Instant::now();
        end.wait();
        let seconds = begun.elapsed().as_secs_f64();
        let (busy, left) = (processors_since(processors), available());
        end.wait();
        let each = machines
            .into_iter()
            .map(|machine| machine.join().ok().context("a thread panicked")?);
        let mut each = each.collect::<Result<Vec<_>>>()?;
        each.sort_by(f64::total_cmp);
        Ok(Many {
            seconds,
            each,
            busy: busy?,
            memory: memory.saturating_sub(left?),
        })
    })
}

/// Bytes that the host can still give.
pub(super) fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("read the host's memory")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kibibytes.context("the host says no available memory")? << 10)
}

/// Ticks of the processors that programs may use: all, and those in which they had nothing to do.
fn processors() -> Result<(u64, u64)> {
    let status = fs::read_to_string("/proc/self/status").context("read which processors may be used")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap_or_default();
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
    });
    let may_use: Vec<_> = ranges.collect();
    let text = fs::read_to_string("/proc/stat").context("read the host's times")?;
    let (mut all, mut idle) = (0, 0);
    for line in text.lines().filter_map(|line| line.strip_prefix("cpu")) {
        let mut words = line.split_ascii_whitespace();
        let number = words.next().and_then(|word| word.parse::<usize>().ok());
        // Of the line of all processors the first word is a time; it begins with a space.
        if line.starts_with(' ') || !number.is_some_and(|n| may_use.iter().any(|range| range.contains(&n))) {
            continue;
        }
        let ticks: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        // The first eight; the rest is counted among them already.
        ensure!(ticks.len() >= 8, "the host says no times");
        all += ticks[..8].iter().sum::<u64>();
        idle += ticks[3] + ticks[4];
    }
    ensure!(all > 0, "the host says no times");
    Ok((all, idle))
}

fn processors_since((all, idle): (u64, u64)) -> Result<f64> {
    let (all_now, idle_now) = processors()?;
    let all = all_now.saturating_sub(all).max(1) as f64;
    Ok(1.0 - idle_now.saturating_sub(idle) as f64 / all)
}

fn calls(way: &Way, argv: &[String]) -> Result<u64> {
    let file = tempfile::NamedTempFile::new().context("make a file for the counts")?;
    let path = file.path().to_str().context("a path that is not text")?;
    // With an output file it would not hear SIGTERM, but for -I 2.
    let strace = ["strace", "-f", "-c", "-I", "2", "-U", "calls,name", "-o", path, "--"].map(str::to_owned);
    way.clear();
    let mut monitor = Monitor::start(&[&strace[..], argv].concat(), Stdio::inherit())?;
    monitor.wait(|| guest::greet(way))?;
    monitor.terminate()?;
    let text = fs::read_to_string(file.path()).context("read the counts")?;
    total(&text)
}

/// Of `strace -c -U calls,name`.
fn total(text: &str) -> Result<u64> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_suffix("total"))
        .with_context(|| format!("no total in {text}"))?;
    line.trim().parse().with_context(|| format!("read {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_stands_in_the_last_line() {
        let text =
            "    calls syscall\n--------- ----------------\n      150 mmap\n       50 ioctl\n--------- ----------------\n      200 total\n";
        assert_eq!(total(text).unwrap(), 200);
        assert!(total("nothing").is_err());
    }
}
