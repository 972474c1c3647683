//! Waiting for a condition with a deadline: the only way to wait in the rig and in its tests.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

/// Asks `condition` until it answers `Ok(Some(_))`. `Ok(None)` and errors mean "not yet"; the last error is told at the deadline.
pub fn wait_for<T>(what: &str, deadline: Duration, condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait_while(what, deadline, || Ok(()), condition)
}

/// As [`wait_for`], but gives up at once when `still_possible` fails (a process died, say).
pub fn wait_while<T>(
    what: &str,
    deadline: Duration,
    mut still_possible: impl FnMut() -> Result<()>,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(50);
    loop {
        let last = match condition() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        still_possible().map_err(|error| error.context(format!("waiting for {what}")))?;
        if Instant::now() >= end {
            let waited = format!("waited {} s for {what}", deadline.as_secs());
            return Err(last.map_or_else(|| anyhow!(waited.clone()), |error| error.context(waited.clone())));
        }
        thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_told_at_the_deadline() {
        let error = wait_for::<()>("rain", Duration::from_millis(1), || Err(anyhow!("sunshine"))).unwrap_err();
        assert_eq!(format!("{error:#}"), "waited 0 s for rain: sunshine");
    }

    #[test]
    fn an_impossible_condition_is_not_waited_for() {
        let started = Instant::now();
        let error = wait_while::<()>("rain", Duration::from_secs(60), || Err(anyhow!("no sky")), || Ok(None)).unwrap_err();
        assert_eq!(format!("{error:#}"), "waiting for rain: no sky");
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
