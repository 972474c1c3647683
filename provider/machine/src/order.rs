//! From the daemon's order to a process that is confined and has all it needs open. Everything that needs root, a path or a namespace of the
//! host happens here, before any of it is known to a guest.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
};

use vmm_lib::{
    builder::BuildError,
    files::open_files,
    kvm,
    spec::{DiskEngine, MachineSpec, RING_WORKERS},
    virtio::vsock::{Dialer, Inlet, dialer},
};

use crate::{
    jail::{Filters, Limits, Needs, confine},
    record::{self, ExitFile},
    server::MAX_CONNECTIONS,
    share::SHARE_THREADS,
    start::{OLDEST_VERSION, Start, VERSION},
};

/// Name of the socket in a machine's directory that the daemon talks to.
pub(crate) const CONTROL_SOCKET: &str = "control.sock";
/// Threads besides processors, devices and control connections, with some that have not quite ended.
const OTHER_THREADS: u64 = 16;
/// What a disk's ring takes, bytes, at most: two queues of few entries.
const RING_MEMORY: u64 = 64 << 10;
/// The kernel's own threads for a disk's ring, and the one that makes them.
const RING_THREADS: u64 = RING_WORKERS as u64 + 1;
/// Descriptors besides those of files: eventfds and epolls of devices, control and vsock connections, containers' logs.
const OTHER_FILES: u64 = 3072;

/// What the machine is made of.
pub(crate) struct Parts {
    pub(crate) spec: MachineSpec,
    pub(crate) files: Vec<OwnedFd>,
    pub(crate) kvm: OwnedFd,
}

/// An order that can be followed, by a process that is confined.
pub(crate) struct Order {
    /// Or why there can be no machine.
    pub(crate) parts: Result<Parts, BuildError>,
    pub(crate) vsock: Option<(Dialer, Inlet)>,
    pub(crate) listener: UnixListener,
    pub(crate) exit: ExitFile,
    pub(crate) filters: Filters,
    /// This process, as the daemon knows it.
    pub(crate) pid: u32,
    pub(crate) started: u64,
    /// What of the machine is not as in every one.
    pub(crate) needs: Needs,
}

impl Order {
    /// Opens everything, then confines the process; the error is for the daemon.
    pub(crate) fn prepare(start: Start, descriptors: Vec<OwnedFd>) -> Result<Self, String> {
        let started = record::now();
        if !(OLDEST_VERSION..=VERSION).contains(&start.version) {
            return Err(format!(
                "this program starts machines of versions {OLDEST_VERSION} to {VERSION}, not {}",
                start.version
            ));
        }
        let mut descriptors = descriptors.into_iter();
        let directory = descriptors.next().ok_or("the machine's directory was not passed")?;
        log_to_stderr(&start.log_filter)?;
        let io = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        record::remove(&directory, CONTROL_SOCKET).map_err(io("remove the old control socket"))?;
        let listener = UnixListener::bind(within(&directory, CONTROL_SOCKET)).map_err(io("listen on the control socket"))?;
        let exit = ExitFile::create(&directory).map_err(|error| error.to_string())?;
        // A descriptor of a directory is a way out of an empty root.
        drop(directory);
        let vsock = start.spec.vsock.is_some().then(dialer).transpose();
        let vsock = vsock.map_err(io("make a way to the guest"))?;
        let limits = limits(&start.spec, descriptors.len());
        let pid = pid().map_err(io("read the own process id"))?;
        let needs = Needs {
            template: start.template,
            rings: rings(&start.spec) > 0,
        };
        let parts = open(start.spec, descriptors.collect());
        let filters = Filters::new(needs).map_err(|error| error.to_string())?;
        confine(&start.jail, &limits, &filters).map_err(|error| super::process::chain(&error))?;
        Ok(Self {
            parts,
            vsock,
            listener,
            exit,
            filters,
            pid,
            started,
            needs,
        })
    }
}

fn open(spec: MachineSpec, passed: Vec<OwnedFd>) -> Result<Parts, BuildError> {
    spec.validate(passed.len()).map_err(BuildError::Spec)?;
    let (spec, files) = open_files(spec, passed)?;
    let kvm = kvm::open_device()?;
    Ok(Parts { spec, files, kvm })
}

/// Threads of a machine's process, at most, and of its shared directories' processes, which have its user and control group.
pub fn threads(spec: &MachineSpec) -> u64 {
    let queues: usize = spec.nets.iter().map(|net| 1 + net.more_queues.len()).sum();
    let devices = (spec.disks.len() + spec.pmems.len() + queues + 7) as u64;
    let devices = devices + rings(spec) * RING_THREADS;
    let shares = spec.shares.len() as u64 * (1 + SHARE_THREADS);
    u64::from(spec.cpus) + devices + shares + MAX_CONNECTIONS as u64 + OTHER_THREADS
}

/// Disks that have a ring, with a descriptor of its own each.
fn rings(spec: &MachineSpec) -> u64 {
    spec.disks.iter().filter(|disk| disk.engine == DiskEngine::IoUring).count() as u64
}

/// Each extent has a descriptor of its own besides the file's.
fn limits(spec: &MachineSpec, passed: usize) -> Limits {
    let of_disks = spec.disks.iter().map(|disk| disk.extents.len());
    let of_pmems = spec.pmems.iter().map(|pmem| pmem.extents.len());
    let extents = of_disks.chain(of_pmems).sum::<usize>() as u64;
    Limits {
        files: OTHER_FILES + 2 * extents + passed as u64 + rings(spec),
        threads: threads(spec),
        locked: rings(spec) * RING_MEMORY,
    }
}

/// In its own namespace it is 1; the host's procfs says what it is there.
fn pid() -> io::Result<u32> {
    let link = fs::read_link("/proc/self")?;
    let number = link.to_str().and_then(|number| number.parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A file of an open directory by a path that is short, however deep the directory lies (socket addresses have 108 bytes).
pub(crate) fn within(directory: &impl AsFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd()))
}

/// Standard error is `machine.log`.
pub(crate) fn log_to_stderr(filter: &str) -> Result<(), String> {
    let filter = filter
        .parse::<tracing_subscriber::EnvFilter>()
        .map_err(|error| format!("understand the log filter: {error}"))?;
    // A program that has a subscriber already keeps it.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(io::stderr)
        .try_init();
    Ok(())
}
