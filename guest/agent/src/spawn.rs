//! Starts helpers: fresh processes of this program that become a container's program (see [`crate::child`]).

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use kvmlet_protocol::{ErrorKind, Failure, FrameError, Identity, MAX_HOST_FRAME, Process, read_frame, write_frame};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use crate::failure::{Attempt, fail};
use crate::filter::Compiled;
use crate::reaper::{self, Child};
use crate::sys;

/// Name (argv[0]) of a container's helper.
pub(crate) const CONTAINER: &str = "kvmlet-container";
/// Name (argv[0]) of the holder of a shared process name space.
pub(crate) const HOLDER: &str = "kvmlet-holder";
/// How long a helper may take to become the container's program.
const BECOMES: Duration = Duration::from_secs(60);

/// What a helper shall do, sent to it as its first frame.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The process it shall become.
    pub(crate) process: Process,
    /// It has no groups of /etc/group.
    pub(crate) strict_groups: bool,
    /// What system calls it may make, in place of the default filter.
    pub(crate) filter: Option<Compiled>,
    /// Its control group.
    pub(crate) cgroup: PathBuf,
    /// Where it lives.
    pub(crate) place: Place,
}

/// Where a helper's process lives.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Place {
    /// In surroundings it builds itself.
    Fresh {
        /// Its root.
        root: Root,
        /// Its standard streams are a terminal, which it makes there and hands over.
        terminal: bool,
    },
    /// In those of this process.
    Of {
        /// A container's first process.
        pid: u32,
        /// Its standard input is a terminal, to be its controlling one.
        terminal: bool,
    },
}

/// A container's root.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Root {
    /// The image.
    pub(crate) lower: PathBuf,
    /// Directory on the scratch disk for what is written.
    pub(crate) upper: PathBuf,
    /// Nothing can be written.
    pub(crate) read_only: bool,
    /// All of the guest's devices, and the kernel's file systems to write to.
    pub(crate) privileged: bool,
    /// Nothing of the kernel's file systems is hidden.
    pub(crate) unmasked: bool,
    /// What is mounted in it, in order.
    pub(crate) binds: Vec<Bind>,
}

/// A directory or file of the guest seen in a container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Bind {
    /// In the guest.
    pub(crate) source: PathBuf,
    /// Path in `source`, created when missing (in an image it must be there); empty for `source` itself.
    pub(crate) sub_path: String,
    /// In the container.
    pub(crate) destination: String,
    /// Read only.
    pub(crate) read_only: bool,
    /// Of an image: no program of it runs.
    pub(crate) image: bool,
}

/// What a helper says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The master of its terminal comes along.
    Terminal,
    /// All is prepared, and it is somebody; the program comes next. When the socket then closes, it runs.
    Ready(Identity),
    /// It cannot be done.
    Failed(Failure),
}

/// Which process name space a helper starts in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Processes<'a> {
    /// One of its own.
    Fresh,
    /// That of this process.
    Of(BorrowedFd<'a>),
}

/// The standard streams of a helper.
#[derive(Debug)]
pub(crate) struct Streams {
    /// 0
    pub(crate) stdin: Stdio,
    /// 1
    pub(crate) stdout: Stdio,
    /// 2
    pub(crate) stderr: Stdio,
}

/// The first process of a process name space that containers share.
#[derive(Debug)]
pub(crate) struct Holder(OwnedFd);

impl Holder {
    /// Its name space.
    pub(crate) fn processes(&self) -> Processes<'_> {
        Processes::Of(self.0.as_fd())
    }
}

/// Starts a holder.
pub(crate) fn holder() -> Result<Holder, Failure> {
    let null = std::fs::File::open("/dev/null").attempt("open /dev/null")?;
    let streams = Streams {
        stdin: Stdio::null(),
        stdout: Stdio::null(),
        stderr: Stdio::null(),
    };
    let child = spawn(HOLDER, Processes::Fresh, streams, null.into()).attempt("start the holder of the shared process name space")?;
    Ok(Holder(child.pidfd))
}

/// Starts a helper and waits until it has become its program, as whom it says.
pub(crate) fn launch(plan: &Plan, processes: Processes<'_>, streams: Streams) -> Result<(Child, Identity), Failure> {
    launch_with(plan, processes, streams).map(|(child, user, _)| (child, user))
}

/// Starts a helper that makes a terminal for itself, and waits until it has become its program; the terminal's master.
pub(crate) fn launch_on_terminal(plan: &Plan, processes: Processes<'_>) -> Result<(Child, Identity, OwnedFd), Failure> {
    let streams = Streams {
        stdin: Stdio::null(),
        stdout: Stdio::null(),
        stderr: Stdio::null(),
    };
    let (child, user, terminal) = launch_with(plan, processes, streams)?;
    match terminal {
        Some(terminal) => Ok((child, user, terminal)),
        None => {
            drop(sys::pidfd_send_signal(&child.pidfd, libc::SIGKILL));
            Err(fail(ErrorKind::Internal, "the process made no terminal"))
        }
    }
}

fn launch_with(plan: &Plan, processes: Processes<'_>, streams: Streams) -> Result<(Child, Identity, Option<OwnedFd>), Failure> {
    let (ours, theirs) = UnixStream::pair().attempt("create a socket pair")?;
    ours.set_read_timeout(Some(BECOMES)).attempt("limit the time of a start")?;
    ours.set_write_timeout(Some(BECOMES)).attempt("limit the time of a start")?;
    let child = spawn(CONTAINER, processes, streams, theirs.into()).attempt("start a process")?;
    match converse(&mut Inbox { socket: &ours, came: None }, plan) {
        Ok((user, terminal)) => Ok((child, user, terminal)),
        Err(failure) => {
            // It ends by itself unless it hangs; the reaper takes it.
            drop(sys::pidfd_send_signal(&child.pidfd, libc::SIGKILL));
            Err(failure)
        }
    }
}

/// A helper's socket, with the descriptor that came along.
struct Inbox<'a> {
    socket: &'a UnixStream,
    came: Option<OwnedFd>,
}

impl Read for Inbox<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(self.socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.came = descriptors.last().or(self.came.take());
            }
        }
        Ok(received.bytes)
    }
}

fn converse(helper: &mut Inbox<'_>, plan: &Plan) -> Result<(Identity, Option<OwnedFd>), Failure> {
    let died = |e: FrameError| match e {
        FrameError::Closed => fail(
            ErrorKind::Internal,
            "the process ended while it was being prepared (out of memory?)",
        ),
        e => fail(ErrorKind::Internal, format!("prepare the process: {e}")),
    };
    write_frame(&mut &*helper.socket, plan).map_err(died)?;
    loop {
        match read_frame(helper, MAX_HOST_FRAME) {
            Ok(Report::Ready(user)) => match read_frame::<Report>(helper, MAX_HOST_FRAME) {
                Err(FrameError::Closed) => return Ok((user, helper.came.take())),
                Ok(Report::Failed(failure)) => return Err(failure),
                Ok(Report::Ready(_) | Report::Terminal) => {}
                Err(e) => return Err(died(e)),
            },
            Ok(Report::Terminal) => {}
            Ok(Report::Failed(failure)) => return Err(failure),
            Err(e) => return Err(died(e)),
        }
    }
}

/// Starts this program again as `name`, on a thread of its own whose children live in the wanted process name space.
fn spawn(name: &str, processes: Processes<'_>, streams: Streams, kept: OwnedFd) -> io::Result<Child> {
    let start = || {
        match processes {
            Processes::Fresh => sys::unshare(UnshareFlags::NEWPID)?,
            Processes::Of(process) => move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID)?,
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg0(name).arg(kept.as_raw_fd().to_string()).env_clear();
        command.stdin(streams.stdin).stdout(streams.stdout).stderr(streams.stderr);
        reaper::spawn(&mut command, kept)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name(name.into())
            .stack_size(64 << 10)
            .spawn_scoped(scope, start)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the starting thread failed")))
    })
}

/// One report, with the descriptor that came along.
#[cfg(test)]
pub(crate) fn received(socket: &UnixStream) -> (Report, Option<OwnedFd>) {
    let mut inbox = Inbox { socket, came: None };
    let report = read_frame(&mut inbox, MAX_HOST_FRAME).expect("a report was sent");
    (report, inbox.came)
}
