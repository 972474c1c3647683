//! Figures of the guest: /proc/meminfo, the containers' control groups, the scratch disk's file system, the pod's interface.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use kvmlet_protocol::{ContainerFigures, DirectoryFigures, DiskFigures, GuestFigures, GuestStats, NetworkFigures};

use crate::cgroup;
use crate::container::Container;
use crate::device::SCRATCH;
use crate::usage;

/// The pod's interface.
const INTERFACE: &str = "eth0";

/// All of them, now.
pub(crate) fn figures(containers: &[Arc<Container>]) -> GuestFigures {
    let meminfo = meminfo();
    let of = |container: &Arc<Container>| ContainerFigures {
        id: container.spec.id.clone(),
        group: container.cgroup.figures(),
    };
    GuestFigures {
        memory_total: bytes(&meminfo, "MemTotal:"),
        memory_available: bytes(&meminfo, "MemAvailable:"),
        pod: cgroup::pod_figures(),
        containers: containers.iter().map(of).collect(),
        disk: disk(Path::new(SCRATCH)).ok(),
        network: network(Path::new("/sys/class/net")),
    }
}

/// What older daemons ask for.
pub(crate) fn read(containers: &[Arc<Container>]) -> GuestStats {
    let all = figures(containers);
    let short = |c: ContainerFigures| (c.id, c.group.memory, c.group.working_set, c.group.cpu);
    GuestStats {
        memory_total: all.memory_total,
        memory_available: all.memory_available,
        containers: all.containers.into_iter().map(short).collect(),
    }
}

/// Bytes of memory that the kernel has.
pub(crate) fn memory_total() -> u64 {
    bytes(&meminfo(), "MemTotal:")
}

fn meminfo() -> String {
    fs::read_to_string("/proc/meminfo").unwrap_or_default()
}

/// A line `Name:   123 kB`, in bytes.
fn bytes(meminfo: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok();
    meminfo.lines().find_map(value).unwrap_or(0).saturating_mul(1024)
}

/// What a directory holds, and of what.
pub(crate) fn directory(path: &Path) -> io::Result<DirectoryFigures> {
    let used = usage::of_directory(path)?;
    Ok(DirectoryFigures {
        used: used.bytes,
        inodes_used: used.inodes,
        disk: disk(path)?,
    })
}

fn disk(path: &Path) -> io::Result<DiskFigures> {
    let seen = rustix::fs::statvfs(path)?;
    let in_bytes = |blocks: u64| blocks.saturating_mul(seen.f_frsize);
    Ok(DiskFigures {
        capacity: in_bytes(seen.f_blocks),
        available: in_bytes(seen.f_bavail),
        used: in_bytes(seen.f_blocks.saturating_sub(seen.f_bfree)),
        inodes: seen.f_files,
        inodes_free: seen.f_ffree,
    })
}

/// The pod's interface, among those below `all`.
fn network(all: &Path) -> Option<NetworkFigures> {
    let directory = all.join(INTERFACE).join("statistics");
    let read = |name: String| fs::read_to_string(directory.join(name)).ok()?.trim().parse::<u64>().ok();
    let way = |way: &str| {
        let [bytes, packets, errors, dropped] = ["bytes", "packets", "errors", "dropped"].map(|what| read(format!("{way}_{what}")));
        Some([bytes?, packets?, errors?, dropped?])
    };
    Some(NetworkFigures {
        name: INTERFACE.into(),
        received: way("rx")?,
        sent: way("tx")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kibibytes_become_bytes() {
        assert_eq!(bytes("MemTotal:         131072 kB\nMemFree: 1 kB\n", "MemTotal:"), 128 << 20);
        assert_eq!(bytes("", "MemTotal:"), 0);
    }

    #[test]
    fn an_interface_is_counted_both_ways_and_one_that_is_not_there_is_not() {
        let all = tempfile::tempdir().expect("a directory");
        assert_eq!(network(all.path()), None);
        let directory = all.path().join("eth0/statistics");
        fs::create_dir_all(&directory).expect("a directory");
        for (number, what) in ["bytes", "packets", "errors", "dropped"].into_iter().enumerate() {
            fs::write(directory.join(format!("rx_{what}")), format!("{}\n", number + 1)).expect("written");
            fs::write(directory.join(format!("tx_{what}")), format!("{}\n", number + 11)).expect("written");
        }
        let found = network(all.path()).expect("it is there now");
        assert_eq!((found.received, found.sent), ([1, 2, 3, 4], [11, 12, 13, 14]));
    }

    #[test]
    fn what_is_free_and_what_is_used_is_no_more_than_there_is() {
        let found = disk(Path::new("/")).expect("a file system");
        assert!(found.used + found.available <= found.capacity && found.capacity > 0);
        assert!(disk(Path::new("/nowhere")).is_err());
        let own = tempfile::tempdir().expect("a directory");
        fs::write(own.path().join("file"), vec![1; 100 << 10]).expect("written");
        let figures = directory(own.path()).expect("it is there");
        assert!(figures.used >= 100 << 10 && figures.inodes_used == 2, "{figures:?}");
        assert!(figures.disk.capacity > figures.used, "{figures:?}");
    }
}
