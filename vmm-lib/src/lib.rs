//! A machine on KVM: small, typed, without Kubernetes.

pub mod spec;
pub mod virtio;
