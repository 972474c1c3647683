//! The way to the guest from within the machine's own process: a connected pair of sockets in place of a path, for whoever can look up
//! none. What comes out of [`Dialer::dial`] is like a client's connection to the device's socket.

use std::{
    collections::VecDeque,
    io,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::lock::lock;

/// Connections that wait for the device; further ones are refused.
const MOST_WAITING: usize = 16;

#[derive(Debug)]
struct Shared {
    waker: EventFd,
    /// `None` once the device is gone.
    waiting: Mutex<Option<VecDeque<UnixStream>>>,
}

/// Connects to the guest.
#[derive(Debug, Clone)]
pub struct Dialer(Arc<Shared>);

/// The device's end of a [`Dialer`].
#[derive(Debug)]
pub struct Inlet(Arc<Shared>);

/// A dialer and the end that the device takes.
pub fn dialer() -> io::Result<(Dialer, Inlet)> {
    let shared = Arc::new(Shared {
        waker: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        waiting: Mutex::new(Some(VecDeque::new())),
    });
    Ok((Dialer(shared.clone()), Inlet(shared)))
}

impl Dialer {
    /// A connection on which `CONNECT <port>\n` is to be written; it waits there until the guest's driver is ready.
    pub fn dial(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut waiting = lock(&self.0.waiting);
        let queue = waiting.as_mut().ok_or(io::ErrorKind::ConnectionRefused)?;
        if queue.len() >= MOST_WAITING {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        queue.push_back(theirs);
        drop(waiting);
        self.0.waker.write(1)?;
        Ok(ours)
    }
}

impl Inlet {
    /// For the device's thread.
    pub(super) fn share(&self) -> InletView {
        InletView(self.0.clone())
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        // Closes those that wait: nobody will come for them.
        *lock(&self.0.waiting) = None;
    }
}

/// What the device's thread sees of an [`Inlet`].
pub(super) struct InletView(Arc<Shared>);

impl InletView {
    pub(super) fn waker(&self) -> &EventFd {
        &self.0.waker
    }

    /// The next connection; the waker is silent before the first call, so that nothing that comes meanwhile is missed.
    pub(super) fn next(&self) -> Option<UnixStream> {
        let mut waiting = lock(&self.0.waiting);
        waiting.as_mut()?.pop_front()
    }
}
