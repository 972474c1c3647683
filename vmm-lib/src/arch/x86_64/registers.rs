//! Registers of the boot processor at the two entries that a kernel has: PVH (32 bits, paging off) and Linux' 64-bit one. The other
//! processors wait for the first one's INIT and SIPI, in KVM's own reset state.

use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::boot::Entry;
use crate::dirty::Ram;

/// Where the descriptor table lies.
const GDT: u64 = 0x500;
/// PML4, PDPT and four page directories, identity for 4 GiB.
const PAGE_TABLES: u64 = 0x9000;
const PAGE: u64 = 0x1000;
/// Linux' boot protocol fixes both.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG: u64 = 1 << 8 | 1 << 10;
/// Fast string operations.
const MSR_MISC_ENABLE: u32 = 0x1a0;
/// Memory is write-back unless said otherwise.
const MSR_MTRR_DEFAULT: u32 = 0x2ff;

/// Why a processor could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum RegistersError {
    /// KVM did not give or take registers.
    #[error("{0} of the boot processor")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// The tables did not fit.
    #[error("write descriptor and page tables")]
    Tables(#[source] vm_memory::GuestMemoryError),
}

/// Sets what every processor starts with.
pub(crate) fn set_msrs(vcpu: &VcpuFd) -> Result<(), RegistersError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    // A processor without one of them (KVM stops at the first it does not know) does not need it, so the number that was set is no matter.
    for msr in [entry(MSR_MISC_ENABLE, 1), entry(MSR_MTRR_DEFAULT, 0x806)] {
        let list = Msrs::from_entries(&[msr]).expect("one entry is few enough");
        vcpu.set_msrs(&list)
            .map_err(|source| RegistersError::Kvm("set model-specific registers", source))?;
    }
    Ok(())
}

/// Points the boot processor at the kernel.
pub(crate) fn set_entry(vcpu: &VcpuFd, memory: &Ram, entry: Entry) -> Result<(), RegistersError> {
    let long = matches!(entry, Entry::Linux64 { .. });
    let flat = kvm_segment {
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let code = kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0xb,
        db: u8::from(!long),
        l: u8::from(long),
        ..flat
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 0x3,
        db: 1,
        ..flat
    };
    let task = kvm_segment {
        selector: TASK_SELECTOR,
        type_: 0xb,
        limit: 0x67,
        present: 1,
        ..Default::default()
    };
    let table = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task)];
    for (index, entry) in table.iter().enumerate() {
        memory
            .write_obj(*entry, GuestAddress(GDT + 8 * index as u64))
            .map_err(RegistersError::Tables)?;
    }

    let mut sregs = vcpu
        .get_sregs()
        .map_err(|source| RegistersError::Kvm("read system registers", source))?;
    (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss, sregs.tr) = (code, data, data, data, data, data, task);
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: 8 * table.len() as u16 - 1,
        ..Default::default()
    };
    sregs.idt = kvm_dtable::default();
    (sregs.cr0, sregs.cr4, sregs.efer) = (CR0_PE | CR0_ET, 0, 0);
    if long {
        write_page_tables(memory)?;
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0_PG | CR0_PE | CR0_ET, PAGE_TABLES, CR4_PAE, EFER_LONG);
    }
    vcpu.set_sregs(&sregs)
        .map_err(|source| RegistersError::Kvm("set system registers", source))?;

    let mut regs = kvm_regs {
        rflags: 2,
        ..Default::default()
    };
    match entry {
        Entry::Pvh { entry, start_info } => (regs.rip, regs.rbx) = (entry, start_info),
        Entry::Linux64 { entry, zero_page } => (regs.rip, regs.rsi) = (entry, zero_page),
    }
    vcpu.set_regs(&regs)
        .map_err(|source| RegistersError::Kvm("set general registers", source))
}

/// A segment as the processor would find it in its table.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_) | u64::from(segment.s) << 4 | u64::from(segment.dpl) << 5 | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

fn write_page_tables(memory: &Ram) -> Result<(), RegistersError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let write = |address, entry: u64| memory.write_obj(entry, GuestAddress(address)).map_err(RegistersError::Tables);
    let (pdpt, directories) = (PAGE_TABLES + PAGE, PAGE_TABLES + 2 * PAGE);
    write(PAGE_TABLES, pdpt | PRESENT_WRITABLE)?;
    for gib in 0..4 {
        write(pdpt + 8 * gib, (directories + PAGE * gib) | PRESENT_WRITABLE)?;
    }
    for step in 0..4 * 512 {
        write(directories + 8 * step, step << 21 | LARGE | PRESENT_WRITABLE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_segment_has_the_well_known_descriptor() {
        let code = kvm_segment {
            limit: u32::MAX,
            present: 1,
            s: 1,
            g: 1,
            type_: 0xb,
            l: 1,
            ..Default::default()
        };
        assert_eq!(descriptor(&code), 0x00af_9b00_0000_ffff);
        let data = kvm_segment {
            type_: 3,
            l: 0,
            db: 1,
            ..code
        };
        assert_eq!(descriptor(&data), 0x00cf_9300_0000_ffff);
    }
}
