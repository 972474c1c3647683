//! A container: what it shall be and what became of it.

use serde::{Deserialize, Serialize};

/// A container to start. Names and variables are resolved by the host; what only the image's files know (user names) is resolved here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique in the machine, never used again: 64 hexadecimal digits.
    pub id: String,
    /// Its name in the pod, for directories and messages.
    pub name: String,
    /// Its root file system.
    pub root: RootFs,
    /// Its first process.
    pub process: Process,
    /// In order.
    pub mounts: Vec<Mount>,
    /// Limits inside the guest.
    pub resources: Resources,
    /// Absolute path inside the container of the file whose content becomes the termination message; an empty file is put there.
    pub termination_message_path: String,
    /// Whether an empty message is replaced by the end of the log when the container fails (FallbackToLogsOnError).
    pub termination_message_from_log: bool,
    /// Whether standard input stays open (with nobody writing to it) instead of being /dev/null.
    pub stdin: bool,
}

/// What a container may have besides; nothing of it by default. Since version [`crate::STREAMS_VERSION`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extras {
    /// Standard input is closed when the first session that may write to it has ended its own (stdinOnce). A terminal stays open.
    pub stdin_once: bool,
    /// The three standard streams are a terminal, and what is said there is standard output (tty).
    pub terminal: bool,
    /// Identifier of the container whose process name space it shares (targetContainerName).
    pub processes_of: Option<String>,
    /// All of its guest: every device, the kernel's file systems writable and none of them hidden (privileged).
    pub privileged: bool,
    /// Nothing of /proc and /sys is hidden or read-only beyond what the kernel itself says (procMount Unmasked).
    pub unmasked: bool,
    /// Supplementary groups are those of the specification alone, none of /etc/group (supplementalGroupsPolicy Strict).
    pub strict_groups: bool,
}

/// A container's root file system: an image below, a writable layer above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Name of the image: one of the sandbox's pmems, or the virtio-blk serial of its disk; for example `img0`.
    pub device: String,
    /// Nothing can be written in it (readOnlyRootFilesystem); the agent's layer holds only the places of mounts.
    pub read_only: bool,
}

/// A process in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The command and its arguments; looked up in the PATH of `env` when it has no slash.
    pub args: Vec<String>,
    /// Environment, complete.
    pub env: Vec<(String, String)>,
    /// Working directory, created when missing; `/` when empty.
    pub cwd: String,
    /// Who it runs as.
    pub user: User,
    /// Effective, permitted and bounding capabilities (none inheritable, none ambient), as `CAP_NET_BIND_SERVICE`.
    pub capabilities: Vec<String>,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Whether the default seccomp profile applies (RuntimeDefault).
    pub seccomp: bool,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// /proc/self/oom_score_adj.
    pub oom_score_adj: i32,
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// As an image's configuration writes it: `name`, `uid`, `name:group`, `uid:gid`; empty is root.
    pub user: String,
    /// Group that wins over the one of `user` (runAsGroup).
    pub group: Option<u32>,
    /// Supplementary groups, besides those of /etc/group.
    pub groups: Vec<u32>,
}

/// Who a process runs as, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its supplementary groups, `gid` among them, each once.
    pub groups: Vec<u32>,
}

/// A resource limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// As `RLIMIT_NOFILE`.
    pub name: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// A volume in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Name of a volume of [`crate::SandboxSpec`].
    pub volume: String,
    /// Path in the volume, relative, without `..`; empty for all of it. A missing directory is created.
    pub sub_path: String,
    /// Absolute path in the container; created when missing.
    pub destination: String,
    /// Read only.
    pub read_only: bool,
}

/// Limits of a container's cgroup; 0 means none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// memory.max, bytes.
    pub memory_max: u64,
    /// cpu.max: microseconds of CPU time each 100 ms.
    pub cpu_quota: u64,
    /// cpu.weight, 1 to 10,000.
    pub cpu_weight: u64,
    /// pids.max.
    pub pids_max: u64,
}

/// A container as the agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its identifier.
    pub id: String,
    /// Its state.
    pub state: ContainerState,
}

/// Where a container stands. Times are nanoseconds since 1970 by the guest's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// It runs.
    Running {
        /// Process id in the guest.
        pid: u32,
        /// When it started.
        started: u64,
    },
    /// It has ended; kept until removed.
    Exited(ExitStatus),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it, 0 for none.
    pub signal: i32,
    /// Whether its cgroup's limit killed it.
    pub oom_killed: bool,
    /// When it started.
    pub started: u64,
    /// When it ended.
    pub finished: u64,
    /// Termination message, at most 4,096 bytes.
    pub message: String,
}
