//! A command run in a container that runs already, and a container's own streams.

use serde::{Deserialize, Serialize};

use crate::ErrorKind;

/// The command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Container identifier.
    pub container: String,
    /// Command and arguments; environment, user and directory are the container's.
    pub args: Vec<String>,
    /// Whether standard input comes from the session; else /dev/null.
    pub stdin: bool,
    /// Whether standard output is sent.
    pub stdout: bool,
    /// Whether standard error is sent.
    pub stderr: bool,
    /// On a terminal (standard error then goes to standard output).
    pub terminal: bool,
}

/// The streams of a container's own process, from now on. Its end is a session's end; the end of a session is not its.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachSpec {
    /// Container identifier.
    pub container: String,
    /// Whether the session may write to standard input, where the container has one.
    pub stdin: bool,
    /// Whether standard output is sent.
    pub stdout: bool,
    /// Whether standard error is sent.
    pub stderr: bool,
}

/// From the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecInput {
    /// Bytes for standard input, at most [`crate::MAX_CHUNK`].
    Stdin(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Standard input has ended.
    StdinClosed,
    /// The terminal's size.
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
}

/// From the agent. A connection that ends without [`ExecOutput::Exited`] was cut; one that the host closes kills the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecOutput {
    /// Bytes of standard output, at most [`crate::MAX_CHUNK`].
    Stdout(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Bytes of standard error.
    Stderr(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The last frame.
    Exited {
        /// Exit code; 128 + signal when a signal ended it.
        code: i32,
    },
    /// The last frame: it could not go on.
    Failed {
        /// The kind.
        kind: ErrorKind,
        /// A sentence.
        message: String,
    },
}
