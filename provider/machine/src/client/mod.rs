//! The daemon's side: spawns machine processes, finds them again, talks with them. Believes that a process is a machine's only when pid, start
//! time and boot agree with the record written before the start, and the control socket is that process's.

mod conversation;
mod program;

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions},
};

pub use self::{
    conversation::{Control, Events},
    program::Program,
};
use crate::{
    process::open_log,
    record::{ExitRecord, ProcessRecord, RecordError, open_directory},
    start::{Answer, Start},
    wire::{Receiver, WireError, send},
};

/// For a machine process to answer; it never waits for its guest to do so, but many may begin at once on few processors.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why a machine process could not be started or talked with.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The host refused.
    #[error("{what}")]
    Host {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// `machine.json` or `exit.json`.
    #[error("keep the machine's records")]
    Record(#[from] RecordError),
    /// The conversation failed.
    #[error("talk with the machine process")]
    Wire(#[from] WireError),
    /// The process answered that it cannot.
    #[error("the machine process refused: {0}")]
    Refused(String),
    /// The control socket belongs to another process.
    #[error("the control socket is process {actual}'s, not process {expected}'s")]
    Stranger {
        /// Of the record.
        expected: u32,
        /// Of the socket.
        actual: u32,
    },
}

fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ClientError {
    move |error| ClientError::Host {
        what,
        source: error.into(),
    }
}

/// A process that waits for its order. Dropped, it ends by itself; [`Spawned::start`] makes it a [`Machine`].
#[derive(Debug)]
pub struct Spawned {
    machine: Machine,
    directory: OwnedFd,
    order: UnixStream,
}

/// Spawns a machine process in `directory`, which exists, as the first process of a new pid namespace; it will run as the user `uid`, which
/// is recorded here and told it by the order. `program`, with `vm` as its argument, calls [`crate::run`]. Writes `machine.json`.
pub fn spawn(directory: &Path, uid: u32, program: &Program) -> Result<Spawned, ClientError> {
    let handle = open_directory(directory).map_err(host("open the machine's directory"))?;
    let log = open_log(&handle).map_err(host("open machine.log"))?;
    let copy = log.try_clone().map_err(host("open machine.log"))?;
    let (order, theirs) = UnixStream::pair().map_err(host("make a socket pair"))?;
    for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
        set(&order, Some(DEADLINE)).map_err(host("set a deadline"))?;
    }
    let child = spawn_apart(program, "vm", (theirs.into(), log, copy))?;
    let pid = child.id();
    // An unreaped child keeps its pid, so this is that process.
    let pidfd = pidfd(pid).map_err(host("open a pidfd"))?;
    let start_time = start_time(pid).map_err(host("read the process's start time"))?;
    let record = ProcessRecord {
        version: 1,
        pid,
        start_time,
        boot_id: boot_id().map_err(host("read the boot id"))?,
        uid: Some(uid),
    };
    record.write(&handle)?;
    Ok(Spawned {
        machine: Machine {
            directory: directory.to_owned(),
            pid,
            start_time,
            pidfd,
            signal: OnceLock::new(),
        },
        directory: handle,
        order,
    })
}

/// Spawns the first process of a new pid namespace. A thread of its own does it: where a thread's children go cannot be taken back, and no
/// thread can be made by one whose children go elsewhere.
pub(crate) fn spawn_apart(program: &Program, argument: &str, (order, log, copy): (OwnedFd, File, File)) -> Result<Child, ClientError> {
    let mut command = Command::new(program.path());
    command
        .arg0("kvmlet")
        .arg(argument)
        .env_clear()
        // With more arenas glibc opens files in /sys and /proc to find how many to make and how to shrink them, in whichever thread
        // allocates or frees; those may open nothing. The monitor allocates too little for more arenas to be worth their memory.
        .env("MALLOC_ARENA_MAX", "1")
        .current_dir("/")
        .stdin(Stdio::from(order))
        .stdout(log)
        .stderr(copy);
    let apart = move || {
        unshare(CloneFlags::CLONE_NEWPID).map_err(host("make a pid namespace"))?;
        command.spawn().map_err(host("spawn the machine process"))
    };
    let thread = thread::Builder::new().name("spawn".into()).spawn(apart);
    let joined = thread.map_err(host("start a thread"))?.join();
    joined.unwrap_or_else(|_| Err(host("spawn the machine process")(io::Error::other("the thread panicked"))))
}

impl Spawned {
    /// Process id; it may be put into a cgroup now.
    pub fn pid(&self) -> u32 {
        self.machine.pid
    }

    /// Gives the order, with the descriptors that the specification calls `Passed`. Returns when the control socket listens; how
    /// the machine fares from there on is told by [`Control::status`] and by the exit record.
    pub fn start(self, start: &Start, passed: &[OwnedFd]) -> Result<Machine, ClientError> {
        let mut descriptors = vec![self.directory.as_fd()];
        descriptors.extend(passed.iter().map(AsFd::as_fd));
        let outcome = send(&self.order, start, &descriptors).and_then(|()| Receiver::new(self.order).receive());
        match outcome {
            Ok((Answer::Listening, _)) => Ok(self.machine),
            Ok((Answer::Refused(why), _)) => {
                self.machine.end();
                Err(ClientError::Refused(why))
            }
            Err(error) => {
                self.machine.end();
                Err(error.into())
            }
        }
    }

    /// Ends a process that shall not run a machine after all.
    pub fn abandon(self) {
        self.machine.end();
    }
}

/// What became of the machine of a directory.
#[derive(Debug)]
pub enum Adoption {
    /// It runs.
    Running(Machine),
    /// Its process lives but does not answer as it should; it can be killed.
    Unresponsive(Machine, ClientError),
    /// Its process is gone; the record, if it could write one.
    Ended(Option<ExitRecord>),
    /// None was ever started here.
    Never,
}

/// The process of a directory's machine, as its record and the host say.
#[derive(Debug)]
pub enum Found {
    /// It is there.
    Alive(Machine),
    /// It is gone; its record, if it could write one.
    Ended(Option<ExitRecord>),
    /// None was ever started here.
    Never,
}

/// Finds the machine of `directory` again, and has it answer.
pub fn adopt(directory: &Path) -> Result<Adoption, ClientError> {
    let machine = match find(directory)? {
        Found::Alive(machine) => machine,
        Found::Ended(record) => return Ok(Adoption::Ended(record)),
        Found::Never => return Ok(Adoption::Never),
    };
    match machine.control().and_then(|mut control| control.status()) {
        Ok(_) => Ok(Adoption::Running(machine)),
        Err(_) if machine.wait(Some(Duration::ZERO))? => Ok(Adoption::Ended(ExitRecord::read(directory)?)),
        Err(error) => Ok(Adoption::Unresponsive(machine, error)),
    }
}

/// Looks for the process of `directory`'s machine, and asks it nothing.
pub fn find(directory: &Path) -> Result<Found, ClientError> {
    let Some(record) = ProcessRecord::read(directory)? else {
        return Ok(Found::Never);
    };
    let ended = || Ok(Found::Ended(ExitRecord::read(directory)?));
    if record.boot_id != boot_id().map_err(host("read the boot id"))? {
        return ended();
    }
    let pidfd = match pidfd(record.pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => return ended(),
        Err(error) => return Err(host("open a pidfd")(error)),
    };
    // After the pidfd: if the start time agrees now, the pidfd is that process's.
    match start_time(record.pid) {
        Ok(start_time) if start_time == record.start_time => {}
        Ok(_) => return ended(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return ended(),
        Err(error) => return Err(host("read the process's start time")(error)),
    }
    let machine = Machine {
        directory: directory.to_owned(),
        pid: record.pid,
        start_time: record.start_time,
        pidfd,
        signal: OnceLock::new(),
    };
    // An exited process that nobody has reaped yet.
    if machine.wait(Some(Duration::ZERO))? {
        machine.reap();
        return ended();
    }
    Ok(Found::Alive(machine))
}

/// A machine process.
#[derive(Debug)]
pub struct Machine {
    directory: PathBuf,
    pid: u32,
    start_time: u64,
    pidfd: OwnedFd,
    /// What ended it, once it is reaped.
    signal: OnceLock<i32>,
}

impl Machine {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When the process started, in clock ticks since boot.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// A connection for requests.
    pub fn control(&self) -> Result<Control, ClientError> {
        self.control_within(DEADLINE)
    }

    /// The same, of a process that answers each request within `limit`, which is not zero, or has failed.
    pub fn control_within(&self, limit: Duration) -> Result<Control, ClientError> {
        Control::connect(&self.directory, self.pid, limit)
    }

    /// A connection for events.
    pub fn events(&self) -> Result<Events, ClientError> {
        Events::subscribe(self.control()?)
    }

    /// SIGKILL. The exit record is then missing.
    pub fn kill_process(&self) -> Result<(), ClientError> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(host("kill the machine process")(error)),
        }
    }

    /// Waits for the process's end, for ever without `timeout`; whether it has ended.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool, ClientError> {
        let timeout = timeout
            .map(Timespec::try_from)
            .transpose()
            .map_err(|_| host("wait for the machine process")(io::Error::from(io::ErrorKind::InvalidInput)))?;
        let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        let ready = rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref())).map_err(host("wait for the machine process"))?;
        Ok(ready == 1)
    }

    /// Frees the pid of an ended process that is this daemon's child; nothing for others.
    pub fn reap(&self) {
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        if let Some(signal) = status.ok().flatten().and_then(|status| status.terminating_signal()) {
            // Reaped once only.
            let _ = self.signal.set(signal);
        }
    }

    /// The signal that ended the process, where it was this daemon's child and is reaped.
    pub fn signal(&self) -> Option<i32> {
        self.signal.get().copied()
    }

    /// How it ended; `None` while it runs, and when it was killed before it could write that.
    pub fn exit_record(&self) -> Result<Option<ExitRecord>, ClientError> {
        Ok(ExitRecord::read(&self.directory)?)
    }

    fn end(&self) {
        if self.kill_process().is_ok() && self.wait(Some(DEADLINE)).is_ok_and(|ended| ended) {
            self.reap();
        }
    }
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Field 22 of /proc/pid/stat. The name before it may hold anything, parentheses too.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
    after_name
        .and_then(|rest| rest.split_ascii_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
