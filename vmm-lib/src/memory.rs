//! Where everything lies in guest-physical memory, and the mappings behind it. Knows no device.
//!
//! ```text
//! 0            RAM, with boot structures below 640 KiB and ACPI tables at 896 KiB
//! 3 GiB        hole: 32-bit window (512 MiB), ECAM (1 MiB), IOAPIC, LAPIC, KVM's own pages
//! 4 GiB        RAM above the hole
//! end of RAM   room for memory that comes and goes, on 128 MiB
//! behind it    images that are read in place, on 2 MiB each
//! behind them  room for images that come while the machine runs, on 1 GiB, if it has any
//! behind that  64-bit window, on 1 GiB, as far as the processor's addresses go
//! ```

use std::fs::File;
use std::ops::Range;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use crate::arch::layout::{ABOVE_HOLE, ECAM, ECAM_SIZE, HOLE, MMIO32};
use crate::dirty::{Marks, Ram, Region};
use crate::pci::DEVICES;
use crate::spec::{HOTPLUG_STEP, MAX_STORES};

/// Largest 64-bit window; more helps nobody and costs the guest page tables.
const MAX_WINDOW: u64 = 64 << 30;
/// Alignment and least size of the 64-bit window.
const WINDOW_STEP: u64 = 1 << 30;
/// KVM's slot of the ECAM page; RAM has 0 and 1.
const ECAM_SLOT: u32 = 2;
/// KVM's slot of the first image.
pub(crate) const IMAGE_SLOT: u32 = 3;
/// KVM's slot of memory that comes and goes, behind those of images.
const HOTPLUG_SLOT: u32 = IMAGE_SLOT + MAX_STORES as u32;
/// KVM's slot of the first image that comes while the machine runs.
pub(crate) const LATE_SLOT: u32 = HOTPLUG_SLOT + 1;
/// Most of these: as many as there are places on the bus.
pub(crate) const MAX_LATE: u32 = DEVICES as u32;
/// What an image begins and ends on: what Linux can add to its memory map at once.
pub(crate) const IMAGE_STEP: u64 = 2 << 20;

/// Why a machine's memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The processor's physical addresses are too short.
    #[error(
        "{memory} bytes of memory, {hotplug} bytes of room for more, {images} bytes of images and a device window do not fit into {bits} address bits"
    )]
    AddressBits {
        /// Wanted.
        memory: u64,
        /// Room behind it, wanted.
        hotplug: u64,
        /// Read in place, wanted.
        images: u64,
        /// Had.
        bits: u8,
    },
    /// The host refused the mapping.
    #[error("map {0} bytes of guest memory")]
    Map(u64, #[source] vm_memory::mmap::MmapRegionError),
    /// The file of a snapshot's memory could not be used.
    #[error("use the memory's file")]
    File(#[source] std::io::Error),
    /// The host refused the mapping of the configuration space.
    #[error("map PCI configuration space")]
    MapEcam(#[source] vm_memory::mmap::MmapRegionError),
    /// KVM refused the slot.
    #[error("give KVM memory slot {0}")]
    Slot(u32, #[source] kvm_ioctls::Error),
    /// KVM keeps no log of written pages.
    #[error("/dev/kvm lacks KVM_GET_DIRTY_LOG, which dirtyLog needs")]
    DirtyLog(#[source] kvm_ioctls::Error),
}

/// The map of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// RAM below the hole, from 0.
    pub(crate) low: u64,
    /// RAM above the hole.
    pub(crate) high: u64,
    /// Memory that comes and goes; empty where there is none.
    pub(crate) hotplug: Range<u64>,
    /// Images, in their order.
    pub(crate) images: Vec<Range<u64>>,
    /// Room for images that come later; empty where there is none.
    pub(crate) late: Range<u64>,
    /// Window for 64-bit BARs.
    pub(crate) mmio64: Range<u64>,
}

impl Layout {
    /// Lays out `memory` bytes, a region for `hotplug` more, and images of these lengths, for a processor with `bits` physical address bits;
    /// `room` are the bytes that the region and all images together are given at least.
    pub(crate) fn new(memory: u64, hotplug: u64, lengths: &[u64], room: (u64, u64), bits: u8) -> Result<Self, MemoryError> {
        let low = memory.min(HOLE);
        let high = memory - low;
        let limit = 1u64 << bits.clamp(32, 52);
        let region = hotplug.max(room.0);
        let start = (ABOVE_HOLE + high).next_multiple_of(if region > 0 { HOTPLUG_STEP } else { IMAGE_STEP });
        let comes_and_goes = start..start.saturating_add(hotplug);
        let mut end_of_images = start.saturating_add(region);
        let end_of_room = end_of_images.saturating_add(room.1);
        let mut images = Vec::new();
        for length in lengths {
            let start = end_of_images;
            // Too much is refused below: no processor has so many addresses.
            end_of_images = start.saturating_add(length.saturating_add(IMAGE_STEP - 1) / IMAGE_STEP * IMAGE_STEP);
            images.push(start..end_of_images);
        }
        let start = end_of_images.max(end_of_room).min(1 << 62).next_multiple_of(WINDOW_STEP);
        let end = limit.min(start.saturating_add(MAX_WINDOW));
        if end < start + WINDOW_STEP {
            let images = lengths.iter().fold(0u64, |sum, length| sum.saturating_add(*length));
            return Err(MemoryError::AddressBits {
                memory,
                hotplug,
                images,
                bits,
            });
        }
        Ok(Self {
            low,
            high,
            hotplug: comes_and_goes,
            images,
            late: start..start,
            mmio64: start..end,
        })
    }

    /// The same with `room` bytes for images that come later, in front of the window, which makes way.
    pub(crate) fn with_late_images(mut self, room: u64, bits: u8) -> Result<Self, MemoryError> {
        let start = self.mmio64.start;
        let end = start.saturating_add(room).min(1 << 62);
        let (window, limit) = (end.next_multiple_of(WINDOW_STEP), 1u64 << bits.clamp(32, 52));
        if limit < window + WINDOW_STEP {
            return Err(MemoryError::AddressBits {
                memory: self.low + self.high,
                hotplug: self.hotplug.end - self.hotplug.start,
                images: room,
                bits,
            });
        }
        self.late = start..end;
        self.mmio64 = window..limit.min(window + MAX_WINDOW);
        Ok(self)
    }

    /// RAM, and behind it what comes and goes, as base and size.
    pub(crate) fn ram(&self) -> Vec<(u64, u64)> {
        let mut ram = vec![(0, self.low)];
        if self.high > 0 {
            ram.push((ABOVE_HOLE, self.high));
        }
        if !self.hotplug.is_empty() {
            ram.push((self.hotplug.start, self.hotplug.end - self.hotplug.start));
        }
        ram
    }

    /// Whether `range` lies within a device window as a whole.
    pub(crate) fn is_device_window(&self, range: &Range<u64>) -> bool {
        [&MMIO32, &self.mmio64]
            .iter()
            .any(|window| window.start <= range.start && range.end <= window.end)
    }
}

/// Maps RAM and gives it to KVM. With `file` it is a private copy of that file's content, of which a page that nobody has written is the
/// file's own, shared by all that are made of it. With `log`, what is written to it is noted from here on.
pub(crate) fn create(vm: &VmFd, layout: &Layout, file: Option<&File>, log: bool) -> Result<Ram, MemoryError> {
    let ram = layout.ram();
    let (mut regions, mut offset) = (Vec::new(), 0);
    for (base, size) in ram {
        // What comes and goes is in no file, and not noted.
        let stays = !layout.hotplug.contains(&base);
        let marks = if log && stays { Marks::new(size) } else { Marks::default() };
        regions.push(map(base, size, file.filter(|_| stays).map(|file| (file, offset)), marks)?);
        offset += size;
    }
    let memory = Ram::from_regions(regions).expect("pieces of RAM lie in order, apart from one another");
    for (slot, region) in memory.iter().enumerate() {
        let comes_and_goes = layout.hotplug.contains(&region.start_addr().0);
        let slot = if comes_and_goes { HOTPLUG_SLOT } else { slot as u32 };
        let address = memory
            .get_host_address(region.start_addr())
            .expect("a region's start lies in memory");
        let entry = kvm_userspace_memory_region {
            slot,
            flags: if log && !comes_and_goes { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: address as u64,
        };
        // SAFETY: the region is mapped, disjoint from the others, and outlives the VM: every holder of the VM holds the memory's Arc too.
        unsafe { vm.set_user_memory_region(entry) }.map_err(|source| MemoryError::Slot(slot, source))?;
    }
    if log {
        // Before a guest runs: one without a log would be found out when its first snapshot is wanted.
        vm.get_dirty_log(0, layout.low as usize).map_err(MemoryError::DirtyLog)?;
    }
    Ok(memory)
}

/// Maps a piece of RAM: zeros, or a private copy of a file from an offset on.
pub(crate) fn map(base: u64, size: u64, file: Option<(&File, u64)>, marks: Marks) -> Result<Region, MemoryError> {
    let piece = file.map(|(file, offset)| Ok(FileOffset::new(file.try_clone()?, offset)));
    let piece = piece.transpose().map_err(MemoryError::File)?;
    let (protection, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
    let flags = if piece.is_some() { private } else { private | libc::MAP_ANONYMOUS };
    let builder = MmapRegionBuilder::new_with_bitmap(size as usize, marks).with_mmap_prot(protection);
    let builder = builder.with_mmap_flags(flags);
    let builder = match piece {
        Some(piece) => builder.with_file_offset(piece),
        None => builder,
    };
    let region = builder.build().map_err(|source| MemoryError::Map(size, source))?;
    Ok(Region::new(region, GuestAddress(base)).expect("RAM ends far below the last address"))
}

/// Maps the configuration space and gives it to KVM such that the guest reads it without an exit and a write exits.
pub(crate) fn create_ecam(vm: &VmFd) -> Result<MmapRegion, MemoryError> {
    let region = MmapRegion::new(ECAM_SIZE as usize).map_err(MemoryError::MapEcam)?;
    let entry = kvm_userspace_memory_region {
        slot: ECAM_SLOT,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: ECAM,
        memory_size: ECAM_SIZE,
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the region is mapped, in the hole where no RAM is, and held by the PCI bus, which every processor thread holds.
    unsafe { vm.set_user_memory_region(entry) }.map_err(|source| MemoryError::Slot(ECAM_SLOT, source))?;
    Ok(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_up_to_the_hole_is_one_piece() {
        let layout = Layout::new(HOLE, 0, &[], (0, 0), 40).expect("fits");
        assert_eq!(layout.ram(), [(0, HOLE)]);
        assert_eq!(layout.mmio64.start, ABOVE_HOLE);
    }

    #[test]
    fn memory_beyond_the_hole_goes_on_at_4_gib_and_the_window_follows_it() {
        let layout = Layout::new(HOLE + (2 << 20), 0, &[], (0, 0), 40).expect("fits");
        assert_eq!(layout.ram(), [(0, HOLE), (ABOVE_HOLE, 2 << 20)]);
        assert_eq!(layout.mmio64, ABOVE_HOLE + (1 << 30)..ABOVE_HOLE + (65 << 30));
    }

    #[test]
    fn room_for_more_memory_follows_it_on_128_mib_and_images_follow_that() {
        let layout = Layout::new(1 << 30, 256 << 20, &[4096], (0, 0), 40).expect("fits");
        assert_eq!(layout.hotplug, ABOVE_HOLE..ABOVE_HOLE + (256 << 20));
        assert_eq!(layout.ram(), [(0, 1 << 30), (ABOVE_HOLE, 256 << 20)]);
        assert_eq!(layout.images[0].start, layout.hotplug.end);
        let layout = Layout::new(HOLE + (2 << 20), 128 << 20, &[], (0, 0), 40).expect("fits");
        assert_eq!(layout.hotplug.start, ABOVE_HOLE + (128 << 20));
        assert!(matches!(
            Layout::new(1 << 30, 1 << 36, &[], (0, 0), 36),
            Err(MemoryError::AddressBits { .. })
        ));
    }

    #[test]
    fn images_follow_memory_on_2_mib_each_and_the_window_follows_them() {
        let layout = Layout::new(HOLE + (2 << 20), 0, &[4096, 3 << 20], (0, 0), 40).expect("fits");
        let first = ABOVE_HOLE + (2 << 20);
        assert_eq!(layout.images, [first..first + (2 << 20), first + (2 << 20)..first + (6 << 20)]);
        assert_eq!(layout.mmio64.start, ABOVE_HOLE + (1 << 30));
        assert!(!layout.is_device_window(&layout.images[0]));
        for lengths in [[64 << 30, 0], [u64::MAX, u64::MAX]] {
            assert!(matches!(
                Layout::new(1 << 30, 0, &lengths, (0, 0), 36),
                Err(MemoryError::AddressBits { .. })
            ));
        }
    }

    #[test]
    fn the_window_ends_where_addresses_end_and_memory_that_leaves_none_is_refused() {
        assert_eq!(Layout::new(1 << 30, 0, &[], (0, 0), 36).expect("fits").mmio64.end, 1 << 36);
        assert!(matches!(
            Layout::new(64 << 30, 0, &[], (0, 0), 36),
            Err(MemoryError::AddressBits { bits: 36, .. })
        ));
        assert!(matches!(
            Layout::new(1 << 30, 0, &[], (0, 0), 32),
            Err(MemoryError::AddressBits { .. })
        ));
    }

    #[test]
    fn only_ranges_within_one_window_are_device_windows() {
        let layout = Layout::new(1 << 30, 0, &[], (0, 0), 40).expect("fits");
        assert!(layout.is_device_window(&(HOLE..HOLE + 0x4000)));
        assert!(layout.is_device_window(&(layout.mmio64.end - 0x4000..layout.mmio64.end)));
        assert!(!layout.is_device_window(&(layout.mmio64.end - 0x2000..layout.mmio64.end + 0x2000)));
        assert!(!layout.is_device_window(&(0..0x4000)));
        assert!(!layout.is_device_window(&(ECAM - 0x2000..ECAM + 0x2000)));
    }
}
