//! Talking with a machine process over its control socket: one request at a time, and events.

use std::{
    collections::VecDeque,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_lib::{Attachment, Occupied};

use super::{ClientError, DEADLINE, host};
use crate::{
    control::{Event, Memory, Reply, Request, Status},
    order::{CONTROL_SOCKET, within},
    record::open_directory,
    start::{OLDEST_VERSION, VERSION},
    wire::{Receiver, send},
};

/// A connection to a machine process: one request at a time.
#[derive(Debug)]
pub struct Control {
    receiver: Receiver,
    events: VecDeque<Event>,
}

impl Control {
    pub(crate) fn connect(directory: &Path, pid: u32, limit: Duration) -> Result<Self, ClientError> {
        let handle = open_directory(directory).map_err(host("open the machine's directory"))?;
        let stream = UnixStream::connect(within(&handle, CONTROL_SOCKET)).map_err(host("connect to the control socket"))?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(host("ask whose socket it is"))?;
        let actual = peer.pid.as_raw_nonzero().get().unsigned_abs();
        if actual != pid {
            return Err(ClientError::Stranger { expected: pid, actual });
        }
        Self::greet(stream, limit)
    }

    /// Connects to whichever machine process listens at this path.
    pub fn open(socket: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket).map_err(host("connect to the control socket"))?;
        Self::greet(stream, DEADLINE)
    }

    fn greet(stream: UnixStream, limit: Duration) -> Result<Self, ClientError> {
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(&stream, Some(limit)).map_err(host("set a deadline"))?;
        }
        let mut control = Self {
            receiver: Receiver::new(stream),
            events: VecDeque::new(),
        };
        let hello = Request::Hello {
            oldest: OLDEST_VERSION,
            newest: VERSION,
        };
        match control.request(&hello, &[])? {
            Reply::Welcome { .. } => Ok(control),
            other => Err(unexpected(&other)),
        }
    }

    fn request(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        send(self.receiver.stream(), request, descriptors)?;
        loop {
            match self.receiver.receive()?.0 {
                Reply::Event(event) => self.events.push_back(event),
                Reply::Failed { message } => return Err(ClientError::Refused(message)),
                reply => return Ok(reply),
            }
        }
    }

    fn done(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match self.request(request, descriptors)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The process as it sees itself.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.request(&Request::Status, &[])? {
            Reply::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    /// Directs a container's output to `file` (opened for writing), until `budget` bytes are written to it. A fresh file replaces the
    /// one before at once. The budget must hold a line, at most 16,384 bytes and 50 of time and tags.
    pub fn log_file(&mut self, container: &str, file: BorrowedFd<'_>, budget: u64) -> Result<(), ClientError> {
        let container = container.to_owned();
        self.done(&Request::LogFile { container, budget }, &[file])
    }

    /// Closes a removed container's file; what it still says is dropped.
    pub fn close_log(&mut self, container: &str) -> Result<(), ClientError> {
        let container = container.to_owned();
        self.done(&Request::CloseLog { container }, &[])
    }

    /// Has a template written into `state` and `memory`, at which its machine ends. Answered when they are written.
    pub fn snapshot(&mut self, state: BorrowedFd<'_>, memory: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.done(&Request::Snapshot, &[state, memory])
    }

    /// Has a snapshot of a machine that a person runs written into state and memory: all of it, or the `changes` since the last one. Waits for
    /// as long as that takes; the machine may `go_on`.
    pub fn snapshot_by_hand(&mut self, files: (BorrowedFd<'_>, BorrowedFd<'_>), changes: bool, go_on: bool) -> Result<(), ClientError> {
        let stream = self.receiver.stream();
        stream.set_read_timeout(None).map_err(host("wait without a deadline"))?;
        self.done(&Request::SnapshotByHand { changes, go_on }, &[files.0, files.1])
    }

    /// The machine's memory. Has its guest grow or shrink to `resize` bytes in all, if that is wished: what was asked for before holds no more.
    pub fn memory(&mut self, resize: Option<u64>) -> Result<Memory, ClientError> {
        match self.request(&Request::Memory { resize }, &[])? {
            Reply::Memory(memory) => Ok(memory),
            other => Err(unexpected(&other)),
        }
    }

    /// Puts a device on the machine's bus, with the descriptors that it names, and tells its number. The guest has to look for it.
    pub fn attach(&mut self, device: &Attachment, files: &[BorrowedFd<'_>]) -> Result<u8, ClientError> {
        let device = device.clone();
        match self.request(&Request::Attach { device }, files)? {
            Reply::Attached { slot } => Ok(slot),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes a device off the machine's bus. One that the guest uses stays, unless by `force`.
    pub fn detach(&mut self, slot: u8, force: bool) -> Result<(), ClientError> {
        self.done(&Request::Detach { slot, force }, &[])
    }

    /// What is on the machine's bus.
    pub fn devices(&mut self) -> Result<Vec<Occupied>, ClientError> {
        match self.request(&Request::Devices, &[])? {
            Reply::Devices(devices) => Ok(devices),
            other => Err(unexpected(&other)),
        }
    }

    /// Stops the machine at once; the process writes its record and ends. Asked again after the machine's end, it does not wait any
    /// longer for files of containers whose budget is spent.
    pub fn kill(&mut self) -> Result<(), ClientError> {
        self.done(&Request::Kill, &[])
    }
}

/// A connection that a machine process tells events on, those that hold at its beginning first.
#[derive(Debug)]
pub struct Events(Control);

impl Events {
    pub(crate) fn subscribe(mut control: Control) -> Result<Self, ClientError> {
        control.done(&Request::Subscribe, &[])?;
        Ok(Self(control))
    }

    /// The next event, waited for at most `timeout` (for ever without); `None` when none came.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Event>, ClientError> {
        if let Some(event) = self.0.events.pop_front() {
            return Ok(Some(event));
        }
        if !self.0.receiver.buffered() {
            let timeout = timeout
                .map(Timespec::try_from)
                .transpose()
                .map_err(|_| host("wait for events")(io::Error::from(io::ErrorKind::InvalidInput)))?;
            let mut fds = [PollFd::from_borrowed_fd(self.0.receiver.stream().as_fd(), PollFlags::IN)];
            if rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref())).map_err(host("wait for events"))? == 0 {
                return Ok(None);
            }
        }
        match self.0.receiver.receive()?.0 {
            Reply::Event(event) => Ok(Some(event)),
            other => Err(unexpected(&other)),
        }
    }
}

impl AsFd for Events {
    /// Readable when an event may have come (or the process has gone).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.receiver.stream().as_fd()
    }
}

fn unexpected(reply: &Reply) -> ClientError {
    ClientError::Refused(format!("an answer to another question: {reply:?}"))
}
