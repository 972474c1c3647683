//! virtio-rng (virtio 1.2, 5.4): random bytes of the host's getrandom(2). Refuses requests without a writable buffer; a request gets at
//! most [`MAX_REQUEST`] bytes, whatever it asks for.

use rustix::rand::GetRandomFlags;

use super::{
    chain::ChainError,
    device::{ActivateError, Activation, VirtioDevice},
    ring::{RING_FEATURES, Ring},
    worker::{WorkError, Worker, broke, serve_queue},
};
use crate::threads::ThreadKind;

/// Most bytes one request gets.
pub const MAX_REQUEST: usize = 64 << 10;

/// The device.
#[derive(Debug, Default)]
pub struct Rng {
    worker: Option<Worker>,
}

impl Rng {
    /// A device, not yet active.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u16 {
        4
    }

    fn name(&self) -> &str {
        "rng"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        self.worker = Some(Worker::over(self.name(), ThreadKind::Rng, activation, |poller, [ring], _| {
            let mut block = [0; 4096];
            serve_queue(&poller, ring, |ring| turn(ring, &mut block))
        })?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

/// Serves what is available, one queue's length at most before the stop event is looked at again: a guest cannot hold the thread.
pub(crate) fn turn(ring: &mut Ring<'_>, block: &mut [u8]) -> Result<(), WorkError> {
    let mut left = 64;
    while left > 0 {
        left -= 1;
        let Some(chain) = ring.pop()? else { break };
        let wanted = chain.writable.len().min(MAX_REQUEST);
        if wanted == 0 {
            return Err(ChainError::TooShort.into());
        }
        let mut done = 0;
        while done < wanted {
            let part = block.len().min(wanted - done);
            let got = rustix::rand::getrandom(&mut block[..part], GetRandomFlags::empty()).map_err(broke("read random bytes"))?;
            chain.writable.write(done, &block[..got])?;
            done += got;
        }
        ring.give_back(chain.head, u32::try_from(done).expect("MAX_REQUEST is small"))?;
    }
    Ok(ring.settle()?)
}

#[cfg(test)]
mod tests {
    use super::{MAX_REQUEST, Rng};
    use crate::virtio::device::VirtioDevice;
    use crate::virtio::testing::{BUFFERS, Driver, activate, memory};

    #[test]
    fn a_request_is_filled_but_never_beyond_the_bound() {
        let (mut device, mut driver) = (Rng::new(), Driver::new(&memory(), 0, 64));
        let faults = activate(&mut device, &[&driver], 1 << 29);
        for (length, expected) in [(64, 64), (10_000, 10_000), (1 << 20, MAX_REQUEST as u32)] {
            driver.chain(0, &[(BUFFERS, length, true)]);
            driver.offer(0);
            driver.kick();
            assert_eq!(driver.wait_used(), (0, expected));
        }
        let bytes = driver.read(BUFFERS, MAX_REQUEST + 4096);
        assert!(bytes[..64].iter().any(|byte| *byte != 0));
        assert!(bytes[MAX_REQUEST..].iter().all(|byte| *byte == 0));
        assert!(faults.none());
        driver.chain(0, &[(BUFFERS, 64, false)]);
        driver.offer(0);
        driver.kick();
        assert!(faults.wait().what.contains("too short"));
    }

    #[test]
    fn kicks_without_a_request_cause_no_interrupt_and_requests_one_each_at_most() {
        let (mut device, mut driver) = (Rng::new(), Driver::new(&memory(), 0, 64));
        let faults = activate(&mut device, &[&driver], 0);
        let flood = |driver: &Driver| (0..100_000).for_each(|_| driver.kick());
        flood(&driver);
        assert_eq!(driver.interrupts(), 0);
        for head in 0..8 {
            driver.chain(head, &[(BUFFERS, 64, true)]);
            driver.offer(head);
            flood(&driver);
        }
        for _ in 0..8 {
            while driver.take_used().is_none() {
                assert!(faults.none());
                std::thread::yield_now();
            }
        }
        flood(&driver);
        // When its thread has ended there is no more to come.
        device.reset();
        assert!((1..=8).contains(&driver.interrupts()));
    }
}
