//! Guest memory into a file, and a file as guest memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

use super::RestoreError;
use crate::memory::Layout;

/// What is looked at at a time; a piece that is all zero becomes a hole.
const PIECE: usize = 64 << 10;

/// Writes all of memory, but what comes and goes, of which nothing is there; answers its checksum.
pub(crate) fn write(memory: &GuestMemoryMmap, layout: &Layout, file: &File) -> io::Result<u32> {
    let (mut place, mut checksum) = (0, 0);
    let mut piece = vec![0; PIECE];
    // An older content would shine through the holes.
    file.set_len(0)?;
    file.set_len(layout.low + layout.high)?;
    for region in memory.iter().filter(|region| !layout.hotplug.contains(&region.start_addr().0)) {
        let mut offset = 0;
        while offset < region.len() {
            let length = PIECE.min((region.len() - offset) as usize);
            let piece = &mut piece[..length];
            region.read_slice(piece, MemoryRegionAddress(offset)).map_err(io::Error::other)?;
            checksum = crc32c::crc32c_append(checksum, piece);
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(piece, place)?;
            }
            offset += length as u64;
            place += length as u64;
        }
    }
    Ok(checksum)
}

/// Reads all of a file to see that it is what was written.
pub(crate) fn verify(file: &File, length: u64, checksum: u32) -> Result<(), RestoreError> {
    let mut piece = vec![0; PIECE];
    let (mut place, mut sum) = (0, 0);
    while place < length {
        let part = PIECE.min((length - place) as usize);
        file.read_exact_at(&mut piece[..part], place)
            .map_err(|source| RestoreError::Read("memory", source))?;
        sum = crc32c::crc32c_append(sum, &piece[..part]);
        place += part as u64;
    }
    if sum == checksum {
        Ok(())
    } else {
        Err(RestoreError::Checksum("memory"))
    }
}
