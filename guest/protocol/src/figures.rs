//! What a guest and its containers use, as the guest's own kernel counts it. All times and counts are since the start of what they are of.

use serde::{Deserialize, Serialize};

/// Figures of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFigures {
    /// Memory that its kernel has, bytes.
    pub memory_total: u64,
    /// Of it, what could be used without anything being thrown out, bytes.
    pub memory_available: u64,
    /// All containers together.
    pub pod: GroupFigures,
    /// Each container that has not been removed.
    pub containers: Vec<ContainerFigures>,
    /// The file system of what containers write; `None` before there is one.
    pub disk: Option<DiskFigures>,
    /// The pod's interface.
    pub network: Option<NetworkFigures>,
}

/// Figures of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFigures {
    /// Its identifier.
    pub id: String,
    /// What its control group counts.
    pub group: GroupFigures,
}

/// What a control group (version 2) counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupFigures {
    /// Processor time, nanoseconds.
    pub cpu: u64,
    /// Periods in which it was held to its limit of processor time.
    pub throttled_periods: u64,
    /// Periods in which it wanted to run.
    pub periods: u64,
    /// For how long it was held, nanoseconds.
    pub throttled: u64,
    /// Memory in use, bytes.
    pub memory: u64,
    /// Of it, what is not merely an inactive file's, bytes.
    pub working_set: u64,
    /// Of it, what is no file's, bytes.
    pub anonymous: u64,
    /// Of it, files', bytes.
    pub cache: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Those that read from a disk.
    pub major_page_faults: u64,
    /// Processes and threads.
    pub processes: u64,
}

/// A file system, as statvfs counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFigures {
    /// Bytes.
    pub capacity: u64,
    /// Bytes that are free for users.
    pub available: u64,
    /// Bytes in use.
    pub used: u64,
    /// Inodes.
    pub inodes: u64,
    /// Those that are free.
    pub inodes_free: u64,
}

/// What is where on the guest's file systems.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageFigures {
    /// The volumes that were asked for, by name.
    pub volumes: Vec<(String, DirectoryFigures)>,
    /// The writable layer of each container that has not been removed, in the order of their starts.
    pub containers: Vec<LayerFigures>,
}

/// A container's writable layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFigures {
    /// The container's identifier.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it wrote.
    pub layer: DirectoryFigures,
}

/// A directory with all in it, as `du` counts, and the file system that it is on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryFigures {
    /// Bytes.
    pub used: u64,
    /// Inodes, its own too.
    pub inodes_used: u64,
    /// All of the file system.
    pub disk: DiskFigures,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFigures {
    /// Its name.
    pub name: String,
    /// Received: bytes, packets, errors, packets dropped.
    pub received: [u64; 4],
    /// Sent: bytes, packets, errors, packets dropped.
    pub sent: [u64; 4],
}
