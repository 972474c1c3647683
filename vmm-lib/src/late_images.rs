//! Images that come to a machine that runs, and go: each is mapped in a window of guest addresses that is reserved for them, and given to KVM as a
//! slot of its own, for as long as its device is there. Where none is, the guest finds all ones, as at any address that nobody answers.
//!
//! The window's place in this process is mapped from the machine's beginning to its end, without write access: a device's thread that reads from
//! an image which goes meanwhile, or where there is none, reads zeros.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use crate::dirty::Region;
use crate::files::Files;
use crate::images::{ImagesError, Mapping, region};
use crate::lock::lock;
use crate::memory::{IMAGE_STEP, LATE_SLOT, MAX_LATE};
use crate::spec::Pmem;

/// An image in the window.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Taken {
    range: Range<u64>,
    /// KVM's slot, counted from the first of these.
    index: u32,
    /// Whether the guest may use it.
    there: bool,
}

/// The window.
#[derive(Debug)]
pub(crate) struct LateImages {
    window: Range<u64>,
    mapping: Mapping,
    /// In order of their places.
    taken: Mutex<Vec<Taken>>,
}

impl LateImages {
    /// Reserves the window, of which nothing is taken; the region is for devices to read from.
    pub(crate) fn new(window: Range<u64>) -> Result<(Arc<Self>, Region), ImagesError> {
        let failed = |source| ImagesError::Map {
            name: "room".to_owned(),
            source,
        };
        let mapping = Mapping::reserve((window.end - window.start) as usize).map_err(failed)?;
        let region = region(&mapping, window.start, "room")?;
        let taken = Mutex::default();
        Ok((Arc::new(Self { window, mapping, taken }), region))
    }

    /// Whether there is an image at this address.
    pub(crate) fn has(&self, address: u64) -> bool {
        let taken = lock(&self.taken);
        taken.iter().any(|taken| taken.there && taken.range.contains(&address))
    }

    /// Maps an image and gives it to KVM. It stays as long as what is returned.
    pub(crate) fn put(self: &Arc<Self>, vm: &Arc<VmFd>, image: &Pmem, files: &Files) -> Result<LateImage, ImagesError> {
        let length = image.length().next_multiple_of(IMAGE_STEP);
        // Held all the time: what is half there belongs to nobody else.
        let mut taken = lock(&self.taken);
        let found = find(&self.window, &taken, length).zip((0..MAX_LATE).find(|index| taken.iter().all(|taken| taken.index != *index)));
        let (start, index) = found.ok_or_else(|| ImagesError::NoRoom {
            name: image.name.clone(),
            length,
            room: self.window.end - self.window.start,
        })?;
        let range = start..start + length;
        let mapped = self.mapping.fill(self.place(&range), "pmem", image, files);
        let given = mapped.and_then(|()| {
            self.slot(vm, index, &range, length).map_err(|source| ImagesError::Slot {
                name: image.name.clone(),
                source,
            })
        });
        if given.is_err() {
            // Zeros again; if not, then it is read by nobody, as nobody hears of it.
            let _ = self.mapping.clear(self.place(&range), length as usize);
        }
        given?;
        let there = true;
        let entry = Taken { range, index, there };
        let at = taken.partition_point(|taken| taken.range.start < entry.range.start);
        taken.insert(at, entry.clone());
        Ok(LateImage {
            images: self.clone(),
            vm: vm.clone(),
            range: entry.range,
        })
    }

    /// Where a range lies in the mapping.
    fn place(&self, range: &Range<u64>) -> usize {
        (range.start - self.window.start) as usize
    }

    /// Gives KVM a slot; takes it back where its size is 0.
    fn slot(&self, vm: &VmFd, index: u32, range: &Range<u64>, size: u64) -> Result<(), kvm_ioctls::Error> {
        let entry = kvm_userspace_memory_region {
            slot: LATE_SLOT + index,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: range.start,
            memory_size: size,
            userspace_addr: (self.mapping.address().addr() + self.place(range)) as u64,
        };
        // SAFETY: the range lies in the window, which is mapped as a whole until this value is dropped, and overlaps no other slot: the layout has
        // the window to itself, and no two images that are there at a time overlap. Every image holds this value as long as it has a slot.
        unsafe { vm.set_user_memory_region(entry) }
    }

    /// The guest has it no longer, then the host.
    fn remove(&self, vm: &VmFd, range: &Range<u64>) {
        let mut taken = lock(&self.taken);
        let Some(at) = taken.iter().position(|taken| taken.range == *range) else {
            return;
        };
        taken[at].there = false;
        let index = taken[at].index;
        // What KVM may still use stays mapped, and its place is nobody else's.
        drop(taken);
        let gone = self.slot(vm, index, range, 0).is_ok();
        let cleared = gone && self.mapping.clear(self.place(range), (range.end - range.start) as usize).is_ok();
        if cleared {
            lock(&self.taken).retain(|taken| taken.range != *range);
        } else {
            tracing::warn!(start = range.start, "the place of an image that went cannot be used again");
        }
    }
}

/// The first place of so many bytes that is free.
fn find(window: &Range<u64>, taken: &[Taken], length: u64) -> Option<u64> {
    let ends = std::iter::once(window.start).chain(taken.iter().map(|taken| taken.range.end));
    let starts = taken.iter().map(|taken| taken.range.start).chain([window.end]);
    ends.zip(starts)
        .find(|(from, to)| length > 0 && to.saturating_sub(*from) >= length)
        .map(|(from, _)| from)
}

/// An image that is there.
pub(crate) struct LateImage {
    images: Arc<LateImages>,
    vm: Arc<VmFd>,
    range: Range<u64>,
}

impl LateImage {
    /// Where it lies.
    pub(crate) fn range(&self) -> &Range<u64> {
        &self.range
    }
}

impl Drop for LateImage {
    fn drop(&mut self) {
        self.images.remove(&self.vm, &self.range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Layout;

    const MIB: u64 = 1 << 20;

    fn taken(ranges: &[Range<u64>]) -> Vec<Taken> {
        let one = |range: &Range<u64>| Taken {
            range: range.clone(),
            index: 0,
            there: true,
        };
        ranges.iter().map(one).collect()
    }

    #[test]
    fn the_first_place_that_is_large_enough_is_found_and_none_beyond_the_window() {
        let window = 10..100;
        let half = taken(&[10..30, 40..60, 90..100]);
        for (taken, length, place) in [
            (&[][..], 90, Some(10)),
            (&[], 91, None),
            (&[], 0, None),
            (&[], u64::MAX, None),
            (&half, 10, Some(30)),
            (&half, 11, Some(60)),
            (&half, 30, Some(60)),
            (&half, 31, None),
        ] {
            assert_eq!(find(&window, taken, length), place, "{length} of {taken:?}");
        }
    }

    #[test]
    fn the_window_overlaps_neither_memory_nor_images_nor_the_windows_of_devices() {
        let room = 64 * MIB;
        let plain = Layout::new(4 << 30, 256 * MIB, &[3 * MIB], (0, 0), 40).expect("fits");
        let layout = plain.clone().with_late_images(room, 40).expect("fits");
        assert_eq!(layout.late, plain.mmio64.start..plain.mmio64.start + room);
        assert_eq!((&layout.images, &layout.hotplug), (&plain.images, &plain.hotplug));
        assert!(layout.images.iter().all(|image| image.end <= layout.late.start));
        assert!(layout.hotplug.end <= layout.late.start && layout.late.end <= layout.mmio64.start);
        assert!(layout.mmio64.start.is_multiple_of(1 << 30) && !layout.is_device_window(&layout.late));
        assert_eq!(plain.clone().with_late_images(0, 40).expect("fits"), plain);
        for (room, bits) in [(u64::MAX - 1, 52), (64 << 30, 36)] {
            assert!(plain.clone().with_late_images(room, bits).is_err(), "{room}");
        }
    }
}
