//! Which pod goes first when the node is short of something, and what it is told (pkg/kubelet/eviction/helpers.go, rankMemoryPressure,
//! rankDiskPressureFunc, rankPIDPressure, evictionMessage). Pure.

use std::{cmp::Ordering, fmt::Write as _};

use jiff::Timestamp;

use super::{Observations, Resource};
use crate::{config::Threshold, desired::Amounts, quantity::Quantity};

/// A pod that could be evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// UID.
    pub uid: String,
    /// Name.
    pub name: String,
    /// Priority.
    pub priority: i32,
    /// It is not evicted, whatever it uses.
    pub critical: bool,
    /// What it asks for.
    pub requests: Amounts,
    /// Since when it is here.
    pub accepted: Timestamp,
    /// What it uses; `None` where its guest does not say.
    pub used: Option<Used>,
}

/// What a pod uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Used {
    /// The containers' working sets, bytes.
    pub memory: u64,
    /// What they wrote to disk and log, bytes.
    pub storage: u64,
    /// Processes and threads of its machine on the host.
    pub processes: u64,
    /// Of each container: its name, its working set, and the memory it asks for, bytes.
    pub containers: Vec<(String, u64, u64)>,
}

impl Candidate {
    /// What it uses beyond what it asks for, and whether that is more than nothing.
    fn excess(&self, used: &Used, resource: Resource) -> (bool, i128) {
        let (used, asked) = match resource {
            Resource::Memory => (used.memory, self.requests.memory.value()),
            Resource::Storage => (used.storage, self.requests.storage.value()),
            Resource::Pids => (used.processes, 0),
            // A pod's files are inodes of its own disk; of the host's it has a few, as any other.
            Resource::Inodes => (1, 0),
        };
        (used > asked, i128::from(used) - i128::from(asked))
    }

    /// Whether it goes before another one.
    fn compare(&self, other: &Self, resource: Resource) -> Ordering {
        let by_priority = self.priority.cmp(&other.priority);
        // Those of which nothing is known go first.
        let (mine, theirs) = match (&self.used, &other.used) {
            (Some(mine), Some(theirs)) => (self.excess(mine, resource), other.excess(theirs, resource)),
            (None, Some(_)) if resource != Resource::Pids => return Ordering::Less,
            (Some(_), None) if resource != Resource::Pids => return Ordering::Greater,
            (mine, theirs) => return by_priority.then(mine.is_some().cmp(&theirs.is_some())),
        };
        let exceeds = match resource {
            Resource::Pids => Ordering::Equal,
            _ => theirs.0.cmp(&mine.0),
        };
        exceeds.then(by_priority).then(theirs.1.cmp(&mine.1))
    }
}

/// Puts those first that go first: who uses more than he asks for, then the lower priority, then who uses the most beyond it, then who came
/// last.
pub fn rank(candidates: &mut [Candidate], resource: Resource) {
    let order = |a: &Candidate, b: &Candidate| {
        let by_age = b.accepted.cmp(&a.accepted).then_with(|| a.uid.cmp(&b.uid));
        a.compare(b, resource).then(by_age)
    };
    candidates.sort_by(order);
}

/// What an evicted pod is told.
pub fn message(pod: &Candidate, resource: Resource, due: &[Threshold], seen: &Observations) -> String {
    let mut text = format!("The node was low on resource: {}. ", resource.name());
    let met = due.iter().find(|threshold| threshold.signal.resource() == resource);
    if let Some((threshold, seen)) = met.and_then(|threshold| Some((threshold, seen.get(&threshold.signal)?))) {
        let (level, available) = (Quantity::bytes(threshold.level.of(seen.capacity)), Quantity::bytes(seen.available));
        let _ = write!(text, "Threshold quantity: {level}, available: {available}. ");
    }
    let mut uses = |what: &str, name: &str, used: u64, asked: Quantity| {
        if used > asked.value() {
            let (used, resource) = (Quantity::bytes(used), resource.name());
            let _ = write!(
                text,
                "{what} {name} was using {used}, request is {asked}, has larger consumption of {resource}. "
            );
        }
    };
    let Some(used) = &pod.used else { return text };
    match resource {
        Resource::Memory => {
            for (name, memory, asked) in &used.containers {
                uses("Container", name, *memory, Quantity::bytes(*asked));
            }
        }
        // Which container wrote how much only its guest knows.
        Resource::Storage => uses("Pod", &pod.name, used.storage, pod.requests.storage),
        Resource::Inodes | Resource::Pids => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::{Level, Signal},
        pressure::Observation,
    };

    /// A pod that asks for 100 of memory and of storage, and uses this of everything.
    fn pod(name: &str, priority: i32, used: Option<u64>) -> Candidate {
        Candidate {
            uid: name.into(),
            name: name.into(),
            priority,
            critical: false,
            requests: Amounts {
                cpu: Quantity::default(),
                memory: Quantity::bytes(100),
                storage: Quantity::bytes(100),
            },
            accepted: Timestamp::UNIX_EPOCH,
            used: used.map(|used| Used {
                memory: used,
                storage: used,
                processes: used,
                containers: vec![("main".into(), used, 100), ("small".into(), 1, 100)],
            }),
        }
    }

    fn ranked(mut pods: Vec<Candidate>, resource: Resource) -> Vec<String> {
        rank(&mut pods, resource);
        pods.into_iter().map(|pod| pod.name).collect()
    }

    #[test]
    fn who_uses_more_than_he_asks_for_goes_first_then_the_lower_priority_then_the_greedier() {
        let pods = vec![
            pod("modest", -10, Some(100)),
            pod("high", 5, Some(900)),
            pod("low-greedy", 1, Some(300)),
            pod("low", 1, Some(200)),
            pod("idle", -20, Some(0)),
        ];
        let expected = ["low-greedy", "low", "high", "idle", "modest"];
        assert_eq!(ranked(pods.clone(), Resource::Memory), expected);
        assert_eq!(ranked(pods, Resource::Storage), expected);
    }

    #[test]
    fn of_processes_and_inodes_the_priority_decides() {
        let pods = vec![pod("high", 5, Some(900)), pod("low", 1, Some(50)), pod("low-many", 1, Some(60))];
        assert_eq!(ranked(pods.clone(), Resource::Pids), ["low-many", "low", "high"]);
        assert_eq!(ranked(pods, Resource::Inodes)[2], "high");
    }

    #[test]
    fn a_guest_that_does_not_answer_makes_its_pod_the_first() {
        let pods = || vec![pod("greedy", -5, Some(900)), pod("silent", 5, None), pod("silent-low", 1, None)];
        assert_eq!(ranked(pods(), Resource::Memory), ["silent-low", "silent", "greedy"]);
        assert_eq!(ranked(pods(), Resource::Pids), ["greedy", "silent-low", "silent"]);
    }

    #[test]
    fn of_equals_the_one_that_came_last_goes_first() {
        let later = |name: &str, second| Candidate {
            accepted: Timestamp::from_second(second).unwrap(),
            ..pod(name, 0, Some(1))
        };
        assert_eq!(ranked(vec![later("old", 1), later("young", 2)], Resource::Memory), ["young", "old"]);
    }

    #[test]
    fn an_evicted_pod_is_told_what_was_short_and_what_it_used() {
        let due = |signal| {
            [Threshold {
                signal,
                level: Level::Share(10_000),
                grace: Duration::ZERO,
                reclaim: None,
            }]
        };
        let left = Observation {
            available: 50 << 20,
            capacity: 1 << 30,
        };
        let seen = Observations::from([(Signal::MemoryAvailable, left), (Signal::NodeFsAvailable, left)]);
        let of = |resource, signal, used| message(&pod("p", 0, used), resource, &due(signal), &seen);
        let memory = "The node was low on resource: memory. Threshold quantity: 107374182, available: 50Mi. ";
        assert_eq!(
            of(Resource::Memory, Signal::MemoryAvailable, Some(2048)),
            format!("{memory}Container main was using 2Ki, request is 100, has larger consumption of memory. ")
        );
        assert_eq!(of(Resource::Memory, Signal::MemoryAvailable, None), memory);
        assert_eq!(
            of(Resource::Storage, Signal::NodeFsAvailable, Some(2048)),
            "The node was low on resource: ephemeral-storage. Threshold quantity: 107374182, available: 50Mi. \
             Pod p was using 2Ki, request is 100, has larger consumption of ephemeral-storage. "
        );
        assert_eq!(
            of(Resource::Pids, Signal::PidAvailable, Some(9)),
            "The node was low on resource: pids. "
        );
    }
}
