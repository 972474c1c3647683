//! Posted writes: registers whose writes have no effect before another register is written or read. KVM keeps such writes in a ring of the
//! machine (coalesced MMIO) and the guest goes on without an exit to user space; whatever a processor leaves the guest for next, they are
//! carried out first, in the order of the ring. So a driver that reads a register sees what it has written, and a register that acts finds
//! what was written before it. A full ring is an exit again. Refuses nothing: what a write means is the registers' own matter.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::{IoEventAddress, VcpuFd, VmFd};

use crate::lock::lock;

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
        let ring = lock(&self.0);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    /// A ring without a machine; the test is its KVM.
    fn ring() -> Posted {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that is there.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED, "the host has a page");
        Posted(Mutex::new(Ring(NonNull::new(page.cast()).expect("it is somewhere"))))
    }

    /// Posts a write of `length` bytes as KVM does, unless the ring is full.
    fn post(posted: &Posted, address: u64, value: u64, length: u32) -> bool {
        let ring = posted.0.lock().expect("nobody panics with it");
        let (first, last) = (ring.first().load(Ordering::Acquire), ring.last().load(Ordering::Relaxed));
        if (last + 1) % ENTRIES == first {
            return false;
        }
        let entry = kvm_coalesced_mmio {
            phys_addr: address,
            len: length,
            data: value.to_le_bytes(),
            ..Default::default()
        };
        let offset = size_of::<kvm_coalesced_mmio_ring>() + last as usize * size_of::<kvm_coalesced_mmio>();
        // SAFETY: `last` is below ENTRIES, so the entry lies within the page, which is mapped and aligned for it.
        unsafe { ring.0.as_ptr().add(offset).cast::<kvm_coalesced_mmio>().write_volatile(entry) };
        ring.last().store((last + 1) % ENTRIES, Ordering::Release);
        true
    }

    fn all(posted: &Posted) -> Vec<(u64, Vec<u8>)> {
        let mut seen = Vec::new();
        posted.deliver(|address, data| seen.push((address, data.to_vec())));
        seen
    }

    #[test]
    fn writes_are_delivered_once_and_in_order_all_around_the_ring() {
        let posted = ring();
        for round in 0..5u64 {
            let mut wanted = Vec::new();
            for number in 0..u64::from(ENTRIES) - 1 - 7 * round {
                assert!(post(&posted, number, round, 2));
                wanted.push((number, vec![round as u8, 0]));
            }
            assert_eq!(all(&posted), wanted);
            assert_eq!(all(&posted), []);
        }
    }

    #[test]
    fn a_page_of_nonsense_is_read_within_its_bounds() {
        let posted = ring();
        {
            let ring = posted.0.lock().expect("nobody panics with it");
            // SAFETY: the page is mapped, and nothing borrowed from it is in use.
            unsafe { ptr::write_bytes(ring.0.as_ptr(), 0xff, PAGE) };
            ring.first().store(7, Ordering::Relaxed);
        }
        let seen = all(&posted);
        assert!(seen.len() < ENTRIES as usize && seen.iter().all(|(_, data)| data.len() == 8));
    }

    #[test]
    fn whoever_delivers_a_processors_writes_they_are_done_when_its_own_turn_ends() {
        let posted = ring();
        let done = [const { AtomicU64::new(0) }; 4];
        std::thread::scope(|scope| {
            for thread in 0..4usize {
                let (posted, done) = (&posted, &done);
                scope.spawn(move || {
                    for value in 1..=2000u64 {
                        while !post(posted, thread as u64, value, 8) {
                            std::thread::yield_now();
                        }
                        posted.deliver(|address, data| {
                            let value = u64::from_le_bytes(data.try_into().expect("eight bytes were posted"));
                            std::thread::yield_now();
                            let before = done[address as usize].swap(value, Ordering::Relaxed);
                            assert_eq!(before + 1, value, "in order");
                        });
                        assert_eq!(done[thread].load(Ordering::Relaxed), value, "its own");
                    }
                });
            }
        });
    }
}
