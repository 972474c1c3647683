//! Tables and random bytes for the frame codec.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tokio_util::codec::{Decoder as _, Encoder as _};

use super::frame::{Decoder, Encoder, Frame, FrameError, MAX_PIECE};
use super::headers::{HeaderError, Headers};

fn every_frame() -> Vec<Frame> {
    let headers: Headers = [("streamtype", "stdin"), ("x", "")].into_iter().collect();
    vec![
        Frame::SynStream {
            stream: 1,
            fin: false,
            unidirectional: true,
            headers: headers.clone(),
        },
        Frame::SynStream {
            stream: 3,
            fin: true,
            unidirectional: false,
            headers: headers.clone(),
        },
        Frame::SynReply {
            stream: 1,
            fin: false,
            headers: Headers::default(),
        },
        Frame::Headers {
            stream: 1,
            fin: true,
            headers,
        },
        Frame::Data {
            stream: 1,
            fin: false,
            payload: Bytes::from_static(b"hello"),
        },
        Frame::Data {
            stream: 1,
            fin: true,
            payload: Bytes::new(),
        },
        Frame::RstStream { stream: 3, status: 5 },
        Frame::Ping { id: 7 },
        Frame::GoAway { last_good: 3, status: 0 },
    ]
}

fn encode(frames: &[Frame]) -> BytesMut {
    let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
    for frame in frames {
        encoder.encode(frame, &mut wire).expect("encoding to memory");
    }
    wire
}

fn decode_error(wire: &[u8]) -> FrameError {
    let mut wire = BytesMut::from(wire);
    let mut decoder = Decoder::default();
    loop {
        match decoder.decode(&mut wire) {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the frame waits for more instead of being refused"),
            Err(error) => return error,
        }
    }
}

#[test]
fn every_frame_comes_back_as_it_went_whole_or_byte_by_byte() {
    let frames = every_frame();
    let wire = encode(&frames);
    for size in [1, 3, 7, wire.len()] {
        let (mut decoder, mut input, mut seen) = (Decoder::default(), BytesMut::new(), Vec::new());
        for part in wire.chunks(size) {
            input.extend_from_slice(part);
            while let Some(frame) = decoder.decode(&mut input).expect("own frames are valid") {
                seen.push(frame);
            }
        }
        assert_eq!(join_data(seen), frames, "in parts of {size}");
    }
}

/// Data may arrive in several pieces: joins those of one frame.
fn join_data(frames: Vec<Frame>) -> Vec<Frame> {
    let mut joined: Vec<Frame> = Vec::new();
    for frame in frames {
        match (joined.last_mut(), frame) {
            (
                Some(Frame::Data {
                    payload: known,
                    fin: known_fin @ false,
                    ..
                }),
                Frame::Data { payload, fin, stream },
            ) if known.len() < 5 => {
                assert_eq!(stream, 1);
                *known = [known.as_ref(), payload.as_ref()].concat().into();
                *known_fin = fin;
            }
            (_, frame) => joined.push(frame),
        }
    }
    joined
}

#[test]
fn data_of_any_size_is_handed_on_in_small_pieces_before_it_is_complete() {
    let payload = Bytes::from(vec![9; 3 * MAX_PIECE + 5]);
    let wire = encode(&[Frame::Data {
        stream: 1,
        fin: true,
        payload: payload.clone(),
    }]);
    let mut input = BytesMut::from(&wire[..MAX_PIECE]);
    let mut decoder = Decoder::default();
    let first = decoder.decode(&mut input).expect("valid");
    assert!(matches!(first, Some(Frame::Data { fin: false, ref payload, .. }) if payload.len() == MAX_PIECE - 8));
    input.extend_from_slice(&wire[MAX_PIECE..]);
    let (mut total, mut fins) = (MAX_PIECE - 8, 0);
    while let Some(Frame::Data { fin, payload, .. }) = decoder.decode(&mut input).expect("valid") {
        assert!(payload.len() <= MAX_PIECE);
        total += payload.len();
        fins += u32::from(fin);
    }
    assert_eq!((total, fins), (payload.len(), 1));
}

#[test]
fn malformed_frames_are_refused_by_name() {
    assert!(matches!(decode_error(&[0x80, 2, 0, 1, 0, 0, 0, 10]), FrameError::Version(2)));
    assert!(matches!(
        decode_error(&[0x80, 3, 0, 1, 0, 255, 255, 255]),
        FrameError::TooLarge(16_777_215)
    ));
    assert!(matches!(decode_error(&[0x80, 3, 0, 77, 0, 0, 0, 0]), FrameError::UnknownType(77)));
    assert!(matches!(
        decode_error(&[0x80, 3, 0, 1, 0, 0, 0, 0]),
        FrameError::Length { kind: 1, length: 0 }
    ));
    assert!(matches!(
        decode_error(&[0x80, 3, 0, 3, 0, 0, 0, 1, 9]),
        FrameError::Length { kind: 3, length: 1 }
    ));
    assert!(matches!(
        decode_error(&[0x80, 3, 0, 6, 0, 0, 0, 0]),
        FrameError::Length { kind: 6, length: 0 }
    ));
    assert!(matches!(decode_error(&[0, 0, 0, 0, 0, 0, 0, 1]), FrameError::ZeroStream));
    let no_zlib = [0x80, 3, 0, 1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2];
    assert!(matches!(decode_error(&no_zlib), FrameError::Headers(HeaderError::Corrupt)));
}

#[test]
fn a_header_bomb_in_a_frame_is_refused() {
    let headers: Headers = [("a", "b".repeat(4 << 20))].into_iter().collect();
    let wire = encode(&[Frame::SynStream {
        stream: 1,
        fin: false,
        unidirectional: false,
        headers,
    }]);
    assert!(matches!(decode_error(&wire), FrameError::Headers(HeaderError::TooLarge)));
}

proptest! {
    #[test]
    fn random_bytes_end_in_frames_or_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let (mut decoder, mut input) = (Decoder::default(), BytesMut::from(&bytes[..]));
        while let Ok(Some(_)) = decoder.decode(&mut input) {}
    }

    #[test]
    fn damaged_frames_end_in_frames_or_an_error(position in 0_usize..200, value: u8) {
        let mut wire = encode(&every_frame());
        let position = position % wire.len();
        wire[position] = value;
        let mut decoder = Decoder::default();
        while let Ok(Some(_)) = decoder.decode(&mut wire) {}
    }
}
