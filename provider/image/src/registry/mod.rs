//! Registries: where an image may be fetched from, in which order, and how what comes is checked.
//!
//! `oci-client` speaks the protocol and gets tokens. Mirrors, their order, resumption and the meaning of failures are ours.

mod blob;
mod client;
mod config;
mod manifest;

pub(crate) use client::{FetchError, Registries, Source};
pub(crate) use config::Endpoint;
pub use config::{Mirror, RegistryConfig, RegistryHost};
pub(crate) use manifest::{Config, Descriptor, Manifest, ParseFailure};
