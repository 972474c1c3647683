//! What machines run as, and what all of them have.

use std::ops::Range;

use serde::Deserialize;
use vmm_lib::spec::MAX_QUEUE_PAIRS;

use crate::quantity::Quantity;

/// Users (and groups of the same numbers) that nothing else on the host has: each machine process runs as one of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MachineUids {
    /// The lowest.
    pub first: u32,
    /// How many, at least as many as pods.
    pub count: u32,
}

impl MachineUids {
    /// All of them.
    pub fn range(&self) -> Range<u32> {
        self.first..self.first + self.count
    }
}

impl Default for MachineUids {
    fn default() -> Self {
        Self {
            // Above what systemd, container managers and subordinate users take.
            first: 1_900_000_000,
            count: 10_000,
        }
    }
}

/// What all machines have.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Machines {
    /// Whether machines are made as copies of a template, a small machine that has booted, which the node makes for itself.
    pub templates: bool,
    /// How long a guest's kernel and agent may stand still, seconds, 10 to 1800, before its machine is ended; 0: as long as they like.
    pub watchdog_seconds: u32,
    /// Pairs of queues of a pod's network interface, 1 to 8, of which it gets no more than it has processors.
    pub network_queues: u8,
    /// What a machine may read and write.
    pub io: Io,
}

impl Default for Machines {
    fn default() -> Self {
        Self {
            templates: true,
            watchdog_seconds: 0,
            network_queues: 1,
            io: Io::default(),
        }
    }
}

impl Machines {
    pub(super) fn mistake(&self) -> Option<(&'static str, &'static str)> {
        let few = |quantity: Option<Quantity>| quantity.is_some_and(|quantity| quantity.value() < 64 << 10);
        let seldom = |number: Option<u64>| number.is_some_and(|number| number < 10);
        let io = &self.io;
        let checks = [
            (
                self.watchdog_seconds != 0 && !(10..=1800).contains(&self.watchdog_seconds),
                ("machines.watchdogSeconds", "must be 0, or 10 to 1800"),
            ),
            (
                !(1..=MAX_QUEUE_PAIRS).contains(&usize::from(self.network_queues)),
                ("machines.networkQueues", "must be 1 to 8"),
            ),
            (
                few(io.read_bytes_per_second),
                ("machines.io.readBytesPerSecond", "must be 64Ki or more"),
            ),
            (
                few(io.write_bytes_per_second),
                ("machines.io.writeBytesPerSecond", "must be 64Ki or more"),
            ),
            (
                seldom(io.read_operations_per_second),
                ("machines.io.readOperationsPerSecond", "must be 10 or more"),
            ),
            (
                seldom(io.write_operations_per_second),
                ("machines.io.writeOperationsPerSecond", "must be 10 or more"),
            ),
            (
                io.weight.is_some_and(|weight| !(1..=10_000).contains(&weight)),
                ("machines.io.weight", "must be 1 to 10000"),
            ),
        ];
        checks.into_iter().find_map(|(wrong, mistake)| wrong.then_some(mistake))
    }
}

/// What a machine may read from, and write to, the disk that holds the state directory (cgroup v2, io.max and io.weight); no limit by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Io {
    /// Bytes, 64Ki or more.
    pub read_bytes_per_second: Option<Quantity>,
    /// Bytes, 64Ki or more.
    pub write_bytes_per_second: Option<Quantity>,
    /// 10 or more.
    pub read_operations_per_second: Option<u64>,
    /// 10 or more.
    pub write_operations_per_second: Option<u64>,
    /// Share of the disk's time where others want it too, 1 to 10000, 100 being usual.
    pub weight: Option<u16>,
}
