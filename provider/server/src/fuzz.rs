//! What the fuzz targets of `fuzz/` call, and tests too, with every file of the corpora: a client that sends any bytes over an upgraded
//! connection. Not part of the product: the feature `fuzzing` belongs to the fuzzer's own workspace.

use bytes::BytesMut;
use tokio_util::codec::{Decoder as _, Encoder as _};

use crate::streaming::{
    spdy::frame::{Decoder, Encoder, Frame, MAX_CONTROL, MAX_PIECE},
    websocket,
};

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

/// Bytes of a frame before its payload.
const HEAD: usize = 8;

/// SPDY/3.1, as a client sends it; the first byte is the size of the pieces in which it arrives.
pub fn spdy(data: &[u8]) {
    let [piece, rest @ ..] = data else { return };
    let (frames, refused) = read(rest, usize::from(*piece).max(1));
    let (whole, refused_whole) = read(rest, rest.len().max(1));
    assert_eq!((&frames, &refused), (&whole, &refused_whole), "how bytes arrive says nothing");
    // What is understood can be said again.
    let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
    for frame in &frames {
        encoder.encode(frame, &mut wire).expect("a frame that was read can be written");
    }
    let said: Vec<_> = frames.into_iter().filter(|frame| *frame != Frame::Ignored).collect();
    assert_eq!(read(&wire, wire.len().max(1)), (said, None));
}

/// All frames, and why the next one is refused. Pieces of one DATA frame are put together again; one that is cut short is left out, as how
/// much of it is there depends on how it arrived.
fn read(wire: &[u8], piece: usize) -> (Vec<Frame>, Option<String>) {
    let (mut decoder, mut buffer, mut frames) = (Decoder::default(), BytesMut::new(), Vec::new());
    // DATA whose end has not come: how much of it is still to come, and what has.
    let mut open: Option<(usize, BytesMut)> = None;
    for bytes in wire.chunks(piece) {
        buffer.extend_from_slice(bytes);
        loop {
            let before = buffer.len();
            let length = buffer
                .first_chunk::<HEAD>()
                .map(|head| usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]));
            match decoder.decode(&mut buffer) {
                Ok(Some(Frame::Data { stream, fin, payload })) => {
                    assert!(payload.len() <= MAX_PIECE);
                    let (left, mut whole) = open
                        .take()
                        .unwrap_or_else(|| (length.expect("a frame begins with its head"), BytesMut::new()));
                    let left = left.checked_sub(payload.len()).expect("no more than the frame said");
                    whole.extend_from_slice(&payload);
                    if left > 0 {
                        assert!(!fin, "the end comes last");
                        open = Some((left, whole));
                    } else {
                        let payload = whole.freeze();
                        frames.push(Frame::Data { stream, fin, payload });
                    }
                }
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => {
                    // The head of DATA of which nothing is here yet.
                    if let Some(length) = length.filter(|_| before - buffer.len() == HEAD) {
                        open = Some((length, BytesMut::new()));
                    }
                    break;
                }
                Err(error) => return (frames, Some(error.to_string())),
            }
        }
        assert!(buffer.len() < HEAD + MAX_CONTROL, "{} bytes wait for more", buffer.len());
    }
    (frames, None)
}

/// A WebSocket message, in each of the protocols: what is said on a channel is heard on it.
pub fn websocket(data: &[u8]) {
    websocket::fuzz(data);
}

#[cfg(test)]
mod tests {
    #[test]
    fn frames_are_read_by_their_rules_whatever_a_client_sends() {
        super::replay::replay("spdy", super::spdy);
    }

    #[test]
    fn messages_are_read_by_their_rules_whatever_a_client_sends() {
        super::replay::replay("websocket", super::websocket);
    }
}
