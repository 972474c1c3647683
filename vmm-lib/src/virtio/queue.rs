//! A queue's registers before its driver is ready, and the check that turns them into a queue. Nothing here reads a ring.

use std::ops::Range;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::device::GuestSpace;

/// The vector that means none.
pub(crate) const NO_VECTOR: u16 = 0xffff;
/// Bytes of a descriptor and of a used element; header and event index of the two rings.
const DESCRIPTOR: u64 = 16;
const USED_ELEMENT: u64 = 8;
const RING_OVERHEAD: u64 = 6;

/// What a driver has said of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueueRegisters {
    pub(crate) max_size: u16,
    pub(crate) size: u16,
    pub(crate) vector: u16,
    pub(crate) enabled: bool,
    pub(crate) descriptors: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

/// Why a queue cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("queue {queue}: size {size} is not a power of two up to {max}")]
    Size { queue: usize, size: u16, max: u16 },
    #[error("queue {queue}: {ring} at {address:#x} is not on a multiple of {alignment}")]
    Alignment {
        queue: usize,
        ring: &'static str,
        address: u64,
        alignment: u64,
    },
    #[error("queue {queue}: {ring} at {address:#x} is not in memory")]
    NotMemory { queue: usize, ring: &'static str, address: u64 },
    #[error("queue {queue}: {ring} at {address:#x} overlaps another ring")]
    Overlap { queue: usize, ring: &'static str, address: u64 },
}

impl QueueRegisters {
    /// After a reset.
    pub(crate) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            vector: NO_VECTOR,
            enabled: false,
            descriptors: 0,
            driver: 0,
            device: 0,
        }
    }

    /// Name, place and alignment of each ring.
    fn rings(&self) -> [(&'static str, u64, u64, u64); 3] {
        let size = u64::from(self.size);
        [
            ("descriptor table", self.descriptors, DESCRIPTOR * size, 16),
            ("available ring", self.driver, 2 * size + RING_OVERHEAD, 2),
            ("used ring", self.device, USED_ELEMENT * size + RING_OVERHEAD, 4),
        ]
    }
}

/// Checks all queues of a device together and makes the enabled ones ready.
pub(crate) fn ready(registers: &[QueueRegisters], memory: &GuestSpace, event_idx: bool) -> Result<Vec<Option<Queue>>, QueueError> {
    let mut taken: Vec<Range<u64>> = Vec::new();
    registers
        .iter()
        .enumerate()
        .map(|(index, queue)| one(index, queue, memory, event_idx, &mut taken))
        .collect()
}

/// Goes on where the used ring says that a device has stopped. Every chain that was taken is given back in its turn, so what is not in the used
/// ring was not taken.
pub(crate) fn go_on(queue: &mut Queue, memory: &GuestSpace) {
    // The ring was checked when the queue was made; were it gone, the device would find out by itself.
    if let Ok(index) = memory.load::<u16>(GuestAddress(queue.used_ring() + 2), Ordering::Acquire) {
        let index = u16::from_le(index);
        queue.set_next_avail(index);
        queue.set_next_used(index);
    }
}

fn one(
    queue: usize,
    registers: &QueueRegisters,
    memory: &GuestSpace,
    event_idx: bool,
    taken: &mut Vec<Range<u64>>,
) -> Result<Option<Queue>, QueueError> {
    if !registers.enabled {
        return Ok(None);
    }
    let (size, max) = (registers.size, registers.max_size);
    let bad_size = QueueError::Size { queue, size, max };
    if !size.is_power_of_two() || size > max {
        return Err(bad_size);
    }
    for (ring, address, length, alignment) in registers.rings() {
        if !address.is_multiple_of(alignment) {
            return Err(QueueError::Alignment {
                queue,
                ring,
                address,
                alignment,
            });
        }
        let (start, bytes) = (GuestAddress(address), length as usize);
        if memory.get_slice(start, bytes).is_err() || !memory.is_plugged(start, bytes) {
            return Err(QueueError::NotMemory { queue, ring, address });
        }
        let range = address..address + length;
        if taken.iter().any(|other| other.start < range.end && range.start < other.end) {
            return Err(QueueError::Overlap { queue, ring, address });
        }
        taken.push(range);
    }
    let mut made = Queue::new(max).map_err(|_| bad_size)?;
    made.set_size(size);
    made.set_desc_table_address(Some(registers.descriptors as u32), Some((registers.descriptors >> 32) as u32));
    made.set_avail_ring_address(Some(registers.driver as u32), Some((registers.driver >> 32) as u32));
    made.set_used_ring_address(Some(registers.device as u32), Some((registers.device >> 32) as u32));
    made.set_event_idx(event_idx);
    made.set_ready(true);
    Ok(Some(made))
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::dirty::Ram;

    fn memory() -> GuestSpace {
        let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 20), 1 << 20)];
        Ram::from_ranges(&ranges).expect("the host has 2 MiB").into()
    }

    fn queue() -> QueueRegisters {
        QueueRegisters {
            size: 256,
            enabled: true,
            descriptors: 0x1000,
            driver: 0x2000,
            device: 0x3000,
            ..QueueRegisters::new(256)
        }
    }

    #[test]
    fn a_well_formed_queue_is_ready_and_a_disabled_one_is_none() {
        let queues = ready(&[queue(), QueueRegisters::new(128)], &memory(), true).expect("well formed");
        let first = queues[0].as_ref().expect("enabled");
        assert_eq!(
            (first.size(), first.desc_table(), first.avail_ring(), first.used_ring()),
            (256, 0x1000, 0x2000, 0x3000)
        );
        assert!(first.ready() && first.event_idx_enabled());
        assert!(queues[1].is_none());
    }

    #[test]
    fn sizes_that_are_no_power_of_two_or_too_large_are_refused() {
        for size in [0, 3, 100, 512, 65535] {
            let queue = QueueRegisters { size, ..queue() };
            assert!(matches!(ready(&[queue], &memory(), false), Err(QueueError::Size { .. })), "{size}");
        }
    }

    #[test]
    fn rings_off_their_boundary_are_refused() {
        for queue in [
            QueueRegisters {
                descriptors: 0x1008,
                ..queue()
            },
            QueueRegisters { driver: 0x2001, ..queue() },
            QueueRegisters { device: 0x3002, ..queue() },
        ] {
            assert!(matches!(ready(&[queue], &memory(), false), Err(QueueError::Alignment { .. })));
        }
    }

    #[test]
    fn rings_outside_memory_or_across_its_end_are_refused() {
        for descriptors in [2 << 20, (2 << 20) - 16, u64::MAX - 15, 0xc000_0000] {
            let queue = QueueRegisters { descriptors, ..queue() };
            assert!(
                matches!(ready(&[queue], &memory(), false), Err(QueueError::NotMemory { .. })),
                "{descriptors:#x}"
            );
        }
    }

    #[test]
    fn rings_that_overlap_in_a_queue_or_between_queues_are_refused() {
        let inside = QueueRegisters { driver: 0x1ffe, ..queue() };
        assert!(matches!(ready(&[inside], &memory(), false), Err(QueueError::Overlap { .. })));
        assert!(matches!(
            ready(&[queue(), queue()], &memory(), false),
            Err(QueueError::Overlap { queue: 1, .. })
        ));
    }
}
