//! x86-64, with KVM's interrupt controllers and hardware-reduced ACPI.

pub(crate) mod board;
pub mod boot;
pub(crate) mod cpuid;
pub(crate) mod layout;
pub(crate) mod power;
pub(crate) mod processor;
pub(crate) mod registers;
