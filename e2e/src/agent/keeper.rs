//! An idle machine for as long as the host lives. KVM patches its own code whenever the first machine comes or the last one goes, and
//! whenever a processor's APIC is enabled (`preempt_notifier_key`, `apic_sw_disabled`: static keys of Linux). QEMU's software emulation
//! now and then has one processor run what another has just patched, and the host dies of an `int3` or of an instruction left out.
//! While a machine is there whose APIC nobody enables, those keys stay as they are.

use anyhow::{Context, Result};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// The machine; it never runs.
pub(super) struct Keeper {
    _processor: VcpuFd,
    _machine: VmFd,
}

impl Keeper {
    pub(super) fn new() -> Result<Self> {
        let machine = Kvm::new().context("open /dev/kvm")?.create_vm().context("make a machine")?;
        // Without it in the kernel there is no APIC there.
        machine.create_irq_chip().context("make an interrupt controller")?;
        let processor = machine.create_vcpu(0).context("make a processor")?;
        Ok(Self {
            _processor: processor,
            _machine: machine,
        })
    }
}
