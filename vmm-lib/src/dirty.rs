//! Which pages of RAM were written since the last snapshot: by this process's threads, which mark what they write, and by processors, of which
//! KVM keeps a log. Only for a machine whose specification asks for it (`dirtyLog`); of any other nothing is noted.
//!
//! vm-memory marks all that goes through it. What system calls write by address is marked by whoever makes the address known
//! ([`Segments`](crate::virtio::chain::Segments)): nobody else has one.

use std::num::NonZeroUsize;
use std::ops::{Deref, Range};
use std::sync::Mutex;

use kvm_ioctls::VmFd;
use vm_memory::bitmap::{AtomicBitmap, BS, Bitmap, NewBitmap, RefSlice, WithBitmapSlice};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, VolatileSlice};

use crate::memory::Layout;
use crate::snapshot::Identity;

/// What is noted at a time, bytes: a page of the guest's, and KVM's.
pub(crate) const PAGE: u64 = 4096;

/// Guest memory.
pub type Ram = GuestMemoryMmap<Marks>;
/// A piece of it.
pub(crate) type Region = GuestRegionMmap<Marks>;
/// Bytes of it.
pub(crate) type Slice<'m> = VolatileSlice<'m, BS<'m, Marks>>;

/// The pages of a region that were written, if that is noted.
#[derive(Debug, Default)]
pub struct Marks(Option<AtomicBitmap>);

impl Marks {
    /// Of a region of so many bytes, none of which was written.
    pub(crate) fn new(size: u64) -> Self {
        let page = NonZeroUsize::new(PAGE as usize).expect("a page has bytes");
        Self(Some(AtomicBitmap::new(size as usize, page)))
    }

    /// Numbers of the pages that are marked, in order.
    fn pages(&self) -> impl Iterator<Item = u64> {
        let bitmap = self.0.iter();
        bitmap.flat_map(|bitmap| (0..bitmap.len()).filter(|page| bitmap.is_bit_set(*page)).map(|page| page as u64))
    }
}

impl<'a> WithBitmapSlice<'a> for Marks {
    type S = Option<RefSlice<'a, AtomicBitmap>>;
}

impl Bitmap for Marks {
    fn mark_dirty(&self, offset: usize, length: usize) {
        self.0.mark_dirty(offset, length);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.0.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> <Self as WithBitmapSlice<'_>>::S {
        self.0.slice_at(offset)
    }
}

/// Nothing is noted unless it is asked for.
impl NewBitmap for Marks {
    fn with_len(_length: usize) -> Self {
        Self(None)
    }
}

/// The log of a machine: what was written since the last snapshot, and which one that was.
pub(crate) struct DirtyLog {
    /// `None` before the first one.
    base: Mutex<Option<Identity>>,
}

impl DirtyLog {
    /// Of a machine that was made of a snapshot, or of none.
    pub(crate) fn new(base: Option<Identity>) -> Self {
        Self { base: Mutex::new(base) }
    }

    /// The last snapshot.
    pub(crate) fn base(&self) -> Option<Identity> {
        *crate::lock::lock(&self.base)
    }

    /// Takes over what KVM has noted since it was asked last. Where a snapshot fails after this, nothing is forgotten.
    pub(crate) fn collect(&self, vm: &VmFd, ram: &Ram, layout: &Layout) -> Result<(), kvm_ioctls::Error> {
        for (slot, region) in regions(ram, layout).enumerate() {
            let words = vm.get_dirty_log(slot as u32, region.len() as usize)?;
            for (index, word) in words.into_iter().enumerate() {
                let mut left = word;
                while left != 0 {
                    let page = index * u64::BITS as usize + left.trailing_zeros() as usize;
                    region.bitmap().mark_dirty(page * PAGE as usize, 1);
                    left &= left - 1;
                }
            }
        }
        Ok(())
    }

    /// A snapshot was taken, of which all is written: what comes is counted from there.
    pub(crate) fn begin_anew(&self, snapshot: Identity, ram: &Ram, layout: &Layout) {
        for region in regions(ram, layout) {
            if let Some(bitmap) = &region.deref().bitmap().0 {
                bitmap.reset();
            }
        }
        *crate::lock::lock(&self.base) = Some(snapshot);
    }
}

/// The regions that are in a snapshot, in order of their places and of KVM's slots.
pub(crate) fn regions<'m>(ram: &'m Ram, layout: &Layout) -> impl Iterator<Item = &'m Region> {
    ram.iter().filter(|region| !layout.hotplug.contains(&region.start_addr().0))
}

/// Pages that are marked, as they lie in a snapshot's file of all memory: runs of pages, in order.
pub(crate) fn runs(ram: &Ram, layout: &Layout) -> Vec<Range<u64>> {
    let (mut runs, mut first) = (Vec::<Range<u64>>::new(), 0);
    for region in regions(ram, layout) {
        for page in region.deref().bitmap().pages() {
            let page = first + page;
            match runs.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        first += region.len() / PAGE;
    }
    runs
}

/// RAM of these pieces, start and size, of which is noted what is written.
#[cfg(test)]
pub(crate) fn noted(pieces: &[(u64, u64)]) -> Ram {
    let region = |(start, size): &(u64, u64)| {
        let builder = vm_memory::mmap::MmapRegionBuilder::new_with_bitmap(*size as usize, Marks::new(*size));
        let builder = builder.with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        let region = builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).build();
        Region::new(region.expect("the host has so much"), vm_memory::GuestAddress(*start)).expect("it ends")
    };
    Ram::from_regions(pieces.iter().map(region).collect()).expect("they lie apart")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::layout::HOLE;
    use vm_memory::{Bytes, GuestAddress};

    const MIB: u64 = 1 << 20;

    /// RAM as if the hole were at 1 MiB, and room for more behind it.
    fn ram() -> (Ram, Layout) {
        let mut layout = Layout::new(HOLE + 2 * MIB, 128 * MIB, &[], (0, 0), 40).expect("fits");
        (layout.low, layout.high) = (MIB, 2 * MIB);
        (noted(&[(0, MIB), (4 * MIB, 2 * MIB), (layout.hotplug.start, MIB)]), layout)
    }

    #[test]
    fn what_is_written_is_marked_where_it_lies_in_the_file_and_nothing_else_is() {
        let (ram, layout) = ram();
        assert_eq!(runs(&ram, &layout), []);
        ram.write_obj(1u8, GuestAddress(PAGE - 1)).expect("there is memory");
        ram.write_slice(&[1; 2], GuestAddress(3 * PAGE - 1)).expect("there is memory");
        ram.store(1u16, GuestAddress(MIB - 2), std::sync::atomic::Ordering::Release)
            .expect("there is memory");
        ram.write_slice(&[1; 5000], GuestAddress(4 * MIB)).expect("there is memory");
        ram.write_slice(&[1; 8], GuestAddress(6 * MIB - 8)).expect("there is memory");
        // Of what comes and goes there is nothing in a snapshot.
        ram.write_slice(&[1; 8], GuestAddress(layout.hotplug.start))
            .expect("there is memory");
        assert_eq!(runs(&ram, &layout), [0..1, 2..4, 255..258, 767..768]);
        let log = DirtyLog::new(None);
        assert_eq!(log.base(), None);
        log.begin_anew(Identity([7; 16]), &ram, &layout);
        assert_eq!((runs(&ram, &layout), log.base()), (Vec::new(), Some(Identity([7; 16]))));
    }

    #[test]
    fn nothing_is_noted_of_a_machine_that_did_not_ask_for_it() {
        let ram = Ram::from_ranges(&[(GuestAddress(0), MIB as usize)]).expect("the host has so much");
        ram.write_slice(&[1; 8], GuestAddress(0)).expect("there is memory");
        let layout = Layout::new(MIB, 0, &[], (0, 0), 40).expect("fits");
        assert_eq!(runs(&ram, &layout), []);
    }
}
