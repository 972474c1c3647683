//! Commands run in containers, and the sessions that carry their streams.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use kvmlet_protocol::{
    ErrorKind, ExecInput, ExecOutput, ExecSpec, Failure, FrameError, MAX_CHUNK, MAX_HOST_FRAME, Process, Response, read_frame, write_frame,
};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, major, minor, openat2};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use vsock::VsockStream;

use crate::agent::Agent;
use crate::container::Container;
use crate::failure::{Attempt, fail};
use crate::reaper::{Child, Ended};
use crate::session::{ready, set_size, write_while_connected};
use crate::spawn::{self, Place, Plan, Processes, Streams};
use crate::sys;

/// After a command's end, output that something else still holds open is followed only while it comes.
const QUIET: Duration = Duration::from_millis(100);

/// A command that runs, with the agent's ends of its streams.
pub(crate) struct Session {
    child: Child,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
    terminal: Option<File>,
}

/// Starts a command in a container, as the container's user and with its environment.
pub(crate) fn start(agent: &Agent, spec: &ExecSpec) -> Result<Session, Failure> {
    let container = agent.running(&spec.container)?;
    let mut process = Process {
        args: spec.args.clone(),
        ..container.spec.process.clone()
    };
    if spec.terminal && !process.env.iter().any(|(name, _)| name == "TERM") {
        process.env.push(("TERM".into(), "xterm".into()));
    }
    let plan = Plan {
        process,
        strict_groups: container.extras.strict_groups,
        filter: container.filter.clone(),
        cgroup: container.cgroup.path().to_owned(),
        place: Place::Of {
            pid: container.pid,
            terminal: spec.terminal,
        },
    };
    if spec.terminal {
        on_terminal(&container, spec, &plan)
    } else {
        on_pipes(&container, spec, &plan)
    }
}

fn launch(container: &Container, plan: &Plan, streams: Streams) -> Result<Child, Failure> {
    let process = container.process();
    spawn::launch(plan, Processes::Of(process.as_fd()), streams).map(|(child, _)| child)
}

fn on_pipes(container: &Container, spec: &ExecSpec, plan: &Plan) -> Result<Session, Failure> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).attempt("create a pipe");
    let (stdin_end, stdin) = if spec.stdin {
        let (end, ours) = pipe()?;
        // A command that does not read must not keep the session from seeing the host go.
        rustix::io::ioctl_fionbio(&ours, true).attempt("prepare standard input")?;
        (Stdio::from(end), Some(ours.into()))
    } else {
        (Stdio::null(), None)
    };
    let output = |wanted: bool| -> Result<(Option<File>, Stdio), Failure> {
        if !wanted {
            return Ok((None, Stdio::null()));
        }
        let (ours, end) = pipe()?;
        Ok((Some(ours.into()), end.into()))
    };
    let (stdout, stdout_end) = output(spec.stdout)?;
    let (stderr, stderr_end) = output(spec.stderr)?;
    let child = launch(
        container,
        plan,
        Streams {
            stdin: stdin_end,
            stdout: stdout_end,
            stderr: stderr_end,
        },
    )?;
    Ok(Session {
        child,
        stdin,
        stdout,
        stderr,
        terminal: None,
    })
}

fn on_terminal(container: &Container, spec: &ExecSpec, plan: &Plan) -> Result<Session, Failure> {
    let master = open_master(container.pid).attempt("open a terminal")?;
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let end = rustix::pty::ioctl_tiocgptpeer(&master, flags).attempt("open a terminal")?;
    let copy = || end.try_clone().attempt("open a terminal").map(Stdio::from);
    let child = launch(
        container,
        plan,
        Streams {
            stdin: copy()?,
            stdout: copy()?,
            stderr: copy()?,
        },
    )?;
    let master = File::from(master);
    let again = || master.try_clone().attempt("open a terminal");
    rustix::io::ioctl_fionbio(&master, true).attempt("prepare the terminal")?;
    let stdin = if spec.stdin { Some(again()?) } else { None };
    Ok(Session {
        child,
        stdin,
        stdout: Some(again()?),
        stderr: None,
        terminal: Some(master),
    })
}

/// A new terminal's master, in the container's own devpts.
fn open_master(pid: u32) -> io::Result<OwnedFd> {
    let root = File::open(format!("/proc/{pid}/root"))?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let master = openat2(root, "dev/pts/ptmx", flags, Mode::empty(), resolve)?;
    let device = fstat(&master)?.st_rdev;
    if (major(device), minor(device)) != (5, 2) {
        return Err(Errno::NOTTY.into());
    }
    rustix::pty::unlockpt(&master)?;
    Ok(master)
}

impl Session {
    /// Carries the streams until the command ends, or kills it when the host goes.
    pub(crate) fn run(self, mut connection: VsockStream) -> Result<(), FrameError> {
        let Self {
            child,
            stdin,
            stdout,
            stderr,
            terminal,
        } = self;
        let process = Arc::new(child.pidfd);
        let kill = |process: &OwnedFd| drop(sys::pidfd_send_signal(process, libc::SIGKILL));
        let input = (|| {
            write_frame(&mut connection, &Response::Started { pid: child.pid }).map_err(io::Error::other)?;
            let (from, process) = (connection.try_clone()?, Arc::clone(&process));
            let read = move || {
                // The end of the connection, before or after the command's own, is the usual way out.
                drop(feed(from, stdin, terminal.as_ref()));
                kill(&process);
            };
            std::thread::Builder::new()
                .name("exec input".into())
                .stack_size(192 << 10)
                .spawn(read)
        })();
        if let Err(e) = input {
            kill(&process);
            return Err(FrameError::Io(e));
        }
        match pump(&mut connection, &process, stdout, stderr) {
            Ok(()) => {
                let ended = child.ended.recv().unwrap_or(Ended {
                    code: 255,
                    signal: 0,
                    at: 0,
                });
                write_frame(&mut connection, &ExecOutput::Exited { code: ended.code })?;
            }
            Err(e) => {
                kill(&process);
                let failed = ExecOutput::Failed {
                    kind: ErrorKind::Internal,
                    message: fail(ErrorKind::Internal, e.to_string()).message,
                };
                write_frame(&mut connection, &failed)?;
            }
        }
        connection.shutdown(std::net::Shutdown::Write).map_err(FrameError::Io)
    }
}

/// From the host to the command, until the host closes.
fn feed(mut from: VsockStream, mut stdin: Option<File>, terminal: Option<&File>) -> Result<(), FrameError> {
    loop {
        match read_frame(&mut from, MAX_HOST_FRAME)? {
            ExecInput::Stdin(data) => {
                // A command that has closed its input is not disturbed.
                if let Some(to) = &mut stdin
                    && let Err(e) = write_while_connected(&*to, &data, &from)
                {
                    if e.kind() == io::ErrorKind::ConnectionAborted {
                        return Err(FrameError::Io(e));
                    }
                    stdin = None;
                }
            }
            ExecInput::StdinClosed => stdin = None,
            ExecInput::Resize { width, height } => {
                if let Some(terminal) = terminal {
                    set_size(terminal, width, height);
                }
            }
        }
    }
}

/// From the command to the host, until the command has ended and its output too.
fn pump(to: &mut VsockStream, process: &OwnedFd, stdout: Option<File>, stderr: Option<File>) -> io::Result<()> {
    let frame: [fn(Vec<u8>) -> ExecOutput; 2] = [ExecOutput::Stdout, ExecOutput::Stderr];
    let mut pipes = [stdout, stderr];
    let mut buffer = vec![0; MAX_CHUNK];
    let mut ended = false;
    while !ended || pipes.iter().any(Option::is_some) {
        let mut fds = Vec::with_capacity(3);
        fds.extend(pipes.iter().flatten().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        if !ended {
            fds.push(PollFd::new(process, PollFlags::IN));
        }
        let some = ready(&mut fds, ended.then_some(QUIET))?;
        let process_number = process.as_raw_fd();
        let mut readable: Vec<i32> = fds
            .iter()
            .filter(|fd| !fd.revents().is_empty())
            .map(|fd| fd.as_fd().as_raw_fd())
            .collect();
        drop(fds);
        if some == 0 {
            return Ok(());
        }
        if !ended && readable.contains(&process_number) {
            ended = true;
            readable.retain(|fd| *fd != process_number);
        }
        for (pipe, frame) in pipes.iter_mut().zip(frame) {
            let Some(from) = pipe else { continue };
            if !readable.contains(&from.as_raw_fd()) {
                continue;
            }
            match from.read(&mut buffer) {
                Ok(0) => *pipe = None,
                Ok(length) => write_frame(to, &frame(buffer[..length].to_vec())).map_err(io::Error::other)?,
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                // The last process has left the terminal.
                Err(e) if e.raw_os_error() == Some(libc::EIO) => *pipe = None,
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}
