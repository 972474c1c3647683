//! virtio-pmem (virtio 1.2, 5.19), read-only: tells the driver where its image lies. The guest reads it there, without this device; what
//! the driver asks for is that writes be made durable, of which there are none.

use std::ops::Range;

use super::{
    chain::ChainError,
    device::{ActivateError, Activation, VirtioDevice},
    placeholder::Placeholder,
    ring::{RING_FEATURES, Ring},
    worker::{WorkError, Worker, serve_queue},
};
use crate::late_images::LateImage;
use crate::threads::ThreadKind;

/// VIRTIO_PMEM_REQ_TYPE_FLUSH.
const FLUSH: u32 = 0;
/// What a request is answered that is none.
const REFUSED: u32 = u32::MAX;
const QUEUE_SIZE: u16 = 64;
const QUEUES: &[u16] = &[QUEUE_SIZE];

/// The device.
pub(crate) struct Pmem {
    name: String,
    /// `start` and `size` (5.19.4).
    config: [u8; 16],
    worker: Option<Worker>,
    /// What goes with the device, if it came while the machine ran.
    image: Option<LateImage>,
}

impl Pmem {
    /// An image that lies there.
    pub(crate) fn new(name: &str, region: Range<u64>) -> Self {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&region.start.to_le_bytes());
        config[8..].copy_from_slice(&(region.end - region.start).to_le_bytes());
        Self {
            name: format!("pmem {name}"),
            config,
            worker: None,
            image: None,
        }
    }

    /// An image that came while the machine ran.
    pub(crate) fn late(name: &str, image: LateImage) -> Self {
        let mut device = Self::new(name, image.range().clone());
        device.image = Some(image);
        device
    }
}

/// A place for one.
pub(crate) fn placeholder() -> Placeholder {
    Placeholder::of(27, "pmem", QUEUES)
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u16 {
        27
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUES
    }

    fn is_detachable(&self) -> bool {
        self.image.is_some()
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::worker::read_config(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        self.worker = Some(Worker::over(self.name(), ThreadKind::Pmem, activation, |poller, [ring], _| {
            serve_queue(&poller, ring, turn)
        })?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

/// Serves what is available, one queue's length at most before the stop event is looked at again: a guest cannot hold the thread.
pub(crate) fn turn(ring: &mut Ring<'_>) -> Result<(), WorkError> {
    for _ in 0..QUEUE_SIZE {
        let Some(chain) = ring.pop()? else { break };
        let mut request = [0; 4];
        chain.readable.read(0, &mut request)?;
        if chain.writable.len() < 4 {
            return Err(ChainError::TooShort.into());
        }
        let answer = if u32::from_le_bytes(request) == FLUSH { 0 } else { REFUSED };
        chain.writable.write(0, &answer.to_le_bytes())?;
        ring.give_back(chain.head, 4)?;
    }
    Ok(ring.settle()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{BUFFERS, Driver, activate, memory};

    #[test]
    fn a_driver_reads_where_its_image_lies_and_zeros_behind_that() {
        let device = Pmem::new("img0", 0x1_4000_0000..0x1_4060_0000);
        let mut config = [0xff; 24];
        device.read_config(0, &mut config);
        assert_eq!(config[..8], 0x1_4000_0000u64.to_le_bytes());
        assert_eq!(config[8..16], 0x60_0000u64.to_le_bytes());
        assert_eq!(config[16..], [0; 8]);
        device.read_config(u64::MAX, &mut config[..1]);
        assert_eq!(config[0], 0);
    }

    #[test]
    fn a_flush_is_answered_and_anything_else_refused() {
        let (mut device, mut driver) = (Pmem::new("img0", 0..1), Driver::new(&memory(), 0, 64));
        let faults = activate(&mut device, &[&driver], 1 << 29);
        for (request, answer) in [(FLUSH, 0), (1, REFUSED)] {
            driver.write(BUFFERS, &request.to_le_bytes());
            driver.chain(0, &[(BUFFERS, 4, false), (BUFFERS + 64, 4, true)]);
            driver.offer(0);
            driver.kick();
            assert_eq!(driver.wait_used(), (0, 4));
            assert_eq!(driver.read(BUFFERS + 64, 4), answer.to_le_bytes());
        }
        assert!(faults.none());
        driver.chain(0, &[(BUFFERS, 4, false), (BUFFERS + 64, 3, true)]);
        driver.offer(0);
        driver.kick();
        assert!(faults.wait().what.contains("too short"));
    }
}
