//! A WebSocket as channels, which the first byte of each message names.
//!
//! Owns the channel codec (binary and base64), the half-close of v5, and one task a direction. Bounded like SPDY: a full
//! queue stops the reading of the socket.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{interval_at, timeout};
use tokio_util::sync::CancellationToken;

use super::negotiate::WebSocketProtocol;
use super::{Input, PeerGone};

/// The largest message read; a client that sends more is cut off.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// Messages are handed on in pieces of this size, [`QUEUE`] of which may wait a channel.
const PIECE: usize = 64 * 1024;
const QUEUE: usize = 16;
/// How long the client has to answer the closing handshake.
const LINGER: Duration = Duration::from_secs(10);
/// Sent so that a client which vanished is noticed by the failing write.
const PING_EVERY: Duration = Duration::from_secs(30);

/// A command's channels.
pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
/// Not a channel: the second byte names the one that ends (v5).
const CLOSE: u8 = 255;

/// One channel towards the client.
#[derive(Debug)]
pub struct ChannelOutput {
    channel: u8,
    base64: bool,
    out: mpsc::Sender<Message>,
}

impl ChannelOutput {
    /// Sends one message, when there is room.
    pub async fn send(&self, payload: Bytes) -> Result<(), PeerGone> {
        let message = encode(self.channel, &payload, self.base64);
        self.out.send(message).await.map_err(|_| PeerGone)
    }
}

fn encode(channel: u8, payload: &[u8], base64: bool) -> Message {
    if base64 {
        let mut text = String::from(char::from(b'0' + channel));
        STANDARD.encode_string(payload, &mut text);
        return Message::Text(text.into());
    }
    let mut message = BytesMut::with_capacity(payload.len() + 1);
    message.put_u8(channel);
    message.put_slice(payload);
    Message::Binary(message.freeze())
}

/// A message of the client.
#[derive(Debug, PartialEq, Eq)]
enum Incoming {
    Data(u8, Bytes),
    HalfClose(u8),
    /// Empty, or not decodable: read and forgotten, as the kubelet does.
    Nothing,
}

fn decode(message: Bytes, protocol: &WebSocketProtocol) -> Incoming {
    let Some(&first) = message.first() else { return Incoming::Nothing };
    if protocol.half_close && first == CLOSE {
        return message.get(1).map_or(Incoming::Nothing, |channel| Incoming::HalfClose(*channel));
    }
    let payload = message.slice(1..);
    if !protocol.base64 {
        return Incoming::Data(first, payload);
    }
    match STANDARD.decode(payload) {
        Ok(payload) => Incoming::Data(first.wrapping_sub(b'0'), payload.into()),
        Err(_) => Incoming::Nothing,
    }
}

/// A WebSocket as channels: what comes on those that were asked for, and ways for what goes on any.
#[derive(Debug)]
pub struct Channels {
    base64: bool,
    inputs: BTreeMap<u8, Input>,
    out: mpsc::Sender<Message>,
    gone: CancellationToken,
    tasks: (JoinHandle<()>, JoinHandle<()>),
}

impl Channels {
    /// Starts to read and write. What comes on channels other than `inputs` is read and forgotten.
    pub fn start(
        socket: WebSocket,
        protocol: WebSocketProtocol,
        inputs: impl Iterator<Item = u8>,
        idle: Duration,
        shutdown: &CancellationToken,
    ) -> Self {
        let (sink, stream) = socket.split();
        let (out, messages) = mpsc::channel(QUEUE);
        let gone = shutdown.child_token();
        let (mut senders, mut receivers) = (BTreeMap::new(), BTreeMap::new());
        for channel in inputs {
            let (sender, receiver) = mpsc::channel(QUEUE);
            senders.insert(channel, sender);
            receivers.insert(channel, receiver);
        }
        let reader = Reader { protocol, inputs: senders };
        let writing = tokio::spawn(write(sink, messages, gone.clone()));
        let reading = tokio::spawn({
            let gone = gone.clone();
            async move {
                reader.run(stream, idle, &gone).await;
                gone.cancel();
            }
        });
        Self {
            base64: protocol.base64,
            inputs: receivers,
            out,
            gone,
            tasks: (writing, reading),
        }
    }

    /// Takes what comes on a channel; none if that was not asked for.
    pub fn input(&mut self, channel: u8) -> Option<Input> {
        self.inputs.remove(&channel)
    }

    /// A way for what goes on a channel.
    pub fn output(&self, channel: u8) -> ChannelOutput {
        ChannelOutput {
            channel,
            base64: self.base64,
            out: self.out.clone(),
        }
    }

    /// Cancelled when the client has gone.
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Says goodbye after all that was sent, and waits until the client has too (or had its time to).
    pub async fn close(self) {
        let close = CloseFrame {
            code: close_code::NORMAL,
            reason: "".into(),
        };
        if self.out.send(Message::Close(Some(close))).await.is_ok() {
            // The client's own close ends the reader; a client that does not answer is left.
            let _ = timeout(LINGER, self.gone.cancelled()).await;
        }
        self.abort().await;
    }

    /// Drops the connection at once.
    pub async fn abort(self) {
        self.gone.cancel();
        // Both end on `gone`; a panic in one of them is already reported by the runtime.
        let _ = tokio::join!(self.tasks.0, self.tasks.1);
    }
}

struct Reader {
    protocol: WebSocketProtocol,
    inputs: BTreeMap<u8, mpsc::Sender<Bytes>>,
}

impl Reader {
    async fn run(mut self, mut stream: SplitStream<WebSocket>, idle: Duration, gone: &CancellationToken) {
        loop {
            let message = tokio::select! {
                message = timeout(idle, stream.next()) => message,
                () = gone.cancelled() => return,
            };
            let payload = match message {
                Ok(Some(Ok(Message::Binary(payload)))) => payload,
                Ok(Some(Ok(Message::Text(text)))) => text.into(),
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue,
                Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return,
            };
            tokio::select! {
                () = self.handle(payload) => {}
                () = gone.cancelled() => return,
            }
        }
    }

    async fn handle(&mut self, payload: Bytes) {
        match decode(payload, &self.protocol) {
            Incoming::Data(channel, mut payload) => {
                while !payload.is_empty() {
                    let piece = payload.split_to(payload.len().min(PIECE));
                    if let Some(sender) = self.inputs.get(&channel) {
                        // Failed: the consumer has gone, the rest is read and forgotten.
                        let _ = sender.send(piece).await;
                    }
                }
            }
            Incoming::HalfClose(channel) => drop(self.inputs.remove(&channel)),
            Incoming::Nothing => {}
        }
    }
}

async fn write(mut sink: SplitSink<WebSocket, Message>, mut messages: mpsc::Receiver<Message>, gone: CancellationToken) {
    let mut pings = interval_at(tokio::time::Instant::now() + PING_EVERY, PING_EVERY);
    let writing = async {
        loop {
            let mut next = tokio::select! {
                next = messages.recv() => next,
                _ = pings.tick() => Some(Message::Ping(Bytes::new())),
            };
            if next.is_none() {
                return Ok::<(), axum::Error>(());
            }
            while let Some(message) = next {
                sink.feed(message).await?;
                next = messages.try_recv().ok();
            }
            sink.flush().await?;
        }
    };
    let ended = tokio::select! {
        ended = writing => ended,
        () = gone.cancelled() => Ok(()),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "WebSocket client has gone");
    }
    gone.cancel();
}

/// What the fuzz target calls: a message as each protocol reads it. What is read as data says the same when it is sent again.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(data: &[u8]) {
    for name in ["v5.channel.k8s.io", "v4.channel.k8s.io", "base64.channel.k8s.io", ""] {
        let protocol = super::negotiate::websocket([name].into_iter().filter(|name| !name.is_empty())).expect("known");
        if let Incoming::Data(channel, payload) = decode(Bytes::copy_from_slice(data), &protocol) {
            assert!(payload.len() < data.len());
            if channel > 9 {
                continue;
            }
            let again = match encode(channel, &payload, protocol.base64) {
                Message::Binary(message) => message,
                Message::Text(message) => message.into(),
                other => panic!("{other:?} carries no channel"),
            };
            assert_eq!(decode(again, &protocol), Incoming::Data(channel, payload), "{name}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::negotiate::websocket;

    fn protocol(name: &str) -> WebSocketProtocol {
        websocket([name].into_iter()).expect("known")
    }

    #[test]
    fn messages_name_their_channel_in_the_first_byte() {
        assert_eq!(encode(STDOUT, b"hi", false), Message::Binary(Bytes::from_static(b"\x01hi")));
        assert_eq!(encode(STDERR, b"hi", true), Message::Text("2aGk=".into()));
        assert_eq!(encode(ERROR, b"", true), Message::Text("3".into()));
    }

    #[test]
    fn messages_of_clients_are_read_as_their_protocol_says() {
        let bytes = Bytes::from_static;
        let table = [
            ("v4.channel.k8s.io", bytes(b"\x00hi"), Incoming::Data(STDIN, bytes(b"hi"))),
            ("v4.channel.k8s.io", bytes(b"\xff\x00"), Incoming::Data(CLOSE, bytes(b"\x00"))),
            ("v5.channel.k8s.io", bytes(b"\xff\x00"), Incoming::HalfClose(STDIN)),
            ("v5.channel.k8s.io", bytes(b"\xff"), Incoming::Nothing),
            ("v4.channel.k8s.io", bytes(b""), Incoming::Nothing),
            ("base64.channel.k8s.io", bytes(b"0aGk="), Incoming::Data(STDIN, bytes(b"hi"))),
            ("base64.channel.k8s.io", bytes(b"0!!"), Incoming::Nothing),
            ("base64.channel.k8s.io", bytes(b"\x000aGk="), Incoming::Nothing),
        ];
        for (name, message, expected) in table {
            assert_eq!(decode(message.clone(), &protocol(name)), expected, "{name} {message:?}");
        }
    }
}
