//! What a virtual processor says of itself: the host's CPUID as KVM supports it, less what does not belong into a pod's machine, with the
//! machine's own topology (one package, one thread a core). Pure.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

/// Leaf 1, ECX.
const VMX: u32 = 1 << 5;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX.
const HTT: u32 = 1 << 28;
/// Leaf 6, EAX: the APIC timer runs always.
const ARAT: u32 = 1 << 2;
/// Leaf 0x8000_0001, ECX.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
/// KVM's features: NOP_IO_DELAY, CLOCKSOURCE2, STEAL_TIME, PV_EOI, PV_UNHALT, PV_TLB_FLUSH, PV_SEND_IPI, CLOCKSOURCE_STABLE.
/// Asynchronous page faults stay off: they leave a page of the guest written by the host.
const PARAVIRT: u32 = 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 11 | 1 << 24;
/// Address bits of a processor that does not say.
const DEFAULT_ADDRESS_BITS: u8 = 36;

/// Why no CPUID could be made.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// KVM did not say what it supports.
    #[error("ask KVM for the CPUID it supports")]
    Supported(#[source] kvm_ioctls::Error),
    /// More leaves than KVM takes.
    #[error("the host has more than {KVM_MAX_CPUID_ENTRIES} CPUID leaves")]
    TooMany,
}

/// One leaf, as a snapshot has it.
pub(crate) type Leaf = kvm_cpuid_entry2;

/// What a processor shows.
pub(crate) struct Shown(CpuId);

impl Shown {
    /// Its leaves, in KVM's order. KVM's own ones name what it can, so that those of another KVM differ, too.
    pub(crate) fn leaves(&self) -> &[Leaf] {
        self.0.as_slice()
    }

    /// The first thing in which it differs from `other`, which a snapshot has, if there is one.
    pub(crate) fn differs_from(&self, other: &[Leaf]) -> Option<String> {
        let own = self.leaves();
        if own == other {
            return None;
        }
        let of = |leaves: &[Leaf], like: &Leaf| {
            let same = |leaf: &&Leaf| (leaf.function, leaf.index) == (like.function, like.index);
            leaves.iter().find(same).copied()
        };
        let difference = own.iter().chain(other).find_map(|leaf| {
            let what = match (of(other, leaf), of(own, leaf)) {
                (None, _) => "there was none".to_owned(),
                (_, None) => "there is none".to_owned(),
                (Some(was), Some(is)) => changed(&was, &is)?,
            };
            Some(format!("CPUID leaf {:#x}.{}: {what}", leaf.function, leaf.index))
        });
        Some(difference.unwrap_or_else(|| "CPUID's leaves are in another order".to_owned()))
    }

    /// Has a processor show it.
    pub(crate) fn set(&self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        vcpu.set_cpuid2(&self.0)
    }

    /// As bytes to be compared.
    pub(crate) fn bytes(&self) -> impl Iterator<Item = u8> {
        let words = |leaf: &Leaf| [leaf.function, leaf.index, leaf.flags, leaf.eax, leaf.ebx, leaf.ecx, leaf.edx];
        self.leaves().iter().flat_map(words).flat_map(u32::to_le_bytes)
    }
}

/// What of a leaf is another than it was.
fn changed(was: &Leaf, is: &Leaf) -> Option<String> {
    let fields = |leaf: &Leaf| {
        [
            ("flags", leaf.flags),
            ("eax", leaf.eax),
            ("ebx", leaf.ebx),
            ("ecx", leaf.ecx),
            ("edx", leaf.edx),
        ]
    };
    let mut pairs = fields(was).into_iter().zip(fields(is));
    let (was, is) = pairs.find(|(was, is)| was != is)?;
    Some(format!("{} was {:#x} and is {:#x}", was.0, was.1, is.1))
}

/// The host's leaves, before they become one processor's.
pub(crate) struct Template {
    leaves: Vec<kvm_cpuid_entry2>,
    tsc_deadline: bool,
}

impl Template {
    /// Asks KVM.
    pub(crate) fn new(kvm: &Kvm) -> Result<Self, CpuidError> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(CpuidError::Supported)?;
        Ok(Self {
            leaves: supported.as_slice().to_vec(),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }

    /// Physical address bits of the processor.
    pub(crate) fn address_bits(&self) -> u8 {
        let leaf = self.leaves.iter().find(|leaf| leaf.function == 0x8000_0008);
        leaf.map(|leaf| leaf.eax as u8)
            .filter(|bits| *bits > 0)
            .unwrap_or(DEFAULT_ADDRESS_BITS)
    }

    /// The CPUID of processor `index` of `cpus`; its APIC identifier is its index.
    pub(crate) fn processor(&self, index: u8, cpus: u8) -> Result<Shown, CpuidError> {
        let mut leaves: Vec<_> = self
            .leaves
            .iter()
            .filter(|leaf| !matches!(leaf.function, 0xb | 0x1f | 0x8000_0026))
            .copied()
            .collect();
        for leaf in &mut leaves {
            self.adapt(leaf, index, cpus);
        }
        leaves.extend(topology(index, cpus));
        CpuId::from_entries(&leaves).map(Shown).map_err(|_| CpuidError::TooMany)
    }

    fn adapt(&self, leaf: &mut kvm_cpuid_entry2, index: u8, cpus: u8) {
        let (id, several, others) = (u32::from(index), cpus > 1, u32::from(cpus) - 1);
        match leaf.function {
            1 => {
                leaf.ebx = leaf.ebx & 0xff00 | u32::from(cpus) << 16 | id << 24;
                leaf.ecx = leaf.ecx & !VMX | X2APIC | HYPERVISOR;
                set(&mut leaf.ecx, TSC_DEADLINE, self.tsc_deadline);
                set(&mut leaf.edx, HTT, several);
            }
            4 | 0x8000_001d => {
                let level = leaf.eax >> 5 & 7;
                let sharing = if level >= 3 { others } else { 0 };
                let cores = if leaf.function == 4 && leaf.eax & 0x1f != 0 {
                    others << 26
                } else {
                    0
                };
                leaf.eax = leaf.eax & 0x3fff | sharing << 14 | cores;
            }
            6 => leaf.eax |= ARAT,
            // No performance counters: they are shared with the host, and probing them costs exits.
            0xa => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
            0x4000_0001 => leaf.eax &= PARAVIRT,
            0x8000_0001 => {
                leaf.ecx &= !SVM;
                set(&mut leaf.ecx, CMP_LEGACY, several);
            }
            0x8000_0008 => leaf.ecx = leaf.ecx & !0xf0ff | others | id_bits(cpus) << 12,
            0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id, 0),
            _ => {}
        }
    }
}

fn set(register: &mut u32, bits: u32, on: bool) {
    *register = if on { *register | bits } else { *register & !bits };
}

/// Bits that tell `cpus` processors apart.
fn id_bits(cpus: u8) -> u32 {
    u32::from(cpus).next_power_of_two().trailing_zeros()
}

/// Leaf 0xb: one thread a core, all cores in one package.
fn topology(index: u8, cpus: u8) -> [kvm_cpuid_entry2; 2] {
    let level = |number: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index: number,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: number | kind << 8,
        edx: u32::from(index),
        ..Default::default()
    };
    [level(0, 1, 0, 1), level(1, 2, id_bits(cpus), u32::from(cpus))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Template {
        let leaf = |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        let leaves = vec![
            leaf(1, 0, 0x0708_0800, VMX, HTT),
            leaf(0xb, 7, 7, 7, 7),
            leaf(0x4000_0001, u32::MAX, 0, 0, 0),
            leaf(0x8000_0001, 0, 0, SVM, 0),
            leaf(0x8000_0008, 0x3028, 0, 0, 0),
        ];
        Template {
            leaves,
            tsc_deadline: true,
        }
    }

    fn find(cpuid: &Shown, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .leaves()
            .iter()
            .find(|leaf| leaf.function == function && leaf.index == index)
            .expect("the leaf is there")
    }

    #[test]
    fn a_processor_knows_its_identifier_and_how_many_there_are() {
        let cpuid = template().processor(2, 3).expect("few leaves");
        let leaf = find(&cpuid, 1, 0);
        assert_eq!(leaf.ebx, 0x0203_0800);
        assert_eq!(leaf.edx & HTT, HTT);
        let core = find(&cpuid, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 3, 0x201, 2));
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 2 | 2 << 12);
    }

    #[test]
    fn nested_virtualisation_and_counters_are_hidden_and_clocks_offered() {
        let cpuid = template().processor(0, 1).expect("few leaves");
        let leaf = find(&cpuid, 1, 0);
        assert_eq!(
            leaf.ecx & (VMX | TSC_DEADLINE | X2APIC | HYPERVISOR),
            TSC_DEADLINE | X2APIC | HYPERVISOR
        );
        assert_eq!(leaf.edx & HTT, 0);
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx & SVM, 0);
        assert_eq!(find(&cpuid, 0x4000_0001, 0).eax, PARAVIRT);
    }

    #[test]
    fn address_bits_are_the_processors() {
        assert_eq!(template().address_bits(), 0x28);
        assert_eq!(
            Template {
                leaves: Vec::new(),
                tsc_deadline: false
            }
            .address_bits(),
            DEFAULT_ADDRESS_BITS
        );
    }
}
