//! virtio-vsock (virtio 1.2, 5.10) without vhost: connections of the host's clients on one Unix socket, multiplexed to the guest. A client
//! writes `CONNECT <port>\n`; once the guest has accepted it reads `OK <host port>\n`, and from there on raw bytes both ways; when the guest
//! refuses, the connection is closed without a word. Refuses what the guest would open by itself, datagrams and seqpackets.

mod connection;
#[cfg(test)]
mod hostile;
mod mux;
mod packet;
mod stream;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixListener;

use self::mux::Mux;
use super::{
    device::{ActivateError, Activation, VirtioDevice},
    ring::{RING_FEATURES, Ring},
    worker::{Poller, Worker, host, required},
};

const QUEUE_SIZE: u16 = 256;

/// The device.
#[derive(Debug)]
pub struct Vsock {
    name: String,
    cid: u32,
    listener: UnixListener,
    worker: Option<Worker>,
}

impl Vsock {
    /// A device for the guest `cid`, whose clients come through `listener`. Clients that come before the driver is ready wait there.
    pub fn new(cid: u32, listener: UnixListener) -> Self {
        Self {
            name: format!("vsock {cid}"),
            cid,
            listener,
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
            memory, features, failed, ..
        } = activation;
        let guest = u64::from(self.cid);
        let work = move |poller: Poller| {
            let receive = Ring::new(&memory, receive, features);
            let transmit = Ring::new(&memory, transmit, features);
            Mux::new(guest, poller, listener, receive, transmit).run()
        };
        self.worker = Some(Worker::spawn(&self.name, failed, work)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}
