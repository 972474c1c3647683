//! A real cluster with real KVM hosts, and the tests that run in it.
//!
//! ```text
//!              network namespace "kvmlet", bridge br0 10.89.0.1/24
//!   etcd, API server, scheduler, controller manager, registry    (control_plane, registry)
//!        │                                │
//!   10.89.0.11 kvm-1                 10.89.0.12 kvm-2            (host: emulated or native)
//!     rig agent :7000, kvmlet node :10250, kube-proxy            (agent, node)
//! ```
//! [`Cluster`] is the way in: bring it up (or find the running one), say things with kubectl, run commands on hosts, wait
//! for what should become true, dump everything when it does not. Everything blocks: a test is a plain function.
//!
//! Invariants: nothing outside the state directory, the cache and our own network namespaces is touched; only processes
//! recorded by id and start time are ended; what needs the outside world (packages, builds) happens before the cluster.

pub mod agent;
pub mod artifacts;
pub mod bench;
mod burst_profile;
pub mod cargo_tests;
pub mod cluster;
pub mod command;
pub mod conformance;
pub mod control_plane;
pub mod demo;
#[cfg(test)]
mod documents;
pub mod dump;
pub mod helm;
pub mod host;
pub mod host_config;
pub mod kubelet;
pub mod netns;
pub mod node;
pub mod packages;
pub mod paths;
pub mod pki;
pub mod preflight;
pub mod process;
pub mod progress;
pub mod registry;
pub mod sequences;
pub mod suite;
pub mod wait;

pub use cluster::{Cluster, ClusterOptions};
pub use host::{Host, HostKind};
pub use wait::wait_for;
