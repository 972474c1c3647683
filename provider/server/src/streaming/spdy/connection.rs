//! One SPDY connection: a task that reads, a task that writes, and the table of streams between them.
//!
//! Owns the life of the socket. Memory is bounded by construction: [`Limits::streams`] streams, [`QUEUE`] pieces of
//! input each, [`QUEUE`] frames of output in all; a full queue stops the reading of the socket. Every way a connection
//! can end cancels [`Connection::closed`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::codec::{Encoder as _, FramedRead};
use tokio_util::sync::CancellationToken;

use super::frame::{Decoder, Encoder, Frame, goaway, reset};
use super::headers::Headers;
use crate::streaming::PeerGone;

/// Pieces of input a stream, and frames of output a connection, that may wait.
pub const QUEUE: usize = 16;
/// How long the peer has to hang up after GOAWAY, so that it reads all that was sent before it.
const LINGER: Duration = Duration::from_secs(10);
/// Sent so that a peer which vanished is noticed by the failing write.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a peer that broke the protocol is waited for while it is told so.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Output is gathered up to this size before it is written.
const GATHER: usize = 64 * 1024;

/// What a peer may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams open at once.
    pub streams: usize,
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
struct Shared {
    streams: Mutex<HashMap<u32, Entry>>,
    out: mpsc::Sender<Outgoing>,
    closed: CancellationToken,
}

#[derive(Debug)]
struct Entry {
    /// Gone once the peer has ended its direction.
    data: Option<mpsc::Sender<Bytes>>,
    local_ended: bool,
    reset: CancellationToken,
}

#[derive(Debug)]
enum Outgoing {
    Frame(Frame),
    /// The last frame, and how long the peer then has to hang up.
    Last(Frame, Duration),
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        // The table is consistent between any two statements that hold the lock.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, frame: Frame) -> Result<(), PeerGone> {
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

    fn end_remote(&self, stream: u32) {
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
        let reader = Reader {
            shared: shared.clone(),
            accepted,
            limits,
            last_stream: 0,
        };
        tokio::spawn(reader.run(read));
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
    stream: u32,
    headers: Headers,
    data: mpsc::Receiver<Bytes>,
    reset: CancellationToken,
    shared: Arc<Shared>,
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

struct Reader {
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
    async fn run<IO: AsyncRead>(mut self, read: ReadHalf<IO>) {
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
                    return !matches!(error, super::frame::FrameError::Io(_));
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
        let (data, input) = mpsc::channel(QUEUE);
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

async fn write_frames<IO: AsyncWrite>(mut io: WriteHalf<IO>, mut frames: mpsc::Receiver<Outgoing>, closed: CancellationToken) {
    let linger = tokio::select! {
        written = write_until_last(&mut io, &mut frames) => written.ok(),
        () = closed.cancelled() => None,
    };
    // From here on senders fail instead of waiting.
    drop(frames);
    if let Some(linger) = linger {
        tokio::select! {
            () = sleep(linger) => {}
            () = closed.cancelled() => {}
        }
    }
    // The peer may not take the goodbye of the layers below.
    let _ = timeout(LAST_WORD, io.shutdown()).await;
    closed.cancel();
}

async fn write_until_last<IO: AsyncWrite>(io: &mut WriteHalf<IO>, frames: &mut mpsc::Receiver<Outgoing>) -> std::io::Result<Duration> {
    let mut encoder = Encoder::default();
    let mut buffer = BytesMut::with_capacity(GATHER);
    let mut pings = interval_at(tokio::time::Instant::now() + PING_EVERY, PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ping = 0_u32;
    loop {
        let mut next = tokio::select! {
            next = frames.recv() => next,
            _ = pings.tick() => {
                ping = ping.wrapping_add(2) & 0x7fff_fffe;
                Some(Outgoing::Frame(Frame::Ping { id: ping.max(2) }))
            }
        };
        let mut last = None;
        while let Some(outgoing) = next {
            match outgoing {
                Outgoing::Frame(frame) => encoder.encode(&frame, &mut buffer)?,
                Outgoing::Last(frame, linger) => {
                    encoder.encode(&frame, &mut buffer)?;
                    last = Some(linger);
                    break;
                }
            }
            if buffer.len() >= GATHER {
                break;
            }
            next = frames.try_recv().ok();
        }
        if buffer.is_empty() {
            // All senders have gone.
            return Ok(Duration::ZERO);
        }
        io.write_all_buf(&mut buffer).await?;
        io.flush().await?;
        if let Some(linger) = last {
            return Ok(linger);
        }
    }
}
