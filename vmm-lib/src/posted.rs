//! Posted writes: registers whose writes have no effect before another register is written or read. KVM keeps such writes in a ring of the
//! machine (coalesced MMIO) and the guest goes on without an exit to user space; whatever a processor leaves the guest for next, they are
//! carried out first, in the order of the ring. So a driver that reads a register sees what it has written, and a register that acts finds
//! what was written before it. A full ring is an exit again. Refuses nothing: what a write means is the registers' own matter.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};

/// KVM's own page on x86-64, whatever pages programs see.
const PAGE: usize = 4096;
/// Entries of the ring (`KVM_COALESCED_MMIO_MAX`).
const ENTRIES: u32 = ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

/// Has KVM keep writes of this range (`on`), or no longer. What it has kept stays in the ring.
pub(crate) fn post(vm: &VmFd, start: u64, size: u32, on: bool) -> Result<(), kvm_ioctls::Error> {
    let address = IoEventAddress::Mmio(start);
    if on {
        vm.register_coalesced_mmio(address, size)
    } else {
        vm.unregister_coalesced_mmio(address, size)
    }
}

/// The ring of a machine.
pub(crate) struct Posted(Mutex<Ring>);

impl Posted {
    /// Maps the ring of the machine that this processor belongs to: there is one, which each of them shows.
    pub(crate) fn new(processor: &VcpuFd) -> io::Result<Self> {
        let offset = libc::off_t::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * PAGE as libc::off_t;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that is there.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, access, libc::MAP_SHARED, processor.as_raw_fd(), offset) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self(Mutex::new(Ring(page))))
    }

    /// Carries out all writes that were posted before this call, in order. Holds other callers back until they are done: what a processor
    /// has posted itself is done when this returns, whoever did it. At most one ring's length, so that nobody is kept here by others' writes.
    pub(crate) fn deliver(&self, mut write: impl FnMut(u64, &[u8])) {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = ring.last().load(Ordering::Acquire) % ENTRIES;
        let mut first = ring.first().load(Ordering::Relaxed) % ENTRIES;
        while first != last {
            let entry = ring.entry(first);
            first = (first + 1) % ENTRIES;
            ring.first().store(first, Ordering::Release);
            let length = (entry.len as usize).min(entry.data.len());
            write(entry.phys_addr, &entry.data[..length]);
        }
    }
}

/// The page: indices, which KVM and this process access as atomics, and entries, of which those from `first` to `last` are this process's.
struct Ring(NonNull<u8>);

// SAFETY: the pointer is only a name of the page, which is unmapped once, on drop, and accessed under the lock of its owner.
unsafe impl Send for Ring {}

impl Ring {
    fn index(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the offset is that of an aligned u32 of the page, which is mapped as long as this lives.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr().add(offset).cast()) }
    }

    fn first(&self) -> &AtomicU32 {
        self.index(offset_of!(kvm_coalesced_mmio_ring, first))
    }

    fn last(&self) -> &AtomicU32 {
        self.index(offset_of!(kvm_coalesced_mmio_ring, last))
    }

    /// An entry below [`ENTRIES`].
    fn entry(&self, index: u32) -> kvm_coalesced_mmio {
        let offset = size_of::<kvm_coalesced_mmio_ring>() + index as usize * size_of::<kvm_coalesced_mmio>();
        assert!(
            offset + size_of::<kvm_coalesced_mmio>() <= PAGE,
            "indices are taken modulo the number of entries"
        );
        // SAFETY: the entry lies within the page, as was just checked; any bytes are an entry; the page is aligned for it.
        unsafe { self.0.as_ptr().add(offset).cast::<kvm_coalesced_mmio>().read_volatile() }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the page was mapped for this value, and nothing borrowed from it is left.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}
