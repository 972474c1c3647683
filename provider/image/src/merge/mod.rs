//! Layers laid over one another: indexes in, one tree out, as if each tar had been unpacked on top of the ones before.
//!
//! All paths are resolved inside the tree: a symlink in the way of a directory is followed as a process with this root would, so
//! nothing outside the image can be meant.

mod apply;
mod resolve;

pub(crate) use apply::{MergeError, merge};
