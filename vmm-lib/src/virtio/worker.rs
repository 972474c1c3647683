//! What all devices share around their one thread: start, stop, epoll, and the report of a guest that broke the rules.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread::{Builder, JoinHandle},
    time::Duration,
};

use rustix::event::{Timespec, epoll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    chain::ChainError,
    device::{ActivateError, Activation, ActiveQueue, DeviceFault, GuestSpace},
    ring::Ring,
};
use crate::threads::{ThreadKind, Threads};

/// Token of the stop event; devices number theirs below.
pub const STOP: u64 = u64::MAX;

/// A device's thread; dropping it stops and joins it.
#[derive(Debug)]
pub struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread of an active device over the rings of its first `N` queues, none of which it can do without.
    pub fn over<const N: usize>(
        name: &str,
        kind: ThreadKind,
        mut activation: Activation,
        work: impl for<'m> FnOnce(Poller, [Ring<'m>; N], &'m GuestSpace) -> Result<(), WorkError> + Send + 'static,
    ) -> Result<Self, ActivateError> {
        let mut queues = Vec::with_capacity(N);
        for index in 0..N {
            queues.push(required(&mut activation, index)?);
        }
        let queues: [ActiveQueue; N] = queues.try_into().ok().expect("there is one for each");
        let (memory, features) = (activation.memory, activation.features);
        let begin = move |poller: Poller| work(poller, queues.map(|queue| Ring::new(&memory, queue, features)), &memory);
        Self::spawn(name, (&activation.threads, kind), activation.failed, begin)
    }

    /// Starts a thread. `work` gets a [`Poller`] that wakes with [`STOP`] when it shall end; its error becomes the device's fault.
    pub fn spawn(
        name: &str,
        (threads, kind): (&Threads, ThreadKind),
        failed: Arc<dyn Fn(DeviceFault) + Send + Sync>,
        work: impl FnOnce(Poller) -> Result<(), WorkError> + Send + 'static,
    ) -> Result<Self, ActivateError> {
        let stop = EventFd::new(EFD_NONBLOCK).map_err(host("make an eventfd"))?;
        let poller = Poller::new().map_err(host("make an epoll"))?;
        poller
            .add(eventfd(&stop), STOP, epoll::EventFlags::IN)
            .map_err(host("watch the stop event"))?;
        let device = name.to_owned();
        let builder = Builder::new()
            // The kernel keeps 15 bytes of a thread's name.
            .name(name.chars().filter(|c| !c.is_whitespace()).take(15).collect())
            .stack_size(256 << 10);
        let enter = threads.clone();
        let begin = move || {
            let entered = enter.enter(kind).map_err(broke("confine the thread"));
            if let Err(error) = entered.and_then(|()| work(poller)) {
                let what = error.to_string();
                failed(DeviceFault { device, what });
            }
        };
        let thread = threads.spawn(builder, begin).map_err(host("start a thread"))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Why a device's thread gave up.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The guest broke the rules.
    #[error(transparent)]
    Guest(#[from] ChainError),
    /// The host could not.
    #[error("{what}: {source}")]
    Host {
        /// What was attempted.
        what: &'static str,
        /// Why it failed. Part of the text: a fault carries no source.
        source: io::Error,
    },
}

/// Wraps an I/O error of `what` for [`VirtioDevice::activate`](super::device::VirtioDevice::activate).
pub fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ActivateError {
    move |source| ActivateError::Host {
        what,
        source: source.into(),
    }
}

/// The same for a thread at work.
pub fn broke<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> WorkError {
    move |source| WorkError::Host {
        what,
        source: source.into(),
    }
}

/// The queue `index` of an activation, which the device cannot do without.
pub fn required(activation: &mut Activation, index: usize) -> Result<ActiveQueue, ActivateError> {
    activation
        .queues
        .get_mut(index)
        .and_then(Option::take)
        .ok_or(ActivateError::QueueDisabled(index))
}

/// The work of a device of one queue: a turn at each kick, until it shall end.
pub fn serve_queue(poller: &Poller, ring: Ring<'_>, mut turn: impl FnMut(&mut Ring<'_>) -> Result<(), WorkError>) -> Result<(), WorkError> {
    serve_paced_queue(poller, ring, |ring| turn(ring).map(|()| None))
}

/// The same for a device that may be too fast: a turn that says how long to wait is taken again then, or at a kick.
pub fn serve_paced_queue(
    poller: &Poller,
    mut ring: Ring<'_>,
    mut turn: impl FnMut(&mut Ring<'_>) -> Result<Option<Duration>, WorkError>,
) -> Result<(), WorkError> {
    let mut wait = None;
    poller.add_kick(ring.kick(), 0).map_err(broke("watch the queue"))?;
    loop {
        let mut stop = false;
        poller
            .wait(wait, |token, _| stop |= token == STOP)
            .map_err(broke("wait for events"))?;
        if stop {
            return Ok(());
        }
        wait = turn(&mut ring)?;
    }
}

/// vmm-sys-util's eventfd as the standard library's borrowed descriptor.
pub fn eventfd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd is open, and stays so at least as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// An epoll instance.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// One that watches nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches a descriptor; its events carry `token`.
    pub fn add(&self, fd: impl AsFd, token: u64, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Watches the kicks of a queue. Edges only: each kick wakes, and needs no system call to be taken back.
    pub fn add_kick(&self, kick: &EventFd, token: u64) -> io::Result<()> {
        self.add(eventfd(kick), token, epoll::EventFlags::IN | epoll::EventFlags::ET)
    }

    /// Changes what is watched for.
    pub fn modify(&self, fd: impl AsFd, token: u64, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Watches no more.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    /// Waits for events, for ever without `timeout`, and calls `visit` with the token and flags of each.
    pub fn wait(&self, timeout: Option<Duration>, mut visit: impl FnMut(u64, epoll::EventFlags)) -> io::Result<()> {
        let empty = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        };
        let mut events = [empty; 32];
        let timeout = timeout.map(|t| Timespec::try_from(t).expect("a device's deadline is near"));
        let count = match epoll::wait(&self.0, &mut events[..], timeout.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(e) => return Err(e.into()),
        };
        for event in &events[..count] {
            visit(event.data.u64(), event.flags);
        }
        Ok(())
    }
}

/// Reads device configuration; past its end it is zero.
pub fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let there = usize::try_from(offset).ok().and_then(|from| config.get(from..)).unwrap_or_default();
    let length = there.len().min(data.len());
    data[..length].copy_from_slice(&there[..length]);
    data[length..].fill(0);
}
