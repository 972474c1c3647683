//! The head of an answer (`struct fuse_out_header`): length, error, number of the request. Knows no answer's body.

/// Bytes of it.
pub(super) const HEADER: usize = 16;
/// Errors are below; Linux takes no other.
const ERRORS: i32 = 512;

/// What a peer says of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReplyHeader {
    /// Bytes in all, the header among them.
    pub(super) length: usize,
    /// 0, or a negative error.
    pub(super) error: i32,
    /// Our number of the request.
    pub(super) unique: u64,
}

impl ReplyHeader {
    /// Reads one.
    pub(super) fn read(bytes: [u8; HEADER]) -> Self {
        let [l0, l1, l2, l3, e0, e1, e2, e3, unique @ ..] = bytes;
        Self {
            length: u32::from_le_bytes([l0, l1, l2, l3]) as usize,
            error: i32::from_le_bytes([e0, e1, e2, e3]),
            unique: u64::from_le_bytes(unique),
        }
    }

    /// Whether it can be the head of an answer for which there are `room` bytes: an error has no body.
    pub(super) fn fits(self, room: usize) -> bool {
        let body = self.length > HEADER;
        (HEADER..=room).contains(&self.length) && (1 - ERRORS..=0).contains(&self.error) && !(self.error != 0 && body)
    }

    /// The same, with the guest's number.
    pub(super) fn for_guest(self, unique: u64) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&u32::try_from(self.length).expect("read from 32 bits").to_le_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_le_bytes());
        bytes[8..].copy_from_slice(&unique.to_le_bytes());
        bytes
    }
}

/// An answer that is nothing but an error.
pub(super) fn error_reply(unique: u64, error: i32) -> [u8; HEADER] {
    ReplyHeader {
        length: HEADER,
        error: -error,
        unique,
    }
    .for_guest(unique)
}
