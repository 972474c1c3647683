//! What was seen at one moment: plain data, from which each page is made.

use jiff::Timestamp;
use kvmlet_protocol::{DirectoryFigures, DiskFigures, GroupFigures, NetworkFigures};

use super::host::HostLoad;

/// The node and its pods at one moment.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    /// When.
    pub(super) at: Timestamp,
    /// The host.
    pub(super) node: NodeFigures,
    /// Pods that have a machine.
    pub(super) pods: Vec<PodFigures>,
}

/// What the host counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NodeFigures {
    /// The Node's name.
    pub(super) name: String,
    /// When the host started.
    pub(super) boot: Timestamp,
    /// What it has, and has in use.
    pub(super) load: HostLoad,
    /// Of its memory, in use, bytes.
    pub(super) memory: u64,
    /// Of that, what is not merely an inactive file's, bytes.
    pub(super) working_set: u64,
    /// Of that, what is no file's, bytes.
    pub(super) anonymous: u64,
    /// Page faults.
    pub(super) page_faults: u64,
    /// Those that read from a disk.
    pub(super) major_page_faults: u64,
    /// Its interfaces, the one with the default route first.
    pub(super) networks: Vec<NetworkFigures>,
    /// The file system of the node's state.
    pub(super) disk: DiskFigures,
    /// Bytes that images have of it.
    pub(super) images: u64,
    /// Processes and threads, and the most there can be.
    pub(super) processes: (u64, u64),
}

/// A pod.
#[derive(Debug, Clone)]
pub(super) struct PodFigures {
    /// Namespace.
    pub(super) namespace: String,
    /// Name.
    pub(super) name: String,
    /// UID.
    pub(super) uid: String,
    /// When this node took it.
    pub(super) started: Timestamp,
    /// What its machine uses of the host, guest and monitor together; `None` where the host has no such group.
    pub(super) machine: Option<MachineFigures>,
    /// What its guest says; `None` from one that did not answer.
    pub(super) guest: Option<GuestSample>,
}

/// What a machine's control group on the host counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineFigures {
    /// Processor time, nanoseconds.
    pub cpu: u64,
    /// Memory, bytes.
    pub memory: u64,
}

/// What a guest says of itself.
#[derive(Debug, Clone)]
pub(super) struct GuestSample {
    /// When it was heard.
    pub(super) at: Timestamp,
    /// All containers together.
    pub(super) pod: GroupFigures,
    /// The file system of what containers write.
    pub(super) disk: Option<DiskFigures>,
    /// The pod's interface.
    pub(super) network: Option<NetworkFigures>,
    /// Containers that run.
    pub(super) containers: Vec<ContainerSample>,
}

/// What a pod has stored where.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// When it was looked at.
    pub(super) at: Timestamp,
    /// Whether its guest has said: else there is nothing here.
    pub(super) told: bool,
    /// Its volumes.
    pub(super) volumes: Vec<StoredVolume>,
    /// What each container wrote, by its identifier.
    pub(super) layers: Vec<(String, DirectoryFigures)>,
}

/// A volume that is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredVolume {
    /// Its name in the pod.
    pub(super) name: String,
    /// The name of the claim that it is of.
    pub(super) claim: Option<String>,
    /// What it holds.
    pub(super) figures: DirectoryFigures,
}

/// A container that runs.
#[derive(Debug, Clone)]
pub(super) struct ContainerSample {
    /// Its name.
    pub(super) name: String,
    /// Its identifier.
    pub(super) id: String,
    /// Its image, as the pod names it.
    pub(super) image: String,
    /// Since when it runs.
    pub(super) started: Timestamp,
    /// What it uses.
    pub(super) group: GroupFigures,
    /// Limits: thousandths of processors, bytes of memory; 0 means none.
    pub(super) limits: [u64; 2],
    /// Bytes of its log files.
    pub(super) logs: u64,
}

impl Snapshot {
    /// The pods whose guests have answered.
    pub(super) fn answered(&self) -> impl Iterator<Item = (&PodFigures, &GuestSample)> {
        self.pods.iter().filter_map(|pod| Some((pod, pod.guest.as_ref()?)))
    }

    /// The pod of a UID.
    pub(super) fn pod(&self, uid: &str) -> Option<&PodFigures> {
        self.pods.iter().find(|pod| pod.uid == uid)
    }
}

impl GuestSample {
    /// Bytes that containers wrote to disk, and their logs.
    pub(super) fn storage(&self) -> u64 {
        let logs: u64 = self.containers.iter().map(|container| container.logs).sum();
        self.disk.map_or(0, |disk| disk.used).saturating_add(logs)
    }

    /// The container of an identifier.
    pub(super) fn container(&self, id: &str) -> Option<&ContainerSample> {
        self.containers.iter().find(|container| container.id == id)
    }
}

/// Thousand-millionths of a processor between two readings of used nanoseconds; `None` for readings at one time, and for a count that
/// began anew between them.
pub(super) fn rate(earlier: (Timestamp, u64), later: (Timestamp, u64)) -> Option<u64> {
    let passed = u128::try_from(later.0.as_nanosecond() - earlier.0.as_nanosecond())
        .ok()
        .filter(|passed| *passed > 0)?;
    let used = u128::from(later.1.checked_sub(earlier.1)?);
    u64::try_from(used * 1_000_000_000 / passed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_was_used_in_the_time_between() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(rate((at(10), 5_000_000_000), (at(20), 10_000_000_000)), Some(500_000_000));
        assert_eq!(rate((at(10), 5), (at(10), 5)), None, "no time has passed");
        assert_eq!(rate((at(10), 5), (at(20), 4)), None, "it began anew");
        assert_eq!(rate((at(20), 5), (at(10), 6)), None, "the clock was set back");
    }
}
