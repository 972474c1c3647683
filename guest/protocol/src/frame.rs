//! Frames: a little-endian `u32` length, then that many bytes of postcard. Blocking readers and writers; an async host uses
//! [`encode`] and [`decode`] around its own reads.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream ended between two frames.
    #[error("the peer closed the connection")]
    Closed,
    /// Reading or writing failed, or the stream ended within a frame.
    #[error("transfer a frame")]
    Io(#[source] io::Error),
    /// The peer announced more than it may send.
    #[error("a frame of {length} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Announced length, bytes.
        length: usize,
        /// What is accepted, bytes.
        limit: usize,
    },
    /// The bytes are not the expected message.
    #[error("a frame does not hold the expected message: {0}")]
    Malformed(String),
}

/// One message as a whole frame, length first.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let body = postcard::to_allocvec(message).expect("plain data always serialises into memory");
    let length = u32::try_from(body.len()).expect("messages stay far below 4 GiB");
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&body);
    frame
}

/// The message in a frame's body (without its length); trailing bytes are an error.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(body).map_err(|e| FrameError::Malformed(e.to_string()))?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(FrameError::Malformed(format!("{} bytes too many", rest.len())))
    }
}

/// Checks an announced length against `limit` before anything is allocated.
pub fn check_length(length: [u8; 4], limit: usize) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(length) as usize;
    if length > limit {
        Err(FrameError::TooLarge { length, limit })
    } else {
        Ok(length)
    }
}

/// Reads one message of at most `limit` bytes.
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read, limit: usize) -> Result<T, FrameError> {
    let mut length = [0u8; 4];
    let first = loop {
        match from.read(&mut length) {
            Ok(n) => break n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(FrameError::Io(e)),
        }
    };
    if first == 0 {
        return Err(FrameError::Closed);
    }
    from.read_exact(&mut length[first..]).map_err(FrameError::Io)?;
    let mut body = vec![0; check_length(length, limit)?];
    from.read_exact(&mut body).map_err(FrameError::Io)?;
    decode(&body)
}

/// Writes one message.
pub fn write_frame<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FrameError> {
    to.write_all(&encode(message)).map_err(FrameError::Io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Request, Response};

    #[test]
    fn a_message_survives_the_wire() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &Request::Remove { container: "c".into() }).unwrap();
        write_frame(&mut wire, &Request::List).unwrap();
        let mut from = wire.as_slice();
        assert_eq!(
            read_frame::<Request>(&mut from, 100).unwrap(),
            Request::Remove { container: "c".into() }
        );
        assert_eq!(read_frame::<Request>(&mut from, 100).unwrap(), Request::List);
        assert!(matches!(read_frame::<Request>(&mut from, 100), Err(FrameError::Closed)));
    }

    #[test]
    fn bytes_are_on_the_wire_as_they_are_behind_their_length() {
        let frame = encode(&crate::ExecInput::Stdin(vec![200; 300]));
        // 303 bytes follow: the first of the kinds, a length of 300 in two bytes, the bytes themselves.
        assert_eq!(frame[..7], [0x2f, 1, 0, 0, 0, 0xac, 2]);
        assert_eq!(frame[7..], [200; 300]);
    }

    #[test]
    fn four_gibibytes_announced_are_refused_before_anything_is_allocated() {
        let mut from = [0xff_u8, 0xff, 0xff, 0xff, 1, 2, 3].as_slice();
        assert!(matches!(
            read_frame::<Response>(&mut from, 1 << 20),
            Err(FrameError::TooLarge { .. })
        ));
    }

    #[test]
    fn trailing_bytes_and_garbage_are_malformed() {
        let mut frame = encode(&Request::List);
        frame.push(7);
        assert!(matches!(decode::<Request>(&frame[4..]), Err(FrameError::Malformed(_))));
        assert!(matches!(decode::<Request>(&[0xff; 9]), Err(FrameError::Malformed(_))));
    }

    #[test]
    fn a_stream_cut_within_a_frame_is_an_error_and_not_an_end() {
        let frame = encode(&Request::Remove { container: "abc".into() });
        for cut in 1..frame.len() {
            let mut from = &frame[..cut];
            assert!(
                matches!(read_frame::<Request>(&mut from, 100), Err(FrameError::Io(_))),
                "cut at {cut}"
            );
        }
    }
}
