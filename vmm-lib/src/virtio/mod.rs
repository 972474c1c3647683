//! virtio devices (virtio 1.2) and their one transport, modern PCI.

pub mod device;

pub(crate) mod balloon;
pub mod block;
pub(crate) mod chain;
pub(crate) mod common;
pub mod console;
pub mod fs;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
#[cfg(test)]
mod hostile;
pub(crate) mod listener;
pub(crate) mod mem;
pub mod net;
pub(crate) mod pace;
pub(crate) mod pci;
pub(crate) mod placeholder;
pub(crate) mod pmem;
#[cfg(test)]
mod proofs;
pub(crate) mod queue;
pub(crate) mod ring;
pub mod rng;
#[cfg(test)]
mod testing;
pub mod vsock;
pub(crate) mod worker;
