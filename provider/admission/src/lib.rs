//! Pods of labelled namespaces go to virtual nodes: an admission webhook that adds what the scheduler needs to send them there, and what follows up
//! on pods that may go to either kind of node.
//!
//! Happy path of a pod: `server` takes the review, `review` reads it, `namespaces` has the labels of its namespace, `profile` the profiles that may
//! select it, `policy` says in which way the pod goes, `decide` what is added. `certificates` keeps what the API server trusts, `lease` says which
//! replica writes, `overflow` is what it writes to pods and profiles, `pods` what it knows for that, `runtime` whether
//! nodes take pods at all, by the checks of their hosts. Refuses to know what a virtual node can run: it is handed a function that says so.

#![forbid(unsafe_code)]

pub mod certificates;
mod daemon_sets;
pub mod decide;
#[cfg(test)]
mod definition;
mod followed;
mod kinds;
pub mod lease;
#[cfg(test)]
mod manifests;
pub mod namespaces;
pub mod overflow;
mod pods;
pub mod policy;
pub mod profile;
#[cfg(test)]
mod reference;
pub mod refused;
pub mod review;
pub mod runtime;
pub mod server;
pub mod webhook;

pub use certificates::{CertConfig, Conflicts, Span};
pub use decide::{Decision, Unfit, decide};
pub use policy::{Labels, Policy};
pub use webhook::{Config, ConfigError, Webhook};
