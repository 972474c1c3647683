//! The working set of a snapshot: what machines that are made of it touch first. It is brought in at once, before the guest runs, in place of
//! page by page as the guest asks. Only time depends on it: a set that is wrong, or a host that cannot, costs no machine.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;

use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use crate::arch::layout::ABOVE_HOLE;
use crate::dirty::Ram;
use crate::memory::Layout;

const PAGE: u64 = 4096;
/// Longest description that is read, bytes.
const MAX_LENGTH: u64 = 1 << 20;
/// `_IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)`: Linux 6.11.
const KVM_PRE_FAULT_MEMORY: libc::c_ulong = 0xc040_aed5;

/// Pieces of a snapshot's memory file, in bytes from its start, each on whole pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    /// What machines write to: copied for each.
    pub written: Vec<Range<u64>>,
    /// What they only read: shared.
    pub read: Vec<Range<u64>>,
}

/// `struct kvm_pre_fault_memory`.
#[repr(C)]
#[derive(Default)]
struct PreFault {
    address: u64,
    size: u64,
    flags: u64,
    padding: [u64; 5],
}

impl WorkingSet {
    /// Reads one from where the file stands; nonsense is an error of content.
    pub(crate) fn parse(from: &File) -> io::Result<Self> {
        let mut text = String::new();
        from.take(MAX_LENGTH).read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Brings it into the memory of a machine that has not run, as far as it lies there.
    pub(crate) fn prefetch(&self, memory: &Ram, layout: &Layout, vcpu: &VcpuFd) {
        let pieces = [(&self.written, libc::MADV_POPULATE_WRITE), (&self.read, libc::MADV_POPULATE_READ)];
        let mut knows = true;
        for (ranges, advice) in pieces {
            for range in ranges {
                let Some(address) = place(range, layout) else { continue };
                let size = range.end - range.start;
                let Ok(host) = memory.get_slice(GuestAddress(address), size as usize) else {
                    continue;
                };
                let start = host.ptr_guard_mut();
                // SAFETY: the range is whole pages of a mapping that lives as long as `memory`; populating changes no content.
                let populated = unsafe { libc::madvise(start.as_ptr().cast(), size as usize, advice) } == 0;
                // What is there is also put into the guest's own tables, on hosts that can.
                knows = knows && populated && pre_fault(vcpu, address, size);
            }
        }
    }
}

/// Where a piece of the file lies in the guest, if it is whole pages of one piece of RAM.
fn place(range: &Range<u64>, layout: &Layout) -> Option<u64> {
    let whole = range.start < range.end && range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE);
    if !whole || range.end > layout.low + layout.high {
        return None;
    }
    if range.end <= layout.low {
        return Some(range.start);
    }
    range.start.checked_sub(layout.low).map(|offset| ABOVE_HOLE + offset)
}

/// Whether KVM has done all of it.
fn pre_fault(vcpu: &VcpuFd, address: u64, size: u64) -> bool {
    let mut wish = PreFault {
        address,
        size,
        ..PreFault::default()
    };
    while wish.size > 0 {
        let left = wish.size;
        // SAFETY: KVM reads and writes one structure of this form; of guest memory it changes no content.
        let result = unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY, &mut wish) };
        if result != 0 || wish.size >= left {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::layout::HOLE;

    #[test]
    fn pieces_lie_where_the_file_lies_and_others_nowhere() {
        let layout = Layout::new(HOLE + (2 << 20), 0, &[], (0, 0), 40).expect("fits");
        assert_eq!(place(&(4096..8192), &layout), Some(4096));
        assert_eq!(place(&(HOLE..HOLE + 4096), &layout), Some(ABOVE_HOLE));
        let beyond = [
            (0, 0),
            (1, 4097),
            (4096, 5000),
            (HOLE - 4096, HOLE + 4096),
            (HOLE, HOLE + (4 << 20)),
            (8192, 4096),
            (0, !0xfff),
        ];
        for (start, end) in beyond {
            assert_eq!(place(&(start..end), &layout), None, "{start:#x} to {end:#x}");
        }
    }
}
