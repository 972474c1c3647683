//! What machines run as, and what all of them have.

use std::ops::Range;

use serde::Deserialize;
use vmm_lib::spec::MAX_QUEUE_PAIRS;

use crate::quantity::Quantity;

/// Users (and groups of the same numbers) that nothing else on the host has: each machine process runs as one of them.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MachineUids {
    /// The lowest of the users that machines run as. Nothing else on the host may have them.
    pub first: u32,
    /// How many, at least `maxPods`.
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Machines {
    /// Whether machines are copies of a template, a small machine that has booted, which the node makes for itself in the background (128
    /// MiB of `stateDir` at the most). A pod with the annotation `kvmlet.io/template: none` boots all the same.
    pub templates: bool,
    /// How long a guest's kernel and agent may stand still before its machine is ended and the pod's containers are told so, 10 to 1800; 0
    /// for no watchdog. It costs each boot 28 exits, and a guest that idles three exits in a quarter of that time.
    pub watchdog_seconds: u32,
    /// Pairs of queues of a pod's network interface, with a thread of the machine each, 1 to 8; a pod gets no more than it has processors.
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Io {
    /// What one machine may read from the disk that holds `stateDir`, at least `64Ki` (cgroup v2, `io.max`).
    pub read_bytes_per_second: Option<Quantity>,
    /// What one machine may write to it, at least `64Ki`.
    pub write_bytes_per_second: Option<Quantity>,
    /// The same of reading in operations, at least 10.
    pub read_operations_per_second: Option<u64>,
    /// The same of writing in operations, at least 10.
    pub write_operations_per_second: Option<u64>,
    /// A machine's share of that disk where others want it too, 1 to 10000, 100 being usual (`io.weight`: the disk needs a scheduler that
    /// has it, BFQ, or the kernel's io.cost).
    pub weight: Option<u16>,
}
