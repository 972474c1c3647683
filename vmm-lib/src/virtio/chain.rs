//! A descriptor chain, walked and checked as a whole before anything in it is touched. Refuses what virtio-queue's iterator would cut off
//! silently: loops, indices and tables out of range, nested or chained indirect tables, empty buffers, buffers outside guest memory,
//! readable buffers behind writable ones, more descriptors than the queue has, 4 GiB and more in all.

use std::ops::Range;

use smallvec::SmallVec;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, Permissions};

use super::device::GuestSpace;
use crate::dirty::{Ram, Slice};

const DESCRIPTOR_SIZE: usize = 16;

const PAGE: usize = 4096;
/// What of RAM that is a copy of a file is given back at least at a time, bytes: each piece is a mapping of its own, of which a process has few.
pub(crate) const FILE_PIECE: usize = 64 << 10;

/// What RAM is behind the pages that nobody has written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Zeros.
    #[default]
    Anonymous,
    /// A file, of which this is a private copy.
    File,
}

/// Gives pages of a slice of guest memory back.
fn give_back(start: *mut u8, length: usize, backing: Backing) -> std::io::Result<()> {
    let done = match backing {
        // SAFETY: the range lies in a slice of guest memory, which is mapped for as long as the caller borrows it, and to which nobody has a
        // reference: all access is volatile. Contents may change at any time, as the guest can do that, too.
        Backing::Anonymous => unsafe { libc::madvise(start.cast(), length, libc::MADV_DONTNEED) == 0 },
        Backing::File => {
            // What was dropped would read as the file again, so zeros are put over it.
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
            // SAFETY: as above; the range stays mapped, readable and writable, in one step, and is unmapped with the region it lies in.
            let mapped = unsafe { libc::mmap(start.cast(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
            mapped != libc::MAP_FAILED
        }
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// What is wrong with what a guest put into a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The available index is further ahead than the queue is long.
    #[error("the available index runs ahead of the queue")]
    AvailableIndex,
    /// A ring is outside guest memory.
    #[error("a ring is not in guest memory")]
    Ring,
    /// A descriptor's index is past the table's end.
    #[error("a descriptor index is out of range")]
    Index,
    /// The descriptors form a loop, or are more than the queue has.
    #[error("a chain is longer than its queue")]
    TooLong,
    /// An indirect table is empty, of a broken length, nested, chained, outside guest memory, or was never agreed on.
    #[error("an indirect table is malformed")]
    Indirect,
    /// A buffer has no bytes.
    #[error("a buffer is empty")]
    Empty,
    /// A buffer is not in guest memory, or in memory that is not plugged.
    #[error("a buffer is not in guest memory")]
    Buffer,
    /// A readable buffer follows a writable one.
    #[error("a readable buffer follows a writable one")]
    Order,
    /// The device needs more readable or writable bytes than the chain has.
    #[error("a chain is too short for its device")]
    TooShort,
}

/// Pieces of guest memory, in order, as one run of bytes. Those that a device may write are marked as written where it learns their addresses, or
/// writes them here.
#[derive(Debug, Default)]
pub struct Segments<'m> {
    /// Most have one: a buffer that a frame is read into.
    slices: SmallVec<[Slice<'m>; 1]>,
    len: usize,
    /// Whether the device may write them.
    writable: bool,
}

impl<'m> Segments<'m> {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// How many pieces they lie in.
    pub fn pieces(&self) -> usize {
        self.slices.len()
    }

    /// Makes room for so many pieces before the first one.
    fn expect(&mut self, pieces: usize) {
        if self.slices.is_empty() {
            self.slices.reserve(pieces);
        }
    }

    /// Adds a piece that lies in `memory` as a whole and may be used so.
    pub(crate) fn push(&mut self, memory: &'m Ram, address: GuestAddress, length: u32, access: Permissions) -> Result<(), ChainError> {
        self.writable |= access.has_write();
        // Nearly all lie in one region.
        if let Ok(slice) = memory.get_slice(address, length as usize) {
            self.len += slice.len();
            self.slices.push(slice);
            return Ok(());
        }
        let slices = GuestMemory::get_slices(memory, address, length as usize, access).map_err(|_| ChainError::Buffer)?;
        for slice in slices {
            let slice = slice.map_err(|_| ChainError::Buffer)?;
            self.len += slice.len();
            self.slices.push(slice);
        }
        Ok(())
    }

    /// Gives whole pages of RAM back to the host: they read as zeros, and cost nothing until they are written. Other bytes stay, and of RAM
    /// that is a copy of a file pieces below [`FILE_PIECE`] stay as a whole.
    pub(crate) fn discard(&self, backing: Backing) -> std::io::Result<()> {
        let unit = match backing {
            Backing::Anonymous => PAGE,
            Backing::File => FILE_PIECE,
        };
        for slice in &self.slices {
            let guard = slice.ptr_guard_mut();
            let address = guard.as_ptr();
            let start = address.addr().next_multiple_of(unit);
            let end = (address.addr() + slice.len()) / unit * unit;
            if start < end {
                let offset = start - address.addr();
                slice.bitmap().mark_dirty(offset, end - start);
                give_back(address.wrapping_add(offset), end - start, backing)?;
            }
        }
        Ok(())
    }

    /// The pieces of `range`, which must lie within.
    fn each(&self, range: Range<usize>, mut visit: impl FnMut(Slice<'m>)) {
        let mut start = 0;
        for slice in &self.slices {
            let end = start + slice.len();
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                visit(slice.subslice(from - start, to - from).expect("clipped to the slice"));
            }
            start = end;
            if start >= range.end {
                break;
            }
        }
    }

    /// Copies from `offset` on into all of `to`.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), ChainError> {
        let end = offset
            .checked_add(to.len())
            .filter(|end| *end <= self.len)
            .ok_or(ChainError::TooShort)?;
        let mut done = 0;
        self.each(offset..end, |slice| done += slice.copy_to(&mut to[done..]));
        Ok(())
    }

    /// Copies all of `from` to `offset`.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), ChainError> {
        let end = offset
            .checked_add(from.len())
            .filter(|end| *end <= self.len)
            .ok_or(ChainError::TooShort)?;
        let mut done = 0;
        self.each(offset..end, |slice| {
            slice.copy_from(&from[done..done + slice.len()]);
            done += slice.len();
        });
        Ok(())
    }

    /// Appends the addresses of `range`, clipped to what is there, for a system call made while the guest memory is borrowed.
    pub fn iovecs(&self, range: Range<usize>, into: &mut Vec<libc::iovec>) {
        self.each(range, |slice| {
            if self.writable {
                // No snapshot is taken before the call has returned: its device has to stop first.
                slice.bitmap().mark_dirty(0, slice.len());
            }
            into.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        });
    }
}

/// A chain that keeps the rules of virtio 1.2, 2.7.
#[derive(Debug)]
pub struct Chain<'m> {
    /// Index of its first descriptor: its name in the used ring.
    pub head: u16,
    /// What the device may read.
    pub readable: Segments<'m>,
    /// What the device may write, behind it.
    pub writable: Segments<'m>,
}

impl<'m> Chain<'m> {
    /// Walks the chain that starts at descriptor `head` of a queue's own table of `size` descriptors; `may_indirect`: VIRTIO_F_INDIRECT_DESC is
    /// agreed on.
    pub(super) fn walk(memory: &'m GuestSpace, own: &Table<'m>, size: u16, head: u16, may_indirect: bool) -> Result<Self, ChainError> {
        let mut chain = Self {
            head,
            readable: Segments::default(),
            writable: Segments::default(),
        };
        let (mut table, mut entries, mut index, mut indirect) = (own.clone(), size, head, false);
        let mut total = 0u32;
        let mut left = size;
        loop {
            if index >= entries {
                return Err(ChainError::Index);
            }
            let descriptor = table.read(index)?;
            if descriptor.has(VRING_DESC_F_INDIRECT) {
                let count = descriptor.length / DESCRIPTOR_SIZE as u32;
                let whole = (descriptor.length as usize).is_multiple_of(DESCRIPTOR_SIZE);
                if !may_indirect || indirect || descriptor.has(VRING_DESC_F_NEXT) || !whole || count == 0 || count > u32::from(size) {
                    return Err(ChainError::Indirect);
                }
                let (address, length) = (GuestAddress(descriptor.address), descriptor.length as usize);
                entries = u16::try_from(count).expect("not above the queue's size");
                let other = Table::new(memory, address, entries).filter(|_| memory.is_plugged(address, length));
                (table, index, indirect) = (other.ok_or(ChainError::Indirect)?, 0, true);
                continue;
            }
            // Every descriptor that names a buffer counts, wherever it lies; the one of the table is none, and there is one at most.
            left = left.checked_sub(1).ok_or(ChainError::TooLong)?;
            if descriptor.length == 0 {
                return Err(ChainError::Empty);
            }
            total = total.checked_add(descriptor.length).ok_or(ChainError::TooLong)?;
            let address = GuestAddress(descriptor.address);
            if !memory.is_plugged(address, descriptor.length as usize) {
                return Err(ChainError::Buffer);
            }
            // All of an indirect table are one chain's, mostly on one side.
            let expected = if indirect { usize::from(entries) } else { 1 };
            if descriptor.has(VRING_DESC_F_WRITE) {
                chain.writable.expect(expected);
                chain.writable.push(memory, address, descriptor.length, Permissions::Write)?;
            } else if chain.writable.len > 0 {
                return Err(ChainError::Order);
            } else {
                chain.readable.expect(expected);
                let place = memory.of_readable(address, descriptor.length as usize);
                chain.readable.push(place, address, descriptor.length, Permissions::Read)?;
            }
            if !descriptor.has(VRING_DESC_F_NEXT) {
                return Ok(chain);
            }
            index = descriptor.next;
        }
    }
}

struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

/// Descriptors one behind the other, in one piece of memory.
#[derive(Clone)]
pub(super) struct Table<'m>(Slice<'m>);

impl<'m> Table<'m> {
    pub(super) fn new(memory: &'m Ram, start: GuestAddress, entries: u16) -> Option<Self> {
        memory.get_slice(start, usize::from(entries) * DESCRIPTOR_SIZE).ok().map(Self)
    }

    /// Reads one once: a guest that changes it meanwhile changes nothing that was checked.
    fn read(&self, index: u16) -> Result<Descriptor, ChainError> {
        let mut raw = [0u8; DESCRIPTOR_SIZE];
        let offset = usize::from(index) * DESCRIPTOR_SIZE;
        self.0.read_slice(&mut raw, offset).map_err(|_| ChainError::Ring)?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = raw;
        Ok(Descriptor {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

impl Descriptor {
    fn has(&self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::{noted, runs};
    use crate::images::Images;

    const TABLE: u64 = 0x1000;
    const IMAGE: u64 = 1 << 32;

    /// 1 MiB of RAM, and an image of 64 KiB.
    fn space() -> GuestSpace {
        let of = |start, size| Ram::from_ranges(&[(GuestAddress(start), size)]).unwrap();
        let image = of(IMAGE, 64 << 10);
        image.write_slice(b"from the image", GuestAddress(IMAGE + 8)).unwrap();
        GuestSpace::new(of(0, 1 << 20), Images::of(image))
    }

    fn walk(space: &GuestSpace, address: u64, length: u32, flags: u32) -> Result<Chain<'_>, ChainError> {
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend(length.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        space.write_slice(&descriptor, GuestAddress(TABLE)).unwrap();
        let table = Table::new(space, GuestAddress(TABLE), 16).unwrap();
        Chain::walk(space, &table, 16, 0, true)
    }

    #[test]
    fn a_device_reads_a_page_of_an_image() {
        let space = space();
        let chain = walk(&space, IMAGE + 8, 14, 0).unwrap();
        let mut bytes = [0; 14];
        chain.readable.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"from the image");
    }

    #[test]
    fn a_device_is_never_made_to_write_to_an_image_nor_to_take_a_table_from_it() {
        let space = space();
        for (address, length) in [(IMAGE, 1), (IMAGE + 8, 14), (IMAGE + (64 << 10) - 1, 1)] {
            assert_eq!(walk(&space, address, length, VRING_DESC_F_WRITE).unwrap_err(), ChainError::Buffer);
        }
        assert_eq!(walk(&space, IMAGE, 16, VRING_DESC_F_INDIRECT).unwrap_err(), ChainError::Indirect);
    }

    #[test]
    fn what_a_device_may_write_is_noted_however_it_does_and_what_it_reads_is_not() {
        let layout = crate::memory::Layout::new(1 << 20, 0, &[], (0, 0), 40).unwrap();
        let pages = |what: fn(&Segments<'_>), access| {
            let ram = noted(&[(0, 1 << 20)]);
            let mut segments = Segments::default();
            // The second half of page 4 to the first of page 7, and page 9.
            segments.push(&ram, GuestAddress(0x4800), 0x3000, access).unwrap();
            segments.push(&ram, GuestAddress(0x9000), 0x1000, access).unwrap();
            what(&segments);
            runs(&ram, &layout)
        };
        let system_call = |segments: &Segments<'_>| segments.iovecs(0x900..0x3800, &mut Vec::new());
        assert_eq!(pages(system_call, Permissions::Write), [5..8, 9..10]);
        assert_eq!(pages(system_call, Permissions::Read), []);
        let copy = |segments: &Segments<'_>| segments.write(0x2fff, &[1; 2]).unwrap();
        assert_eq!(pages(copy, Permissions::Write), [7..8, 9..10]);
        let discard = |segments: &Segments<'_>| segments.discard(Backing::Anonymous).unwrap();
        assert_eq!(pages(discard, Permissions::Write), [5..7, 9..10]);
    }

    #[test]
    fn a_buffer_across_the_end_of_an_image_is_no_buffer() {
        let space = space();
        for (address, length) in [(IMAGE + (64 << 10) - 1, 2), (IMAGE - 1, 2), (IMAGE + (64 << 10), 1), (u64::MAX, 2)] {
            assert_eq!(walk(&space, address, length, 0).unwrap_err(), ChainError::Buffer);
        }
    }
}
