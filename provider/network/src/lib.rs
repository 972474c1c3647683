//! A pod's network on the host: its namespace, its CNI attachment, its tap, and the host's routes to other nodes.
//!
//! Owns everything it names after a pod's UID: `kvmlet-<uid>` under the namespace directory, `<uid>.json` under the state
//! directory, and what the CNI plugins keep for that container id. Refuses IPv6 pod CIDRs (the types are IPv4) and
//! enforces no NetworkPolicy and no source address check yet: a guest may send with an address that is not its own.
//!
//! # Life of a pod's network
//!
//! ```text
//! record written -> namespace -> CNI ADD -> tap, redirects -> record written with the interface     (setup)
//! CNI DEL -> namespace removed -> record removed                                                   (teardown)
//! ```
//!
//! A daemon that dies half-way leaves a record: [`PodNetworks::teardown`] undoes any part of the way, any number of times.

pub mod cni;
pub mod config;
mod counters;
pub mod host;
mod join;
pub mod netns;
pub mod pod;
mod record;
mod rtnl;
mod types;

pub use config::NetworkConfig;
pub use counters::{Counters, counters};
pub use host::NodeRoute;
pub use pod::{NetworkError, PodNetworks, Swept};
pub use types::{HostPort, PodInterface, PodNetwork, PodNetworkRequest, PodRoute, Protocol};
