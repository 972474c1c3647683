//! How answers count: thresholds of a probe, and how often a pod's owner is told of them. Pure.

use jiff::{SignedDuration, Timestamp};

/// Answers of a probe, counted.
#[derive(Debug)]
pub(super) struct Tally {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
}

impl Tally {
    pub(super) fn new(success_threshold: u32, failure_threshold: u32) -> Self {
        Self {
            success_threshold,
            failure_threshold,
            last: None,
            run: 0,
        }
    }

    /// Counts an answer; what it makes of the container once there were enough of its kind in a row.
    pub(super) fn count(&mut self, healthy: bool) -> Option<bool> {
        if self.last == Some(healthy) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(healthy);
            self.run = 1;
        }
        let needed = if healthy { self.success_threshold } else { self.failure_threshold };
        (self.run >= needed).then_some(healthy)
    }
}

/// Events at once (client-go's spam filter of events).
const BURST: i64 = 25;
/// One more after so long.
const REFILL: SignedDuration = SignedDuration::from_mins(5);

/// Events that a pod's probes may tell: a burst, then a few.
#[derive(Debug)]
pub(super) struct Budget {
    left: i64,
    since: Timestamp,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            left: BURST,
            since: Timestamp::UNIX_EPOCH,
        }
    }
}

impl Budget {
    /// Whether one more may be told now.
    pub(super) fn take(&mut self, now: Timestamp) -> bool {
        let more = now.duration_since(self.since).as_secs().max(0) / REFILL.as_secs();
        if more > 0 {
            self.left = self.left.saturating_add(more).min(BURST);
            self.since = now;
        }
        let may = self.left > 0;
        self.left -= i64::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_in_a_row_count() {
        let mut tally = Tally::new(2, 3);
        let answers = [false, false, true, false, false, false, false, true, true];
        let verdicts: Vec<_> = answers.iter().map(|a| tally.count(*a)).collect();
        assert_eq!(verdicts, [None, None, None, None, None, Some(false), Some(false), None, Some(true)]);
    }

    #[test]
    fn a_pod_whose_probes_always_fail_is_told_of_less_and_less() {
        let mut budget = Budget::default();
        let mut now = Timestamp::from_second(1_000_000).unwrap();
        let mut told = 0;
        for _ in 0..3600 {
            now += SignedDuration::from_secs(1);
            told += i64::from(budget.take(now));
        }
        assert_eq!(told, BURST + 11);
    }
}
