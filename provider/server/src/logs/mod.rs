//! Container logs: CRI files on disk to what `kubectl logs` shows.
//!
//! Owns the reading of `<restart count>.log` and its rotated parts. Refuses to write, rotate or delete anything there.

mod files;
mod follow;
mod options;
mod reader;
mod record;
mod watch;

pub use follow::{LogBody, open};
pub use options::{LogOptions, OptionsError, StreamFilter};
