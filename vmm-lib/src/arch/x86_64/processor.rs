//! A processor's registers, out of KVM and back into it, in the order that KVM wants (Documentation/virt/kvm/api.rst; the local APIC after
//! the system registers, which say where it is, and before the timer's deadline, which it would forget).

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::snapshot::RestoreError;

/// The deadline of the local APIC's timer, to be set last.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The largest extended state that this carries, bytes.
const XSAVE: i32 = 4096;
/// What a state with more registers than KVM takes at once is refused by.
const TOO_MANY: &str = "it had more model-specific registers than KVM takes";

/// All of a processor.
#[derive(Serialize, Deserialize)]
pub(crate) struct ProcessorState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

/// What there is to be saved on this host, asked for before a guest runs.
#[derive(Clone)]
pub(crate) struct Registers {
    msrs: Vec<u32>,
    /// Why nothing can be saved.
    refused: Option<String>,
}

impl Registers {
    /// Asks KVM.
    pub(crate) fn of(kvm: &Kvm) -> Self {
        let list = kvm.get_msr_index_list();
        let extended = kvm.check_extension_int(Cap::Xsave2);
        let refused = match &list {
            Err(error) => Some(format!("KVM does not list its model-specific registers: {error}")),
            Ok(_) if extended > XSAVE => Some(format!("the processor's extended state has {extended} bytes, more than {XSAVE}")),
            Ok(_) => None,
        };
        let mut msrs = list.map(|list| list.as_slice().to_vec()).unwrap_or_default();
        msrs.sort_by_key(|index| *index == MSR_TSC_DEADLINE);
        Self { msrs, refused }
    }
}

/// The address of the instruction that a processor is at, which is not in its guest.
pub(crate) fn place(vcpu: &VcpuFd) -> Result<u64, kvm_ioctls::Error> {
    Ok(vcpu.get_regs()?.rip)
}

/// The numbers of the registers that are saved on this host, as bytes to be compared.
pub(crate) fn numbers(kvm: &Kvm) -> Result<Vec<u8>, kvm_ioctls::Error> {
    let list = kvm.get_msr_index_list()?;
    Ok(list.as_slice().iter().copied().flat_map(u32::to_le_bytes).collect())
}

type Step = (&'static str, kvm_ioctls::Error);

impl ProcessorState {
    /// Reads a processor that is not in its guest and has finished what its last exit began.
    pub(crate) fn save(vcpu: &VcpuFd, registers: &Registers) -> Result<Self, String> {
        if let Some(why) = &registers.refused {
            return Err(why.clone());
        }
        Self::read(vcpu, registers).map_err(|(what, error)| format!("read {what}: {error}"))
    }

    /// One more register than there were.
    #[cfg(test)]
    pub(crate) fn add_register(&mut self, index: u32, data: u64) {
        self.msrs.push(entry(index, data));
    }

    fn read(vcpu: &VcpuFd, registers: &Registers) -> Result<Self, Step> {
        let of = |what: &'static str| move |error| (what, error);
        Ok(Self {
            // First: KVM settles what is under way with it.
            mp_state: vcpu.get_mp_state().map_err(of("the processor's activity"))?,
            regs: vcpu.get_regs().map_err(of("general registers"))?,
            sregs: vcpu.get_sregs().map_err(of("system registers"))?,
            xsave: vcpu.get_xsave().map_err(of("extended state"))?,
            xcrs: vcpu.get_xcrs().map_err(of("extended control registers"))?,
            debug: vcpu.get_debug_regs().map_err(of("debug registers"))?,
            lapic: vcpu.get_lapic().map_err(of("the local APIC"))?,
            msrs: read_msrs(vcpu, &registers.msrs).map_err(of("model-specific registers"))?,
            events: vcpu.get_vcpu_events().map_err(of("pending events"))?,
        })
    }

    /// Makes a new processor what this one was.
    pub(crate) fn restore(&self, vcpu: &VcpuFd) -> Result<(), RestoreError> {
        let step = |what: &'static str| move |error| RestoreError::Kvm(what, error);
        vcpu.set_mp_state(self.mp_state).map_err(step("set the processor's activity"))?;
        vcpu.set_regs(&self.regs).map_err(step("set general registers"))?;
        vcpu.set_sregs(&self.sregs).map_err(step("set system registers"))?;
        // SAFETY: KVM reads 4096 bytes, which is what the structure has: no larger state was enabled, or there were no snapshot.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(step("set extended state"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(step("set extended control registers"))?;
        vcpu.set_debug_regs(&self.debug).map_err(step("set debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(step("set the local APIC"))?;
        write_msrs(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events).map_err(step("set pending events"))
    }
}

/// KVM stops at a register that this processor does not have after all: that one is left out.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let mut wanted: &[u32] = indices;
    let mut read = Vec::with_capacity(indices.len());
    while !wanted.is_empty() {
        let entries: Vec<_> = wanted.iter().map(|index| entry(*index, 0)).collect();
        let mut list = Msrs::from_entries(&entries).expect("KVM lists no more than it takes");
        let count = vcpu.get_msrs(&mut list)?.min(wanted.len());
        read.extend_from_slice(&list.as_slice()[..count]);
        wanted = wanted.get(count + 1..).unwrap_or_default();
    }
    Ok(read)
}

/// A register that was read and cannot be written back must be one that has its value anyway.
fn write_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), RestoreError> {
    let step = |error| RestoreError::Kvm("set model-specific registers", error);
    let mut left = entries;
    while !left.is_empty() {
        let list = Msrs::from_entries(left).map_err(|_| RestoreError::Host(TOO_MANY.to_owned()))?;
        let count = vcpu.set_msrs(&list).map_err(step)?.min(left.len());
        if let Some(refused) = left.get(count) {
            let mut list = Msrs::from_entries(&[entry(refused.index, 0)]).expect("one entry is few enough");
            let read = vcpu.get_msrs(&mut list).map_err(step)?;
            if read != 1 || list.as_slice()[0].data != refused.data {
                let (index, data) = (refused.index, refused.data);
                let what = format!("model-specific register {index:#x} was {data:#x}, which cannot be set");
                return Err(RestoreError::Host(what));
            }
        }
        left = left.get(count + 1..).unwrap_or_default();
    }
    Ok(())
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}
