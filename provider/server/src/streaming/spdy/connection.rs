//! One SPDY connection as its user sees it, and the table of streams between the task that reads and the one that writes.
//!
//! Owns the life of the socket. Memory is bounded by construction: [`Limits::streams`] streams, [`Limits::queue`] pieces
//! of input each, [`QUEUE`] frames of output in all; a full queue stops the reading of the socket. Every way a connection
//! can end cancels [`Connection::closed`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::frame::{Frame, goaway, reset};
use super::headers::Headers;
use super::reader::Reader;
use super::writer::{Outgoing, write_frames};
use crate::streaming::PeerGone;

/// Frames of output that may wait.
const QUEUE: usize = 16;
/// How long the peer has to hang up after GOAWAY, so that it reads all that was sent before it.
const LINGER: Duration = Duration::from_secs(10);

/// What a peer may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams open at once.
    pub streams: usize,
    /// Pieces of a stream's input that may wait, each of at most [`MAX_PIECE`](super::frame::MAX_PIECE) bytes.
    pub queue: usize,
    /// The connection ends when nothing was read for so long.
    pub idle: Duration,
}

/// A connection being served.
#[derive(Debug)]
pub struct Connection {
    incoming: mpsc::Receiver<IncomingStream>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) streams: Mutex<HashMap<u32, Entry>>,
    pub(super) out: mpsc::Sender<Outgoing>,
    pub(super) closed: CancellationToken,
}

#[derive(Debug)]
pub(super) struct Entry {
    /// Gone once the peer has ended its direction.
    pub(super) data: Option<mpsc::Sender<Bytes>>,
    pub(super) local_ended: bool,
    pub(super) reset: CancellationToken,
}

impl Shared {
    pub(super) fn table(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        // The table is consistent between any two statements that hold the lock.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn send(&self, frame: Frame) -> Result<(), PeerGone> {
        self.out.send(Outgoing::Frame(frame)).await.map_err(|_| PeerGone)
    }

    /// Notes that this side has ended its direction.
    fn end_local(&self, stream: u32) {
        let mut table = self.table();
        if let Some(entry) = table.get_mut(&stream) {
            entry.local_ended = true;
            if entry.data.is_none() {
                table.remove(&stream);
            }
        }
    }

    pub(super) fn end_remote(&self, stream: u32) {
        let mut table = self.table();
        if let Some(entry) = table.get_mut(&stream) {
            entry.data = None;
            if entry.local_ended {
                table.remove(&stream);
            }
        }
    }
}

impl Connection {
    /// Starts to serve `io`, whose upgrade to SPDY/3.1 is done.
    pub fn start<IO>(io: IO, limits: Limits) -> Self
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (out, frames) = mpsc::channel(QUEUE);
        let (accepted, incoming) = mpsc::channel(limits.streams.max(1));
        let shared = Arc::new(Shared {
            streams: Mutex::default(),
            out,
            closed: CancellationToken::new(),
        });
        tokio::spawn(write_frames(write, frames, shared.closed.clone()));
        tokio::spawn(Reader::new(shared.clone(), accepted, limits).run(read));
        Self { incoming, shared }
    }

    /// The next stream the peer opens; none once the connection has ended.
    pub async fn accept(&mut self) -> Option<IncomingStream> {
        tokio::select! {
            stream = self.incoming.recv() => stream,
            () = self.shared.closed.cancelled() => None,
        }
    }

    /// Cancelled when the connection has ended, whoever ended it.
    pub fn closed(&self) -> CancellationToken {
        self.shared.closed.clone()
    }

    /// Says goodbye after all that was sent, and waits until the peer hung up (or had its time to).
    pub async fn close(self) {
        let unfinished: Vec<u32> = self.shared.table().drain().map(|(stream, _)| stream).collect();
        for stream in unfinished {
            if self
                .shared
                .send(Frame::RstStream {
                    stream,
                    status: reset::CANCEL,
                })
                .await
                .is_err()
            {
                return;
            }
        }
        let goodbye = Frame::GoAway {
            last_good: 0,
            status: goaway::OK,
        };
        if self.shared.out.send(Outgoing::Last(goodbye, LINGER)).await.is_ok() {
            self.shared.closed.cancelled().await;
        }
    }

    /// Drops the connection at once.
    pub fn abort(self) {
        self.shared.closed.cancel();
    }
}

/// A stream the peer opened and this side has not answered yet.
#[derive(Debug)]
pub struct IncomingStream {
    pub(super) stream: u32,
    pub(super) headers: Headers,
    pub(super) data: mpsc::Receiver<Bytes>,
    pub(super) reset: CancellationToken,
    pub(super) shared: Arc<Shared>,
}

impl IncomingStream {
    /// The headers it was opened with.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.stream
    }

    /// Answers SYN_REPLY; gives the bytes that come and the way for those that go.
    pub async fn accept(self) -> Result<(mpsc::Receiver<Bytes>, SpdyOutput), PeerGone> {
        let reply = Frame::SynReply {
            stream: self.stream,
            fin: false,
            headers: Headers::default(),
        };
        self.shared.send(reply).await?;
        let output = SpdyOutput {
            stream: self.stream,
            reset: self.reset,
            shared: self.shared,
        };
        Ok((self.data, output))
    }

    /// Answers RST_STREAM with `status`.
    pub async fn refuse(self, status: u32) -> Result<(), PeerGone> {
        self.shared.table().remove(&self.stream);
        self.shared
            .send(Frame::RstStream {
                stream: self.stream,
                status,
            })
            .await
    }
}

/// This side's direction of one stream.
#[derive(Debug)]
pub struct SpdyOutput {
    stream: u32,
    reset: CancellationToken,
    shared: Arc<Shared>,
}

impl SpdyOutput {
    /// Cancelled when the stream was reset, or the connection has ended: nobody reads what is sent any more.
    pub fn given_up(&self) -> CancellationToken {
        self.reset.clone()
    }

    /// Ends the stream both ways at once with RST_STREAM.
    pub async fn reset(self, status: u32) -> Result<(), PeerGone> {
        self.shared.table().remove(&self.stream);
        let stream = self.stream;
        self.shared.send(Frame::RstStream { stream, status }).await
    }

    /// Sends bytes, at the pace the peer reads.
    pub async fn send(&self, payload: Bytes) -> Result<(), PeerGone> {
        self.data(payload, false).await
    }

    /// Ends this direction.
    pub async fn finish(self) -> Result<(), PeerGone> {
        self.data(Bytes::new(), true).await?;
        self.shared.end_local(self.stream);
        Ok(())
    }

    async fn data(&self, payload: Bytes, fin: bool) -> Result<(), PeerGone> {
        tokio::select! {
            biased;
            () = self.reset.cancelled() => Err(PeerGone),
            () = self.shared.closed.cancelled() => Err(PeerGone),
            sent = self.shared.send(Frame::Data { stream: self.stream, fin, payload }) => sent,
        }
    }
}
