//! What the fuzz target of `fuzz/` calls, and a test too, with every file of the corpus: a peer that sends any bytes, read as each of the
//! messages that travel in that direction. Not part of the product: the feature `fuzzing` belongs to the fuzzer's own workspace.

use std::fmt::Debug;
use std::io::Read;

use serde::{Serialize, de::DeserializeOwned};

use crate::frame::{FrameError, decode, encode, read_frame};
use crate::{ExecInput, ExecOutput, Forwarded, Hello, LogAck, LogRecord, MAX_GUEST_FRAME, MAX_HOST_FRAME, Request, Response, Welcome};

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

/// Bytes that arrive in pieces.
struct Stream<'a> {
    rest: &'a [u8],
    piece: usize,
}

impl Read for Stream<'_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let most = to.len().min(self.piece);
        self.rest.read(&mut to[..most])
    }
}

/// A stream of frames, from the host or from the guest.
pub fn protocol(data: &[u8]) {
    let [kind, piece, rest @ ..] = data else { return };
    let stream = Stream {
        rest,
        piece: usize::from(*piece).max(1),
    };
    match kind % 16 {
        10 => return read::<Forwarded>(stream, MAX_HOST_FRAME),
        14 => return read::<Forwarded>(stream, MAX_GUEST_FRAME),
        _ => {}
    }
    match kind % 8 {
        0 => read::<Hello>(stream, MAX_HOST_FRAME),
        1 => read::<Request>(stream, MAX_HOST_FRAME),
        2 => read::<ExecInput>(stream, MAX_HOST_FRAME),
        3 => read::<LogAck>(stream, MAX_HOST_FRAME),
        4 => read::<Welcome>(stream, MAX_GUEST_FRAME),
        5 => read::<Response>(stream, MAX_GUEST_FRAME),
        6 => read::<ExecOutput>(stream, MAX_GUEST_FRAME),
        _ => read::<LogRecord>(stream, MAX_GUEST_FRAME),
    }
}

/// Reads to the first frame that is none. What is taken for a message says the same when it is sent again, in no more bytes.
fn read<T: Serialize + DeserializeOwned + PartialEq + Debug>(mut stream: Stream<'_>, limit: usize) {
    loop {
        let before = stream.rest.len();
        match read_frame::<T>(&mut stream, limit) {
            Ok(message) => {
                let again = encode(&message);
                let taken = before - stream.rest.len();
                assert!(
                    (4..=limit + 4).contains(&taken) && again.len() <= taken,
                    "{taken} bytes, {} again",
                    again.len()
                );
                assert_eq!(read_frame::<T>(&mut again.as_slice(), limit).expect("it was one before"), message);
                let longer = [&again[4..], &[0]].concat();
                assert!(decode::<T>(&longer).is_err(), "a byte too many is taken");
            }
            Err(FrameError::Closed) => {
                assert_eq!(before, 0, "closed before its end");
                return;
            }
            Err(FrameError::TooLarge { length, limit: most }) => {
                assert!(length > most && most == limit && before - stream.rest.len() == 4);
                return;
            }
            Err(FrameError::Io(_) | FrameError::Malformed(_)) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn frames_are_read_by_their_rules_whatever_a_peer_sends() {
        super::replay::replay("protocol", super::protocol);
    }
}
