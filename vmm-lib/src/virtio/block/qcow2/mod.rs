//! Disks in qcow2 images (QEMU's docs/interop/qcow2.txt, versions 2 and 3), read and written. Owns the way from a place on the disk to one in
//! the file; data goes straight between there and guest memory. Refuses, by name, images with a backing file, encryption, an external data
//! file, extended L2 entries, other compression than deflate, or features that nobody has heard of; and to write to images with snapshots,
//! or that were not closed, are marked as corrupt, or count references in other than 16 bits.
//!
//! An image is not trusted: tables that lie outside of the file or over one another are refused before the machine is made, what is wrong
//! further in is an I/O error of the request that meets it. Memory is bounded: the first table and that of refcounts (1 MiB each at most),
//! one cluster, and a few pieces of the others.
//!
//! A crash of host or machine loses nothing that was flushed, and leaks clusters at worst: the file has data and refcounts before the
//! entries that point there, and entries are gone before what they pointed to is free. So changed entries are kept until a flush, until
//! there are too many, or until the device stops.

mod clear;
mod clusters;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod header;
mod open;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod writer;

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;

use self::file::Slices;
pub use self::header::MOST_OF_A_TABLE;

use self::header::Header;
use super::extents::{Direction, Extents};
use crate::virtio::chain::Segments;

/// The entry's cluster belongs to nobody else.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Reads as zeros, whatever else the entry says (version 3).
const ZERO: u64 = 1;
/// Where an entry of an L1 or L2 table points.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Most clusters of an image that wait to be free: until the next flush they are not used again, so that its file may grow by as many beyond what its
/// disk needs.
pub const MOST_FREED: usize = 16 << 10;

/// Why an image is no disk.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// Its first bytes say so.
    #[error("it is no qcow2 image")]
    NotOne,
    /// Nothing is wrong with it, but it cannot be used here.
    #[error("it has what is not supported: {0}")]
    Unsupported(String),
    /// It contradicts itself.
    #[error("it is broken: {0}")]
    Broken(String),
    /// The file failed.
    #[error("read the image")]
    Io(#[from] io::Error),
}

/// An open image.
pub(super) struct Qcow2 {
    file: File,
    /// The same as a run of bytes, for what goes to guest memory or comes from there.
    data: Extents,
    header: Header,
    /// Length of the file.
    end: u64,
    l1: Vec<u64>,
    /// Entries of `l1` that the file does not have yet.
    l1_dirty: BTreeSet<usize>,
    /// Offsets of blocks of refcounts, or 0.
    blocks: Vec<u64>,
    /// Offsets of all clusters that are tables: never data.
    tables: BTreeSet<u64>,
    l2: Slices,
    refcounts: Slices,
    /// Whether data went to the file since it was last synced.
    written: bool,
    /// Clusters that lose a reference when the file does not point there any more.
    freed: Vec<u64>,
    /// Clusters that were free when last looked at.
    free: VecDeque<u64>,
    /// Where to look for the next one: number of a cluster.
    cursor: u64,
    /// The last compressed cluster that was read: its entry, and its bytes.
    inflated: Option<(u64, Vec<u8>)>,
}

impl std::fmt::Debug for Qcow2 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Qcow2").field("header", &self.header).finish_non_exhaustive()
    }
}

/// What a cluster of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapping {
    /// Zeros, for which there may be a cluster, of no meaning yet.
    Zeros(Option<u64>),
    /// A cluster of the file.
    Data(u64),
    /// Deflated: where, in how many bytes at most.
    Deflated(u64, usize),
}

/// An image contradicts itself.
fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the qcow2 image is broken: {what}"))
}

impl Qcow2 {
    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.header.size
    }

    fn cluster(&self) -> u64 {
        self.header.cluster()
    }

    /// Moves `range` of `memory` to or from the disk at `position`; all of it lies on the disk.
    pub(super) fn transfer(
        &mut self,
        direction: Direction,
        memory: &Segments<'_>,
        range: Range<usize>,
        mut position: u64,
    ) -> io::Result<()> {
        let mut done = range.start;
        while done < range.end {
            let inside = position % self.cluster();
            let here = usize::try_from(self.cluster() - inside)
                .expect("2 MiB at most")
                .min(range.end - done);
            let moved = match direction {
                Direction::FromDisk => self.read(memory, done..range.end, position, here)?,
                Direction::ToDisk => {
                    self.write(memory, done..done + here, position)?;
                    here
                }
            };
            done += moved;
            position += moved as u64;
        }
        Ok(())
    }

    /// Reads `here` bytes of a cluster, and more if they lie behind it in the file, too. How many.
    fn read(&mut self, memory: &Segments<'_>, range: Range<usize>, position: u64, here: usize) -> io::Result<usize> {
        let inside = position % self.cluster();
        let piece = range.start..range.start + here;
        match self.mapping(position)?.1 {
            Mapping::Zeros(_) => fill(memory, piece)?,
            Mapping::Deflated(offset, length) => {
                let bytes = self.inflate(offset, length)?;
                let from = inside as usize;
                memory.write(piece.start, &bytes[from..from + here]).map_err(io::Error::other)?;
            }
            Mapping::Data(offset) => {
                let mut length = here;
                while range.start + length < range.end {
                    let next = position + length as u64;
                    let follows = offset + (next - (position - inside));
                    if !matches!(self.mapping(next), Ok((_, Mapping::Data(offset))) if offset == follows) {
                        break;
                    }
                    length += usize::try_from(self.cluster())
                        .expect("2 MiB at most")
                        .min(range.end - range.start - length);
                }
                let place = offset + inside;
                let there = usize::try_from(self.end.saturating_sub(place)).unwrap_or(usize::MAX).min(length);
                let (data, rest) = (range.start..range.start + there, range.start + there..range.start + length);
                self.data.transfer(Direction::FromDisk, memory, data, place)?;
                // The last cluster of a file may be cut where nothing was written.
                fill(memory, rest)?;
                return Ok(length);
            }
        }
        Ok(here)
    }

    /// Writes bytes of one cluster.
    fn write(&mut self, memory: &Segments<'_>, range: Range<usize>, position: u64) -> io::Result<()> {
        let (inside, cluster) = (position % self.cluster(), self.cluster());
        let (entry, mapping) = self.mapping(position)?;
        self.written = true;
        if let Mapping::Data(offset) = mapping {
            self.own(entry, offset)?;
            let place = offset + inside;
            self.pad(place)?;
            self.data.transfer(Direction::ToDisk, memory, range.clone(), place)?;
            self.end = self.end.max(place + range.len() as u64);
            return Ok(());
        }
        if let Mapping::Deflated(from, length) = mapping {
            self.inflate(from, length)?;
        }
        let at = self.entry_to_change(position)?;
        let offset = match mapping {
            Mapping::Zeros(Some(offset)) => {
                self.own(entry, offset)?;
                offset
            }
            _ => self.allocate()?,
        };
        let behind = inside + range.len() as u64;
        match mapping {
            Mapping::Deflated(from, length) => {
                let bytes = self.inflate(from, length)?.to_vec();
                file::write(&self.file, &bytes, offset)?;
            }
            _ => {
                self.clear(offset, inside)?;
                self.clear(offset + behind, cluster - behind)?;
            }
        }
        self.data.transfer(Direction::ToDisk, memory, range, offset + inside)?;
        self.end = self.end.max(offset + cluster);
        self.l2.set(&self.file, at, (offset | COPIED).to_be_bytes())?;
        if let Mapping::Deflated(from, length) = mapping {
            self.release(from..from + length as u64)?;
        }
        Ok(())
    }

    /// Makes all that was written last.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.settle()?;
        self.data.flush()
    }

    /// The entry of the disk's cluster at `position`, and what it means.
    fn mapping(&mut self, position: u64) -> io::Result<(u64, Mapping)> {
        let Some(at) = self.entry_at(position)? else {
            return Ok((0, Mapping::Zeros(None)));
        };
        if !self.l2.has_room(at) {
            self.settle()?;
        }
        let entry = u64::from_be_bytes(self.l2.get(&self.file, at)?);
        if entry & COMPRESSED != 0 {
            return self.deflated(entry).map(|mapping| (entry, mapping));
        }
        let (offset, zero) = (entry & OFFSET, entry & ZERO != 0 && self.header.version >= 3);
        if entry & !(OFFSET | COPIED | ZERO) != 0 || (entry & ZERO != 0 && !zero) {
            return Err(broken("an L2 entry has bits that mean nothing"));
        }
        if offset == 0 {
            return Ok((entry, Mapping::Zeros(None)));
        }
        if !offset.is_multiple_of(self.cluster()) || offset >= self.end {
            return Err(broken("an L2 entry points between clusters or out of the file"));
        }
        if self.tables.contains(&offset) {
            return Err(broken("an L2 entry points to a table"));
        }
        let mapping = if zero {
            Mapping::Zeros(Some(offset))
        } else {
            Mapping::Data(offset)
        };
        Ok((entry, mapping))
    }

    /// Where in the file that entry is; `None`: there is no table for it.
    fn entry_at(&self, position: u64) -> io::Result<Option<u64>> {
        let (index, inner) = self.place(position);
        let table = self.l1.get(index).ok_or(io::ErrorKind::UnexpectedEof)? & OFFSET;
        Ok((table != 0).then_some(table + inner * 8))
    }

    /// Numbers of a place's entries in the L1 table and in its L2 table.
    fn place(&self, position: u64) -> (usize, u64) {
        let (cluster, bits) = (position >> self.header.cluster_bits, self.header.l2_bits());
        ((cluster >> bits) as usize, cluster & ((1 << bits) - 1))
    }
}

/// Zeros into guest memory.
fn fill(memory: &Segments<'_>, range: Range<usize>) -> io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut at = range.start;
    while at < range.end {
        let here = (range.end - at).min(ZEROS.len());
        memory.write(at, &ZEROS[..here]).map_err(io::Error::other)?;
        at += here;
    }
    Ok(())
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        // Whoever wanted to be sure has flushed.
        let _ = self.settle();
    }
}
