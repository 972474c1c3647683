//! Requests of the daemon and the agent's answers.

use serde::{Deserialize, Serialize};

use crate::{
    AttachSpec, ContainerSpec, ContainerStatus, ExecSpec, Extras, Filter, GuestFigures, Identity, Resources, SandboxSpec, StorageFigures,
    VolumeContent,
};

/// First frame of each connection, from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest version the host speaks.
    pub oldest: u16,
    /// Newest version the host speaks.
    pub newest: u16,
}

/// The agent's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Version both will speak; 0 when there is none in common, and the agent closes.
    pub version: u16,
    /// The agent's own version, for people.
    pub agent: String,
    /// The guest kernel's release, as `uname -r`.
    pub kernel: String,
}

/// What the daemon asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Prepares the pod: network, volumes, files shared by all containers. Once a machine; asked again with the same content it is
    /// answered [`Response::Done`], with another content it fails.
    Setup(SandboxSpec),
    /// Puts a new content into a volume of kind [`crate::VolumeKind::Files`], with an atomic `..data` swap.
    PutVolume {
        /// The volume's name.
        volume: String,
        /// All files it shall hold.
        content: VolumeContent,
    },
    /// Creates and starts a container; answered by [`Response::Started`]. Asked again with an identifier that is there, also of one that has ended, it
    /// is answered as the first time and starts nothing (agents of releases before 2026-11-24 answer with [`crate::ErrorKind::Conflict`]).
    Start(Box<ContainerSpec>),
    /// Sends a signal to a container's first process, or with `all` to every process in it.
    Signal {
        /// Container identifier.
        container: String,
        /// Signal number.
        signal: i32,
        /// Every process of the container (SIGKILL through its cgroup).
        all: bool,
    },
    /// Every container, with its state; answered by [`Response::Containers`].
    List,
    /// Like [`Request::List`], answered when the generation differs from `seen` (or after 30 s with the same one).
    Watch {
        /// Generation of the last answer; 0 at first.
        seen: u64,
    },
    /// Forgets an exited container: its cgroup, mounts and writable layer.
    Remove {
        /// Container identifier.
        container: String,
    },
    /// Runs a command in a container; after [`Response::Started`] the connection is a session of `ExecInput` and `ExecOutput`.
    Exec(ExecSpec),
    /// A few figures of the guest.
    Stats,
    /// Kills what runs, syncs, powers the machine off. Answered [`Response::Done`] first.
    PowerOff,
    /// Makes a copy of another machine one of its own, before anything else is asked of it. Since version 3.
    Renew(Renewal),
    /// A device has come to the machine's bus: the guest looks for it, and answers when its driver is at work. A watchdog is fed from then
    /// on, since version [`crate::WATCHDOG_VERSION`]. Since version 4.
    Attached {
        /// Device number on PCI bus 0.
        device: u8,
    },
    /// A device is about to go from the machine's bus: the guest lets go of it, unless it is a disk in use; an image that
    /// no container is of is not in use. Since version 4.
    Detaching {
        /// Device number on PCI bus 0.
        device: u8,
    },
    /// Like [`Request::Start`], for a container that is more than that can say. Since version 5.
    StartWith {
        /// The container.
        container: Box<ContainerSpec>,
        /// The rest.
        extras: Extras,
    },
    /// Joins a container's own streams; after [`Response::Started`] the connection is a session of `ExecInput` and `ExecOutput`. Since
    /// version 5.
    Attach(AttachSpec),
    /// Connects to a TCP port of the pod, by its loopback; after [`Response::Done`] the connection is a session of [`crate::Forwarded`].
    /// Since version 5.
    Forward {
        /// The port.
        port: u16,
    },
    /// What the guest and its containers use. Since version 6.
    Figures,
    /// Bytes in use of volumes of kind [`crate::VolumeKind::Directory`]; answered by [`Response::Usage`]. Since version 6.
    Usage {
        /// The volumes' names.
        volumes: Vec<String>,
        /// Bytes that are of no interest: where the whole scratch disk holds no more, no volume is looked at, and the answer is empty.
        above: u64,
    },
    /// Gives running containers other limits, and the guest other processors: all of it, or, where a container uses more memory than it shall
    /// have, nothing. Since version 7.
    Resize {
        /// Processors that shall be online.
        cpus: u8,
        /// Container identifiers and their limits.
        containers: Vec<(String, Resources)>,
    },
    /// Limits all containers together, besides what each has of its own. Since version 8.
    LimitPod(Resources),
    /// What volumes and containers' writable layers hold, each for itself; answered by [`Response::Storage`]. Since version 9.
    Storage {
        /// The volumes' names.
        volumes: Vec<String>,
    },
    /// Like [`Request::StartWith`], with a filter of system calls that takes the place of the default one; answered by
    /// [`Response::StartedAs`]. Since version [`crate::START_AS_VERSION`].
    StartAs {
        /// The container.
        container: Box<ContainerSpec>,
        /// The rest.
        extras: Extras,
        /// The filter, if it has one of its own.
        filter: Option<Box<Filter>>,
    },
    /// What a file in a volume holds, if that is not more than [`crate::MAX_FILE`]; answered by [`Response::File`]. No link leads out of the
    /// volume. Since version [`crate::READ_FILE_VERSION`].
    ReadFile {
        /// The volume's name.
        volume: String,
        /// Path in the volume.
        path: String,
    },
}

/// What a machine that was made of a snapshot has to know to be one of its own.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// Secret random bytes, for the kernel's generator; never printed.
    pub entropy: Vec<u8>,
    /// Host time, nanoseconds since 1970.
    pub time: u64,
    /// Processors that shall be online.
    pub cpus: u8,
    /// Bytes of memory that shall have come besides, by virtio-mem.
    pub memory: u64,
    /// Device numbers on PCI bus 0 of virtio functions that have a device by now, for their drivers to look at anew.
    pub devices: Vec<u8>,
}

impl std::fmt::Debug for Renewal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Renewal {{ {} bytes, time: {}, cpus: {}, memory: {}, devices: {:?} }}",
            self.entropy.len(),
            self.time,
            self.cpus,
            self.memory,
            self.devices
        )
    }
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// It is done.
    Done,
    /// The process runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// All containers.
    Containers {
        /// Changes whenever a state changes.
        generation: u64,
        /// In order of their start.
        containers: Vec<ContainerStatus>,
    },
    /// The guest's figures.
    Stats(GuestStats),
    /// It could not be done.
    Failed(Failure),
    /// What the guest and its containers use. Since version 6.
    Figures(Box<GuestFigures>),
    /// Bytes that volumes take on the scratch disk, by name.
    Usage(Vec<(String, u64)>),
    /// What volumes and containers' writable layers hold. Since version 9.
    Storage(Box<StorageFigures>),
    /// The container runs. Since version [`crate::START_AS_VERSION`].
    StartedAs {
        /// The process id in the guest of its first process.
        pid: u32,
        /// Who that is.
        user: Identity,
    },
    /// A file's content. Since version [`crate::READ_FILE_VERSION`].
    File(serde_bytes::ByteBuf),
}

/// Why a request failed: a kind for the program, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind.
    pub kind: ErrorKind,
    /// What went wrong, in a sentence that a pod's owner understands.
    pub message: String,
}

/// Kinds of failure that the daemon treats apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The container's specification cannot be met (unknown user, missing mount, bad working directory).
    BadContainer,
    /// The command does not exist in the image (the kubelet says StartError, exit code 127 or 128).
    CommandNotFound,
    /// The command exists but cannot be executed (exit code 126).
    CommandNotExecutable,
    /// No container of that identifier, or it has ended.
    NoSuchContainer,
    /// The request contradicts an earlier one.
    Conflict,
    /// A disk or memory is full.
    NoSpace,
    /// Anything else.
    Internal,
}

/// Figures of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStats {
    /// MemTotal, bytes.
    pub memory_total: u64,
    /// MemAvailable, bytes.
    pub memory_available: u64,
    /// Per container: identifier, memory in use in bytes, working set in bytes, CPU time in nanoseconds.
    pub containers: Vec<(String, u64, u64, u64)>,
}
