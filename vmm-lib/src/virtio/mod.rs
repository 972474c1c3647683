//! virtio devices (virtio 1.2) and their one transport, modern PCI.

pub mod device;

pub mod block;
mod chain;
pub(crate) mod common;
pub mod net;
pub(crate) mod pci;
pub(crate) mod queue;
mod ring;
pub mod rng;
#[cfg(test)]
mod testing;
pub mod vsock;
mod worker;
