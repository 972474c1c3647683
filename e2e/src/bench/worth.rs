//! What a second of a host's processor is worth. An emulated host counts as a program's own time what its emulator waited for processors
//! meanwhile, so the same work takes more of that time on a busy machine. A program on the host does the same small work again and again, and keeps
//! what it took: the rate at which other programs' time of the same phase is to be counted.

use std::{fs, hint::black_box, path::Path, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{sys::signal::Signal, time::ClockId, unistd::getppid};

use super::FOLDER;
use crate::{Host, agent::Service, wait_for};

const NAME: &str = "worth";
/// Between two pieces of work.
const PAUSE: Duration = Duration::from_millis(40);
/// Of one piece: turns of arithmetic, and system calls.
const TURNS: u64 = 400_000;
const CALLS: u64 = 400;

/// What the work took up to some moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Worth {
    pieces: f64,
    /// Of processor time.
    seconds: f64,
}

impl Worth {
    /// Seconds for one piece between an earlier moment and this one.
    pub(super) fn since(self, before: Self) -> Result<f64> {
        let pieces = self.pieces - before.pieces;
        ensure!(pieces > 0.0, "nothing of known worth was done meanwhile");
        Ok((self.seconds - before.seconds) / pieces)
    }
}

/// The program at work on a host.
pub(super) struct Worker<'a>(&'a Host);

impl<'a> Worker<'a> {
    /// Starts `bench`, this program on the host.
    pub(super) fn start(host: &'a Host, bench: &str) -> Result<Self> {
        let file = file();
        host.sh(&format!("rm -f {file}"))?;
        host.start_service(&Service {
            name: NAME.into(),
            argv: [bench, "measure", "worth", "--file", &file].map(str::to_owned).to_vec(),
            env: Vec::new(),
            log: "/var/log/worth.log".into(),
        })?;
        let worker = Self(host);
        wait_for("the work of known worth", Duration::from_secs(20), || worker.now().map(Some))?;
        Ok(worker)
    }

    pub(super) fn now(&self) -> Result<Worth> {
        let text = self.0.sh(&format!("cat {}", file()))?;
        let mut words = text.split_ascii_whitespace().map(str::parse::<f64>);
        match (words.next(), words.next()) {
            (Some(Ok(pieces)), Some(Ok(seconds))) => Ok(Worth { pieces, seconds }),
            _ => anyhow::bail!("read {text:?}"),
        }
    }

    pub(super) fn stop(self) -> Result<()> {
        self.0.stop_service(NAME, Signal::SIGTERM, Duration::from_secs(10)).map(drop)
    }
}

fn file() -> String {
    format!("{FOLDER}/{NAME}")
}

/// Runs on a host, until it is ended: what it has done and what that took, in a file that is always whole.
pub(super) fn run(file: &Path) -> Result<()> {
    let next = file.with_extension("next");
    let (mut pieces, mut spent) = (0_u64, Duration::ZERO);
    loop {
        let before = own_time()?;
        piece();
        spent += own_time()?.saturating_sub(before);
        pieces += 1;
        fs::write(&next, format!("{pieces} {}\n", spent.as_secs_f64())).with_context(|| format!("write {}", next.display()))?;
        fs::rename(&next, file).with_context(|| format!("write {}", file.display()))?;
        thread::sleep(PAUSE);
    }
}

fn own_time() -> Result<Duration> {
    let now = ClockId::CLOCK_THREAD_CPUTIME_ID.now().context("read this thread's clock")?;
    Ok(now.into())
}

fn piece() {
    let mut value = 1_u64;
    for turn in 0..TURNS {
        // A step of a linear congruential generator.
        value = black_box(value).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(turn);
        if turn % (TURNS / CALLS) == 0 {
            black_box(getppid());
        }
    }
    black_box(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_costs_what_was_spent_between_two_moments() {
        let (before, after) = (
            Worth {
                pieces: 10.0,
                seconds: 1.0,
            },
            Worth {
                pieces: 30.0,
                seconds: 5.0,
            },
        );
        assert_eq!(after.since(before).unwrap(), 0.2);
        assert!(before.since(before).is_err(), "no work, no worth");
    }
}
