//! A connection to a TCP port of the pod, carried through a session: the same frames both ways.

use serde::{Deserialize, Serialize};

/// One direction's frame. A connection of ours that ends without [`Forwarded::End`] was cut: the pod's connection is reset, or was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forwarded {
    /// Bytes, at most [`crate::MAX_CHUNK`].
    Bytes(#[serde(with = "serde_bytes")] Vec<u8>),
    /// This direction has ended; the other goes on.
    End,
}
