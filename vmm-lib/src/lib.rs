//! A machine on KVM: small, typed, without Kubernetes.
