//! A shared directory's process, both ends: the daemon spawns it with the directory and one end of a socket, whose other end goes to the
//! machine; it confines itself and serves until the machine's process is gone. The daemon is not needed for that. It belongs to its machine:
//! same user, same control group, and nobody has to end it.

use std::{
    io::{self, Write as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    thread,
    time::Duration,
};

use kvmlet_fs::{Limits as Most, ServeError, Server};
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use crate::{
    client::{Program, spawn_apart},
    jail::{JailError, Limits, SharedRoot, confine_share},
    order::log_to_stderr,
    process::{chain, open_log},
    record::open_directory,
    start::{Answer, OLDEST_VERSION, VERSION},
    wire::{Receiver, WireError, frame, send},
};

/// For the process to take its order, and for the daemon to be answered.
const DEADLINE: Duration = Duration::from_secs(60);
/// Files of a directory that one guest may know (its kernel forgets them when it needs the memory) and have open, where the host lets a
/// process have so many.
const FILES: u64 = 160 << 10;
/// Of them, one in so many may be open.
const OPEN: u64 = 8;
const THREADS: usize = 4;
/// Threads of such a process: those that serve, and the one that waits for them; and one that has not quite ended.
pub(crate) const SHARE_THREADS: u64 = THREADS as u64 + 2;
/// Descriptors besides the guest's files: socket, roots, log, and one a thread.
const OTHER_FILES: u64 = 64;

/// What is shared, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// [`VERSION`].
    pub version: u32,
    /// The machine's user.
    pub uid: u32,
    /// Nothing can be changed.
    pub read_only: bool,
    /// What goes into `machine.log`.
    pub log_filter: String,
}

/// Why a directory cannot be shared, or is not any more.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The host refused.
    #[error("{what}")]
    Host {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The conversation between daemon and process failed.
    #[error("talk about what is shared")]
    Wire(#[from] WireError),
    /// The process cannot do it.
    #[error("{0}")]
    Refused(String),
    /// It cannot be confined.
    #[error("confine the process")]
    Jail(#[from] JailError),
    /// It serves no more.
    #[error("serve what is shared")]
    Serve(#[from] ServeError),
}

fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ShareError {
    move |error| ShareError::Host {
        what,
        source: error.into(),
    }
}

/// Spawns the process that serves `what` (a directory or a plain file, opened with O_PATH), for a machine whose directory is `directory`;
/// `join` gets its pid before it has its order. The answer is the socket that the machine's specification passes. `program`, with
/// `fs` as its argument, calls [`run_share`].
pub fn spawn_share(
    directory: &Path,
    share: &Share,
    what: BorrowedFd<'_>,
    program: &Program,
    join: impl FnOnce(u32),
) -> Result<OwnedFd, ShareError> {
    let handle = open_directory(directory).map_err(host("open the machine's directory"))?;
    let log = open_log(&handle).map_err(host("open machine.log"))?;
    let copy = log.try_clone().map_err(host("open machine.log"))?;
    let (order, theirs) = UnixStream::pair().map_err(host("make a socket pair"))?;
    let (ours, served) = UnixStream::pair().map_err(host("make a socket pair"))?;
    for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
        set(&order, Some(DEADLINE)).map_err(host("set a deadline"))?;
    }
    let child = spawn_apart(program, "fs", (theirs.into(), log, copy));
    let mut child = child.map_err(|error| ShareError::Refused(chain(&error)))?;
    join(child.id());
    let outcome = send(&order, share, &[what, served.as_fd()]).and_then(|()| Receiver::new(order).receive());
    // Whoever started it has to take note of its end, whenever that is; after this daemon's death that is init.
    let reap = move || drop(child.wait());
    let builder = thread::Builder::new().name("share end".into()).stack_size(64 << 10);
    builder.spawn(reap).map_err(host("start a thread"))?;
    match outcome? {
        (Answer::Listening, _) => Ok(ours.into()),
        (Answer::Refused(why), _) => Err(ShareError::Refused(why)),
    }
}

/// What `kvmlet-machine fs` runs: takes its order over standard input, confines itself, serves until the machine is gone.
pub fn run_share() -> Result<(), ShareError> {
    // A process that leads a group already cannot make a session, and needs none.
    let _ = rustix::process::setsid();
    let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(host("duplicate standard input"))?;
    let parent = UnixStream::from(input);
    parent.set_read_timeout(Some(DEADLINE)).map_err(host("set a deadline"))?;
    let mut receiver = Receiver::new(parent);
    let (share, descriptors) = receiver.receive::<Share>()?;
    let prepared = prepare(&share, descriptors);
    let answer = match &prepared {
        Ok(_) => Answer::Listening,
        Err(error) => Answer::Refused(chain(error)),
    };
    // The daemon may be gone; the machine then decides.
    let _ = receiver.stream().write_all(&frame(&answer, 0)?);
    drop(receiver);
    prepared?.serve()?;
    Ok(())
}

fn prepare(share: &Share, descriptors: Vec<OwnedFd>) -> Result<Server, ShareError> {
    if !(OLDEST_VERSION..=VERSION).contains(&share.version) {
        let version = share.version;
        return Err(ShareError::Refused(format!(
            "this program shares directories in versions {OLDEST_VERSION} to {VERSION}, not {version}"
        )));
    }
    log_to_stderr(&share.log_filter).map_err(ShareError::Refused)?;
    let Ok([what, socket]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        return Err(ShareError::Refused("what is shared, or for whom, was not passed".into()));
    };
    // More than this a process may not give itself everywhere.
    let possible = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let files = possible.saturating_sub(OTHER_FILES).min(FILES);
    let most = Most {
        nodes: usize::try_from(files - files / OPEN).unwrap_or(usize::MAX),
        handles: usize::try_from(files / OPEN).unwrap_or(usize::MAX),
        threads: THREADS,
    };
    let limits = Limits {
        files: files + OTHER_FILES,
        // The user's own count is bounded by the machine's limit; these are part of it.
        threads: 1 << 16,
        locked: 0,
    };
    let SharedRoot { root, descriptors } = confine_share(what, share.read_only, share.uid, &limits)?;
    Ok(Server::new(root, descriptors, share.read_only, most, socket.into())?)
}
