//! virtio devices (virtio 1.2) and their one transport, modern PCI.

pub mod device;
