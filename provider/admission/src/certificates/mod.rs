//! The webhook's own authority and serving certificate: made, kept in a Secret, told to the API server, renewed.
//!
//! `plan` decides one step at a time, `make` does the cryptography, `stored` knows where what lies, `keep` follows the Secret and the
//! configuration and, in the replica that leads, takes the steps.

pub mod config;
pub mod keep;
pub mod make;
pub mod plan;
pub mod stored;

pub use config::{CertConfig, Conflicts, Span};
pub use keep::Keeper;
