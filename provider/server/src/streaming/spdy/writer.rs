//! The writing half of a connection: gathers frames, pings a silent peer, and lets the peer hang up after the last frame.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncWrite, AsyncWriteExt as _, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::codec::Encoder as _;
use tokio_util::sync::CancellationToken;

use super::frame::{Encoder, Frame};

/// Sent so that a peer which vanished is noticed by the failing write.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a peer that broke the protocol is waited for while it is told so.
pub(super) const LAST_WORD: Duration = Duration::from_secs(1);
/// Output is gathered up to this size before it is written.
const GATHER: usize = 64 * 1024;

/// What is to be written.
#[derive(Debug)]
pub(super) enum Outgoing {
    Frame(Frame),
    /// The last frame, and how long the peer then has to hang up.
    Last(Frame, Duration),
}

/// Writes until the last frame, or until the connection has ended.
pub(super) async fn write_frames<IO: AsyncWrite>(mut io: WriteHalf<IO>, mut frames: mpsc::Receiver<Outgoing>, closed: CancellationToken) {
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
