//! A machine on KVM: small, typed, without Kubernetes.

pub mod spec;
pub mod tap;
pub mod virtio;
