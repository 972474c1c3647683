//! Transfers of several requests at once, by way of a ring: each is moved as far as one call goes, then what is left of each, until all have ended.

use std::io;
use std::ops::Range;

use super::extents::{Direction, Extents, MAX_IOVECS};
use super::uring::{DEPTH, Request, Uring};
use crate::virtio::chain::Segments;

/// What one request moves between the disk and memory.
#[derive(Debug)]
pub(super) struct Transfer<'c, 'm> {
    direction: Direction,
    memory: &'c Segments<'m>,
    /// What of `memory` is still to be moved.
    left: Range<usize>,
    /// Where that lies on the disk.
    position: u64,
    /// How it ended, if not well.
    failed: Option<io::Error>,
}

impl<'c, 'm> Transfer<'c, 'm> {
    /// Of these bytes of memory, from or to this place of the disk.
    pub(super) fn new(direction: Direction, memory: &'c Segments<'m>, range: Range<usize>, position: u64) -> Self {
        Self {
            direction,
            memory,
            left: range,
            position,
            failed: None,
        }
    }

    fn is_over(&self) -> bool {
        self.left.is_empty() || self.failed.is_some()
    }

    /// Whether all of it was moved.
    pub(super) fn end(self) -> io::Result<()> {
        self.failed.map_or(Ok(()), Err)
    }

    /// Takes note of what one call has moved.
    fn moved(&mut self, result: io::Result<usize>) {
        match result {
            Ok(0) => self.failed = Some(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                self.left.start += bytes.min(self.left.len());
                self.position += bytes as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.failed = Some(error),
        }
    }
}

/// Moves all of them; each has its own end.
pub(super) fn carry_out(extents: &Extents, ring: &mut Uring, transfers: &mut [Transfer<'_, '_>]) -> io::Result<()> {
    loop {
        let mut calls = Vec::new();
        for (index, transfer) in transfers
            .iter_mut()
            .enumerate()
            .filter(|(_, transfer)| !transfer.is_over())
            .take(DEPTH)
        {
            let Some((file, offset, room)) = extents.piece(transfer.position) else {
                transfer.failed = Some(io::ErrorKind::UnexpectedEof.into());
                continue;
            };
            let start = transfer.left.start;
            let here = usize::try_from(room).unwrap_or(usize::MAX).min(transfer.left.len());
            let mut memory = Vec::with_capacity(transfer.memory.pieces());
            transfer.memory.iovecs(start..start + here, &mut memory);
            memory.truncate(MAX_IOVECS);
            calls.push((index, file, offset, memory));
        }
        if calls.is_empty() {
            return Ok(());
        }
        let requests: Vec<_> = calls
            .iter()
            .map(|(index, file, offset, memory)| Request::Move {
                direction: transfers[*index].direction,
                file: *file,
                memory,
                offset: *offset,
            })
            .collect();
        let results = ring.run(&requests)?;
        for ((index, ..), result) in calls.iter().zip(results) {
            transfers[*index].moved(result);
        }
    }
}
