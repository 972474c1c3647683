//! The reading half of a connection: frames to streams, refusals of what breaks the protocol.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::io::{AsyncRead, ReadHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;

use super::connection::{Entry, IncomingStream, Limits, Shared};
use super::frame::{Decoder, Frame, FrameError, goaway, reset};
use super::headers::Headers;
use super::writer::{LAST_WORD, Outgoing};
use crate::streaming::PeerGone;

/// Takes frames to the streams they are for.
pub(super) struct Reader {
    shared: Arc<Shared>,
    accepted: mpsc::Sender<IncomingStream>,
    limits: Limits,
    last_stream: u32,
}

/// The peer opened a stream with a number it may not use.
#[derive(Debug, thiserror::Error)]
#[error("SPDY stream {0} is out of order")]
struct OutOfOrder(u32);

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, accepted: mpsc::Sender<IncomingStream>, limits: Limits) -> Self {
        Self {
            shared,
            accepted,
            limits,
            last_stream: 0,
        }
    }

    /// Runs until the connection has ended.
    pub(super) async fn run<IO: AsyncRead>(mut self, read: ReadHalf<IO>) {
        let closed = self.shared.closed.clone();
        let broken = tokio::select! {
            broken = self.read_frames(read) => broken,
            () = closed.cancelled() => false,
        };
        if broken {
            let last = Frame::GoAway {
                last_good: self.last_stream,
                status: goaway::PROTOCOL_ERROR,
            };
            // The peer may not read: it is told if it can be.
            let _ = timeout(LAST_WORD, self.shared.out.send(Outgoing::Last(last, Duration::ZERO))).await;
            let _ = timeout(LAST_WORD, closed.cancelled()).await;
        }
        closed.cancel();
        for (_, entry) in self.shared.table().drain() {
            entry.reset.cancel();
        }
    }

    /// Runs until the connection ends; true if the peer broke the protocol.
    async fn read_frames<IO: AsyncRead>(&mut self, read: ReadHalf<IO>) -> bool {
        let mut frames = FramedRead::new(read, Decoder::default());
        loop {
            match timeout(self.limits.idle, frames.next()).await {
                Ok(Some(Ok(frame))) => match self.handle(frame).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "SPDY peer broke the protocol");
                        return true;
                    }
                    Err(PeerGone) => return false,
                },
                Ok(Some(Err(error))) => {
                    tracing::debug!(%error, "SPDY connection is unreadable");
                    return !matches!(error, FrameError::Io(_));
                }
                Ok(None) | Err(_) => return false,
            }
        }
    }

    async fn handle(&mut self, frame: Frame) -> Result<Result<(), OutOfOrder>, PeerGone> {
        match frame {
            Frame::SynStream {
                stream,
                fin,
                unidirectional,
                headers,
            } => {
                if stream.is_multiple_of(2) || stream <= self.last_stream {
                    return Ok(Err(OutOfOrder(stream)));
                }
                self.last_stream = stream;
                self.open(stream, fin, unidirectional, headers).await?;
            }
            Frame::Data { stream, fin, payload } => self.deliver(stream, fin, payload).await?,
            Frame::Headers { stream, fin: true, .. } => self.shared.end_remote(stream),
            Frame::RstStream { stream, .. } => {
                if let Some(entry) = self.shared.table().remove(&stream) {
                    entry.reset.cancel();
                }
            }
            // Pings of the peer are odd; even ones are answers to this side's.
            Frame::Ping { id } if id % 2 == 1 => self.answer(Frame::Ping { id }).await,
            Frame::Ping { .. } | Frame::Headers { .. } | Frame::SynReply { .. } | Frame::GoAway { .. } | Frame::Ignored => {}
        }
        Ok(Ok(()))
    }

    /// Sends unless this side has already said goodbye; then the rest is read only to find the end.
    async fn answer(&self, frame: Frame) {
        let _ = self.shared.send(frame).await;
    }

    async fn open(&self, stream: u32, fin: bool, unidirectional: bool, headers: Headers) -> Result<(), PeerGone> {
        let refused = Frame::RstStream {
            stream,
            status: reset::REFUSED_STREAM,
        };
        let (data, input) = mpsc::channel(self.limits.queue.max(1));
        let reset = CancellationToken::new();
        let incoming = {
            let mut table = self.shared.table();
            if table.len() >= self.limits.streams {
                None
            } else {
                let data = (!fin).then_some(data);
                table.insert(
                    stream,
                    Entry {
                        data,
                        local_ended: unidirectional,
                        reset: reset.clone(),
                    },
                );
                Some(IncomingStream {
                    stream,
                    headers,
                    data: input,
                    reset,
                    shared: self.shared.clone(),
                })
            }
        };
        let Some(incoming) = incoming else {
            self.answer(refused).await;
            return Ok(());
        };
        if self.accepted.try_send(incoming).is_err() {
            self.shared.table().remove(&stream);
            self.answer(refused).await;
        }
        Ok(())
    }

    async fn deliver(&self, stream: u32, fin: bool, payload: Bytes) -> Result<(), PeerGone> {
        if stream > self.last_stream || stream.is_multiple_of(2) {
            self.answer(Frame::RstStream {
                stream,
                status: reset::INVALID_STREAM,
            })
            .await;
            return Ok(());
        }
        // Data of a stream that has ended may still be on its way: it is read and forgotten.
        let sender = self.shared.table().get(&stream).and_then(|entry| entry.data.clone());
        if let Some(sender) = sender
            && !payload.is_empty()
        {
            // Full: the socket is not read until the consumer takes some. Failed: the consumer has gone.
            let _ = sender.send(payload).await;
        }
        if fin {
            self.shared.end_remote(stream);
        }
        Ok(())
    }
}
