//! Looks at pods' records, machines' processes and what these use: all that touches the host.

use std::{fs, path::Path, time::Duration};

use futures_util::{StreamExt as _, stream};
use kvmlet_machine::Found;
use kvmlet_network::{NetworkConfig, PodInterface, PodNetworks, counters};
use kvmlet_protocol::ContainerStatus;
use kvmlet_provider::{
    act::chain,
    agent, cgroup,
    figures::processor_time,
    machine::ending,
    started::Started,
    store::{Record, StoreError},
};

use super::{
    Host,
    find::{Known, find},
    model::{Memory, Pod, Process, Usage},
    wait,
};

/// How long a guest may take to say which containers it has.
const PATIENCE: Duration = Duration::from_secs(3);
/// Guests that are asked at once.
const AT_ONCE: usize = 32;

/// What was seen of all pods.
#[derive(Default)]
pub(super) struct Seen {
    /// By namespace and name.
    pub(super) pods: Vec<Pod>,
    /// Why records could not be read.
    pub(super) damaged: Vec<String>,
}

impl Host {
    /// All pods, and what their machines use. Nobody is asked.
    pub(super) fn look(&self) -> anyhow::Result<Seen> {
        let mut seen = Seen::default();
        for (uid, record) in self.store.load()? {
            match record {
                Ok(record) => seen.pods.push(self.pod(&uid, record)),
                // It comes, or goes.
                Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => seen.damaged.push(chain(&error)),
            }
        }
        seen.pods.sort_by_cached_key(Pod::full);
        self.measure(&mut seen.pods);
        Ok(seen)
    }

    /// The pod that a word on the command line means, without what it uses.
    pub(super) fn find(&self, wanted: &str) -> anyhow::Result<Pod> {
        let mut records = Vec::new();
        for (uid, record) in self.store.load()? {
            // A directory that comes or goes; of another, its UID may still be meant.
            let Ok(record) = record else {
                if uid == wanted {
                    self.store.read(&uid)?;
                }
                continue;
            };
            records.push((uid, record));
        }
        let known: Vec<_> = records.iter().map(|(_, record)| Known::of(record)).collect();
        let number = find(&known, wanted).map_err(anyhow::Error::msg)?;
        let (uid, record) = records.swap_remove(number);
        Ok(self.pod(&uid, record))
    }

    fn pod(&self, uid: &str, record: Record) -> Pod {
        let directory = self.store.machine_dir(uid);
        let process = match kvmlet_machine::find(&directory) {
            Ok(Found::Alive(machine)) => Process::Alive(machine.pid()),
            Ok(Found::Ended(record)) => Process::Ended(ending(uid, record.as_ref())),
            Ok(Found::Never) => Process::Never,
            Err(error) => Process::Unknown(chain(&error)),
        };
        Pod::new(record, process, Started::read(&directory))
    }

    /// What machines use of the host.
    pub(super) fn measure(&self, pods: &mut [Pod]) {
        let namespace = |pod: &Pod| {
            let interface = self.interface(&pod.desired.uid);
            interface.map(|interface| interface.netns).unwrap_or_default()
        };
        let alive: Vec<&mut Pod> = pods.iter_mut().filter(|pod| pod.pid().is_some()).collect();
        let namespaces: Vec<_> = alive.iter().map(|pod| namespace(pod)).collect();
        for (pod, network) in alive.into_iter().zip(counters(&namespaces)) {
            pod.usage = Usage {
                network,
                ..pod.pid().map(|pid| usage(&pod.desired.uid, pid)).unwrap_or_default()
            };
        }
    }

    /// A pod's interface, as it was made.
    pub(super) fn interface(&self, uid: &str) -> Option<PodInterface> {
        let networks = PodNetworks::new(NetworkConfig::without_addresses(self.config.network_dir()));
        networks.recall(uid).ok().flatten()
    }

    /// The daemon's process. Without one, guests say which containers they have: nobody else does.
    pub(super) fn complete(&self, pods: &mut [Pod]) -> anyhow::Result<Option<u32>> {
        let daemon = self.daemon();
        if daemon.is_none() {
            wait(self.ask_guests(pods))?;
        }
        Ok(daemon)
    }

    /// Which containers a guest has; nothing of one that does not say so soon.
    pub(super) async fn guest(&self, uid: &str) -> Option<Vec<ContainerStatus>> {
        let socket = self.store.machine_dir(uid).join("vsock.sock");
        agent::containers(&socket, PATIENCE).await.ok()
    }

    /// Whether a machine's process runs.
    pub(super) fn is_alive(&self, uid: &str) -> bool {
        matches!(kvmlet_machine::find(&self.store.machine_dir(uid)), Ok(Found::Alive(_)))
    }

    async fn ask_guests(&self, pods: &mut [Pod]) {
        let ask = async |pod: &mut Pod| {
            if pod.pid().is_some() {
                pod.guest = self.guest(&pod.desired.uid).await;
            }
        };
        let asked: Vec<_> = pods.iter_mut().map(ask).collect();
        stream::iter(asked).buffer_unordered(AT_ONCE).collect::<()>().await;
    }
}

/// What a machine's processes use: its own, and those of what is shared with it.
fn usage(uid: &str, pid: u32) -> Usage {
    let pids = cgroup::pids(uid);
    let is_in_group = pids.contains(&pid);
    // What a group says that the machine is not in is another's.
    let group = cgroup::usage(uid).filter(|_| is_in_group);
    let pids = if is_in_group { pids } else { vec![pid] };
    let memory = pids
        .iter()
        .filter_map(|pid| memory(Path::new(&format!("/proc/{pid}/smaps_rollup"))));
    Usage {
        cpu: group.map(|group| group.cpu).or_else(|| processor_time(pid)),
        memory: memory.reduce(|one, other| Memory {
            unique: one.unique + other.unique,
            shared: one.shared + other.shared,
            swapped: one.swapped + other.swapped,
        }),
        group: group.map(|group| group.memory),
        network: None,
    }
}

fn memory(rollup: &Path) -> Option<Memory> {
    fs::read_to_string(rollup).ok().as_deref().and_then(memory_of)
}

/// Of /proc/pid/smaps_rollup (proc_pid_smaps(5)).
fn memory_of(rollup: &str) -> Option<Memory> {
    rollup.lines().any(|line| line.starts_with("Rss:")).then_some(())?;
    let sum = |words: &[&str]| {
        let named = rollup.lines().filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let name = fields.next()?.strip_suffix(':')?;
            words.contains(&name).then(|| fields.next()?.parse::<u64>().ok()).flatten()
        });
        named.sum::<u64>() << 10
    };
    Some(Memory {
        unique: sum(&["Private_Clean", "Private_Dirty", "Private_Hugetlb"]),
        shared: sum(&["Shared_Clean", "Shared_Dirty", "Shared_Hugetlb"]),
        swapped: sum(&["Swap"]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_nobody_else_has_are_told_from_those_that_others_have_too() {
        let text = "5590-7ffe ---p 00000000 00:00 0 [rollup]\nRss: 99 kB\nPss: 50 kB\nShared_Clean: 30 kB\nShared_Dirty: 1 kB\n\
            Private_Clean: 8 kB\nPrivate_Dirty: 60 kB\nSwap: 4 kB\nSwapPss: 4 kB\n";
        let expected = Memory {
            unique: 68 << 10,
            shared: 31 << 10,
            swapped: 4 << 10,
        };
        assert_eq!(memory_of(text), Some(expected));
        assert_eq!(memory_of(""), None, "a process without memory");
    }

    #[test]
    fn this_process_has_memory_of_its_own() {
        let own = memory(Path::new("/proc/self/smaps_rollup")).unwrap();
        assert!(own.unique > 0, "{own:?}");
    }
}
