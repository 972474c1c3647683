//! One layer: a compressed tar stream in, a data file and an index out, nothing ever unpacked.
//!
//! A layer's index is what its tar says, in order and with safe paths; what it means on top of other layers is `merge`'s matter.

mod convert;
mod data;
mod error;
mod index;
mod limits;
mod path;
mod pax;
mod pipe;
mod tar;

pub(crate) use convert::{Converted, Expected, convert};
pub(crate) use error::{LayerError, is_disk_full};
pub(crate) use index::{Entry, EntryKind, LayerIndex};
pub use limits::{Limit, Limits};
pub(crate) use pipe::sha256_text;
