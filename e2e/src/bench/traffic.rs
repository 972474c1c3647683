//! Runs on a host: starts a monitor whose guest serves `kvmlet-load`, and measures its disk, its network or its vsock, one after the other: each
//! for so long, by the clock, or so much of each, by the processor time that the monitor takes.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use kvmlet_load::{Access, CHUNK, Done, GUEST, HOST, LAST, PORT, PREFIX, Task, hear, tell};

use super::{
    monitor::Monitor,
    way::{Connection, Way},
};

/// A round trip's message, bytes.
const MESSAGE: usize = 64;

/// What a stream carries where the work is measured: enough that connecting does not count, bytes.
const STREAMED: u64 = 16 << 20;
/// Round trips there.
const TRIPS: u64 = 400;

/// Names of figures, in the order in which they are shown.
pub(super) const DISK: [&str; 5] = [
    "4 KiB random reads",
    "4 KiB random reads, 8 at once",
    "4 KiB random writes",
    "1 MiB sequential reads",
    "1 MiB sequential writes",
];
pub(super) const STREAM: [&str; 3] = ["stream to the guest", "stream from the guest", "64-byte round trips"];

/// What is measured of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Its first disk.
    Disk,
    /// Its network device.
    Net,
    /// Its vsock.
    Vsock,
}

/// How much of a figure is measured, and in which seconds.
#[derive(Clone, Copy)]
enum Extent<'a> {
    /// For so long, by the clock.
    Time(Duration),
    /// A given amount, in processor seconds of the monitor: its guest's and its vhost thread's among them.
    Work(&'a Monitor),
}

impl Extent<'_> {
    fn more(self, done: u64, all: u64, begun: Instant) -> bool {
        match self {
            Self::Time(time) => begun.elapsed() < time,
            Self::Work(_) => done < all,
        }
    }

    /// Seconds so far.
    fn spent(self, begun: Instant) -> Result<f64> {
        match self {
            Self::Time(_) => Ok(begun.elapsed().as_secs_f64()),
            Self::Work(monitor) => monitor.processor_seconds(),
        }
    }
}

/// Starts `argv`, measures, ends it: transfers or round trips a second, or bytes a second. Without a `time` these are processor seconds.
pub(super) fn measure(what: What, way: &Way, tap: Option<&str>, time: Option<Duration>, argv: &[String]) -> Result<BTreeMap<String, f64>> {
    way.clear();
    let mut monitor = Monitor::start(argv, Stdio::inherit())?;
    if let Some(tap) = tap {
        let there = || {
            ensure!(is_there(tap), "no {tap}");
            Ok(())
        };
        monitor.wait(there)?;
        ip(&["address", "add", &format!("{HOST}/{PREFIX}"), "dev", tap])?;
        ip(&["link", "set", tap, "up"])?;
    }
    let vsock = || way.connect(u32::from(PORT));
    let tcp = || Connection::tcp(GUEST, PORT).context("reach the guest by TCP");
    // A guest that listens by vsock listens by TCP already.
    monitor.wait(vsock)?;
    if matches!(what, What::Net) {
        monitor.wait(tcp)?;
    }
    let extent = time.map_or(Extent::Work(&monitor), Extent::Time);
    let figures = match what {
        What::Disk => disk(vsock, time.context("a disk is measured by the clock")?),
        What::Net => streams(tcp, extent),
        What::Vsock => streams(vsock, extent),
    };
    drop(monitor);
    // One that was made for the monitor outlives it.
    if let Some(tap) = tap.filter(|tap| is_there(tap)) {
        ip(&["link", "delete", tap])?;
    }
    figures
}

fn is_there(tap: &str) -> bool {
    Path::new("/sys/class/net").join(tap).exists()
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).status().context("run ip")?;
    ensure!(status.success(), "ip {}: {status}", arguments.join(" "));
    Ok(())
}

fn disk(connect: impl Fn() -> Result<Connection>, time: Duration) -> Result<BTreeMap<String, f64>> {
    let accesses = [
        (false, true, 4 << 10, 1),
        (false, true, 4 << 10, 8),
        (true, true, 4 << 10, 1),
        (false, false, 1 << 20, 1),
        (true, false, 1 << 20, 1),
    ];
    let measured = DISK.iter().zip(accesses).map(|(name, (write, random, block, threads))| {
        let access = Access {
            write,
            random,
            block,
            threads,
            time,
        };
        let mut stream = connect()?;
        tell(&mut stream, &Task::Disk(access))?;
        let done: Done = hear(&mut stream).with_context(|| format!("hear of {name}"))?;
        let rate = done.transfers as f64 / done.seconds;
        Ok(((*name).to_owned(), if random { rate } else { rate * block as f64 }))
    });
    measured.collect()
}

fn streams(connect: impl Fn() -> Result<Connection>, extent: Extent<'_>) -> Result<BTreeMap<String, f64>> {
    let figures = [
        to_guest(connect()?, extent)?,
        from_guest(connect()?, extent)?,
        round_trips(connect()?, extent)?,
    ];
    Ok(STREAM.iter().map(ToString::to_string).zip(figures).collect())
}

/// Until the guest has said that it has all.
fn to_guest(mut stream: Connection, extent: Extent<'_>) -> Result<f64> {
    tell(&mut stream, &Task::Sink)?;
    let mut chunk = vec![0; CHUNK];
    let begun = Instant::now();
    let before = extent.spent(begun)?;
    let mut sent = 0;
    while chunk[0] != LAST {
        sent += CHUNK as u64;
        if !extent.more(sent, STREAMED, begun) {
            chunk[0] = LAST;
        }
        stream.write_all(&chunk).context("send to the guest")?;
    }
    let mut total = [0; 8];
    stream.read_exact(&mut total).context("hear how much came")?;
    let seconds = extent.spent(begun)? - before;
    ensure!(
        u64::from_le_bytes(total) == sent,
        "{sent} bytes were sent, {} came",
        u64::from_le_bytes(total)
    );
    Ok(sent as f64 / seconds)
}

fn from_guest(mut stream: Connection, extent: Extent<'_>) -> Result<f64> {
    tell(&mut stream, &Task::Source)?;
    let mut chunk = vec![0; CHUNK];
    let begun = Instant::now();
    let before = extent.spent(begun)?;
    let mut received = 0;
    while extent.more(received, STREAMED, begun) {
        let length = stream.read(&mut chunk).context("hear the guest")?;
        ensure!(length > 0, "the guest sends no more");
        received += length as u64;
    }
    Ok(received as f64 / (extent.spent(begun)? - before))
}

fn round_trips(mut stream: Connection, extent: Extent<'_>) -> Result<f64> {
    tell(&mut stream, &Task::Echo)?;
    let mut message = [0; MESSAGE];
    let begun = Instant::now();
    let before = extent.spent(begun)?;
    let mut trips = 0;
    while extent.more(trips, TRIPS, begun) {
        stream.write_all(&message).context("send to the guest")?;
        stream.read_exact(&mut message).context("hear the guest")?;
        trips += 1;
    }
    Ok(trips as f64 / (extent.spent(begun)? - before))
}
