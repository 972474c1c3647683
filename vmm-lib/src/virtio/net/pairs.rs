//! How many pairs of queues a driver uses: what it asks for on the control queue (virtio 1.2, 5.1.6.5.5), and which of the tap's own queues frames
//! come out of. Frames to a guest arrive in queues that it uses only: the others are detached from the tap.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::virtio::chain::ChainError;
use crate::virtio::ring::Ring;
use crate::virtio::worker::{WorkError, broke};

/// VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const SET_PAIRS: [u8; 2] = [4, 0];
const OK: u8 = 0;
const ERR: u8 = 1;
/// Size of the control queue.
pub(super) const QUEUE_SIZE: u16 = 64;

// From linux/if_tun.h.
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const ATTACH: u16 = 0x0200;
const DETACH: u16 = 0x0400;
/// `struct ifreq`, of which the kernel reads the flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// The queues of a tap, one a pair.
#[derive(Debug)]
pub(super) struct Taps {
    queues: Vec<File>,
    /// Whether they are a tap's; tests put datagram sockets in their place.
    real: bool,
    /// How many of them the driver uses. It outlives a pause.
    used: AtomicUsize,
}

impl Taps {
    /// At least one.
    pub(super) fn new(queues: Vec<File>, real: bool) -> Self {
        Self {
            queues,
            real,
            used: AtomicUsize::new(1),
        }
    }

    /// How many the driver uses.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// The queue of a pair.
    pub(super) fn queue(&self, pair: usize) -> &File {
        &self.queues[pair]
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.queues.len()
    }

    /// The driver uses the first `pairs` from now on, and no frame comes out of another.
    pub(super) fn use_first(&self, pairs: usize) -> io::Result<()> {
        if self.real {
            for pair in 1..self.count() {
                self.set(pair, if pair < pairs { ATTACH } else { DETACH })?;
            }
        }
        self.used.store(pairs, Ordering::Release);
        Ok(())
    }

    fn set(&self, pair: usize, flags: u16) -> io::Result<()> {
        let request = InterfaceRequest {
            name: [0; 16],
            flags,
            rest: [0; 22],
        };
        // SAFETY: TUNSETQUEUE copies one struct ifreq (40 bytes) from the pointer, which is borrowed for the whole call.
        match unsafe { ioctl_with_ref(self.queue(pair), TUNSETQUEUE, &request) } {
            0.. => Ok(()),
            // It is so already.
            _ if io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The control queue.
pub(super) struct Control<'m> {
    ring: Ring<'m>,
    taps: Arc<Taps>,
    /// Pairs whose queues the driver has enabled.
    enabled: usize,
}

impl<'m> Control<'m> {
    /// Of a driver that may use so many pairs.
    pub(super) fn new(ring: Ring<'m>, taps: Arc<Taps>, enabled: usize) -> Self {
        Self { ring, taps, enabled }
    }

    pub(super) fn ring(&self) -> &Ring<'m> {
        &self.ring
    }

    /// Answers what is available, one queue's length at most.
    pub(super) fn turn(&mut self) -> Result<(), WorkError> {
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = self.ring.pop()? else { break };
            let mut command = [0; 2];
            chain.readable.read(0, &mut command)?;
            let answer = if command == SET_PAIRS {
                let mut pairs = [0; 2];
                chain.readable.read(2, &mut pairs)?;
                self.set(usize::from(u16::from_le_bytes(pairs)))?
            } else {
                ERR
            };
            if chain.writable.len() == 0 {
                return Err(ChainError::TooShort.into());
            }
            chain.writable.write(0, &[answer])?;
            self.ring.give_back(chain.head, 1)?;
        }
        Ok(self.ring.settle()?)
    }

    fn set(&mut self, pairs: usize) -> Result<u8, WorkError> {
        if !(1..=self.enabled).contains(&pairs) {
            return Ok(ERR);
        }
        self.taps.use_first(pairs).map_err(broke("set the tap's queues"))?;
        Ok(OK)
    }
}
