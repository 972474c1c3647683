//! virtio-blk (virtio 1.2, 5.2) over extents of raw files or a qcow2 image: one queue, one thread, system calls straight into guest memory, or a
//! restricted ring of the kernel's where that is asked for. Refuses writes to read-only disks, and every sector outside the disk. A disk with limits takes a request only when it may be carried out.

mod extents;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod qcow2;
mod request;
mod store;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_pace;
#[cfg(test)]
mod tests_of_ring;
mod together;
mod uring;

use std::{fs::File, io, sync::Arc, time::Duration};

use self::{
    extents::Extents,
    request::{Disk, Header, Refusal, Served, serve},
    store::Store,
};
use super::placeholder::Placeholder;
use super::{
    chain::{Chain, ChainError},
    device::{ActivateError, Activation, GuestSpace, VirtioDevice},
    pace::Pace,
    ring::{RING_FEATURES, Ring},
    worker::{Poller, Worker, serve_paced_queue},
};
use crate::{
    spec::{DiskEngine, Limits, MAX_SERIAL},
    threads::ThreadKind,
};

const SECTOR: u64 = 512;
const QUEUE_SIZE: u16 = 256;
const QUEUES: &[u16] = &[QUEUE_SIZE];
const SEG_MAX: u64 = 1 << 2;
const RO: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;
/// Most sectors of one discard or write-zeroes: 1 GiB, so that a reset does not wait for long.
const MAX_ZERO_SECTORS: u32 = 1 << 21;

/// Why a disk cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Empty, or longer than virtio allows.
    #[error("a serial of {0} bytes is not between 1 and {MAX_SERIAL}")]
    Serial(usize),
    /// Its image is no disk.
    #[error("open its qcow2 image")]
    Qcow2(#[from] Qcow2Error),
    /// The kernel has no ring for it. Nothing else is taken in its place.
    #[error("use io_uring: {step}")]
    Ring {
        /// What was attempted.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A disk of no sectors or half ones, or too large to be addressed.
    #[error("the extents of disk {0} are empty, no whole sectors, or too large")]
    Extents(String),
}

pub use qcow2::{MOST_FREED, MOST_OF_A_TABLE, Qcow2Error};

/// The device.
#[derive(Debug)]
pub struct Block {
    name: String,
    disk: Arc<Disk>,
    pace: Arc<Pace>,
    worker: Option<Worker>,
}

impl Block {
    /// A disk of `extents` (file, offset, length in bytes), one behind the other. DISCARD and WRITE_ZEROES are offered for a writable
    /// disk of one extent.
    pub fn new(serial: &str, extents: Vec<(File, u64, u64)>, read_only: bool) -> Result<Self, BlockError> {
        Self::by(DiskEngine::Calls, serial, extents, read_only)
    }

    /// The same, whose files are read and written by this engine.
    pub fn by(engine: DiskEngine, serial: &str, extents: Vec<(File, u64, u64)>, read_only: bool) -> Result<Self, BlockError> {
        let whole = !extents.is_empty() && extents.iter().all(|(_, _, length)| *length != 0 && length % SECTOR == 0);
        let extents = Extents::new(extents).filter(|_| whole);
        let extents = extents.ok_or_else(|| BlockError::Extents(serial.to_owned()))?;
        let extents = match engine {
            DiskEngine::Calls => extents,
            DiskEngine::IoUring => extents.with_ring().map_err(|(step, source)| BlockError::Ring { step, source })?,
        };
        Self::on(serial, Store::Raw(extents), read_only)
    }

    /// A disk in a qcow2 image, whose file is open for reading, and unless `read_only` for writing.
    pub fn qcow2(serial: &str, file: File, read_only: bool) -> Result<Self, BlockError> {
        Self::on(serial, Store::qcow2(file, !read_only)?, read_only)
    }

    fn on(serial: &str, store: Store, read_only: bool) -> Result<Self, BlockError> {
        if serial.is_empty() || serial.len() > MAX_SERIAL {
            return Err(BlockError::Serial(serial.len()));
        }
        let mut padded = [0u8; MAX_SERIAL];
        padded[..serial.len()].copy_from_slice(serial.as_bytes());
        Ok(Self {
            name: format!("block {serial}"),
            disk: Arc::new(Disk {
                zeroes: !read_only && store.zeroes(),
                store,
                serial: padded,
                read_only,
            }),
            pace: Arc::new(Pace::new(Limits::default())),
            worker: None,
        })
    }

    /// No faster than this.
    #[must_use]
    pub fn limited(mut self, limits: Limits) -> Self {
        self.pace = Arc::new(Pace::new(limits));
        self
    }

    fn config(&self) -> [u8; 60] {
        let mut config = [0u8; 60];
        config[..8].copy_from_slice(&(self.disk.store.size() / SECTOR).to_le_bytes());
        // Header and status take a descriptor each.
        config[12..16].copy_from_slice(&u32::from(QUEUE_SIZE - 2).to_le_bytes());
        if self.disk.zeroes {
            for (sectors, segments) in [(36, 40), (48, 52)] {
                config[sectors..sectors + 4].copy_from_slice(&MAX_ZERO_SECTORS.to_le_bytes());
                config[segments..segments + 4].copy_from_slice(&1u32.to_le_bytes());
            }
            // discard_sector_alignment, in sectors: a page of the host's file.
            config[44..48].copy_from_slice(&8u32.to_le_bytes());
            // write_zeroes_may_unmap
            config[56] = 1;
        }
        config
    }
}

/// A place for one.
pub(crate) fn placeholder() -> Placeholder {
    Placeholder::of(2, "block", QUEUES)
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u16 {
        2
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUES
    }

    fn is_detachable(&self) -> bool {
        true
    }

    fn features(&self) -> u64 {
        let access = if self.disk.read_only { RO } else { FLUSH };
        let zeroes = if self.disk.zeroes { DISCARD | WRITE_ZEROES } else { 0 };
        RING_FEATURES | SEG_MAX | access | zeroes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::worker::read_config(&self.config(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let (disk, pace, name) = (Arc::clone(&self.disk), Arc::clone(&self.pace), self.name.clone());
        let work = move |poller: Poller, [ring]: [Ring<'_>; 1], _: &GuestSpace| {
            let mut reported = false;
            let served = serve_paced_queue(&poller, ring, |ring| Ok(turn(ring, &disk, &pace, &name, &mut reported)?));
            if let Err(error) = disk.store.settle() {
                tracing::warn!(device = name, %error, "what was not flushed of an image is lost");
            }
            served
        };
        let kind = match self.disk.store.has_ring() {
            true => ThreadKind::BlockRing,
            false => ThreadKind::Block,
        };
        self.worker = Some(Worker::over(&self.name, kind, activation, work)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

/// Most requests of a turn: early ones are heard of while late ones wait for the disk, and a reset does not wait for all.
const TURN: usize = 16;

/// Serves a few requests. `Some`: the next request, if there is one, stays in the ring for so long.
fn turn(ring: &mut Ring<'_>, disk: &Disk, pace: &Pace, name: &str, reported: &mut bool) -> Result<Option<Duration>, ChainError> {
    ring.disarm()?;
    // What goes together is paid for together, so with limits each goes alone.
    let most = if disk.store.has_ring() && !pace.is_limited() { TURN } else { 1 };
    let mut left = TURN;
    while left > 0 {
        if let Some(wait) = pace.wait() {
            ring.notify()?;
            return Ok(Some(wait));
        }
        let Some(mut chain) = ring.take()? else { return Ok(None) };
        let mut requests = Vec::with_capacity(most);
        loop {
            let header = Header::read(&chain)?;
            requests.push((chain, header));
            if requests.len() == most.min(left) {
                break;
            }
            let Some(more) = ring.pop()? else { break };
            chain = more;
        }
        left -= requests.len();
        let moved = if most > 1 { move_together(disk, &requests) } else { vec![None] };
        for ((chain, header), moved) in requests.iter().zip(moved) {
            let Served { used, moved, refusal } = serve(disk, chain, *header, moved)?;
            pace.spend(moved);
            ring.give_back(chain.head, used)?;
            // Once a device: a guest chooses how often it is refused.
            if let (Some(Refusal::Io(error)), false) = (refusal, *reported) {
                tracing::warn!(device = name, %error, "a request failed on the host's file; later failures are not logged");
                *reported = true;
            }
        }
    }
    ring.settle()?;
    Ok(None)
}

/// Has the ring move what these requests move; `None` for those that move nothing.
fn move_together(disk: &Disk, requests: &[(Chain<'_>, Header)]) -> Vec<Option<io::Result<()>>> {
    let each = requests.iter().map(|(chain, header)| header.transfer(disk, chain));
    let (mut transfers, numbers): (Vec<_>, Vec<_>) = each.enumerate().filter_map(|(index, one)| Some((one?, index))).unzip();
    let mut results: Vec<_> = requests.iter().map(|_| None).collect();
    let done = disk.store.transfer_together(&mut transfers);
    for (transfer, index) in transfers.into_iter().zip(numbers) {
        let ended = match &done {
            Ok(()) => transfer.end(),
            Err(error) => Err(error.kind().into()),
        };
        results[index] = Some(ended);
    }
    results
}
