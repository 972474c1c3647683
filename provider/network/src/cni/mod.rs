//! Owns the client side of the CNI specification, version 1.0.0: a list of plugins run one after the other.
//!
//! Knows neither pods nor namespaces beyond what it is told. Keeps nothing: the caller remembers an attachment and its
//! result for CHECK and DEL (the specification's result cache).

mod exec;
mod list;
mod result;

pub use exec::{CniError, Plugins};
pub use list::{Attachment, Command, ConfigList};
pub use result::{AddResult, Address, Interface, Route};
