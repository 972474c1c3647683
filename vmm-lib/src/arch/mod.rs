//! What depends on the processor's architecture: a folder each, with the same names, of which the rest of the library uses those of the one
//! that it is built for and knows nothing else about it.
//!
//! | module | |
//! | --- | --- |
//! | `layout` | addresses that firmware and KVM fix |
//! | `board` | interrupt controllers and clock: made, saved, restored; capabilities that KVM must have for them |
//! | `cpuid` | what a processor shows to the guest |
//! | `registers` | where and how the first processor begins |
//! | `processor` | all of a processor, saved and restored |
//! | `power` | registers that end the machine |
//! | `boot` | kernel, initramfs, command line and tables into memory |

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::boot;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{board, cpuid, layout, power, processor, registers};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("machines are x86-64 only: another architecture is a folder of its own beside that one");
