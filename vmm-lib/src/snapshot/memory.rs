//! Guest memory into a file, all of it or what was written since another file was made, and both files laid one over the other.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestMemoryRegion, MemoryRegionAddress};

use super::{MergeError, RestoreError};
use crate::dirty::{PAGE, Ram, regions};
use crate::memory::Layout;

/// What is looked at at a time; a piece that is all zero becomes a hole.
const PIECE: usize = 64 << 10;

/// Writes all of memory, but what comes and goes, of which nothing is there; answers its checksum.
pub(crate) fn write(memory: &Ram, layout: &Layout, file: &File) -> io::Result<u32> {
    let all = 0..(layout.low + layout.high) / PAGE;
    write_runs(memory, layout, std::slice::from_ref(&all), file)
}

/// Writes these runs of pages, numbered as they lie in a file of all memory, one behind the other; answers their checksum.
pub(crate) fn write_runs(memory: &Ram, layout: &Layout, runs: &[Range<u64>], file: &File) -> io::Result<u32> {
    // An older content would shine through the holes.
    file.set_len(0)?;
    file.set_len(length(runs))?;
    let mut writer = Writer::new(file);
    let mut piece = vec![0; PIECE];
    let mut first = 0;
    for region in regions(memory, layout) {
        let end = first + region.len();
        for run in runs {
            let (mut from, to) = ((run.start * PAGE).max(first), (run.end * PAGE).min(end));
            while from < to {
                let piece = &mut piece[..PIECE.min((to - from) as usize)];
                let inside = MemoryRegionAddress(from - first);
                region.read_slice(piece, inside).map_err(io::Error::other)?;
                writer.put(piece)?;
                from += piece.len() as u64;
            }
        }
        first = end;
    }
    Ok(writer.checksum)
}

/// Bytes of these runs of pages.
pub(crate) fn length(runs: &[Range<u64>]) -> u64 {
    runs.iter().map(|run| run.end - run.start).sum::<u64>() * PAGE
}

/// Writes pieces one behind the other into a file that is all holes.
struct Writer<'f> {
    file: &'f File,
    place: u64,
    checksum: u32,
}

impl<'f> Writer<'f> {
    fn new(file: &'f File) -> Self {
        Self {
            file,
            place: 0,
            checksum: 0,
        }
    }

    fn put(&mut self, piece: &[u8]) -> io::Result<()> {
        self.checksum = crc32c::crc32c_append(self.checksum, piece);
        if piece.iter().any(|byte| *byte != 0) {
            self.file.write_all_at(piece, self.place)?;
        }
        self.place += piece.len() as u64;
        Ok(())
    }
}

/// Reads a file from its beginning on.
struct Reader<'f> {
    file: &'f File,
    place: u64,
    checksum: u32,
}

impl<'f> Reader<'f> {
    fn new(file: &'f File) -> Self {
        Self {
            file,
            place: 0,
            checksum: 0,
        }
    }

    fn next(&mut self, piece: &mut [u8]) -> Result<(), RestoreError> {
        let read = self.file.read_exact_at(piece, self.place);
        read.map_err(|source| RestoreError::Read("memory", source))?;
        self.checksum = crc32c::crc32c_append(self.checksum, piece);
        self.place += piece.len() as u64;
        Ok(())
    }

    /// Whether all that was read is what was written.
    fn end(self, checksum: u32) -> Result<(), RestoreError> {
        if self.checksum == checksum {
            Ok(())
        } else {
            Err(RestoreError::Checksum("memory"))
        }
    }
}

/// Reads all of a file to see that it is what was written.
pub(crate) fn verify(file: &File, length: u64, checksum: u32) -> Result<(), RestoreError> {
    let mut reader = Reader::new(file);
    let mut piece = vec![0; PIECE];
    while reader.place < length {
        let part = PIECE.min((length - reader.place) as usize);
        reader.next(&mut piece[..part])?;
    }
    reader.end(checksum)
}

/// A file, and what its checksum shall be.
pub(crate) struct Checked<'f> {
    pub(crate) file: &'f File,
    pub(crate) checksum: u32,
}

/// Writes `length` bytes of memory: those of `base`, with the pages of `runs`, which lie within, from `changes`. Answers their checksum, once
/// both files have shown to be what was written.
pub(crate) fn overlay(base: &Checked<'_>, changes: &Checked<'_>, runs: &[Range<u64>], length: u64, into: &File) -> Result<u32, MergeError> {
    let broken = |error| MergeError::Write("memory", error);
    into.set_len(0).map_err(broken)?;
    into.set_len(length).map_err(broken)?;
    let (mut old, mut new) = (Reader::new(base.file), Reader::new(changes.file));
    let mut writer = Writer::new(into);
    let mut piece = vec![0; PIECE];
    let mut left = runs;
    while old.place < length {
        let start = old.place;
        let part = PIECE.min((length - start) as usize);
        let piece = &mut piece[..part];
        old.next(piece).map_err(MergeError::Base)?;
        let end = old.place;
        while let [run, rest @ ..] = left {
            let (from, to) = ((run.start * PAGE).max(start), (run.end * PAGE).min(end));
            if from < to {
                let piece = &mut piece[(from - start) as usize..(to - start) as usize];
                new.next(piece).map_err(MergeError::Changes)?;
            }
            if run.end * PAGE > end {
                break;
            }
            left = rest;
        }
        writer.put(piece).map_err(broken)?;
    }
    old.end(base.checksum).map_err(MergeError::Base)?;
    new.end(changes.checksum).map_err(MergeError::Changes)?;
    Ok(writer.checksum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().expect("a temporary file can be made");
        file.write_all_at(bytes, 0).expect("and written");
        file
    }

    fn pages(bytes: &[u8]) -> Vec<u8> {
        bytes.iter().flat_map(|byte| vec![*byte; PAGE as usize]).collect()
    }

    #[test]
    fn pages_that_were_written_lie_over_those_of_the_base_across_any_pieces() {
        // 40 pages: more than two pieces of 16.
        let old: Vec<u8> = (1..=40).collect();
        let base = pages(&old);
        for runs in [
            &[][..],
            &[(0, 1)],
            &[(39, 40)],
            &[(0, 40)],
            &[(3, 5), (14, 18), (20, 21), (31, 33)],
            &[(15, 16), (16, 17), (17, 33)],
            &[(1, 2), (4, 5), (7, 8), (36, 40)],
        ] {
            let runs: Vec<_> = runs.iter().map(|(start, end): &(u64, u64)| *start..*end).collect();
            let mut wanted = old.clone();
            let mut changes = Vec::new();
            for page in runs.iter().cloned().flatten() {
                // Every other page has become zeros.
                let byte = if page % 2 == 0 { 0 } else { 100 + page as u8 };
                wanted[page as usize] = byte;
                changes.push(byte);
            }
            let (wanted, changes) = (pages(&wanted), pages(&changes));
            let [one, other] = [&base, &changes].map(|bytes| (file(bytes), crc32c::crc32c(bytes)));
            let into = file(b"something else");
            let merged = |base: u32, changes: u32| {
                let base = Checked {
                    file: &one.0,
                    checksum: base,
                };
                let changes = Checked {
                    file: &other.0,
                    checksum: changes,
                };
                overlay(&base, &changes, &runs, wanted.len() as u64, &into)
            };
            let checksum = merged(one.1, other.1).expect("both are what was written");
            let mut has = vec![0; wanted.len()];
            into.read_exact_at(&mut has, 0).expect("it is as long");
            assert!(has == wanted, "{runs:?}");
            assert_eq!(checksum, crc32c::crc32c(&wanted));
            assert!(matches!(
                merged(one.1 ^ 1, other.1),
                Err(MergeError::Base(RestoreError::Checksum(_)))
            ));
            assert!(matches!(
                merged(one.1, other.1 ^ 1),
                Err(MergeError::Changes(RestoreError::Checksum(_)))
            ));
        }
    }
}
