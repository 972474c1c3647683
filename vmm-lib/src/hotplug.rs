//! Memory that comes and goes while a machine runs: a region behind RAM, in blocks that the guest plugs and unplugs (virtio-mem), and how
//! much of it the guest shall have. Plain bookkeeping, shared by the device, by whoever asks how large the machine is, and by all devices,
//! which use no block that is not plugged. Maps nothing; the region is mapped with RAM, and costs nothing where it was not touched.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::spec::HOTPLUG_BLOCK;
use crate::virtio::listener::Listener;

/// Bits of a word.
const WORD: u64 = u64::BITS as u64;

/// How much memory of its region a guest has, all in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hotplugged {
    /// Room of the region.
    pub size: u64,
    /// What the guest shall have.
    pub requested: u64,
    /// What it has. It follows `requested` as fast as it can; what it cannot free, it keeps.
    pub plugged: u64,
}

/// Why a machine's memory cannot be resized so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResizeError {
    /// The specification has no `hotplug`.
    #[error("the machine has no room for more memory than it began with")]
    NoRegion,
    /// More than the region has room for.
    #[error("{requested} bytes are more than the {size} that there is room for")]
    TooMuch {
        /// Asked for.
        requested: u64,
        /// Room.
        size: u64,
    },
    /// Not whole blocks.
    #[error("{0} bytes are not a multiple of {HOTPLUG_BLOCK}")]
    NotWhole(u64),
}

/// Why blocks were not plugged or unplugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// More than was requested of the guest.
    TooMuch,
    /// No such blocks, or some of them are already what they shall become.
    Wrong,
}

/// A region and its blocks. One thread plugs and unplugs, any may look on.
pub(crate) struct Hotplug {
    region: Range<u64>,
    /// A bit a block, from the lowest of the first word on.
    words: Box<[AtomicU64]>,
    plugged: AtomicU64,
    requested: AtomicU64,
    /// Hears that `requested` has changed.
    changed: Listener,
}

impl Hotplug {
    /// Nothing is plugged; the guest shall plug `requested` bytes. Both are whole blocks.
    pub(crate) fn new(region: Range<u64>, requested: u64) -> Self {
        let blocks = (region.end - region.start) / HOTPLUG_BLOCK;
        Self {
            region,
            words: (0..blocks.div_ceil(WORD)).map(|_| AtomicU64::new(0)).collect(),
            plugged: AtomicU64::new(0),
            requested: AtomicU64::new(requested),
            changed: Listener::default(),
        }
    }

    /// Where it lies.
    pub(crate) fn region(&self) -> &Range<u64> {
        &self.region
    }

    /// How much there is.
    pub(crate) fn status(&self) -> Hotplugged {
        Hotplugged {
            size: self.region.end - self.region.start,
            requested: self.requested.load(Ordering::Acquire),
            plugged: self.plugged.load(Ordering::Acquire),
        }
    }

    /// Has the guest plug or unplug until it has `requested` bytes.
    pub(crate) fn request(&self, requested: u64) -> Result<(), ResizeError> {
        let size = self.region.end - self.region.start;
        if requested > size {
            return Err(ResizeError::TooMuch { requested, size });
        }
        if !requested.is_multiple_of(HOTPLUG_BLOCK) {
            return Err(ResizeError::NotWhole(requested));
        }
        self.requested.store(requested, Ordering::Release);
        self.changed.tell();
        Ok(())
    }

    /// Who is told of changes.
    pub(crate) fn listener(&self) -> &Listener {
        &self.changed
    }

    /// Whether no byte of this range lies in a block that is not plugged. Memory outside the region is none of this one's business.
    pub(crate) fn allows(&self, address: u64, length: u64) -> bool {
        let end = address.saturating_add(length);
        if length == 0 || end <= self.region.start || self.region.end <= address {
            return true;
        }
        let start = address.max(self.region.start) - self.region.start;
        let end = end.min(self.region.end) - self.region.start;
        self.all(start / HOTPLUG_BLOCK..end.div_ceil(HOTPLUG_BLOCK), true)
    }

    /// The blocks of a request, if they are blocks of the region.
    pub(crate) fn blocks(&self, address: u64, count: u16) -> Option<Range<u64>> {
        let offset = address.checked_sub(self.region.start)?;
        let length = u64::from(count) * HOTPLUG_BLOCK;
        let end = offset.checked_add(length)?;
        let whole = count > 0 && offset.is_multiple_of(HOTPLUG_BLOCK) && end <= self.region.end - self.region.start;
        whole.then_some(offset / HOTPLUG_BLOCK..end / HOTPLUG_BLOCK)
    }

    /// Whether all of these blocks are plugged, or all are not.
    pub(crate) fn all(&self, mut blocks: Range<u64>, plugged: bool) -> bool {
        blocks.all(|block| self.is_plugged(block) == plugged)
    }

    /// Whether these blocks may be plugged now.
    pub(crate) fn may_plug(&self, blocks: &Range<u64>) -> Result<(), Refused> {
        let Hotplugged { requested, plugged, .. } = self.status();
        if !self.all(blocks.clone(), false) {
            return Err(Refused::Wrong);
        }
        let wanted = plugged + (blocks.end - blocks.start) * HOTPLUG_BLOCK;
        if wanted > requested { Err(Refused::TooMuch) } else { Ok(()) }
    }

    /// Notes that these blocks, none of which was so, are plugged now, or are not.
    pub(crate) fn set(&self, blocks: Range<u64>, plugged: bool) {
        let size = (blocks.end - blocks.start) * HOTPLUG_BLOCK;
        for block in blocks {
            let (word, bit) = (&self.words[(block / WORD) as usize], 1 << (block % WORD));
            if plugged {
                word.fetch_or(bit, Ordering::AcqRel);
            } else {
                word.fetch_and(!bit, Ordering::AcqRel);
            }
        }
        if plugged {
            self.plugged.fetch_add(size, Ordering::AcqRel);
        } else {
            self.plugged.fetch_sub(size, Ordering::AcqRel);
        }
    }

    /// The first run of plugged blocks at `from` or behind it.
    pub(crate) fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let last = (self.region.end - self.region.start) / HOTPLUG_BLOCK;
        let start = (from..last).find(|block| self.is_plugged(*block))?;
        let end = (start..last).find(|block| !self.is_plugged(*block)).unwrap_or(last);
        Some(start..end)
    }

    /// Where blocks lie.
    pub(crate) fn place(&self, blocks: &Range<u64>) -> Range<u64> {
        self.region.start + blocks.start * HOTPLUG_BLOCK..self.region.start + blocks.end * HOTPLUG_BLOCK
    }

    fn is_plugged(&self, block: u64) -> bool {
        self.words[(block / WORD) as usize].load(Ordering::Acquire) & 1 << (block % WORD) != 0
    }
}

impl std::fmt::Debug for Hotplug {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Hotplug({:x?}, {:?})", self.region, self.status())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::device::Interrupt;

    const START: u64 = 1 << 32;
    const SIZE: u64 = 256 << 20;

    fn hotplug(requested: u64) -> Hotplug {
        Hotplug::new(START..START + SIZE, requested)
    }

    #[test]
    fn blocks_of_a_request_are_whole_and_within_the_region() {
        let hotplug = hotplug(0);
        assert_eq!(hotplug.blocks(START, 1), Some(0..1));
        assert_eq!(hotplug.blocks(START + SIZE - HOTPLUG_BLOCK, 1), Some(127..128));
        assert_eq!(hotplug.blocks(START, 128), Some(0..128));
        for (address, count) in [
            (START, 0),
            (START, 129),
            (START, u16::MAX),
            (START + 4096, 1),
            (START - HOTPLUG_BLOCK, 1),
            (START + SIZE, 1),
            (u64::MAX - HOTPLUG_BLOCK + 1, 2),
            (0, 1),
        ] {
            assert_eq!(hotplug.blocks(address, count), None, "{address:#x} {count}");
        }
    }

    #[test]
    fn no_more_is_plugged_than_was_requested_and_nothing_twice() {
        let hotplug = hotplug(4 * HOTPLUG_BLOCK);
        assert_eq!(hotplug.may_plug(&(0..5)), Err(Refused::TooMuch));
        assert_eq!(hotplug.may_plug(&(60..63)), Ok(()));
        hotplug.set(60..63, true);
        assert_eq!(hotplug.may_plug(&(62..63)), Err(Refused::Wrong));
        assert_eq!(hotplug.may_plug(&(63..65)), Err(Refused::TooMuch));
        assert_eq!(hotplug.may_plug(&(63..64)), Ok(()));
        assert_eq!(hotplug.status().plugged, 3 * HOTPLUG_BLOCK);
        hotplug.set(61..62, false);
        assert_eq!((hotplug.status().plugged, hotplug.next_run(0)), (2 * HOTPLUG_BLOCK, Some(60..61)));
        assert_eq!(hotplug.next_run(61), Some(62..63));
        hotplug.set(60..61, false);
        hotplug.set(62..63, false);
        assert_eq!((hotplug.status().plugged, hotplug.next_run(0)), (0, None));
    }

    #[test]
    fn only_memory_that_is_plugged_is_there_for_devices_and_what_lies_outside_always() {
        let hotplug = hotplug(SIZE);
        hotplug.set(1..2, true);
        hotplug.set(127..128, true);
        let block = |number: u64| START + number * HOTPLUG_BLOCK;
        for (address, length) in [
            (0, 4096),
            (START - 4096, 4096),
            (START + SIZE, 1),
            (block(1), HOTPLUG_BLOCK),
            (block(2) - 1, 1),
            (block(127), HOTPLUG_BLOCK + 4096),
            (block(0), 0),
            (u64::MAX, u64::MAX),
        ] {
            assert!(hotplug.allows(address, length), "{address:#x} {length}");
        }
        for (address, length) in [
            (START - 1, 2),
            (block(1) - 1, 2),
            (block(2) - 1, 2),
            (block(1), HOTPLUG_BLOCK + 1),
            (0, u64::MAX),
        ] {
            assert!(!hotplug.allows(address, length), "{address:#x} {length}");
        }
    }

    #[test]
    fn requests_are_whole_blocks_within_the_room_there_is_and_the_driver_hears_of_each() {
        let hotplug = hotplug(0);
        let event = std::sync::Arc::new(vmm_sys_util::eventfd::EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap());
        assert_eq!(hotplug.request(HOTPLUG_BLOCK), Ok(()), "before there is a driver");
        hotplug.listener().set(Some(Interrupt::new(event.clone())));
        assert_eq!(hotplug.request(SIZE), Ok(()));
        assert_eq!(event.read().unwrap(), 1);
        assert_eq!(hotplug.request(4096), Err(ResizeError::NotWhole(4096)));
        let requested = SIZE + HOTPLUG_BLOCK;
        assert_eq!(hotplug.request(requested), Err(ResizeError::TooMuch { requested, size: SIZE }));
        assert!(event.read().is_err(), "nothing has changed");
        assert_eq!(hotplug.status().requested, SIZE);
    }
}
