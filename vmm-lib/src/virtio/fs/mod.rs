//! virtio-fs (virtio 1.2, 5.11) whose file system is somebody else's: the FUSE messages of a guest go out over a Unix stream socket as they
//! are, one behind the other, and the answers come back in any order. The process of this machine opens no file for it.
//!
//! Refuses a peer that answers what nobody asked, or more than there is room for: it is not spoken with again, and the guest reads EIO for
//! what was under way and ENOTCONN for what comes after. Has no DAX window, and no notification queue.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod reply;
mod session;
#[cfg(test)]
mod tests;

use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
};

use rustix::event::epoll::EventFlags;

use self::session::{End, Session};
use super::{
    device::{ActivateError, Activation, GuestSpace, VirtioDevice},
    ring::{RING_FEATURES, Ring},
    worker::{Poller, STOP, WorkError, Worker, broke, host},
};
use crate::lock::lock;
use crate::spec::MAX_TAG;
use crate::threads::ThreadKind;

/// Descriptors of the queue for requests: Linux makes requests of at most so many pages, less four.
const QUEUE_SIZE: u16 = 512;
/// And of the queue for what must not wait (FORGET).
const HIPRIO_SIZE: u16 = 128;
const HIPRIO: u64 = 0;
const REQUESTS: u64 = 1;
const PEER: u64 = 2;
/// `struct virtio_fs_config` without `notify_buf_size`: tag, number of request queues.
const CONFIG: usize = MAX_TAG + 4;

/// The device.
#[derive(Debug)]
pub struct Fs {
    name: String,
    config: [u8; CONFIG],
    /// Who has the files. Taken by the thread, and put back when it ends between two messages and with nothing under way.
    peer: Arc<Mutex<Option<UnixStream>>>,
    worker: Option<Worker>,
}

impl Fs {
    /// A device that the guest mounts by `tag` (at most [`MAX_TAG`] bytes; what is more is cut off), with a connected stream socket.
    pub fn new(tag: &str, peer: UnixStream) -> Self {
        let mut config = [0; CONFIG];
        let length = tag.len().min(MAX_TAG);
        config[..length].copy_from_slice(&tag.as_bytes()[..length]);
        config[MAX_TAG] = 1;
        Self {
            name: format!("fs {tag}"),
            config,
            peer: Arc::new(Mutex::new(Some(peer))),
            worker: None,
        }
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u16 {
        26
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &[HIPRIO_SIZE, QUEUE_SIZE]
    }

    fn is_detachable(&self) -> bool {
        true
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::worker::read_config(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let slot = Arc::clone(&self.peer);
        let peer = lock(&slot).take();
        if let Some(peer) = &peer {
            peer.set_nonblocking(true).map_err(host("set the peer's socket"))?;
        }
        let work = move |poller: Poller, rings: [Ring<'_>; 2], _: &GuestSpace| {
            let mut session = Session::new(rings, peer);
            let worked = work(&poller, &mut session);
            match session.end() {
                End::Between(peer) => *lock(&slot) = peer,
                // Somebody who is still being answered is not who comes next.
                End::Within(peer) => drop(peer.shutdown(Shutdown::Both)),
            }
            worked
        };
        self.worker = Some(Worker::over(&self.name, ThreadKind::Fs, activation, work)?);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), &'static str> {
        Err("a share: what its requests wait for is in another process")
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

fn work(poller: &Poller, session: &mut Session<'_>) -> Result<(), WorkError> {
    for (token, ring) in [HIPRIO, REQUESTS].into_iter().zip(&session.rings) {
        poller.add_kick(ring.kick(), token).map_err(broke("watch a queue"))?;
    }
    if let Some(peer) = session.peer() {
        // Edges only: what is not read or written at once is remembered.
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        poller.add(peer, PEER, events).map_err(broke("watch the peer"))?;
    }
    loop {
        let mut stop = false;
        poller
            .wait(None, |token, _| stop |= token == STOP)
            .map_err(broke("wait for events"))?;
        if stop {
            return Ok(());
        }
        session.turn()?;
    }
}
