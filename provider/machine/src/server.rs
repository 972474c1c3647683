//! The machine process's end of `control.sock`: one thread a connection, few of them, each bound by deadlines. Answers, and pushes events to
//! connections that subscribed.

use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, poll};
use vmm_lib::machine::Handle;
use vmm_lib::snapshot::SnapshotFiles;

use crate::{
    control::{Event, MachineState, Memory, Reply, Request, Status},
    devices,
    jail::Role,
    logs::Book,
    memory::memory,
    process::chain,
    start::{OLDEST_VERSION, VERSION},
    wire::{Receiver, WireError, send},
};

/// Most connections at a time; further ones are closed at once.
pub(crate) const MAX_CONNECTIONS: usize = 16;
/// For a daemon to finish what it has begun to say, and to take an answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Confines the calling thread to its role.
pub(crate) type Enter = Arc<dyn Fn(Role) -> io::Result<()> + Send + Sync>;

/// What the daemon can reach through the socket.
pub(crate) struct Server {
    pub(crate) book: Arc<Book>,
    /// The process's id as the daemon knows it: in its own namespace it is 1.
    pub(crate) pid: u32,
    /// Whether its disks may have rings: its filters let it make them, or end it.
    pub(crate) rings: bool,
    /// What each thread calls first.
    pub(crate) enter: Enter,
    /// Stops the machine; after its end, gives up on what waits.
    pub(crate) kill: Arc<dyn Fn() + Send + Sync>,
    /// Writes a snapshot.
    pub(crate) snapshot: Snapshot,
    /// Resizes the machine, if that is wished, and tells its memory.
    pub(crate) memory: Resize,
    /// The machine, once it is made.
    pub(crate) machine: Arc<dyn Fn() -> Option<Handle> + Send + Sync>,
}

/// See [`memory`].
pub(crate) type Resize = Arc<dyn Fn(Option<u64>) -> Result<Memory, String> + Send + Sync>;

/// The control socket of a machine that a person runs in this process, which nothing confines: `least` is the memory that it began with, bytes.
pub fn serve_by_hand(listener: UnixListener, machine: Handle, least: u64) -> io::Result<()> {
    let book = Arc::new(Book::new());
    book.set_state(MachineState::Running);
    let (stopped, taken) = (machine.clone(), machine.clone());
    let server = Server {
        book,
        pid: std::process::id(),
        rings: true,
        enter: Arc::new(|_| Ok(())),
        kill: Arc::new(move || stopped.stop()),
        snapshot: Arc::new(move |files, Wanted { changes, go_on }| {
            let written = if changes {
                taken.snapshot_changes(files, go_on)
            } else {
                taken.snapshot(files, go_on)
            };
            written.map_err(|error| chain(&error))
        }),
        memory: {
            let machine = machine.clone();
            Arc::new(move |resize| memory(&machine, least, resize))
        },
        machine: Arc::new(move || Some(machine.clone())),
    };
    server.start(listener)
}

/// What a snapshot shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Only what was written since the last one.
    pub(crate) changes: bool,
    /// The machine does not end with it.
    pub(crate) go_on: bool,
}

impl Wanted {
    /// A template's.
    pub(crate) const TEMPLATE: Self = Self {
        changes: false,
        go_on: false,
    };
}

/// Writes a snapshot; the error is for the daemon.
pub(crate) type Snapshot = Arc<dyn Fn(SnapshotFiles, Wanted) -> Result<(), String> + Send + Sync>;

impl Server {
    /// Serves on a thread of its own for as long as the process lives.
    pub(crate) fn start(self, listener: UnixListener) -> io::Result<()> {
        let server = Arc::new(self);
        let connections = Arc::new(AtomicUsize::new(0));
        thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                if let Err(error) = (server.enter)(Role::Control) {
                    tracing::error!(%error, "the control thread cannot be confined");
                    return;
                }
                loop {
                    let stream = match listener.accept() {
                        Ok((stream, _)) => stream,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => {
                            // Descriptors or memory are short; the daemon waits in the listener's queue meanwhile.
                            tracing::warn!(%error, "a control connection could not be accepted");
                            thread::sleep(Duration::from_secs(1));
                            continue;
                        }
                    };
                    let place = Place::take(&connections);
                    let server = Arc::clone(&server);
                    if let Some(place) = place {
                        // Without a thread the connection is closed, which the daemon sees.
                        let _ = thread::Builder::new()
                            .name("control client".into())
                            .spawn(move || server.serve(stream, place));
                    }
                }
            })
            .map(drop)
    }

    fn serve(&self, stream: UnixStream, _place: Place) {
        let entered = (self.enter)(Role::Client).map_err(WireError::Io);
        match entered.and_then(|()| self.converse(stream)) {
            Ok(()) | Err(WireError::Closed) => {}
            Err(error) => tracing::debug!(%error, "a control connection ended"),
        }
    }

    fn converse(&self, stream: UnixStream) -> Result<(), WireError> {
        stream.set_read_timeout(Some(DEADLINE)).map_err(WireError::Io)?;
        stream.set_write_timeout(Some(DEADLINE)).map_err(WireError::Io)?;
        let mut receiver = Receiver::new(stream);
        let version = match receiver.receive()?.0 {
            Request::Hello { oldest, newest } => newest.min(VERSION).max(oldest),
            _ => 0,
        };
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            let message = format!("this machine speaks versions {OLDEST_VERSION} to {VERSION}");
            return send(receiver.stream(), &Reply::Failed { message }, &[]);
        }
        send(receiver.stream(), &Reply::Welcome { version }, &[])?;
        let mut subscription: Option<Subscription> = None;
        loop {
            if let Some(subscription) = &mut subscription {
                subscription.tell(&self.book, receiver.stream())?;
            }
            if !receiver.buffered() && !wait(receiver.stream(), subscription.as_ref())? {
                continue;
            }
            let (request, descriptors) = receiver.receive()?;
            let reply = if request == Request::Subscribe {
                subscription = Some(Subscription::new(&self.book).map_err(WireError::Io)?);
                Reply::Done
            } else {
                self.answer(request, descriptors)
            };
            send(receiver.stream(), &reply, &[])?;
        }
    }

    fn snapshot(&self, descriptors: Vec<OwnedFd>, wanted: Wanted) -> Reply {
        let failed = |message| Reply::Failed { message };
        let Ok([state, memory]) = <[OwnedFd; 2]>::try_from(descriptors) else {
            return failed("a snapshot is exactly two descriptors".into());
        };
        let files = SnapshotFiles {
            state: state.into(),
            memory: memory.into(),
        };
        (self.snapshot)(files, wanted).map_or_else(failed, |()| Reply::Done)
    }

    fn answer(&self, request: Request, descriptors: Vec<OwnedFd>) -> Reply {
        let failed = |message: String| Reply::Failed { message };
        match request {
            Request::Status => {
                let (state, logs, link) = self.book.status();
                let pid = self.pid;
                Reply::Status(Status { pid, state, logs, link })
            }
            Request::LogFile { container, budget } => match <[OwnedFd; 1]>::try_from(descriptors) {
                Ok([file]) => match self.book.put_file(container, file, budget) {
                    Ok(()) => Reply::Done,
                    Err(error) => failed(format!("use the log file: {error}")),
                },
                Err(_) => failed("a log file is exactly one descriptor".into()),
            },
            Request::CloseLog { container } => {
                self.book.close(&container);
                Reply::Done
            }
            Request::Snapshot => self.snapshot(descriptors, Wanted::TEMPLATE),
            Request::SnapshotByHand { changes, go_on } => self.snapshot(descriptors, Wanted { changes, go_on }),
            Request::Kill => {
                (self.kill)();
                Reply::Done
            }
            Request::Memory { resize } => match (self.memory)(resize) {
                Ok(memory) => Reply::Memory(memory),
                Err(message) => failed(message),
            },
            Request::Attach { .. } | Request::Detach { .. } | Request::Devices => match (self.machine)() {
                Some(machine) => devices::answer(&machine, request, descriptors, self.rings),
                None => failed("the machine is not made yet".into()),
            },
            Request::Hello { .. } | Request::Subscribe => failed("not now".into()),
        }
    }
}

/// Waits for the daemon's next request (`true`) or for news.
fn wait(stream: &UnixStream, subscription: Option<&Subscription>) -> Result<bool, WireError> {
    let mut fds = vec![PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)];
    if let Some(subscription) = subscription {
        fds.push(PollFd::from_borrowed_fd(subscription.waker.as_fd(), PollFlags::IN));
    }
    match poll(&mut fds, None) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(false),
        Err(error) => return Err(WireError::Io(error.into())),
    }
    if fds.get(1).is_some_and(|fd| !fd.revents().is_empty())
        && let Some(subscription) = subscription
    {
        let _ = rustix::io::read(&subscription.waker, &mut [0u8; 8]);
    }
    Ok(!fds[0].revents().is_empty())
}

/// What a connection has been told.
struct Subscription {
    waker: Arc<OwnedFd>,
    spent: HashMap<String, u64>,
    ended: bool,
}

impl Subscription {
    fn new(book: &Book) -> io::Result<Self> {
        Ok(Self {
            waker: book.waker()?,
            spent: HashMap::new(),
            ended: false,
        })
    }

    fn tell(&mut self, book: &Book, stream: &UnixStream) -> Result<(), WireError> {
        let spent = book.spent();
        for (container, count) in &spent {
            if self.spent.get(container) != Some(count) {
                let container = container.clone();
                send(stream, &Reply::Event(Event::BudgetSpent { container }), &[])?;
            }
        }
        self.spent = spent.into_iter().collect();
        if !self.ended && book.state() == MachineState::Ended {
            self.ended = true;
            send(stream, &Reply::Event(Event::Ended), &[])?;
        }
        Ok(())
    }
}

/// One of [`MAX_CONNECTIONS`].
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(count));
        (count.fetch_add(1, Ordering::Relaxed) < MAX_CONNECTIONS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
