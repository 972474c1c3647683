//! SPDY/3.1, the server's half: frames, header compression, and the multiplexing of streams over one upgraded connection.
//!
//! Knows nothing of remote commands. It has no flow control, as its usual peer has none: what a reader does not take
//! stays in a bounded queue, then in the socket.

pub mod connection;
pub mod frame;
#[cfg(test)]
mod frame_tests;
pub mod headers;
mod reader;
mod writer;

pub use connection::{Connection, IncomingStream, Limits, SpdyOutput};
pub use headers::Headers;
