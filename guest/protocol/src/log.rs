//! Containers' output on its way to the host's log files.

use serde::{Deserialize, Serialize};

/// A line, or a part of one. Sequence numbers count from 1 for each container, without gaps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Container identifier.
    pub container: String,
    /// Sequence number.
    pub sequence: u64,
    /// Which stream.
    pub stream: LogStream,
    /// When it was read, nanoseconds since 1970.
    pub time: u64,
    /// The line goes on in the next record of this stream (CRI tag `P`).
    pub partial: bool,
    /// Bytes without the newline, at most 16,384.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

/// A standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Everything of `container` up to `sequence` is in its file; the agent may forget it. After a reconnect the agent sends again
/// what was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAck {
    /// Container identifier.
    pub container: String,
    /// The last written sequence number.
    pub sequence: u64,
}
