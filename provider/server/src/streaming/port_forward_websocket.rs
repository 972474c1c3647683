//! Forwarded ports over the channels of a WebSocket: for the port number `n` of the request (counted from 0) channel 2n
//! has the bytes and channel 2n+1 what went wrong; each begins with the port as two bytes, the lower one first.
//!
//! One connection a port, as the protocol has no more. A client ends its direction only by hanging up, or in v5 by a
//! half-close; a port's end ends the WebSocket once all ports have ended.

use std::time::Duration;

use axum::extract::ws::WebSocket;
use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::negotiate::WebSocketProtocol;
use super::port_forward::{PIECE, copy_to_pod, failure};
use super::websocket::{ChannelOutput, Channels};
use super::{Input, PeerGone};
use crate::backend::{Backend, PortConnection, PortForwardRequest};

/// The most ports one client may name: a channel's number is a byte, of which one is no channel.
pub const PORTS: usize = 127;

/// Serves the connections of one client to their end. `ports` are at most [`PORTS`].
pub async fn serve<B: Backend>(
    socket: WebSocket,
    protocol: WebSocketProtocol,
    (request, ports): (&PortForwardRequest, &[u16]),
    backend: &B,
    (idle, shutdown): (Duration, CancellationToken),
) {
    let numbers = || (0..=u8::MAX).step_by(2).take(ports.len());
    let mut channels = Channels::start(socket, protocol, numbers(), idle, &shutdown);
    let gone = channels.gone();
    let mut forwards = Vec::with_capacity(ports.len());
    for (data, port) in numbers().zip(ports) {
        let Some(input) = channels.input(data) else { continue };
        let outputs = (channels.output(data), channels.output(data + 1));
        forwards.push(forward(input, outputs, *port, request, backend));
    }
    let ended = tokio::select! {
        ended = join_all(forwards) => ended.into_iter().collect(),
        () = gone.cancelled() => Err(PeerGone),
    };
    match ended {
        Ok(()) => channels.close().await,
        Err(PeerGone) => channels.abort().await,
    }
}

async fn forward<B: Backend>(
    input: Input,
    (data, error): (ChannelOutput, ChannelOutput),
    port: u16,
    request: &PortForwardRequest,
    backend: &B,
) -> Result<(), PeerGone> {
    let name = Bytes::copy_from_slice(&port.to_le_bytes());
    data.send(name.clone()).await?;
    error.send(name).await?;
    let PortConnection { mut reader, writer } = match backend.port_forward(request, port).await {
        Ok(connection) => connection,
        Err(refusal) => return error.send(failure(request, port, &refusal)).await,
    };
    let from_pod = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match reader.read_buf(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(_) => data.send(buffer.split().freeze()).await?,
                Err(cause) => {
                    let refusal = crate::backend::StreamError::Failed(cause.to_string());
                    return error.send(failure(request, port, &refusal)).await;
                }
            }
        }
    };
    let to_pod = async {
        copy_to_pod(input, writer).await;
        std::future::pending().await
    };
    tokio::select! {
        ended = from_pod => ended,
        never = to_pod => never,
    }
}
