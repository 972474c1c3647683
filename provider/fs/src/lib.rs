//! One directory of the host, served to one guest: FUSE messages (Linux's `fuse.h`, version 7) in and out of a Unix stream socket, as the
//! guest's virtio-fs device forwards them.
//!
//! Each file that the guest knows is an open descriptor, reached from its directory by one name at a time and never through a symbolic
//! link; so nothing that a guest says leads out of the directory, whatever others rename meanwhile. Links are read, not
//! followed: what they mean is the guest's affair. Only plain files and directories are ever opened for their content, and no device is
//! made. What is created belongs to whom the guest says; who may do what is decided by the guest's kernel, for which all of this is.
//!
//! Confines nothing by itself: the process that calls [`Server::serve`] shall have the directory as its root, with
//! nothing mounted below it, and no right beyond those of owning files. Locks are the guest's own; watches of what others change there are none.

mod attributes;
mod directory;
mod file;
mod node;
mod owner;
mod server;
mod table;
mod wire;

pub use owner::keep_capabilities;
pub use server::{Limits, ServeError, Server};
