//! The rig's hand on each host: runs commands, takes files, supervises services. The server is `kvmlet-e2e host-agent`,
//! the same program as the harness, so the wire needs no versions. It asks nobody who they are: it listens only on a
//! host's address inside the cluster's own network namespace, and must never be started anywhere else.

mod client;
mod keep;
mod server;
mod service;
mod wire;

pub use client::{Client, CommandOutput, Service};
pub use keep::keep;
pub use server::serve;
pub use wire::{ServiceState, ServiceStatus};
