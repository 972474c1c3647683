//! The control group (v2) of a machine process: what its threads may use of the host, whatever a guest makes them do. Beside the daemon's
//! own group, so that what ends the daemon's ends no machine.

mod io_limits;

use std::{
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

pub use io_limits::{IoError, IoLimits};
use vmm_lib::spec::{MachineSpec, Pmem};

use crate::{figures::MachineFigures, size::Room};

const ROOT: &str = "/sys/fs/cgroup";
/// Where machines' groups are.
const SLICE: &str = "kvmlet.slice";
/// What the monitor needs beside guest memory: its own, the kernel's for it (sockets, file system, KVM), bytes.
const MONITOR: u64 = 64 << 20;
/// And what each shared directory's process needs: its own, and the kernel's for the files that its guest knows.
const SHARE: u64 = 32 << 20;
/// One byte of page tables, of KVM's and of the process's, for this many of guest memory.
const PAGE_TABLES: u64 = 128;
/// Processor time of device threads beside the guest's processors.
const DEVICE_CPUS: u64 = 1;
/// Microseconds in which processor time is counted.
const PERIOD: u64 = 100_000;
/// How long processes that are ended may take to be gone.
const EMPTY_TIME: Duration = Duration::from_secs(5);

/// What a machine of this specification may use, as names and contents of its group's files. The kernel's threads that serve it (vhost,
/// KVM's) count too, and so do pages of images that no other machine has read before: without room for them a guest that uses all of its
/// memory would have its programs thrown out.
fn limits(spec: &MachineSpec, cpus: u8, threads: u64) -> [(&'static str, String); 5] {
    let grown = spec.hotplug.map_or(0, |hotplug| hotplug.requested);
    [
        memory_max(spec.memory + grown, beside(spec)),
        // All of it or nothing: half a machine serves nobody.
        ("memory.oom.group", "1".into()),
        ("memory.swap.max", "0".into()),
        cpu_max(cpus),
        ("pids.max", threads.to_string()),
    ]
}

/// What a machine may use of memory beside its guest's and what that costs, bytes.
pub fn beside(spec: &MachineSpec) -> u64 {
    let images: u64 = spec.pmems.iter().map(Pmem::length).sum();
    with_page_tables(images) + MONITOR + SHARE * spec.shares.len() as u64
}

fn with_page_tables(memory: u64) -> u64 {
    memory + memory / PAGE_TABLES
}

fn memory_max(guest: u64, beside: u64) -> (&'static str, String) {
    ("memory.max", with_page_tables(guest).saturating_add(beside).to_string())
}

/// Of a guest that uses so many processors.
fn cpu_max(cpus: u8) -> (&'static str, String) {
    ("cpu.max", format!("{} {PERIOD}", (u64::from(cpus) + DEVICE_CPUS) * PERIOD))
}

/// The directory of a pod's machine's group, which may not be there.
pub fn path(uid: &str) -> PathBuf {
    [ROOT, SLICE, uid].iter().collect()
}

/// Makes where machines' groups are, and gives it what controllers the host has: once, before the first machine.
pub fn prepare() -> io::Result<()> {
    let slice = format!("{ROOT}/{SLICE}");
    fs::create_dir_all(&slice)?;
    for parent in [ROOT, &slice] {
        for controller in ["+cpu", "+memory", "+pids", "+io"] {
            // Where it is missing the limit's file is, too.
            let _ = fs::write(format!("{parent}/cgroup.subtree_control"), controller);
        }
    }
    Ok(())
}

/// What all machines of the host may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Together {
    /// Bytes.
    pub memory: u64,
    /// Thousandths of a processor.
    pub cpu: u64,
}

impl Together {
    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            cpu: self.cpu.max(other.cpu),
        }
    }

    /// Names and contents of the group's files. The weight is a kubelet's for so much processor time (pkg/kubelet/cm, MilliCPUToShares and
    /// getCPUWeight): its pods' group stands beside machines' and has one by the same rule.
    fn files(limits: Option<&Self>) -> [(&'static str, String); 3] {
        let Some(Self { memory, cpu }) = limits else {
            return [
                ("memory.max", "max".into()),
                ("cpu.max", "max".into()),
                ("cpu.weight", "100".into()),
            ];
        };
        let shares = (cpu * 1024 / 1000).clamp(2, 262_144);
        [
            ("memory.max", memory.to_string()),
            ("cpu.max", format!("{} {PERIOD}", cpu * PERIOD / 1000)),
            ("cpu.weight", ((shares - 2) * 9999 / 262_142 + 1).to_string()),
        ]
    }
}

/// What machines that run may use of memory, each by its own group, and no more than all together may by now, bytes.
pub fn running() -> u64 {
    let limit = |group: PathBuf| fs::read_to_string(group.join("memory.max")).ok()?.trim().parse::<u64>().ok();
    let slice: PathBuf = [ROOT, SLICE].iter().collect();
    let groups = fs::read_dir(&slice).into_iter().flatten().flatten();
    let all = groups.filter_map(|group| limit(group.path())).fold(0, u64::saturating_add);
    all.min(limit(slice).unwrap_or(u64::MAX))
}

/// Holds all machines together to this; to nothing on a host that is theirs.
///
/// # Errors
/// When the host has no such controller. Without limits that is no mistake.
pub fn hold(limits: Option<&Together>) -> io::Result<()> {
    for (name, content) in Together::files(limits) {
        let written = fs::write([ROOT, SLICE, name].iter().collect::<PathBuf>(), &content);
        if limits.is_some() {
            written.map_err(|error| io::Error::new(error.kind(), format!("{name} {content}: {error}")))?;
        }
    }
    Ok(())
}

/// Makes the group of a pod's machine, whose guest uses so many processors, and puts its process there. A limit whose controller the host does
/// not give is in the answer: the machine runs without it. Not so `io`, which is there because the node's owner asked for it.
pub fn confine(uid: &str, pid: u32, (spec, cpus): (&MachineSpec, u8), threads: u64, io: &IoLimits) -> io::Result<Vec<&'static str>> {
    let group = path(uid);
    fs::create_dir_all(&group)?;
    for (name, content) in io.files() {
        fs::write(group.join(name), content).map_err(|error| io::Error::new(error.kind(), format!("{name} {content}: {error}")))?;
    }
    let missing = limits(spec, cpus, threads)
        .into_iter()
        .filter(|(name, content)| fs::write(group.join(name), content).is_err())
        .map(|(name, _)| name)
        .collect();
    fs::write(group.join("cgroup.procs"), pid.to_string())?;
    Ok(missing)
}

/// Holds a machine that runs to another size of its guest.
pub fn allow(uid: &str, memory: u64, cpus: u8, room: Room) -> io::Result<()> {
    for (name, content) in [memory_max(memory, room.beside), cpu_max(cpus)] {
        fs::write(path(uid).join(name), content)?;
    }
    Ok(())
}

/// Puts another process into the group of a pod's machine.
pub fn join(uid: &str, pid: u32) -> io::Result<()> {
    fs::write(path(uid).join("cgroup.procs"), pid.to_string())
}

/// What the processes of a pod's machine use; `None` where the host has no such group.
pub fn usage(uid: &str) -> Option<MachineFigures> {
    let read = |file: &str| fs::read_to_string(path(uid).join(file)).ok();
    let cpu = read("cpu.stat")?
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec ")?.parse::<u64>().ok())?;
    Some(MachineFigures {
        cpu: cpu.saturating_mul(1000),
        memory: read("memory.current")?.trim().parse().ok()?,
    })
}

/// Ids of the processes of a pod's machine: its own, and those of what is shared with it. Empty where the host has no such group.
pub fn pids(uid: &str) -> Vec<u32> {
    let listed = fs::read_to_string(path(uid).join("cgroup.procs")).unwrap_or_default();
    listed.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Whether the host has ended the processes of a pod's machine since their group had no memory left.
pub fn is_out_of_memory(uid: &str) -> bool {
    let kills = |events: String| {
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse::<u64>().ok());
        count.is_some_and(|count| count > 0)
    };
    fs::read_to_string(path(uid).join("memory.events")).is_ok_and(kills)
}

/// Processes and threads of a pod's machine; `None` where the host does not count them.
pub fn processes(uid: &str) -> Option<u64> {
    fs::read_to_string(path(uid).join("pids.current")).ok()?.trim().parse().ok()
}

/// Removes the group of a pod's machine, whose process is gone. Those of its shared directories end by themselves; one that has not yet is
/// ended.
pub fn remove(uid: &str) -> io::Result<()> {
    if fs::write(path(uid).join("cgroup.kill"), "1").is_ok() {
        let deadline = Instant::now() + EMPTY_TIME;
        // A process that is about to be gone is in no list any more, and still keeps the group.
        let populated = || fs::read_to_string(path(uid).join("cgroup.events")).is_ok_and(|events| events.contains("populated 1"));
        while populated() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    match fs::remove_dir(path(uid)) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ReadOnlyFilesystem) => Ok(()),
        other => other,
    }
}

/// Ends the processes of all machines of this host, and removes their groups; how many there were.
///
/// # Errors
/// When processes do not go, or the host's cgroup v2 cannot be changed.
pub fn clear() -> io::Result<usize> {
    let slice: PathBuf = [ROOT, SLICE].iter().collect();
    let entries = match fs::read_dir(&slice) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut groups = 0;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.file_name().to_string_lossy())?;
            groups += 1;
        }
    }
    fs::remove_dir(slice)?;
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_together_are_held_as_a_kubelets_pods_are_and_elsewhere_not_at_all() {
        let limits = Together {
            memory: 4 << 30,
            cpu: 1500,
        };
        let text = |limits| Together::files(limits).map(|(name, content)| format!("{name} {content}"));
        assert_eq!(
            text(Some(&limits)),
            ["memory.max 4294967296", "cpu.max 150000 100000", "cpu.weight 59"]
        );
        assert_eq!(text(None), ["memory.max max", "cpu.max max", "cpu.weight 100"]);
    }

    #[test]
    fn a_machine_may_use_its_size_and_what_its_monitor_needs() {
        let spec: MachineSpec = serde_json::from_value(serde_json::json!({
            "version": vmm_lib::spec::SPEC_VERSION, "name": "m", "cpus": 2, "memory": 192 << 20,
            "pmems": [{"name": "image", "extents": [{"file": {"passed": 0}, "offset": 0, "length": 64 << 20}]}],
            "boot": {"kernel": {"path": "/k"}, "initramfs": null, "commandLine": ""},
        }))
        .unwrap();
        let all = limits(&spec, 2, 40);
        let value = |name| all.iter().find(|(known, _)| *known == name).map(|(_, content)| content.as_str());
        assert_eq!(value("memory.max"), Some("337641472"));
        // A copy of a template has most of its memory by virtio-mem.
        let copy = MachineSpec {
            memory: 128 << 20,
            hotplug: Some(vmm_lib::spec::Hotplug {
                size: 128 << 20,
                requested: 64 << 20,
            }),
            ..spec
        };
        assert_eq!(limits(&copy, 2, 40)[0].1, "337641472");
        assert_eq!(value("cpu.max"), Some("300000 100000"));
        assert_eq!(value("pids.max"), Some("40"));
    }
}
