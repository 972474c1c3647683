//! What the host counts: /proc, /sys, the file system of the node's state, machines' control groups.

use std::{fs, path::Path};

use jiff::Timestamp;
use kvmlet_protocol::NetworkFigures;

use super::model::NodeFigures;
use crate::readings::{self, Memory, number_after};

/// The host, now.
pub(super) fn read(name: &str, state: &Path, images: u64) -> NodeFigures {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let figures = NodeFigures {
        name: name.to_owned(),
        networks: networks(&text("/proc/net/dev"), &text("/proc/net/route")),
        disk: readings::disk(state).unwrap_or_default(),
        processes: readings::processes(),
        images,
        ..NodeFigures::default()
    };
    let memory = readings::memory().unwrap_or_default();
    count(figures, &text("/proc/stat"), memory, &text("/proc/vmstat"))
}

/// What a host has, and has in use: all of it, also where this process may use only some of its processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostLoad {
    /// Processors.
    pub processors: u32,
    /// Processor time used since it started, nanoseconds.
    pub cpu: u64,
    /// Memory, bytes.
    pub memory: u64,
    /// Of it, what could be used without anything being thrown out, bytes.
    pub memory_available: u64,
}

/// This host's, now.
pub fn load() -> HostLoad {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    load_of(&stat, readings::memory().unwrap_or_default())
}

fn load_of(stat: &str, memory: Memory) -> HostLoad {
    HostLoad {
        processors: u32::try_from(stat.lines().filter(|line| is_processor(line)).count()).unwrap_or(u32::MAX),
        cpu: busy_ticks(stat).saturating_mul(TICK),
        memory: memory.total,
        memory_available: memory.available,
    }
}

/// `cpu0 …`, but not `cpu  …`, which is all of them.
fn is_processor(line: &str) -> bool {
    line.strip_prefix("cpu")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Processor time of a process, nanoseconds; `None` when it is gone.
pub fn processor_time(pid: u32) -> Option<u64> {
    let [cpu, _] = process_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?);
    Some(cpu.saturating_mul(TICK))
}

/// Nanoseconds in a unit of /proc/stat (USER_HZ is 100 on every architecture that has KVM).
const TICK: u64 = 10_000_000;

fn count(figures: NodeFigures, stat: &str, seen: Memory, vmstat: &str) -> NodeFigures {
    let memory = seen.total.saturating_sub(seen.free);
    let boot = i64::try_from(number_after(stat, "btime")).unwrap_or(0);
    NodeFigures {
        boot: Timestamp::from_second(boot).unwrap_or_default(),
        load: load_of(stat, seen),
        memory,
        working_set: memory.saturating_sub(seen.inactive_files),
        anonymous: seen.anonymous,
        page_faults: number_after(vmstat, "pgfault"),
        major_page_faults: number_after(vmstat, "pgmajfault"),
        ..figures
    }
}

/// All time but idle and iowait; guests' is in the user's (proc_stat(5)).
fn busy_ticks(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let numbers = line.split_ascii_whitespace().take(8).enumerate();
    let busy = numbers.filter(|(field, _)| ![3, 4].contains(field));
    busy.filter_map(|(_, number)| number.parse::<u64>().ok()).sum()
}

/// All interfaces but the loopback, the one with the default route first.
fn networks(dev: &str, route: &str) -> Vec<NetworkFigures> {
    let default = route.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next()?;
        (fields.next()? == "00000000").then_some(name)
    });
    let mut all: Vec<_> = dev.lines().filter_map(network).filter(|one| one.name != "lo").collect();
    all.sort_by_key(|one| Some(one.name.as_str()) != default);
    all
}

/// A line of /proc/net/dev.
fn network(line: &str) -> Option<NetworkFigures> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect();
    Some(NetworkFigures {
        name: name.trim().to_owned(),
        received: numbers.get(..4)?.try_into().ok()?,
        sent: numbers.get(8..12)?.try_into().ok()?,
    })
}

/// This process: processor time in seconds, resident memory in bytes, open files, and when it started in seconds since 1970.
pub(super) fn this_process() -> [f64; 4] {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let boot = number_after(&text("/proc/stat"), "btime");
    let resident = number_after(&text("/proc/self/status"), "VmRSS:").saturating_mul(1024);
    let files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let [cpu, start] = process_ticks(&text("/proc/self/stat")).map(|ticks| ticks as f64 / TICKS_A_SECOND);
    [cpu, resident as f64, files as f64, boot as f64 + start]
}

/// Units of /proc/self/stat in a second.
const TICKS_A_SECOND: f64 = 1e9 / TICK as f64;

/// Processor time used, and the start since the host's (proc_pid_stat(5), fields 14, 15 and 22; the second may hold anything).
fn process_ticks(stat: &str) -> [u64; 2] {
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    [field(14).saturating_add(field(15)), field(22)]
}

/// Bytes of all files in a directory.
pub(crate) fn size_of_files(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_all_but_idle_and_waiting_and_processors_are_those_that_are_online() {
        let stat = "cpu  1 2 3 400 500 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\ncpu12 1 1 1 1 1 1 1 1 1 1\nbtime 1000000\n";
        let found = count(NodeFigures::default(), stat, Memory::default(), "");
        assert_eq!((found.load.cpu, found.load.processors), ((1 + 2 + 3 + 6 + 7 + 8) * TICK, 2));
        assert_eq!(found.boot.as_second(), 1_000_000);
    }

    #[test]
    fn memory_in_use_is_what_is_not_free_and_the_working_set_leaves_out_inactive_files() {
        let seen = Memory {
            total: 100,
            free: 40,
            available: 70,
            inactive_files: 20,
            anonymous: 15,
        };
        let found = count(NodeFigures::default(), "", seen, "pgfault 7\npgmajfault 3\n");
        assert_eq!((found.memory, found.working_set, found.anonymous), (60, 40, 15));
        assert_eq!((found.load.memory, found.load.memory_available), (100, 70));
        assert_eq!((found.page_faults, found.major_page_faults), (7, 3));
    }

    #[test]
    fn the_interface_of_the_default_route_comes_first() {
        let dev = "Inter-|   Receive\n face |bytes    packets errs drop\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  veth1: 5 6 7 8 0 0 0 0 9 10 11 12 0 0 0 0\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n";
        let route = "Iface\tDestination\tGateway\neth0\t0000000A\t00000000\neth0\t00000000\t0102A8C0\n";
        let found = networks(dev, route);
        let names: Vec<_> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["eth0", "veth1"]);
        assert_eq!((found[0].received, found[0].sent), ([1, 2, 3, 4], [5, 6, 7, 8]));
        assert_eq!(process_ticks("1 (a) b) S 1 1 1 0 -1 0 0 0 0 0 14 15 0 0 20 0 1 0 22 0"), [29, 22]);
    }
}
