//! Frames from the guest to the tap. A frame that the tap refuses (malformed header, interface down, its queue full) is dropped, as a
//! wire would; a chain shorter than a header is a fault.

use std::{fs::File, time::Duration};

use super::{HEADER, QUEUE_SIZE, vectored};
use crate::virtio::{chain::ChainError, pace::Pace, ring::Ring};

/// Largest frame with its header: 64 KiB of segmentation, Ethernet and VLAN in front.
const MAX_FRAME: usize = 65_535 + 18 + HEADER;

/// Sends what the guest has made available, one queue's length at most. `Some`: the next frame, if there is one, stays there for so long.
/// `iovecs` is room for a frame's pieces.
pub(super) fn transmit(
    ring: &mut Ring<'_>,
    tap: &File,
    pace: &Pace,
    iovecs: &mut Vec<libc::iovec>,
) -> Result<Option<Duration>, ChainError> {
    ring.disarm()?;
    let mut left = QUEUE_SIZE;
    while left > 0 {
        left -= 1;
        if let Some(wait) = pace.wait() {
            ring.notify()?;
            return Ok(Some(wait));
        }
        let Some(chain) = ring.take()? else { return Ok(None) };
        let length = chain.readable.len();
        if length < HEADER {
            return Err(ChainError::TooShort);
        }
        if length <= MAX_FRAME {
            iovecs.clear();
            chain.readable.iovecs(0..length, iovecs);
            // Whatever the tap says, the frame is gone.
            let _ = vectored(tap, iovecs, false);
            pace.spend((length - HEADER) as u64);
        }
        ring.give_back(chain.head, 0)?;
    }
    ring.settle()?;
    Ok(None)
}
