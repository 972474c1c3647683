//! Which thresholds are met, since when, and what the node says of it (eviction_manager.go, synchronize). Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Condition, Conditions, Observations};
use crate::config::Threshold;

/// What is remembered from one look to the next.
#[derive(Debug)]
pub struct Monitor {
    /// Memory's first, as it is reclaimed first.
    thresholds: Vec<Threshold>,
    transition: Duration,
    /// Since when those have been met that are, by their number.
    since: BTreeMap<usize, Instant>,
    /// Those that were due at the last look: over only when there is as much again as is to be reclaimed.
    due: BTreeSet<usize>,
    /// When the node was last short.
    last: BTreeMap<Condition, Instant>,
}

/// What a look has shown.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// What the node is short of, or was within the transition period.
    pub conditions: Conditions,
    /// Thresholds that are met and whose grace is over; the first is acted on.
    pub due: Vec<Threshold>,
}

impl Monitor {
    /// One that has seen nothing.
    pub fn new(mut thresholds: Vec<Threshold>, transition: Duration) -> Self {
        thresholds.sort_by_key(|one| one.signal.condition() != Condition::Memory);
        Self {
            thresholds,
            transition,
            since: BTreeMap::new(),
            due: BTreeSet::new(),
            last: BTreeMap::new(),
        }
    }

    /// Takes what is seen now.
    pub fn look(&mut self, seen: &Observations, now: Instant) -> Seen {
        let met: BTreeSet<usize> = (0..self.thresholds.len())
            .filter(|number| is_met(&self.thresholds[*number], seen, self.due.contains(number)))
            .collect();
        self.since.retain(|number, _| met.contains(number));
        for number in &met {
            self.since.entry(*number).or_insert(now);
            self.last.insert(self.thresholds[*number].signal.condition(), now);
        }
        let transition = self.transition;
        self.last.retain(|_, at| *at == now || now.duration_since(*at) < transition);
        let over = |number: &usize| now.duration_since(self.since[number]) >= self.thresholds[*number].grace;
        self.due = met.into_iter().filter(over).collect();
        Seen {
            conditions: self.last.keys().copied().collect(),
            due: self.due.iter().map(|number| self.thresholds[*number]).collect(),
        }
    }

    /// Whether there is enough of everything again, with what is to be reclaimed besides.
    pub fn is_relieved(&self, seen: &Observations) -> bool {
        !self.thresholds.iter().any(|threshold| is_met(threshold, seen, true))
    }
}

fn is_met(threshold: &Threshold, seen: &Observations, until_reclaimed: bool) -> bool {
    let Some(seen) = seen.get(&threshold.signal) else { return false };
    let more = threshold
        .reclaim
        .filter(|_| until_reclaimed)
        .map_or(0, |level| level.of(seen.capacity));
    seen.available < threshold.level.of(seen.capacity).saturating_add(more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Level, Signal},
        pressure::Observation,
        quantity::Quantity,
    };

    fn threshold(signal: Signal, amount: u64, grace: u64, reclaim: Option<u64>) -> Threshold {
        let level = |amount| Level::Amount(Quantity::bytes(amount));
        Threshold {
            signal,
            level: level(amount),
            grace: Duration::from_secs(grace),
            reclaim: reclaim.map(level),
        }
    }

    /// A monitor that is asked at seconds, with so much left of a signal.
    struct Watched(Monitor, Instant);

    impl Watched {
        fn new(thresholds: Vec<Threshold>, transition: u64) -> Self {
            Self(Monitor::new(thresholds, Duration::from_secs(transition)), Instant::now())
        }

        /// What the node is short of, and how many thresholds are due.
        fn at(&mut self, second: u64, signal: Signal, available: u64) -> (Vec<Condition>, usize) {
            let seen = Observations::from([(signal, Observation { available, capacity: 1000 })]);
            let seen = self.0.look(&seen, self.1 + Duration::from_secs(second));
            (seen.conditions.into_iter().collect(), seen.due.len())
        }
    }

    #[test]
    fn a_node_is_short_below_its_threshold_and_says_so_for_the_transition_period_after() {
        let mut node = Watched::new(vec![threshold(Signal::NodeFsAvailable, 100, 0, None)], 30);
        assert_eq!(
            node.at(0, Signal::NodeFsAvailable, 100),
            (vec![], 0),
            "as much as the threshold is enough"
        );
        assert_eq!(node.at(10, Signal::NodeFsAvailable, 99), (vec![Condition::Disk], 1));
        assert_eq!(node.at(20, Signal::NodeFsAvailable, 100), (vec![Condition::Disk], 0));
        assert_eq!(node.at(39, Signal::NodeFsAvailable, 500), (vec![Condition::Disk], 0));
        assert_eq!(node.at(40, Signal::NodeFsAvailable, 500), (vec![], 0));
        let mut hasty = Watched::new(vec![threshold(Signal::NodeFsAvailable, 100, 0, None)], 0);
        assert_eq!(hasty.at(0, Signal::NodeFsAvailable, 1), (vec![Condition::Disk], 1));
        assert_eq!(hasty.at(1, Signal::NodeFsAvailable, 100), (vec![], 0));
    }

    #[test]
    fn a_soft_threshold_is_due_when_it_was_met_for_its_grace_without_a_break() {
        let mut node = Watched::new(vec![threshold(Signal::MemoryAvailable, 100, 20, None)], 5);
        assert_eq!(
            node.at(0, Signal::MemoryAvailable, 1),
            (vec![Condition::Memory], 0),
            "it is said at once"
        );
        assert_eq!(node.at(19, Signal::MemoryAvailable, 1), (vec![Condition::Memory], 0));
        assert_eq!(node.at(25, Signal::MemoryAvailable, 200), (vec![], 0));
        assert_eq!(node.at(26, Signal::MemoryAvailable, 1), (vec![Condition::Memory], 0));
        assert_eq!(node.at(46, Signal::MemoryAvailable, 1), (vec![Condition::Memory], 1));
    }

    #[test]
    fn one_that_was_due_is_over_when_as_much_more_is_there_as_shall_be_reclaimed() {
        let mut node = Watched::new(vec![threshold(Signal::PidAvailable, 100, 0, Some(50))], 0);
        assert_eq!(node.at(0, Signal::PidAvailable, 120), (vec![], 0), "it was not due");
        assert_eq!(node.at(1, Signal::PidAvailable, 99), (vec![Condition::Pid], 1));
        assert_eq!(node.at(2, Signal::PidAvailable, 149), (vec![Condition::Pid], 1));
        assert_eq!(node.at(3, Signal::PidAvailable, 150), (vec![], 0));
        let left = |available| Observations::from([(Signal::PidAvailable, Observation { available, capacity: 1000 })]);
        assert!(node.0.is_relieved(&left(150)) && !node.0.is_relieved(&left(149)));
    }

    #[test]
    fn memory_comes_first_and_what_was_not_seen_is_not_met() {
        let thresholds = vec![
            threshold(Signal::NodeFsAvailable, 100, 0, None),
            threshold(Signal::PidAvailable, 100, 0, None),
            threshold(Signal::MemoryAvailable, 100, 0, None),
        ];
        let mut monitor = Monitor::new(thresholds, Duration::ZERO);
        let none = Observation { available: 0, capacity: 1 };
        let seen = Observations::from([(Signal::NodeFsAvailable, none), (Signal::MemoryAvailable, none)]);
        let due: Vec<_> = monitor.look(&seen, Instant::now()).due.iter().map(|one| one.signal).collect();
        assert_eq!(due, [Signal::MemoryAvailable, Signal::NodeFsAvailable]);
    }
}
