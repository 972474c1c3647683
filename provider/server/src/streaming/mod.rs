//! Remote commands and forwarded ports over a long-lived connection: SPDY/3.1 and WebSocket underneath, one session above.
//!
//! Owns the codecs, the negotiation and the copying of bytes. For commands both transports end in [`ClientStreams`];
//! nothing above this module knows which one the client came with. Ports are forwarded over SPDY, bare or inside a
//! WebSocket ([`tunnel`]), or over the channels of a WebSocket.

pub mod negotiate;
pub mod port_forward;
pub mod port_forward_websocket;
pub mod remotecommand;
pub mod session;
pub mod spdy;
pub mod status;
pub mod tunnel;
pub mod websocket;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::negotiate::StatusFormat;

/// The client has hung up, or reset the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has gone")]
pub struct PeerGone;

/// Bytes from the client; the end of the channel is the end of the stream.
pub type Input = mpsc::Receiver<Bytes>;

/// A way for bytes to the client: each call returns when there is room, so a slow client slows its source.
#[derive(Debug)]
pub enum Output {
    /// A SPDY stream.
    Spdy(spdy::SpdyOutput),
    /// A channel of a WebSocket.
    WebSocket(websocket::ChannelOutput),
}

impl Output {
    /// Sends bytes.
    pub async fn send(&self, payload: Bytes) -> Result<(), PeerGone> {
        match self {
            Self::Spdy(output) => output.send(payload).await,
            Self::WebSocket(output) => output.send(payload).await,
        }
    }

    /// Ends the stream, where the transport can say so.
    pub async fn finish(self) -> Result<(), PeerGone> {
        match self {
            Self::Spdy(output) => output.finish().await,
            // Only the close of the whole connection ends a channel towards the client.
            Self::WebSocket(_) => Ok(()),
        }
    }
}

/// The client's side of one remote command.
#[derive(Debug)]
pub struct ClientStreams {
    /// What the client types.
    pub stdin: Option<Input>,
    /// Where output goes.
    pub stdout: Option<Output>,
    /// Where error output goes.
    pub stderr: Option<Output>,
    /// Terminal sizes as concatenated JSON.
    pub resize: Option<Input>,
    /// Where the outcome goes, last.
    pub error: Output,
    /// How the outcome is written.
    pub status: StatusFormat,
    /// What is being done, for the outcome's words: `executing command in container`.
    pub doing: &'static str,
    /// Cancelled when the client has gone.
    pub gone: CancellationToken,
}
