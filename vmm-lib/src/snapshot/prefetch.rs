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
    use std::os::unix::fs::FileExt;

    use crate::arch::layout::HOLE;
    use crate::builder::{BuildError, Builder};
    use crate::machine::Machine;
    use crate::snapshot::RestoreError;
    use crate::spec::FileSource;
    use crate::testing::{SPIN, Snapshotted};

    /// Bits of an entry of pagemap (Documentation/admin-guide/mm/pagemap.rst): the page is there; it is the file's.
    const PRESENT: u64 = 1 << 63;
    const OF_FILE: u64 = 1 << 61;
    const MIB: u64 = 1 << 20;

    /// How the host has the pages of a machine that has not run: not at all, as the file's, or as its own copy.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Page {
        Absent,
        Shared,
        Own,
    }

    fn page(machine: &Machine, address: u64) -> Page {
        let host = machine.memory.get_host_address(GuestAddress(address)).expect("it is RAM").addr() as u64;
        let mut entry = [0; 8];
        let pagemap = File::open("/proc/self/pagemap").expect("Linux has it");
        pagemap.read_exact_at(&mut entry, host / PAGE * 8).expect("it is mapped");
        match u64::from_ne_bytes(entry) {
            entry if entry & PRESENT == 0 => Page::Absent,
            entry if entry & OF_FILE != 0 => Page::Shared,
            _ => Page::Own,
        }
    }

    #[test]
    fn a_machine_that_is_made_of_a_snapshot_has_its_working_set_before_it_runs_and_no_more() {
        let snapshot = Snapshotted::new(&SPIN);
        let set = WorkingSet {
            written: vec![8 * MIB..8 * MIB + 3 * PAGE, 12 * MIB..12 * MIB + PAGE],
            // A page of the file that is a hole, and the one that the kernel was loaded to.
            read: vec![20 * MIB..20 * MIB + 2 * PAGE, MIB..MIB + PAGE],
        };
        let path = snapshot.directory.path().join("set");
        std::fs::write(&path, serde_json::to_vec(&set).expect("it is plain")).expect("it can be written");
        let of = |working_set| {
            let mut spec = snapshot.restored();
            // To verify is to read: through the file, not the mapping.
            spec.restore.as_mut().expect("it is one").working_set = working_set;
            Builder::new(spec, Vec::new()).build().expect("this KVM makes machines")
        };
        let pages = |machine: &Machine, ranges: &[Range<u64>]| -> Vec<Page> {
            let all = ranges.iter().flat_map(|range| range.clone().step_by(PAGE as usize));
            all.map(|address| page(machine, address)).collect()
        };
        let machine = of(Some(FileSource::Path(path)));
        assert_eq!(pages(&machine, &set.written), [Page::Own; 4]);
        assert_eq!(pages(&machine, &set.read), [Page::Shared; 3]);
        // Reading brings in what lies around it, as far as 64 KiB go.
        for address in [4 * MIB, 16 * MIB, 24 * MIB] {
            assert_eq!(page(&machine, address), Page::Absent, "{address:#x}");
        }
        drop(machine);
        let machine = of(None);
        assert_eq!(pages(&machine, &set.written), [Page::Absent; 4]);
        assert_eq!(pages(&machine, &set.read), [Page::Absent; 3]);
    }

    #[test]
    fn a_working_set_that_is_none_is_refused_and_one_that_lies_elsewhere_costs_no_machine() {
        let snapshot = Snapshotted::new(&SPIN);
        let path = snapshot.directory.path().join("set");
        let built = |text: &str| {
            std::fs::write(&path, text).expect("it can be written");
            let mut spec = snapshot.restored();
            spec.restore.as_mut().expect("it is one").working_set = Some(FileSource::Path(path.clone()));
            Builder::new(spec, Vec::new()).build().map(drop)
        };
        let refused = built("{\"written\": 7}").expect_err("it is none");
        assert!(
            matches!(refused, BuildError::Restore(RestoreError::Read("working set", _))),
            "{refused:?}"
        );
        let beyond = r#"{"written":[{"start":0,"end":18446744073709547520},{"start":5,"end":6}],"read":[{"start":8192,"end":4096}]}"#;
        built(beyond).expect("only time depends on it");
    }

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
