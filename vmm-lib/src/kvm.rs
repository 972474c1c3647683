//! The host's KVM: opened, and asked for all that a machine needs before one is made. Knows no machine.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm};
use rustix::fs::{Mode, OFlags};

use crate::arch::board;
use crate::arch::cpuid::{CpuidError, Template};
use crate::arch::processor;

/// Capabilities without which no machine of any architecture is made, with their names in KVM's documentation.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IoeventfdNoLength, "KVM_CAP_IOEVENTFD_NO_LENGTH"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::CoalescedMmio, "KVM_CAP_COALESCED_MMIO"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why the host's KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// `/dev/kvm` could not be opened.
    #[error("open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    /// It speaks another protocol than the one of the last twenty years.
    #[error("/dev/kvm speaks version {0}, not {KVM_API_VERSION}")]
    Version(i32),
    /// It lacks what a machine needs: these capabilities.
    #[error("/dev/kvm lacks {}", .0.join(", "))]
    Missing(Vec<&'static str>),
}

/// Why nothing can be said of this host.
#[derive(Debug, thiserror::Error)]
pub enum FingerprintError {
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// It does not say what processors have.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// It does not say which registers there are.
    #[error("ask KVM for its model-specific registers")]
    Registers(#[source] kvm_ioctls::Error),
}

/// Capabilities that are looked at; the newest kernel has fewer.
const CAPABILITIES: u64 = 512;

/// Opens `/dev/kvm`, for [`crate::Builder::kvm`].
pub fn open_device() -> Result<OwnedFd, KvmError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/kvm", flags, Mode::empty()).map_err(|error| KvmError::Open(kvm_ioctls::Error::new(error.raw_os_error())))
}

/// Opens `/dev/kvm` and checks it.
pub(crate) fn open() -> Result<Kvm, KvmError> {
    checked(Kvm::new().map_err(KvmError::Open)?)
}

/// Checks `/dev/kvm`, opened by somebody else.
pub(crate) fn from_open(kvm: OwnedFd) -> Result<Kvm, KvmError> {
    // SAFETY: the descriptor is open and belongs to nobody else from here on. That it is not KVM's shows in the version.
    checked(unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) })
}

fn checked(kvm: Kvm) -> Result<Kvm, KvmError> {
    sufficient(kvm.get_api_version(), |cap| kvm.check_extension(cap))?;
    Ok(kvm)
}

/// Whether a KVM of this version, which says of each capability whether it has it, has all that a machine needs. Names all that it lacks.
fn sufficient(version: i32, has: impl Fn(Cap) -> bool) -> Result<(), KvmError> {
    if version != KVM_API_VERSION as i32 {
        return Err(KvmError::Version(version));
    }
    let missing: Vec<_> = needed().filter(|(cap, _)| !has(*cap)).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(KvmError::Missing(missing))
    }
}

/// All capabilities that a machine of this architecture needs.
fn needed() -> impl Iterator<Item = &'static (Cap, &'static str)> {
    REQUIRED.iter().chain(board::REQUIRED)
}

/// What of this host's processor and KVM a snapshot depends on, as bytes to be compared: the CPUID that a processor is given, all capabilities,
/// the model-specific registers that are saved.
pub fn fingerprint() -> Result<Vec<u8>, FingerprintError> {
    let kvm = open()?;
    let mut bytes: Vec<u8> = Template::new(&kvm)?.processor(0, 1)?.bytes().collect();
    for number in 0..CAPABILITIES {
        bytes.extend(kvm.check_extension_raw(number).to_le_bytes());
    }
    bytes.extend(processor::numbers(&kvm).map_err(FingerprintError::Registers)?);
    Ok(bytes)
}

/// Checks that this host's KVM has what a machine needs. A KVM that passes may still be unable to boot a kernel: a preflight has to boot one.
pub fn check() -> Result<(), KvmError> {
    open().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: i32 = KVM_API_VERSION as i32;

    #[test]
    fn a_kvm_that_lacks_a_capability_is_refused_by_that_capabilitys_name() {
        assert!(sufficient(VERSION, |_| true).is_ok());
        for (lacks, name) in needed() {
            let refused = sufficient(VERSION, |cap| cap as u32 != *lacks as u32).expect_err(name);
            assert_eq!(refused.to_string(), format!("/dev/kvm lacks {name}"));
        }
    }

    #[test]
    fn a_kvm_that_lacks_several_names_all_of_them_at_once() {
        let refused = sufficient(VERSION, |_| false).expect_err("it has nothing").to_string();
        assert!(needed().all(|(_, name)| refused.contains(name)), "{refused}");
        let two = |cap: Cap| !matches!(cap, Cap::Irqfd | Cap::Irqchip);
        let refused = sufficient(VERSION, two).expect_err("it lacks two").to_string();
        assert_eq!(refused, "/dev/kvm lacks KVM_CAP_IRQFD, KVM_CAP_IRQCHIP");
    }

    #[test]
    fn a_kvm_of_another_version_is_asked_for_nothing_more() {
        let asked = |_| panic!("its capabilities are others");
        let refused = sufficient(11, asked).expect_err("it is another").to_string();
        assert_eq!(refused, "/dev/kvm speaks version 11, not 12");
    }

    #[test]
    fn another_file_in_place_of_kvm_is_refused() {
        let null = std::fs::File::open("/dev/null").expect("every host has it");
        assert!(matches!(from_open(null.into()), Err(KvmError::Version(_))));
    }
}
