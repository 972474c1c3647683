//! The file of an image: whole numbers at offsets, and pieces of its tables kept in memory, changed there and written when told.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};

use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};

/// Most pieces of one kind of table in memory.
const SLICES: usize = 32;
/// Bytes of a piece, unless a cluster is smaller.
const SLICE: u64 = 4096;

/// Reads all of `bytes`.
pub(super) fn read(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match preadv2(file, &mut [IoSliceMut::new(bytes)], offset, ReadWriteFlags::empty()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => {
                bytes = &mut bytes[moved..];
                offset += moved as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes all of `bytes`.
pub(super) fn write(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match pwritev2(file, &[IoSlice::new(bytes)], offset, ReadWriteFlags::empty()) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(moved) => {
                bytes = &bytes[moved..];
                offset += moved as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads a table of so many 64-bit numbers.
pub(super) fn table(file: &File, offset: u64, entries: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; entries * 8];
    read(file, &mut bytes, offset)?;
    let numbers = bytes.chunks_exact(8);
    Ok(numbers
        .map(|number| u64::from_be_bytes(number.try_into().expect("eight bytes")))
        .collect())
}

struct Slice {
    offset: u64,
    bytes: Vec<u8>,
    dirty: bool,
    used: u64,
}

/// Pieces of tables, the last used of them.
pub(super) struct Slices {
    length: u64,
    slices: Vec<Slice>,
    clock: u64,
}

impl Slices {
    /// None yet, of an image with clusters of this size.
    pub(super) fn new(cluster: u64) -> Self {
        Self {
            length: cluster.min(SLICE),
            slices: Vec::new(),
            clock: 0,
        }
    }

    /// Whether the piece at `offset` can be had without first making room by writing another one.
    pub(super) fn has_room(&self, offset: u64) -> bool {
        let start = offset - offset % self.length;
        self.slices.len() < SLICES || self.slices.iter().any(|slice| slice.offset == start || !slice.dirty)
    }

    /// The `N` bytes at `offset`, which is a multiple of `N`.
    pub(super) fn get<const N: usize>(&mut self, file: &File, offset: u64) -> io::Result<[u8; N]> {
        let (slice, at) = self.find(file, offset)?;
        Ok(slice.bytes[at..at + N].try_into().expect("pieces are whole numbers"))
    }

    /// Changes them, in memory.
    pub(super) fn set<const N: usize>(&mut self, file: &File, offset: u64, bytes: [u8; N]) -> io::Result<()> {
        let (slice, at) = self.find(file, offset)?;
        slice.bytes[at..at + N].copy_from_slice(&bytes);
        slice.dirty = true;
        Ok(())
    }

    /// Writes what was changed. `true`: something was.
    pub(super) fn write(&mut self, file: &File) -> io::Result<bool> {
        let mut any = false;
        for slice in self.slices.iter_mut().filter(|slice| slice.dirty) {
            write(file, &slice.bytes, slice.offset)?;
            slice.dirty = false;
            any = true;
        }
        Ok(any)
    }

    /// Whether something was changed.
    pub(super) fn dirty(&self) -> bool {
        self.slices.iter().any(|slice| slice.dirty)
    }

    fn find(&mut self, file: &File, offset: u64) -> io::Result<(&mut Slice, usize)> {
        let at = offset % self.length;
        let start = offset - at;
        self.clock += 1;
        let index = match self.slices.iter().position(|slice| slice.offset == start) {
            Some(index) => index,
            None => self.load(file, start)?,
        };
        let slice = &mut self.slices[index];
        slice.used = self.clock;
        Ok((slice, at as usize))
    }

    fn load(&mut self, file: &File, start: u64) -> io::Result<usize> {
        let mut bytes = vec![0; self.length as usize];
        read(file, &mut bytes, start)?;
        let slice = Slice {
            offset: start,
            bytes,
            dirty: false,
            used: 0,
        };
        if self.slices.len() < SLICES {
            self.slices.push(slice);
            return Ok(self.slices.len() - 1);
        }
        // Clean ones first: the others may have to wait for something else to be written.
        let oldest = self.slices.iter().enumerate().min_by_key(|(_, slice)| (slice.dirty, slice.used));
        let (index, old) = oldest.expect("there are some");
        if old.dirty {
            write(file, &old.bytes, old.offset)?;
        }
        self.slices[index] = slice;
        Ok(index)
    }
}
