//! virtio-vsock (virtio 1.2, 5.10) without vhost: connections of the host's clients on one Unix socket, multiplexed to the guest. A client
//! writes `CONNECT <port>\n`; once the guest has accepted it reads `OK <host port>\n`, and from there on raw bytes both ways; when the guest
//! refuses, the connection is closed without a word. Refuses what the guest would open by itself, datagrams and seqpackets.

mod connection;
mod dial;
#[cfg(test)]
mod hostile;
mod mux;
mod packet;
mod reset;
mod stream;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixListener;

pub use self::dial::{Dialer, Inlet, dialer};
use self::mux::Mux;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::mux::fuzz;
use super::{
    device::{ActivateError, Activation, VirtioDevice},
    ring::{RING_FEATURES, Ring},
    worker::{Poller, Worker, host, required},
};
use crate::threads::ThreadKind;

const QUEUE_SIZE: u16 = 256;

/// The device.
#[derive(Debug)]
pub struct Vsock {
    name: String,
    cid: u32,
    listener: UnixListener,
    inlet: Option<Inlet>,
    worker: Option<Worker>,
}

impl Vsock {
    /// A device for the guest `cid`, whose clients come through `listener`, those of this process through `inlet`. Clients that come before the driver is ready wait there.
    pub fn new(cid: u32, listener: UnixListener, inlet: Option<Inlet>) -> Self {
        Self {
            name: format!("vsock {cid}"),
            cid,
            listener,
            inlet,
            worker: None,
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u16 {
        19
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::worker::read_config(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let receive = required(&mut activation, 0)?;
        let transmit = required(&mut activation, 1)?;
        let listener = self.listener.try_clone().map_err(host("share the listening socket"))?;
        listener
            .set_nonblocking(true)
            .map_err(host("set the listening socket non-blocking"))?;
        let Activation {
            memory,
            features,
            threads,
            failed,
            again,
            mut queues,
            ..
        } = activation;
        // The guest still has connections that are gone here.
        let events = queues.get_mut(2).and_then(Option::take).filter(|_| again);
        let guest = u64::from(self.cid);
        let inlet = self.inlet.as_ref().map(Inlet::share);
        let work = move |poller: Poller| {
            let receive = Ring::new(&memory, receive, features);
            let transmit = Ring::new(&memory, transmit, features);
            let events = events.map(|events| Ring::new(&memory, events, features));
            Mux::new(guest, poller, (listener, inlet), receive, transmit).run(events)
        };
        self.worker = Some(Worker::spawn(&self.name, (&threads, ThreadKind::Vsock), failed, work)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}
