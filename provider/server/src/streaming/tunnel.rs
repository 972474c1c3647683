//! SPDY inside a WebSocket, as `kubectl port-forward` speaks it (KEP-4006): the bytes of the binary messages, one after the
//! other, are the connection.
//!
//! Refuses nothing of the bytes: what they mean is SPDY's to know. Text messages are bytes as well.

use std::io;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _, future};
use tokio::io::{AsyncRead, AsyncWrite, join};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

/// The WebSocket as a stream of bytes.
pub fn bytes(socket: WebSocket) -> impl AsyncRead + AsyncWrite + Send + 'static {
    let (sink, stream) = socket.split();
    let incoming = stream
        // The end of the WebSocket, said or not, is the end of the bytes.
        .take_while(|message| future::ready(!matches!(message, Ok(Message::Close(_)))))
        .filter_map(|message| {
            future::ready(match message {
                Ok(Message::Binary(payload)) => Some(Ok(payload)),
                Ok(Message::Text(text)) => Some(Ok(text.into())),
                Ok(_) => None,
                Err(error) => Some(Err(io::Error::other(error))),
            })
        });
    let outgoing = sink
        .sink_map_err(io::Error::other)
        .with(|payload: Bytes| future::ready(Ok::<_, io::Error>(Message::Binary(payload))));
    join(StreamReader::new(incoming), SinkWriter::new(CopyToBytes::new(outgoing)))
}
