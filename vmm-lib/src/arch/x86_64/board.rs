//! What a virtual machine has besides memory and processors, and KVM carries out: interrupt controllers (both PICs, the IOAPIC) and the clock.

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irq_routing_entry,
    kvm_irqchip,
};
use kvm_ioctls::{Cap, VmFd};
use serde::{Deserialize, Serialize};

use super::layout::KVM_TSS;

/// Capabilities without which there is none, with their names in KVM's documentation.
pub(crate) const REQUIRED: &[(Cap, &str)] = &[
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
];
/// Pins of the in-kernel IOAPIC: interrupt numbers below belong to these.
pub(crate) const PINS: u32 = 24;

/// A step that KVM refused.
pub(crate) type Step = (&'static str, kvm_ioctls::Error);

/// What has to be said before there is memory.
pub(crate) fn begin(vm: &VmFd) -> Result<(), Step> {
    vm.set_tss_address(KVM_TSS).map_err(|error| ("place KVM's task state", error))
}

/// Makes the interrupt controllers, before there are processors.
pub(crate) fn interrupt_controllers(vm: &VmFd) -> Result<(), Step> {
    vm.create_irq_chip().map_err(|error| ("create the interrupt controller", error))
}

/// The route of a pin.
pub(crate) fn pin(pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    entry.u.irqchip.pin = pin;
    entry
}

/// All of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct BoardState {
    clock: kvm_clock_data,
    /// Both PICs and the IOAPIC.
    irqchips: Vec<kvm_irqchip>,
}

impl BoardState {
    /// Reads it; processors and devices stand.
    pub(crate) fn save(vm: &VmFd) -> Result<Self, Step> {
        let clock = vm.get_clock().map_err(|error| ("read the clock", error))?;
        let irqchips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC].map(|chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip).map(|()| chip)
        });
        let irqchips = irqchips.into_iter().collect::<Result<_, _>>();
        let irqchips = irqchips.map_err(|error| ("read an interrupt controller", error))?;
        Ok(Self { clock, irqchips })
    }

    /// Puts it into a virtual machine that has not run.
    pub(crate) fn restore(&self, vm: &VmFd) -> Result<(), Step> {
        for chip in &self.irqchips {
            vm.set_irqchip(chip).map_err(|error| ("set an interrupt controller", error))?;
        }
        // Without the flags of a host's time: the guest's clock goes on where it stood.
        let clock = kvm_clock_data {
            clock: self.clock.clock,
            ..Default::default()
        };
        vm.set_clock(&clock).map_err(|error| ("set the clock", error))
    }
}
