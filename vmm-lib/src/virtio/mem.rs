//! virtio-mem (virtio 1.2, 5.15): the guest plugs and unplugs blocks of a region behind RAM, as many as it was asked to have. A block that is
//! plugged reads as zeros, and one that is unplugged is the host's again. A request that names no blocks of the region, or blocks that are
//! already so, is answered with an error; more memory than requested is refused. Nothing here decides how much that is.

use std::ops::Range;
use std::sync::Arc;

use vm_memory::{GuestAddress, Permissions};

use super::{
    chain::{ChainError, Segments},
    device::{ActivateError, Activation, GuestSpace, VirtioDevice},
    placeholder::Placeholder,
    ring::{RING_FEATURES, Ring},
    worker::{Poller, WorkError, Worker, broke, serve_queue},
};
use crate::hotplug::{Hotplug, Hotplugged, Refused};
use crate::spec::HOTPLUG_BLOCK;
use crate::threads::ThreadKind;

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: what is not plugged is not there to be read (5.15.3).
const FEATURES: u64 = 1 << 1;
const QUEUE_SIZE: u16 = 64;
const QUEUES: &[u16] = &[QUEUE_SIZE];
/// A request (5.15.6): type, place, number of blocks.
const REQUEST: usize = 24;
/// Its response: type, state.
const RESPONSE: usize = 10;
/// Most bytes that are given back by one call.
const PIECE: u64 = 1 << 30;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

const PLUGGED: u16 = 0;
const UNPLUGGED: u16 = 1;
const MIXED: u16 = 2;

/// The device.
pub(crate) struct Mem {
    hotplug: Arc<Hotplug>,
    worker: Option<Worker>,
}

impl Mem {
    /// Of this region.
    pub(crate) fn new(hotplug: Arc<Hotplug>) -> Self {
        Self { hotplug, worker: None }
    }
}

/// A place for one.
pub(crate) fn placeholder() -> Placeholder {
    Placeholder::of(24, "mem", QUEUES)
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u16 {
        24
    }

    fn name(&self) -> &str {
        "mem"
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUES
    }

    fn features(&self) -> u64 {
        RING_FEATURES | FEATURES
    }

    /// 5.15.4. All of the region is usable at any time; there is no node.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let region = self.hotplug.region();
        let Hotplugged { size, requested, plugged } = self.hotplug.status();
        let mut config = [0; 56];
        for (field, value) in config
            .chunks_exact_mut(8)
            .zip([HOTPLUG_BLOCK, 0, region.start, size, size, plugged, requested])
        {
            field.copy_from_slice(&value.to_le_bytes());
        }
        super::worker::read_config(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let (hotplug, config_changed) = (self.hotplug.clone(), activation.config_changed.clone());
        let work = move |poller: Poller, [ring]: [Ring<'_>; 1], memory: &GuestSpace| {
            serve_queue(&poller, ring, |ring| turn(ring, memory, &hotplug))
        };
        self.worker = Some(Worker::over(self.name(), ThreadKind::Mem, activation, work)?);
        self.hotplug.listener().set(Some(config_changed));
        Ok(())
    }

    /// What is plugged stays so (5.15.5.2): another driver may unplug it.
    fn pause(&mut self) -> Result<(), &'static str> {
        if self.hotplug.status().plugged > 0 {
            return Err("memory that was plugged");
        }
        self.reset();
        Ok(())
    }

    fn reset(&mut self) {
        self.hotplug.listener().set(None);
        self.worker = None;
    }
}

/// Serves what is available, one queue's length at most before the stop event is looked at again: a guest cannot hold the thread.
pub(crate) fn turn(ring: &mut Ring<'_>, memory: &GuestSpace, hotplug: &Hotplug) -> Result<(), WorkError> {
    for _ in 0..QUEUE_SIZE {
        let Some(chain) = ring.pop()? else { break };
        let mut request = [0; REQUEST];
        chain.readable.read(0, &mut request)?;
        if chain.writable.len() < RESPONSE {
            return Err(ChainError::TooShort.into());
        }
        let (answer, state) = serve(&request, memory, hotplug)?;
        let mut response = [0; RESPONSE];
        response[..2].copy_from_slice(&answer.to_le_bytes());
        response[8..].copy_from_slice(&state.to_le_bytes());
        chain.writable.write(0, &response)?;
        ring.give_back(chain.head, RESPONSE as u32)?;
    }
    Ok(ring.settle()?)
}

/// Does what is asked; the answer, and for a question the state.
fn serve(request: &[u8; REQUEST], memory: &GuestSpace, hotplug: &Hotplug) -> Result<(u16, u16), WorkError> {
    let [t0, t1, _, _, _, _, _, _, a0, a1, a2, a3, a4, a5, a6, a7, n0, n1, ..] = *request;
    let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
    let blocks = hotplug.blocks(address, u16::from_le_bytes([n0, n1]));
    Ok(match (u16::from_le_bytes([t0, t1]), blocks) {
        (PLUG, Some(blocks)) => match hotplug.may_plug(&blocks) {
            Ok(()) => {
                // The driver, or a device in its name, may have written here while it was nobody's.
                give_back(&hotplug.place(&blocks), memory)?;
                hotplug.set(blocks, true);
                (ACK, 0)
            }
            Err(Refused::TooMuch) => (NACK, 0),
            Err(Refused::Wrong) => (ERROR, 0),
        },
        (UNPLUG, Some(blocks)) if hotplug.all(blocks.clone(), true) => {
            unplug(blocks, memory, hotplug)?;
            (ACK, 0)
        }
        (UNPLUG_ALL, _) => {
            let mut from = 0;
            while let Some(blocks) = hotplug.next_run(from) {
                from = blocks.end;
                unplug(blocks, memory, hotplug)?;
            }
            (ACK, 0)
        }
        (STATE, Some(blocks)) => {
            let state = [(true, PLUGGED), (false, UNPLUGGED)];
            let found = state.iter().find(|(plugged, _)| hotplug.all(blocks.clone(), *plugged));
            (ACK, found.map_or(MIXED, |(_, state)| *state))
        }
        _ => (ERROR, 0),
    })
}

/// No device uses the blocks from now on; then they are the host's.
fn unplug(blocks: Range<u64>, memory: &GuestSpace, hotplug: &Hotplug) -> Result<(), WorkError> {
    let place = hotplug.place(&blocks);
    hotplug.set(blocks, false);
    give_back(&place, memory)
}

fn give_back(place: &Range<u64>, memory: &GuestSpace) -> Result<(), WorkError> {
    let mut start = place.start;
    while start < place.end {
        let length = PIECE.min(place.end - start);
        let mut piece = Segments::default();
        piece.push(memory, GuestAddress(start), length as u32, Permissions::Write)?;
        piece.discard(memory.backing()).map_err(broke("give memory back"))?;
        start += length;
    }
    Ok(())
}

#[cfg(test)]
#[path = "mem_tests.rs"]
mod tests;
