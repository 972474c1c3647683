//! Frames from the tap into the guest's buffers, several buffers a frame where that was agreed on. A frame is read only when there is
//! room for the largest, so nothing is cut; until then it stays in the tap.

use std::{collections::VecDeque, fs::File, io, time::Duration};

use vmm_sys_util::eventfd::EventFd;

use super::{GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HEADER, MRG_RXBUF, vectored};
use crate::virtio::{
    chain::{Chain, ChainError},
    pace::Pace,
    ring::Ring,
};

/// Room for a frame that the host did not segment.
const LARGE: usize = 65_550 + HEADER;
/// Room for a plain frame.
const PLAIN: usize = 1514 + HEADER;
/// Most pieces of guest memory a frame is read into.
const MAX_PIECES: usize = 768;
/// Frames in one turn, so that the other direction has its turn too.
const TURN: u32 = 128;
/// Turns that do not look for a second frame behind a plain one, after a turn that found none: the look is a system call, half of what a lone frame
/// costs. Frames that the host did not segment are of a stream, and more of them come.
const ALONE: u32 = 7;
/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// The tap is empty.
    Drained,
    /// The tap has no interface, at least now.
    Gone,
    /// The guest has to give buffers first.
    NoBuffers,
    /// The turn is over, and there may be more.
    More,
    /// The next frame, if there is one, has to wait for so long.
    Wait(Duration),
}

/// The receive queue and the buffers taken from it.
pub(super) struct Receiver<'m> {
    ring: Ring<'m>,
    buffers: VecDeque<Chain<'m>>,
    /// Bytes in `buffers`.
    room: usize,
    /// Where they are.
    iovecs: Vec<libc::iovec>,
    merge: bool,
    /// Room that must be there before a frame is read.
    needed: usize,
    /// How many more turns end behind their first frame, if that is a plain one.
    alone: u32,
}

impl<'m> Receiver<'m> {
    pub(super) fn new(ring: Ring<'m>, features: u64) -> Self {
        let large = features & GUEST_CSUM != 0 && features & (GUEST_TSO4 | GUEST_TSO6) != 0;
        Self {
            ring,
            buffers: VecDeque::new(),
            room: 0,
            iovecs: Vec::new(),
            merge: features & MRG_RXBUF != 0,
            needed: if large { LARGE } else { PLAIN },
            alone: 0,
        }
    }

    pub(super) fn kick(&self) -> &EventFd {
        self.ring.kick()
    }

    /// Reads frames until the tap or the buffers end, or the turn does: behind its first frame, if that is plain and of late there was nothing more.
    pub(super) fn fill(&mut self, tap: &File, pace: &Pace) -> Result<Filled, ChainError> {
        let mut filled = Filled::More;
        let mut plain = false;
        for frame in 0..TURN {
            if frame == 1 && plain && self.alone > 0 {
                self.alone -= 1;
                break;
            }
            if let Some(wait) = pace.wait() {
                filled = Filled::Wait(wait);
                break;
            }
            if !self.make_room()? {
                filled = Filled::NoBuffers;
                break;
            }
            match vectored(tap, &self.iovecs, true) {
                Ok(length) if length >= HEADER => {
                    self.deliver(length)?;
                    pace.spend((length - HEADER) as u64);
                    plain = length <= PLAIN;
                }
                // A frame too short to be one.
                Ok(1..) => {}
                Err(error) if lost_a_frame(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    filled = Filled::Drained;
                    self.alone = if frame == 1 && plain { ALONE } else { 0 };
                    break;
                }
                Ok(0) | Err(_) => {
                    filled = Filled::Gone;
                    break;
                }
            }
        }
        self.ring.notify()?;
        Ok(filled)
    }

    /// Takes buffers until the largest frame fits. `false`: the guest has to give more, and will kick.
    fn make_room(&mut self) -> Result<bool, ChainError> {
        let enough = |receiver: &Self| {
            if receiver.merge {
                receiver.room >= receiver.needed || receiver.iovecs.len() >= MAX_PIECES
            } else {
                !receiver.buffers.is_empty()
            }
        };
        while !enough(self) {
            match self.ring.pop()? {
                Some(chain) => {
                    if chain.writable.len() < HEADER {
                        return Err(ChainError::TooShort);
                    }
                    if self.iovecs.len() + chain.writable.pieces() > libc::UIO_MAXIOV as usize {
                        return Err(ChainError::TooLong);
                    }
                    chain.writable.iovecs(0..chain.writable.len(), &mut self.iovecs);
                    self.room += chain.writable.len();
                    self.buffers.push_back(chain);
                }
                None => {
                    // What was delivered must be heard of before the guest can give more.
                    self.ring.notify()?;
                    if !self.ring.arm()? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Gives a frame of `length` bytes to the guest in as many buffers as it fills.
    fn deliver(&mut self, length: usize) -> Result<(), ChainError> {
        let mut left = length;
        let mut count = 0usize;
        for chain in &self.buffers {
            count += 1;
            left = left.saturating_sub(chain.writable.len());
            if left == 0 {
                break;
            }
        }
        let first = self.buffers.front().expect("a frame was read into buffers");
        let number = u16::try_from(count).map_err(|_| ChainError::TooLong)?;
        first.writable.write(NUM_BUFFERS, &number.to_le_bytes())?;
        left = length;
        let mut pieces = 0;
        for chain in self.buffers.drain(..count) {
            let size = chain.writable.len();
            self.room -= size;
            pieces += chain.writable.pieces();
            let written = size.min(left);
            left -= written;
            self.ring.give_back(chain.head, u32::try_from(written).unwrap_or(u32::MAX))?;
        }
        self.iovecs.drain(..pieces);
        self.ring.publish()
    }
}

/// Errors of a tap that concern one frame only: it was larger than the buffers, or memory was short.
fn lost_a_frame(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EFAULT | libc::EINVAL | libc::ENOMEM | libc::EMSGSIZE)
    )
}
