//! Control groups (version 2): `pod` for all containers, `pod/<id>` for each. Owns the files below /sys/fs/cgroup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvmlet_protocol::{ErrorKind, Failure, GroupFigures, Resources};

use crate::failure::{Attempt, fail};

/// Where the hierarchy is mounted.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
const POD: &str = "/sys/fs/cgroup/pod";
const CONTROLLERS: &str = "+memory +cpu +pids +cpuset";
/// How long killed processes may take to be gone.
const EMPTY: Duration = Duration::from_secs(10);

/// Makes the pod's group and hands the controllers down. Once, at boot.
pub(crate) fn prepare() -> io::Result<()> {
    fs::write(Path::new(MOUNT).join("cgroup.subtree_control"), CONTROLLERS)?;
    fs::create_dir(POD)?;
    fs::write(Path::new(POD).join("cgroup.subtree_control"), CONTROLLERS)
}

/// Limits all containers together, in memory and processor time; 0 lifts a limit. Processes belong to the containers' groups, so none ends with others but
/// those of its container. Nothing is changed where they use more memory than they shall have: some would be killed.
pub(crate) fn limit_pod(limits: &Resources) -> Result<(), Failure> {
    let (pod, limit) = (Path::new(POD), limits.memory_max);
    fits(pod, limit).map_err(|used| {
        let why = format!("attempting to set pod memory limit ({limit}) below current usage ({used})");
        fail(ErrorKind::Conflict, why)
    })?;
    fs::write(pod.join("memory.max"), or_max(limit)).attempt("limit the pod's memory")?;
    let quota = format!("{} 100000", or_max(limits.cpu_quota));
    fs::write(pod.join("cpu.max"), quota).attempt("limit the pod's processor time")
}

/// Kills every process of every container, and waits until they are gone.
pub(crate) fn kill_pod() -> io::Result<()> {
    kill_and_wait(Path::new(POD))
}

/// A container's group.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the group and sets its limits.
    pub(crate) fn create(id: &str, limits: &Resources) -> Result<Self, Failure> {
        let group = Self {
            path: Path::new(POD).join(id),
        };
        fs::create_dir(&group.path).attempt("create the container's cgroup")?;
        group.limit(limits).inspect_err(|_| drop(fs::remove_dir(&group.path)))?;
        Ok(group)
    }

    fn limit(&self, limits: &Resources) -> Result<(), Failure> {
        let write = |file: &str, value: String| {
            fs::write(self.path.join(file), &value).wanted(format_args!("set {file} of the container to {value}"))
        };
        if limits.memory_max > 0 {
            write("memory.max", limits.memory_max.to_string())?;
        }
        // As the kubelet does on cgroup v2: a container lives or dies as a whole.
        write("memory.oom.group", "1".into())?;
        if limits.cpu_quota > 0 {
            write("cpu.max", format!("{} 100000", limits.cpu_quota))?;
        }
        if limits.cpu_weight > 0 {
            write("cpu.weight", limits.cpu_weight.to_string())?;
        }
        if limits.pids_max > 0 {
            write("pids.max", limits.pids_max.to_string())?;
        }
        Ok(())
    }

    /// Sets other limits, and lifts those that are no more.
    pub(crate) fn resize(&self, limits: &Resources) -> Result<(), Failure> {
        let quota = format!("{} 100000", or_max(limits.cpu_quota));
        let files = [("memory.max", or_max(limits.memory_max)), ("cpu.max", quota)];
        let weight = (limits.cpu_weight > 0).then(|| ("cpu.weight", limits.cpu_weight.to_string()));
        for (file, value) in files.into_iter().chain(weight) {
            fs::write(self.path.join(file), &value).wanted(format_args!("set {file} of the container to {value}"))?;
        }
        Ok(())
    }

    /// Whether what it uses is within a limit of memory, bytes; 0 is none.
    ///
    /// # Errors
    /// How much it uses, where that is more.
    pub(crate) fn fits(&self, limit: u64) -> Result<(), u64> {
        fits(&self.path, limit)
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// SIGKILL to all in it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// The processes in it.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        Ok(fs::read_to_string(self.path.join("cgroup.procs"))?
            .lines()
            .filter_map(|l| l.parse().ok())
            .collect())
    }

    /// Whether the kernel killed something in it for lack of memory.
    pub(crate) fn out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        field(&events, "oom_kill").max(field(&events, "oom_group_kill")) > 0
    }

    /// What it uses. A file that is gone counts nothing: the group is on its way out.
    pub(crate) fn figures(&self) -> GroupFigures {
        figures(&self.path)
    }

    /// Kills what is left and removes the group.
    pub(crate) fn remove(&self) -> io::Result<()> {
        kill_and_wait(&self.path)?;
        fs::remove_dir(&self.path)
    }
}

/// What all containers use together.
pub(crate) fn pod_figures() -> GroupFigures {
    figures(Path::new(POD))
}

/// See [`Cgroup::fits`].
fn fits(group: &Path, limit: u64) -> Result<(), u64> {
    if limit == 0 {
        return Ok(());
    }
    let used = working_set(number(group, "memory.current"), &read(group, "memory.stat"));
    if used <= limit { Ok(()) } else { Err(used) }
}

/// Of the memory of a group, what is not merely an inactive file's.
fn working_set(memory: u64, stat: &str) -> u64 {
    memory.saturating_sub(field(stat, "inactive_file"))
}

fn read(group: &Path, file: &str) -> String {
    fs::read_to_string(group.join(file)).unwrap_or_default()
}

fn number(group: &Path, file: &str) -> u64 {
    read(group, file).trim().parse().unwrap_or(0)
}

fn figures(group: &Path) -> GroupFigures {
    let (cpu, stat) = (read(group, "cpu.stat"), read(group, "memory.stat"));
    let nanoseconds = |name| field(&cpu, name).saturating_mul(1000);
    let memory = number(group, "memory.current");
    GroupFigures {
        cpu: nanoseconds("usage_usec"),
        throttled_periods: field(&cpu, "nr_throttled"),
        periods: field(&cpu, "nr_periods"),
        throttled: nanoseconds("throttled_usec"),
        memory,
        working_set: working_set(memory, &stat),
        anonymous: field(&stat, "anon"),
        cache: field(&stat, "file"),
        page_faults: field(&stat, "pgfault"),
        major_page_faults: field(&stat, "pgmajfault"),
        processes: number(group, "pids.current"),
    }
}

fn kill_and_wait(path: &Path) -> io::Result<()> {
    let events = path.join("cgroup.events");
    let deadline = Instant::now() + EMPTY;
    fs::write(path.join("cgroup.kill"), "1")?;
    while field(&fs::read_to_string(&events)?, "populated") != 0 {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn or_max(value: u64) -> String {
    if value == 0 { "max".into() } else { value.to_string() }
}

/// The number after `name` in a file of lines `name number`.
fn field(text: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{field, fits};

    #[test]
    fn a_limit_below_what_is_used_does_not_fit_and_no_limit_always_does() {
        let group = tempfile::tempdir().unwrap();
        std::fs::write(group.path().join("memory.current"), "10\n").unwrap();
        std::fs::write(group.path().join("memory.stat"), "anon 5\ninactive_file 4\n").unwrap();
        assert_eq!([6, 0, 5].map(|limit| fits(group.path(), limit)), [Ok(()), Ok(()), Err(6)]);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let events = "low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(
            (field(events, "oom"), field(events, "oom_kill"), field(events, "missing")),
            (3, 2, 0)
        );
    }
}
