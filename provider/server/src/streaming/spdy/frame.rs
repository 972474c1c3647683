//! The frames of SPDY/3.1 on the wire, as a `tokio_util` codec without I/O.
//!
//! Owns layout and limits. Control frames are read whole and are small; the payload of DATA is handed on in pieces as it
//! arrives, so its length (up to 16 MiB) never decides how much memory a peer may take.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec;

use super::headers::{Deflater, HeaderError, Headers, Inflater};

/// The largest control frame's payload that is read.
pub const MAX_CONTROL: usize = 64 * 1024;
/// The largest piece of DATA handed on at once.
pub const MAX_PIECE: usize = 64 * 1024;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;
const HEAD: usize = 8;
const STREAM_MASK: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Status words of RST_STREAM.
pub mod reset {
    /// The peer broke the protocol on this stream.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// DATA for a stream that was never opened.
    pub const INVALID_STREAM: u32 = 2;
    /// The stream is not wanted.
    pub const REFUSED_STREAM: u32 = 3;
    /// The stream is no longer needed.
    pub const CANCEL: u32 = 5;
}

/// Status words of GOAWAY.
pub mod goaway {
    /// The session ends as it should.
    pub const OK: u32 = 0;
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
}

/// One frame, or one piece of a DATA frame.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are the protocol's own
pub enum Frame {
    /// Opens a stream.
    SynStream {
        stream: u32,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply { stream: u32, fin: bool, headers: Headers },
    /// Further headers of a stream.
    Headers { stream: u32, fin: bool, headers: Headers },
    /// Bytes of a stream; `fin` is on the last piece of the frame that carried it.
    Data { stream: u32, fin: bool, payload: Bytes },
    /// Ends a stream both ways at once.
    RstStream { stream: u32, status: u32 },
    /// To be sent back as it is, when its id is of the other side's parity.
    Ping { id: u32 },
    /// No more streams will be opened.
    GoAway { last_good: u32, status: u32 },
    /// A frame this side has no use for: SETTINGS, WINDOW_UPDATE.
    Ignored,
}

/// Why bytes are not SPDY/3.1.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The control frame's version is another.
    #[error("SPDY version {0} instead of {VERSION}")]
    Version(u16),
    /// The control frame's type is unknown.
    #[error("unknown SPDY control frame type {0}")]
    UnknownType(u16),
    /// The control frame says it is larger than [`MAX_CONTROL`].
    #[error("SPDY control frame of {0} bytes")]
    TooLarge(usize),
    /// The frame's length does not fit its type.
    #[error("SPDY control frame type {kind} of {length} bytes")]
    Length {
        /// The frame's type.
        kind: u16,
        /// Its length.
        length: usize,
    },
    /// Stream 0 is no stream.
    #[error("SPDY frame for stream 0")]
    ZeroStream,
    /// The header block is refused.
    #[error("read SPDY headers")]
    Headers(#[from] HeaderError),
    /// The connection failed.
    #[error("read SPDY connection")]
    Io(#[from] std::io::Error),
}

/// Reads frames. After an error the connection is of no more use.
#[derive(Debug, Default)]
pub struct Decoder {
    inflater: Inflater,
    data: Option<PendingData>,
}

#[derive(Debug)]
struct PendingData {
    stream: u32,
    fin: bool,
    left: usize,
}

impl codec::Decoder for Decoder {
    type Item = Frame;
    type Error = FrameError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if self.data.is_some() {
            return Ok(self.data_piece(input));
        }
        let Some((head, _)) = input.split_first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        if first & !STREAM_MASK == 0 {
            if first == 0 {
                return Err(FrameError::ZeroStream);
            }
            input.advance(HEAD);
            self.data = Some(PendingData {
                stream: first,
                fin: flags & FLAG_FIN != 0,
                left: length,
            });
            return Ok(self.data_piece(input));
        }
        let version = (first >> 16) as u16 & 0x7fff;
        let kind = (first & 0xffff) as u16;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > MAX_CONTROL {
            return Err(FrameError::TooLarge(length));
        }
        if input.len() < HEAD + length {
            input.reserve(HEAD + length - input.len());
            return Ok(None);
        }
        input.advance(HEAD);
        let payload = input.split_to(length);
        self.control(kind, flags, &payload).map(Some)
    }
}

impl Decoder {
    fn data_piece(&mut self, input: &mut BytesMut) -> Option<Frame> {
        let pending = self.data.as_mut()?;
        let size = pending.left.min(input.len()).min(MAX_PIECE);
        if size == 0 && pending.left > 0 {
            return None;
        }
        pending.left -= size;
        let last = pending.left == 0;
        let frame = Frame::Data {
            stream: pending.stream,
            fin: pending.fin && last,
            payload: input.split_to(size).freeze(),
        };
        if last {
            self.data = None;
        }
        Some(frame)
    }

    fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<Frame, FrameError> {
        let fin = flags & FLAG_FIN != 0;
        let wrong = FrameError::Length {
            kind,
            length: payload.len(),
        };
        match kind {
            SYN_STREAM => {
                let (head, block) = payload.split_first_chunk::<10>().ok_or(wrong)?;
                // Priority, credential slot and the associated stream mean nothing to remote commands.
                let stream = stream_id(head)?;
                let headers = self.inflater.read(block)?;
                Ok(Frame::SynStream {
                    stream,
                    fin,
                    unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                    headers,
                })
            }
            SYN_REPLY | HEADERS => {
                let (head, block) = payload.split_first_chunk::<4>().ok_or(wrong)?;
                let stream = stream_id(head)?;
                let headers = self.inflater.read(block)?;
                Ok(if kind == SYN_REPLY {
                    Frame::SynReply { stream, fin, headers }
                } else {
                    Frame::Headers { stream, fin, headers }
                })
            }
            RST_STREAM => {
                let [stream, status] = words(payload).ok_or(wrong)?;
                Ok(Frame::RstStream {
                    stream: stream_id(&stream.to_be_bytes())?,
                    status,
                })
            }
            PING => {
                let [id] = words(payload).ok_or(wrong)?;
                Ok(Frame::Ping { id })
            }
            GOAWAY => {
                let [last_good, status] = words(payload).ok_or(wrong)?;
                Ok(Frame::GoAway {
                    last_good: last_good & STREAM_MASK,
                    status,
                })
            }
            SETTINGS | WINDOW_UPDATE => Ok(Frame::Ignored),
            unknown => Err(FrameError::UnknownType(unknown)),
        }
    }
}

fn stream_id(bytes: &[u8]) -> Result<u32, FrameError> {
    let word = bytes.first_chunk::<4>().map_or(0, |word| u32::from_be_bytes(*word) & STREAM_MASK);
    if word == 0 { Err(FrameError::ZeroStream) } else { Ok(word) }
}

fn words<const N: usize>(payload: &[u8]) -> Option<[u32; N]> {
    if payload.len() != N * 4 {
        return None;
    }
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(payload.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    Some(words)
}

/// Writes frames.
#[derive(Debug, Default)]
pub struct Encoder {
    deflater: Deflater,
}

/// The largest payload one DATA frame can say.
pub const MAX_DATA: usize = (1 << 24) - 1;

impl codec::Encoder<&Frame> for Encoder {
    type Error = std::io::Error;

    fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), std::io::Error> {
        match frame {
            Frame::SynStream {
                stream,
                fin,
                unidirectional,
                headers,
            } => {
                let block = self.deflater.write(headers);
                let flags = fin_flag(*fin) | if *unidirectional { FLAG_UNIDIRECTIONAL } else { 0 };
                put_control(out, SYN_STREAM, flags, block.len() + 10);
                out.put_u32(*stream);
                out.put_bytes(0, 6);
                out.put_slice(&block);
            }
            Frame::SynReply { stream, fin, headers } => self.put_headers(out, SYN_REPLY, *stream, *fin, headers),
            Frame::Headers { stream, fin, headers } => self.put_headers(out, HEADERS, *stream, *fin, headers),
            Frame::Data { stream, fin, payload } => {
                debug_assert!(payload.len() <= MAX_DATA, "callers cut DATA into pieces");
                out.reserve(HEAD + payload.len());
                out.put_u32(*stream);
                put_flags_and_length(out, fin_flag(*fin), payload.len());
                out.put_slice(payload);
            }
            Frame::RstStream { stream, status } => put_words(out, RST_STREAM, &[*stream, *status]),
            Frame::Ping { id } => put_words(out, PING, &[*id]),
            Frame::GoAway { last_good, status } => put_words(out, GOAWAY, &[*last_good, *status]),
            Frame::Ignored => {}
        }
        Ok(())
    }
}

impl Encoder {
    fn put_headers(&mut self, out: &mut BytesMut, kind: u16, stream: u32, fin: bool, headers: &Headers) {
        let block = self.deflater.write(headers);
        put_control(out, kind, fin_flag(fin), block.len() + 4);
        out.put_u32(stream);
        out.put_slice(&block);
    }
}

fn fin_flag(fin: bool) -> u8 {
    if fin { FLAG_FIN } else { 0 }
}

fn put_control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.reserve(HEAD + length);
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    put_flags_and_length(out, flags, length);
}

fn put_flags_and_length(out: &mut BytesMut, flags: u8, length: usize) {
    out.put_u8(flags);
    out.put_uint(length as u64, 3);
}

fn put_words(out: &mut BytesMut, kind: u16, words: &[u32]) {
    put_control(out, kind, 0, words.len() * 4);
    words.iter().for_each(|word| out.put_u32(*word));
}
