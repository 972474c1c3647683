//! A node that is short of memory, disk or processes: it says so, takes fewer new pods, gives back what no pod needs, and then evicts pods, one
//! at a time, as the kubelet's eviction manager does (pkg/kubelet/eviction). What is decided is pure; `keep` looks and acts.
//!
//! ```text
//!  host's figures ─▶ monitor: thresholds met, for how long ─▶ conditions ─▶ Node, admit: who may still come
//!                                      └─▶ first threshold that is due ─▶ images that no pod needs ─▶ rank: who goes, with which words
//! ```

pub mod admit;
pub mod keep;
pub mod monitor;
pub mod rank;

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;

use crate::config::Signal;

/// What the node can be short of: a condition of the Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Room on a disk, or inodes.
    Disk,
    /// Memory.
    Memory,
    /// Processes.
    Pid,
}

/// A condition as the kubelet says it (pkg/kubelet/nodestatus/setters.go).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words {
    /// The condition's reason; with the prefix Node in place of Kubelet it is the event's.
    pub reason: &'static str,
    /// The reason of the Node's event.
    pub event: &'static str,
    /// The condition's message.
    pub message: &'static str,
}

impl Condition {
    /// All there are, as the Node lists them.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Disk, Self::Pid];

    /// The condition's type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "DiskPressure",
            Self::Memory => "MemoryPressure",
            Self::Pid => "PIDPressure",
        }
    }

    /// What is said of it.
    pub fn words(self, is_short: bool) -> Words {
        let (reason, event, message) = match (self, is_short) {
            (Self::Disk, true) => ("KubeletHasDiskPressure", "NodeHasDiskPressure", "kubelet has disk pressure"),
            (Self::Disk, false) => ("KubeletHasNoDiskPressure", "NodeHasNoDiskPressure", "kubelet has no disk pressure"),
            (Self::Memory, true) => (
                "KubeletHasInsufficientMemory",
                "NodeHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ),
            (Self::Memory, false) => (
                "KubeletHasSufficientMemory",
                "NodeHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            (Self::Pid, true) => (
                "KubeletHasInsufficientPID",
                "NodeHasInsufficientPID",
                "kubelet has insufficient PID available",
            ),
            (Self::Pid, false) => (
                "KubeletHasSufficientPID",
                "NodeHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
        };
        Words { reason, event, message }
    }
}

/// What a signal is of, in the kubelet's words (signalToResource).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Memory.
    Memory,
    /// Bytes on a disk.
    Storage,
    /// Inodes.
    Inodes,
    /// Processes.
    Pids,
}

impl Resource {
    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Storage => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }
}

impl Signal {
    /// What it is of.
    pub fn resource(self) -> Resource {
        match self {
            Self::MemoryAvailable => Resource::Memory,
            Self::NodeFsAvailable | Self::ImageFsAvailable => Resource::Storage,
            Self::NodeFsInodesFree | Self::ImageFsInodesFree => Resource::Inodes,
            Self::PidAvailable => Resource::Pids,
        }
    }

    /// What the node says where it is met.
    pub fn condition(self) -> Condition {
        match self.resource() {
            Resource::Memory => Condition::Memory,
            Resource::Storage | Resource::Inodes => Condition::Disk,
            Resource::Pids => Condition::Pid,
        }
    }
}

/// What was seen of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// How much is left.
    pub available: u64,
    /// Of how much.
    pub capacity: u64,
}

/// What was seen; a signal that could not be had is not there.
pub type Observations = BTreeMap<Signal, Observation>;

/// What the node is short of.
pub type Conditions = BTreeSet<Condition>;

/// Shows what the node is short of.
#[derive(Debug, Default)]
pub struct Pressure(watch::Sender<Conditions>);

impl Pressure {
    /// Now.
    pub fn now(&self) -> Conditions {
        self.0.borrow().clone()
    }

    /// Wakes whoever shows it.
    pub fn subscribe(&self) -> watch::Receiver<Conditions> {
        self.0.subscribe()
    }

    /// Takes what it is now; answers with what has changed, and whether it is so now. Wakes nobody where nothing has.
    fn set(&self, conditions: &Conditions) -> Vec<(Condition, bool)> {
        let mut changed = Vec::new();
        self.0.send_if_modified(|before| {
            changed.extend(before.symmetric_difference(conditions).map(|one| (*one, conditions.contains(one))));
            before.clone_from(conditions);
            !changed.is_empty()
        });
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_changed_is_told() {
        let pressure = Pressure::default();
        let shown = pressure.subscribe();
        let of = |all: &[Condition]| all.iter().copied().collect::<Conditions>();
        assert_eq!(pressure.set(&of(&[])), []);
        assert!(!shown.has_changed().unwrap());
        assert_eq!(pressure.set(&of(&[Condition::Disk])), [(Condition::Disk, true)]);
        let changed = pressure.set(&of(&[Condition::Memory]));
        assert_eq!(changed, [(Condition::Disk, false), (Condition::Memory, true)]);
        assert!(shown.has_changed().unwrap());
        assert_eq!(pressure.now(), of(&[Condition::Memory]));
    }
}
