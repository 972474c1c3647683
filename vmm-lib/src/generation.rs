//! The generation identifier (Microsoft, "Virtual Machine Generation ID", 2012): 16 bytes in guest memory that are others in each machine that is
//! made of one snapshot. By an interrupt the guest hears that they have changed, and renews its random numbers; Linux' driver is vmgenid.

use std::io;

use kvm_ioctls::VmFd;
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes, GuestAddress};

use crate::dirty::Ram;

/// Where it lies: the last page of the firmware's range, which no map of memory gives away.
pub(crate) const ADDRESS: u64 = 0xf_f000;
/// The pin of the IOAPIC that tells of a change.
pub(crate) const IRQ: u32 = 5;
const SIZE: usize = 16;

/// Why a machine has no identifier of its own.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The host gave no random bytes.
    #[error("read random bytes")]
    Random(#[source] io::Error),
    /// Memory ends before it.
    #[error("write the generation identifier")]
    Write(#[source] vm_memory::GuestMemoryError),
    /// KVM refused the interrupt.
    #[error("tell of a new generation")]
    Interrupt(#[source] kvm_ioctls::Error),
}

/// Writes one that no other machine has.
pub(crate) fn write(memory: &Ram) -> Result<(), GenerationError> {
    let mut identifier = [0; SIZE];
    // Up to 256 bytes come whole.
    getrandom(&mut identifier, GetRandomFlags::empty()).map_err(|error| GenerationError::Random(error.into()))?;
    memory
        .write_slice(&identifier, GuestAddress(ADDRESS))
        .map_err(GenerationError::Write)
}

/// Writes another one into a machine that was restored and has not run, which then hears of it.
pub(crate) fn renew(memory: &Ram, vm: &VmFd) -> Result<(), GenerationError> {
    write(memory)?;
    let line = |up| vm.set_irq_line(IRQ, up).map_err(GenerationError::Interrupt);
    line(true)?;
    line(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_machines_have_the_same_identifier() {
        let identifier = || {
            let memory = Ram::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("the host has 1 MiB");
            write(&memory).expect("it fits");
            memory.read_obj::<u128>(GuestAddress(ADDRESS)).expect("it is there")
        };
        let (one, other) = (identifier(), identifier());
        assert!(one != 0 && one != other);
    }
}
