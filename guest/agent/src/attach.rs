//! Sessions that follow what a container says as it says it, besides its log, and may write to its standard input.
//!
//! Owns what waits for each session. Holds a container back while a session has [`WINDOW`] bytes waiting, but no piece of output for
//! longer than [`PATIENCE`]: then that session is cut. The log is not concerned.

use std::collections::{BTreeMap, VecDeque};
use std::net::Shutdown;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvmlet_protocol::{
    AttachSpec, ErrorKind, ExecInput, ExecOutput, Failure, FrameError, LogStream, MAX_HOST_FRAME, Response, read_frame, write_frame,
};
use vsock::VsockStream;

use crate::agent::Agent;
use crate::container::Container;
use crate::failure::{Attempt, fail};
use crate::session::set_size;

/// Bytes that may wait for a session.
const WINDOW: usize = 256 << 10;
/// How long a piece of output waits for slow sessions.
const PATIENCE: Duration = Duration::from_secs(5);
/// Sessions at once, of all containers.
const MOST: usize = 32;

static HUB: LazyLock<Mutex<Hub>> = LazyLock::new(Mutex::default);
/// Something came, was taken, or has ended.
static MOVED: Condvar = Condvar::new();

#[derive(Default)]
struct Hub {
    next: u64,
    followers: BTreeMap<u64, Follower>,
}

struct Follower {
    container: String,
    stdout: bool,
    stderr: bool,
    waiting: VecDeque<(LogStream, Vec<u8>)>,
    bytes: usize,
    ended: bool,
    /// To be cut.
    connection: Option<VsockStream>,
}

impl Follower {
    fn wants(&self, container: &str, stream: LogStream) -> bool {
        let wanted = match stream {
            LogStream::Stdout => self.stdout,
            LogStream::Stderr => self.stderr,
        };
        wanted && !self.ended && self.container == container
    }

    fn cut(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
        self.ended = true;
        if let Some(connection) = self.connection.take() {
            // It may hang in a write.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn hub() -> MutexGuard<'static, Hub> {
    HUB.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands a piece of a container's output to those who follow it.
pub(crate) fn offer(container: &str, stream: LogStream, data: &[u8]) {
    offer_within(container, stream, data, PATIENCE);
}

fn offer_within(container: &str, stream: LogStream, data: &[u8], patience: Duration) {
    let mut hub = hub();
    let deadline = Instant::now() + patience;
    let full = |f: &Follower| f.wants(container, stream) && f.bytes >= WINDOW;
    while hub.followers.values().any(full) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            hub.followers.values_mut().filter(|f| full(f)).for_each(Follower::cut);
            break;
        }
        hub = MOVED.wait_timeout(hub, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    let mut some = false;
    for follower in hub.followers.values_mut().filter(|f| f.wants(container, stream)) {
        follower.waiting.push_back((stream, data.to_vec()));
        follower.bytes += data.len();
        some = true;
    }
    drop(hub);
    if some {
        MOVED.notify_all();
    }
}

/// A container has ended: those who follow it get what still waits for them, and then the end.
pub(crate) fn end(container: &str) {
    for follower in hub().followers.values_mut().filter(|f| f.container == container) {
        follower.ended = true;
    }
    MOVED.notify_all();
}

/// A place in the hub, for as long as this is held.
struct Following(u64);

impl Following {
    fn begin(spec: &AttachSpec, connection: Option<VsockStream>) -> Result<Self, Failure> {
        let mut hub = hub();
        if hub.followers.len() >= MOST {
            return Err(fail(
                ErrorKind::NoSpace,
                format!("{MOST} clients are attached to containers of this pod already"),
            ));
        }
        hub.next += 1;
        let number = hub.next;
        let follower = Follower {
            container: spec.container.clone(),
            stdout: spec.stdout,
            stderr: spec.stderr,
            waiting: VecDeque::new(),
            bytes: 0,
            ended: false,
            connection,
        };
        hub.followers.insert(number, follower);
        Ok(Self(number))
    }

    /// What comes next; none at the end.
    fn next(&self) -> Option<(LogStream, Vec<u8>)> {
        let mut hub = hub();
        loop {
            let follower = hub.followers.get_mut(&self.0)?;
            if let Some((stream, data)) = follower.waiting.pop_front() {
                follower.bytes -= data.len();
                drop(hub);
                MOVED.notify_all();
                return Some((stream, data));
            }
            if follower.ended {
                return None;
            }
            hub = MOVED.wait(hub).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing more is wanted than what waits already.
    fn finish(&self) {
        if let Some(follower) = hub().followers.get_mut(&self.0) {
            follower.ended = true;
        }
        MOVED.notify_all();
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        hub().followers.remove(&self.0);
        MOVED.notify_all();
    }
}

/// A session that is ready to begin.
pub(crate) struct Session {
    container: Arc<Container>,
    following: Arc<Following>,
    stdin: bool,
}

/// Joins a container; what it says from now on is the session's.
pub(crate) fn start(agent: &Agent, spec: AttachSpec, connection: &VsockStream) -> Result<Session, Failure> {
    let stdin = spec.stdin;
    let again = connection.try_clone().attempt("follow the container's output")?;
    let following = Arc::new(Following::begin(&spec, Some(again))?);
    // Only now, as one that ends before it is followed would never be seen to end.
    let container = agent.running(&spec.container)?;
    Ok(Session {
        container,
        following,
        stdin,
    })
}

impl Session {
    /// Carries the streams until the container ends or the host goes.
    pub(crate) fn run(self, mut connection: VsockStream) -> Result<(), FrameError> {
        let Self {
            container,
            following,
            stdin,
        } = self;
        let pid = container.pid;
        write_frame(&mut connection, &Response::Started { pid })?;
        let (from, ends) = (connection.try_clone().map_err(FrameError::Io)?, Arc::clone(&following));
        let read = move || {
            // The end of the connection is the usual way out.
            drop(feed(from, &container, &ends, stdin));
            if stdin {
                leave(&container, &ends);
            }
            ends.finish();
        };
        std::thread::Builder::new()
            .name("attach input".into())
            .stack_size(192 << 10)
            .spawn(read)
            .map_err(FrameError::Io)?;
        while let Some((stream, data)) = following.next() {
            let frame = match stream {
                LogStream::Stdout => ExecOutput::Stdout(data),
                LogStream::Stderr => ExecOutput::Stderr(data),
            };
            write_frame(&mut connection, &frame)?;
        }
        write_frame(&mut connection, &ExecOutput::Exited { code: 0 })?;
        connection.shutdown(Shutdown::Write).map_err(FrameError::Io)
    }
}

/// From the host to the container, until the host closes.
fn feed(mut from: VsockStream, container: &Container, following: &Following, mut stdin: bool) -> Result<(), FrameError> {
    loop {
        match read_frame(&mut from, MAX_HOST_FRAME)? {
            ExecInput::Stdin(data) => {
                if let Some(to) = container.stdin.as_ref().filter(|_| stdin)
                    && let Err(e) = to.write(&data, &from)
                {
                    if e.kind() == std::io::ErrorKind::ConnectionAborted {
                        return Err(FrameError::Io(e));
                    }
                    // A container that has closed its input is not disturbed.
                    stdin = false;
                }
            }
            ExecInput::StdinClosed if stdin => {
                stdin = false;
                leave(container, following);
            }
            ExecInput::StdinClosed => {}
            ExecInput::Resize { width, height } => {
                if let Some(terminal) = &container.terminal {
                    set_size(terminal, width, height);
                }
            }
        }
    }
}

/// A session ends its input. Where that ends the container's, the session goes on to its end; else there is nothing to stay for, as
/// with other runtimes.
fn leave(container: &Container, following: &Following) {
    match &container.stdin {
        Some(stdin) if stdin.is_once() => stdin.close(),
        Some(_) => following.finish(),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(container: &str) -> Following {
        let spec = AttachSpec {
            container: container.into(),
            stdin: false,
            stdout: true,
            stderr: false,
        };
        Following::begin(&spec, None).unwrap()
    }

    #[test]
    fn each_follower_gets_all_of_what_it_asked_for_and_then_the_end() {
        let (one, two, other) = (follow("each"), follow("each"), follow("else"));
        offer("each", LogStream::Stdout, b"a");
        offer("each", LogStream::Stderr, b"b");
        offer("each", LogStream::Stdout, b"c");
        end("each");
        offer("each", LogStream::Stdout, b"late");
        for following in [&one, &two] {
            assert_eq!(following.next(), Some((LogStream::Stdout, b"a".to_vec())));
            assert_eq!(following.next(), Some((LogStream::Stdout, b"c".to_vec())));
            assert_eq!(following.next(), None);
        }
        other.finish();
        assert_eq!(other.next(), None);
    }

    #[test]
    fn a_follower_that_takes_nothing_is_cut_after_a_bounded_amount_and_others_lose_nothing() {
        let (stuck, lively) = (follow("slow"), follow("slow"));
        let taker = std::thread::spawn(move || {
            let mut taken = 0;
            while let Some((_, data)) = lively.next() {
                taken += data.len();
            }
            taken
        });
        let piece = vec![7; 16 << 10];
        let begun = Instant::now();
        for _ in 0..64 {
            offer_within("slow", LogStream::Stdout, &piece, Duration::from_millis(300));
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "it was waited for once");
        assert_eq!(stuck.next(), None, "it was cut");
        end("slow");
        assert_eq!(taker.join().unwrap(), 64 * piece.len());
    }

    #[test]
    fn a_follower_that_is_only_slow_is_waited_for() {
        let slow = follow("wait");
        let taker = std::thread::spawn(move || {
            let mut taken = 0;
            while let Some((_, data)) = slow.next() {
                std::thread::sleep(Duration::from_millis(2));
                taken += data.len();
            }
            taken
        });
        let piece = vec![7; 16 << 10];
        for _ in 0..64 {
            offer("wait", LogStream::Stdout, &piece);
        }
        end("wait");
        assert_eq!(taker.join().unwrap(), 64 * piece.len());
    }

    #[test]
    fn one_that_has_left_holds_nobody_back() {
        let left = follow("gone");
        offer("gone", LogStream::Stdout, &vec![7; WINDOW]);
        drop(left);
        let begun = Instant::now();
        offer("gone", LogStream::Stdout, b"x");
        assert!(begun.elapsed() < PATIENCE);
    }
}
