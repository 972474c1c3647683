//! JSON messages with descriptors over a Unix stream socket: `u32` length, `u32` number of descriptors (both little-endian), the body; the
//! descriptors travel by SCM_RIGHTS beside its first bytes. Refuses more than [`MAX_MESSAGE`] bytes and [`MAX_DESCRIPTORS`] descriptors,
//! and messages that come with fewer descriptors than they say.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// Most bytes of one message's body.
const MAX_MESSAGE: usize = 4 << 20;
/// Most descriptors of one message.
const MAX_DESCRIPTORS: usize = 1024;
const HEADER: usize = 8;
/// Descriptors in one system call; the kernel takes 253.
const BATCH: usize = 200;

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer has closed between two messages.
    #[error("the peer closed the connection")]
    Closed,
    /// Nothing came in time.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// Sending or receiving failed, or the stream ended within a message.
    #[error("transfer a message")]
    Io(#[source] io::Error),
    /// More bytes or descriptors than are allowed, or descriptors that are missing.
    #[error("a message exceeds its limits or lost its descriptors")]
    Limits,
    /// The bytes are not the expected message.
    #[error("read a message")]
    Malformed(#[source] serde_json::Error),
}

fn failed(error: impl Into<io::Error>) -> WireError {
    let error = error.into();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => WireError::TimedOut,
        _ => WireError::Io(error),
    }
}

/// Sends a message; the socket's write timeout applies.
pub(crate) fn send<T: Serialize>(stream: &UnixStream, message: &T, descriptors: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    let frame = frame(message, descriptors.len())?;
    let mut done = 0;
    // A byte of the header for each batch, so that all descriptors have come before the body.
    for batch in descriptors.chunks(BATCH) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(batch)) {
            return Err(WireError::Limits);
        }
        done += transfer(stream, &frame[done..=done], &mut control)?;
    }
    while done < frame.len() {
        done += transfer(stream, &frame[done..], &mut SendAncillaryBuffer::default())?;
    }
    Ok(())
}

/// A message as bytes, which come with so many descriptors.
pub(crate) fn frame<T: Serialize>(message: &T, descriptors: usize) -> Result<Vec<u8>, WireError> {
    let body = serde_json::to_vec(message).map_err(WireError::Malformed)?;
    if body.len() > MAX_MESSAGE || descriptors > MAX_DESCRIPTORS {
        return Err(WireError::Limits);
    }
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend_from_slice(&u32::try_from(body.len()).expect("bounded above").to_le_bytes());
    frame.extend_from_slice(&u32::try_from(descriptors).expect("bounded above").to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

fn transfer(stream: &UnixStream, bytes: &[u8], control: &mut SendAncillaryBuffer<'_, '_, '_>) -> Result<usize, WireError> {
    rustix::io::retry_on_intr(|| sendmsg(stream, &[IoSlice::new(bytes)], control, SendFlags::NOSIGNAL)).map_err(failed)
}

/// Receives messages of one stream.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: UnixStream,
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Receiver {
    /// Receives from `stream`, whose read timeout applies.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
            descriptors: VecDeque::new(),
        }
    }

    /// The stream.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The next message and its descriptors (closed on exec).
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), WireError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.fill()?;
        }
    }

    /// Whether a whole message has been read already.
    pub(crate) fn buffered(&self) -> bool {
        matches!(self.lengths(), Ok(Some((length, _))) if self.bytes.len() >= HEADER + length)
    }

    fn lengths(&self) -> Result<Option<(usize, usize)>, WireError> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [a, b, c, d, e, f, g, h] = *header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let count = u32::from_le_bytes([e, f, g, h]) as usize;
        if length > MAX_MESSAGE || count > MAX_DESCRIPTORS {
            return Err(WireError::Limits);
        }
        Ok(Some((length, count)))
    }

    fn take<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
        let Some((length, count)) = self.lengths()? else { return Ok(None) };
        if self.bytes.len() < HEADER + length {
            return Ok(None);
        }
        if self.descriptors.len() < count {
            return Err(WireError::Limits);
        }
        let message = serde_json::from_slice(&self.bytes[HEADER..HEADER + length]).map_err(WireError::Malformed)?;
        self.bytes.drain(..HEADER + length);
        Ok(Some((message, self.descriptors.drain(..count).collect())))
    }

    fn fill(&mut self) -> Result<(), WireError> {
        let mut buffer = [0u8; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let buffers = &mut [IoSliceMut::new(&mut buffer)];
            recvmsg(self.stream.as_fd(), buffers, &mut control, RecvFlags::CMSG_CLOEXEC)
        })
        .map_err(failed)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(WireError::Limits);
        }
        if received.bytes == 0 {
            return Err(if self.bytes.is_empty() {
                WireError::Closed
            } else {
                WireError::Io(io::ErrorKind::UnexpectedEof.into())
            });
        }
        self.bytes.extend_from_slice(&buffer[..received.bytes]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Seek, Write},
        time::Duration,
    };

    use super::*;

    fn pair() -> (UnixStream, Receiver) {
        let (a, b) = UnixStream::pair().unwrap();
        b.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (a, Receiver::new(b))
    }

    #[test]
    fn more_descriptors_than_one_call_takes_arrive_in_order() {
        let (a, mut b) = pair();
        let files: Vec<File> = (0..450u32)
            .map(|i| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&i.to_le_bytes()).unwrap();
                file
            })
            .collect();
        let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send(&a, &"before", &[]).unwrap();
        send(&a, &"with", &borrowed).unwrap();
        send(&a, &"after", &borrowed[..1]).unwrap();
        assert_eq!(b.receive::<String>().unwrap().0, "before");
        let (message, descriptors) = b.receive::<String>().unwrap();
        assert_eq!((message.as_str(), descriptors.len()), ("with", 450));
        for (i, descriptor) in descriptors.into_iter().enumerate() {
            let (mut file, mut bytes) = (File::from(descriptor), [0; 4]);
            file.rewind().unwrap();
            file.read_exact(&mut bytes).unwrap();
            assert_eq!(u32::from_le_bytes(bytes), i as u32);
        }
        assert_eq!(b.receive::<String>().unwrap().1.len(), 1);
        drop(a);
        assert!(matches!(b.receive::<String>(), Err(WireError::Closed)));
    }

    #[test]
    fn announcements_above_the_limits_are_refused_at_once() {
        for header in [[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], [1, 0, 0, 0, 0xff, 0xff, 0, 0]] {
            let (mut a, mut b) = pair();
            a.write_all(&header).unwrap();
            assert!(matches!(b.receive::<String>(), Err(WireError::Limits)));
        }
        let (mut a, mut b) = pair();
        a.write_all(&[2, 0, 0, 0, 1, 0, 0, 0, b'"', b'"']).unwrap();
        assert!(matches!(b.receive::<String>(), Err(WireError::Limits)));
    }

    #[test]
    fn a_message_cut_short_is_not_an_end() {
        let (mut a, mut b) = pair();
        a.write_all(&[9, 0, 0, 0, 0, 0, 0, 0, b'"']).unwrap();
        drop(a);
        assert!(matches!(b.receive::<String>(), Err(WireError::Io(_))));
    }
}
