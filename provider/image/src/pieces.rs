//! A transfer on its way from the async side to the blocking reader of a layer.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Transferred pieces that wait for a layer's conversion.
const QUEUE: usize = 32;

/// Both ends of a transfer.
pub(crate) fn pieces() -> (mpsc::Sender<Piece>, Pieces) {
    let (sender, queue) = mpsc::channel(QUEUE);
    (
        sender,
        Pieces {
            queue,
            current: Bytes::new(),
            ended: false,
        },
    )
}

/// A piece of a transfer; without an end, it was given up.
pub(crate) enum Piece {
    Bytes(Bytes),
    End,
}

/// The pieces of a transfer as a blocking reader.
pub(crate) struct Pieces {
    queue: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.queue.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the transfer was given up")),
            }
        }
        let count = buf.len().min(self.current.len());
        buf[..count].copy_from_slice(&self.current[..count]);
        self.current.advance(count);
        Ok(count)
    }
}
