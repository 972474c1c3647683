//! A container's standard input, which several sessions may write to and one of them may close.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vsock::VsockStream;

use crate::session::write_while_connected;

/// The agent's end of it, non-blocking.
#[derive(Debug)]
pub(crate) struct Stdin {
    end: Mutex<Option<Arc<File>>>,
    once: bool,
}

impl Stdin {
    /// With `once` it is closed by the first session that ends its own.
    pub(crate) fn new(end: File, once: bool) -> Self {
        Self {
            end: Mutex::new(Some(Arc::new(end))),
            once,
        }
    }

    /// Whether the first session that ends its input ends this.
    pub(crate) fn is_once(&self) -> bool {
        self.once
    }

    /// Writes all, for as long as the host is there. To one that was closed nothing is written.
    pub(crate) fn write(&self, data: &[u8], connection: &VsockStream) -> io::Result<()> {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner).clone();
        end.map_or(Ok(()), |end| write_while_connected(&*end, data, connection))
    }

    /// Closes it, once what is being written is.
    pub(crate) fn close(&self) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
