//! What a person watching sees: one line when a step begins and one when it ended, with times. No state, no decisions.

use std::{fmt::Display, sync::OnceLock, time::Instant};

use anyhow::Result;

static START: OnceLock<Instant> = OnceLock::new();

/// Seconds since the first line.
pub fn elapsed() -> f64 {
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// A line of its own.
pub fn say(text: impl Display) {
    eprintln!("[{:6.1} s] {text}", elapsed());
}

/// Runs a step between its two lines.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(format_args!("{name} ..."));
    let started = Instant::now();
    let result = work();
    let seconds = started.elapsed().as_secs_f64();
    match &result {
        Ok(_) => say(format_args!("{name}: done in {seconds:.1} s")),
        Err(_) => say(format_args!("{name}: FAILED after {seconds:.1} s")),
    }
    result
}
