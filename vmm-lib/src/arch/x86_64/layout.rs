//! Addresses that the architecture's firmware and KVM fix, in guest-physical memory. What lies between them is [`crate::memory::Layout`]'s.

use std::ops::Range;

/// First address that low RAM may not use.
pub(crate) const HOLE: u64 = 0xc000_0000;
/// Where RAM goes on above the hole.
pub(crate) const ABOVE_HOLE: u64 = 1 << 32;
/// Window for 32-bit BARs.
pub(crate) const MMIO32: Range<u64> = HOLE..0xe000_0000;
/// Configuration space of bus 0.
pub(crate) const ECAM: u64 = 0xe000_0000;
/// One bus: 32 devices of 8 functions of 4 KiB.
pub(crate) const ECAM_SIZE: u64 = 1 << 20;
/// The in-kernel IOAPIC.
pub(crate) const IOAPIC: u32 = 0xfec0_0000;
/// The in-kernel local APICs.
pub(crate) const LAPIC: u32 = 0xfee0_0000;
/// Three pages that KVM on Intel wants.
pub(crate) const KVM_TSS: usize = 0xfffb_d000;
