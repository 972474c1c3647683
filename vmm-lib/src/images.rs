//! Images that guests read in place: extents of files, mapped shared and without write access side by side over one range of addresses, and
//! given to KVM as a slot that no guest can write. Machines that map the same file share the host's pages of it.
//!
//! A file that shrinks under a machine ends that machine: the guest's access is a [`MachineExit::MemoryFault`](crate::exit::MachineExit), an
//! access of a device's thread a SIGBUS, and no other machine notices.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, MmapRegion};

use crate::dirty::{Ram, Region};
use crate::files::{FileError, Files};
use crate::late_images::LateImages;
use crate::memory::{IMAGE_SLOT, IMAGE_STEP, Layout};
use crate::spec::Pmem;

/// Why images could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// One of their files.
    #[error("open a file of an image")]
    File(#[from] FileError),
    /// A file does not have what its extent names.
    #[error("image {name}: extent {extent} ends at byte {end} of a file of {length} bytes")]
    Short {
        /// Which.
        name: String,
        /// Number of the extent.
        extent: usize,
        /// Where it ends, bytes.
        end: u64,
        /// Bytes that there are.
        length: u64,
    },
    /// The host refused a mapping.
    #[error("map image {name}")]
    Map {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// vm-memory refused what was mapped.
    #[error("describe the mapping of image {name}: {problem}")]
    Region {
        /// Which.
        name: String,
        /// Why.
        problem: String,
    },
    /// It is larger than what is left of the room for images that come later.
    #[error(
        "image {name} takes {length} bytes, and of the {room} bytes for images that come while the machine runs there are not so many in one piece"
    )]
    NoRoom {
        /// Which.
        name: String,
        /// What it takes, bytes.
        length: u64,
        /// Room in all, bytes.
        room: u64,
    },
    /// KVM refused the slot.
    #[error("give KVM image {name}")]
    Slot {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// All images of a machine.
#[derive(Debug, Default)]
pub struct Images {
    memory: Ram,
    /// What `memory` describes.
    _mappings: Vec<Mapping>,
    /// Room for those that come later, if there is any.
    late: Option<Arc<LateImages>>,
}

impl Images {
    /// Maps the images where the layout has them, and gives them to KVM.
    pub(crate) fn create(vm: &VmFd, layout: &Layout, images: &[Pmem], files: &Files) -> Result<Self, ImagesError> {
        let (mut regions, mut mappings) = (Vec::new(), Vec::new());
        for (index, (image, range)) in images.iter().zip(&layout.images).enumerate() {
            let mapping = map(index, image, range.end - range.start, files)?;
            regions.push(give(vm, index, image, range.start, &mapping)?);
            mappings.push(mapping);
        }
        let mut late = None;
        if !layout.late.is_empty() {
            let (room, region) = LateImages::new(layout.late.clone())?;
            regions.push(region);
            late = Some(room);
        }
        if regions.is_empty() {
            return Ok(Self::default());
        }
        let memory = Ram::from_regions(regions).map_err(|error| region_error("room", &error))?;
        Ok(Self {
            memory,
            _mappings: mappings,
            late,
        })
    }

    /// Memory that stands for mapped images.
    #[cfg(test)]
    pub(crate) fn of(memory: Ram) -> Self {
        Self {
            memory,
            _mappings: Vec::new(),
            late: None,
        }
    }

    /// Those that come while the machine runs, if there is room for any.
    pub(crate) fn late(&self) -> Option<&Arc<LateImages>> {
        self.late.as_ref()
    }

    /// Guest memory that is there to be read.
    pub(crate) fn memory(&self) -> &Ram {
        &self.memory
    }
}

fn region_error(name: &str, problem: &dyn std::fmt::Display) -> ImagesError {
    ImagesError::Region {
        name: name.to_owned(),
        problem: problem.to_string(),
    }
}

/// Maps an image's extents; what is left of `length` behind them reads as zeros.
fn map(index: usize, image: &Pmem, length: u64, files: &Files) -> Result<Mapping, ImagesError> {
    let mapping = Mapping::reserve(length as usize).map_err(|source| ImagesError::Map {
        name: image.name.clone(),
        source,
    })?;
    mapping.fill(0, &format!("pmems[{index}]"), image, files)?;
    Ok(mapping)
}

fn give(vm: &VmFd, index: usize, image: &Pmem, start: u64, mapping: &Mapping) -> Result<Region, ImagesError> {
    let entry = kvm_userspace_memory_region {
        slot: IMAGE_SLOT + index as u32,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: start,
        memory_size: mapping.length as u64,
        userspace_addr: mapping.address as u64,
    };
    // SAFETY: the range is mapped as a whole, disjoint from other slots by the layout, and outlives the VM: every holder of the VM holds the
    // memory that holds the mapping.
    unsafe { vm.set_user_memory_region(entry) }.map_err(|source| ImagesError::Slot {
        name: image.name.clone(),
        source,
    })?;
    region(mapping, start, &image.name)
}

/// The region of guest memory that a mapping is, from `start` on.
pub(crate) fn region(mapping: &Mapping, start: u64, name: &str) -> Result<Region, ImagesError> {
    // SAFETY: the mapping has this address, length, protection and flags, and lives beside the region in `Images`.
    let region = unsafe { MmapRegion::build_raw(mapping.address, mapping.length, libc::PROT_READ, libc::MAP_SHARED) };
    let region = region.map_err(|error| region_error(name, &error))?;
    Region::new(region, GuestAddress(start)).ok_or_else(|| region_error(name, &"it ends behind all addresses"))
}

/// A range of this process's addresses that nothing else uses, never writable.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// On [`IMAGE_STEP`], as in the guest, so that large pages of the file can be mapped as such.
    address: *mut u8,
    length: usize,
    /// What is to be unmapped.
    whole: (*mut libc::c_void, usize),
}

// SAFETY: the pointers are only a name of the range, which nothing writes and which is unmapped once, on drop.
unsafe impl Send for Mapping {}
// SAFETY: see above; what methods change in the range is changed by the kernel, a mapping at a time, under whoever reads it.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Its first address.
    pub(crate) fn address(&self) -> *const u8 {
        self.address
    }

    /// Maps an image's extents, one behind the other from `place` on; `path` is where its specification is.
    pub(crate) fn fill(&self, mut place: usize, path: &str, image: &Pmem, files: &Files) -> Result<(), ImagesError> {
        let failed = |source| ImagesError::Map {
            name: image.name.clone(),
            source,
        };
        for (number, extent) in image.extents.iter().enumerate() {
            let file = files.open_existing(&format!("{path}.extents[{number}].file"), &extent.file, false)?;
            let has = file.metadata().map_err(failed)?.len();
            let end = extent.offset + extent.length;
            if end > has {
                return Err(ImagesError::Short {
                    name: image.name.clone(),
                    extent: number,
                    end,
                    length: has,
                });
            }
            self.put(place, &file, extent.offset, extent.length as usize).map_err(failed)?;
            place += extent.length as usize;
        }
        Ok(())
    }

    /// Zeros.
    pub(crate) fn reserve(length: usize) -> io::Result<Self> {
        let step = IMAGE_STEP as usize;
        let size = length.checked_add(step).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that is there.
        let start = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = start.cast::<u8>();
        Ok(Self {
            address: address.wrapping_add(address.addr().next_multiple_of(step) - address.addr()),
            length,
            whole: (start, size),
        })
    }

    /// Puts `length` bytes of a file at `place`.
    fn put(&self, place: usize, file: &File, offset: u64, length: usize) -> io::Result<()> {
        let end = place.checked_add(length).filter(|end| *end <= self.length);
        let offset = libc::off_t::try_from(offset)
            .ok()
            .filter(|_| end.is_some())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let address = self.address.wrapping_add(place).cast();
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the range lies in what `reserve` has mapped for this value alone, and no reference into it exists.
        let mapped = unsafe { libc::mmap(address, length, libc::PROT_READ, flags, file.as_raw_fd(), offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Puts zeros over `length` bytes from `place` on.
    pub(crate) fn clear(&self, place: usize, length: usize) -> io::Result<()> {
        if place.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let address = self.address.wrapping_add(place).cast();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: the range lies in what `reserve` has mapped for this value alone, and no reference into it exists: devices copy from it.
        let mapped = unsafe { libc::mmap(address, length, libc::PROT_READ, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (start, size) = self.whole;
        // SAFETY: the range was mapped by `reserve` for this value; regions and slots that name it are gone or dropped with it.
        unsafe { libc::munmap(start, size) };
    }
}
