//! Clusters of the file: taken, given back, and in which order the file hears of it.

use std::io;
use std::ops::Range;

use super::{COPIED, MOST_FREED, Mapping, OFFSET, Qcow2, broken, file};

/// Most clusters that are looked at to find one that is free.
const MOST_LOOKS: u32 = 1 << 20;
/// Most free clusters that are remembered.
const MOST_FREE: usize = 4096;
const ZEROS: [u8; 4096] = [0; 4096];

impl Qcow2 {
    /// How many clusters a block of refcounts counts: 16 bits each.
    pub(super) fn counts(&self) -> u64 {
        self.cluster() / 2
    }

    /// That a cluster which is data of this disk is so of nobody else.
    pub(super) fn own(&self, entry: u64, offset: u64) -> io::Result<()> {
        if entry & COPIED == 0 || self.tables.contains(&offset) {
            return Err(broken("a cluster has more than one owner, and there are no snapshots"));
        }
        Ok(())
    }

    /// Where the entry of a place is, with a table made for it if there was none; it can be changed in memory without anything else to be
    /// written first.
    pub(super) fn entry_to_change(&mut self, position: u64) -> io::Result<u64> {
        let (index, inner) = self.place(position);
        let entry = *self.l1.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
        if entry & OFFSET != 0 && entry & COPIED == 0 {
            return Err(broken("an L2 table has more than one owner, and there are no snapshots"));
        }
        if self.freed.len() >= MOST_FREED {
            self.settle()?;
        }
        let table = match entry & OFFSET {
            0 => {
                let table = self.allocate()?;
                self.clear(table, self.cluster())?;
                self.written = true;
                self.tables.insert(table);
                self.l1[index] = table | COPIED;
                self.l1_dirty.insert(index);
                table
            }
            table => table,
        };
        let at = table + inner * 8;
        if !self.l2.has_room(at) {
            self.settle()?;
        }
        Ok(at)
    }

    /// A cluster that nobody has, with one reference; its bytes are anything.
    pub(super) fn allocate(&mut self) -> io::Result<u64> {
        while let Some(offset) = self.free.pop_front() {
            if self.count(offset)? == Some(0) && !self.tables.contains(&offset) {
                self.set_count(offset, 1)?;
                return Ok(offset);
            }
        }
        let countable = self.blocks.len() as u64 * self.counts();
        for _ in 0..MOST_LOOKS {
            if self.cursor >= countable {
                self.cursor = 1;
            }
            let offset = self.cursor << self.header.cluster_bits;
            self.cursor += 1;
            match self.count(offset)? {
                Some(0) if self.tables.contains(&offset) => return Err(broken("a table is counted as free")),
                Some(0) => {
                    self.set_count(offset, 1)?;
                    return Ok(offset);
                }
                Some(_) => {}
                None => self.add_block(offset)?,
            }
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    /// Makes a cluster the block of refcounts that counts it, and no more yet. It is in the file before anything says so.
    fn add_block(&mut self, offset: u64) -> io::Result<()> {
        let index = ((offset >> self.header.cluster_bits) / self.counts()) as usize;
        self.clear(offset, self.cluster())?;
        file::write(&self.file, &1u16.to_be_bytes(), self.count_at(offset, offset))?;
        self.data.flush()?;
        file::write(&self.file, &offset.to_be_bytes(), self.header.refcounts_offset + index as u64 * 8)?;
        self.blocks[index] = offset;
        self.tables.insert(offset);
        self.written = true;
        Ok(())
    }

    fn count_at(&self, block: u64, offset: u64) -> u64 {
        block + (offset >> self.header.cluster_bits) % self.counts() * 2
    }

    /// References to a cluster; `None`: nobody counts them yet.
    fn count(&mut self, offset: u64) -> io::Result<Option<u16>> {
        let index = (offset >> self.header.cluster_bits) / self.counts();
        let block = *self.blocks.get(index as usize).ok_or(io::ErrorKind::StorageFull)?;
        if block == 0 {
            return Ok(None);
        }
        let at = self.count_at(block, offset);
        Ok(Some(u16::from_be_bytes(self.refcounts.get(&self.file, at)?)))
    }

    fn set_count(&mut self, offset: u64, count: u16) -> io::Result<()> {
        let index = (offset >> self.header.cluster_bits) / self.counts();
        let at = self.count_at(self.blocks[index as usize], offset);
        self.refcounts.set(&self.file, at, count.to_be_bytes())
    }

    /// What lies in these bytes of the file has one owner less as soon as the file says so.
    pub(super) fn release(&mut self, bytes: Range<u64>) -> io::Result<()> {
        let mut offset = bytes.start - bytes.start % self.cluster();
        while offset < bytes.end {
            self.freed.push(offset);
            offset += self.cluster();
        }
        Ok(())
    }

    /// Writes what was changed in memory: data and counts first, then what points there; then counts what nothing points to any more.
    pub(in super::super) fn settle(&mut self) -> io::Result<()> {
        self.written |= self.refcounts.write(&self.file)?;
        let changed = !self.l1_dirty.is_empty() || self.l2.dirty();
        if changed && self.written {
            self.data.flush()?;
            self.written = false;
        }
        for index in &self.l1_dirty {
            file::write(
                &self.file,
                &self.l1[*index].to_be_bytes(),
                self.header.l1_offset + *index as u64 * 8,
            )?;
        }
        self.l1_dirty.clear();
        self.l2.write(&self.file)?;
        if !self.freed.is_empty() {
            self.data.flush()?;
            self.count_down()?;
        }
        Ok(())
    }

    fn count_down(&mut self) -> io::Result<()> {
        let mut freed = std::mem::take(&mut self.freed);
        freed.sort_unstable();
        let mut hole = 0..0;
        for offset in freed {
            // A count that is wrong already is left to those who repair images.
            let Some(count @ 1..) = self.count(offset)? else { continue };
            self.set_count(offset, count - 1)?;
            if count > 1 || self.tables.contains(&offset) {
                continue;
            }
            if self.free.len() < MOST_FREE {
                self.free.push_back(offset);
            }
            if hole.end != offset {
                self.punch(&hole)?;
                hole = offset..offset;
            }
            hole.end += self.cluster();
        }
        self.punch(&hole)?;
        self.refcounts.write(&self.file)?;
        self.inflated = None;
        Ok(())
    }

    fn punch(&self, hole: &Range<u64>) -> io::Result<()> {
        let end = hole.end.min(self.end);
        if hole.start >= end {
            return Ok(());
        }
        self.data.discard(hole.start, end - hole.start)
    }

    /// Fills up to `place` what the file does not have of a cluster that it has: a file may be cut in its last one.
    pub(super) fn pad(&mut self, place: u64) -> io::Result<()> {
        if place > self.end {
            self.clear(self.end, place - self.end)?;
        }
        Ok(())
    }

    /// Writes zeros, less than a cluster or one.
    pub(super) fn clear(&mut self, mut offset: u64, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let here = length.min(ZEROS.len() as u64);
            file::write(&self.file, &ZEROS[..here as usize], offset)?;
            offset += here;
            length -= here;
        }
        self.end = self.end.max(offset);
        Ok(())
    }

    /// What an entry of a compressed cluster says.
    pub(super) fn deflated(&self, entry: u64) -> io::Result<Mapping> {
        let bits = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = (entry & (COPIED - 1) & !(1 << 62)) >> bits;
        if entry & COPIED != 0 {
            return Err(broken("a compressed cluster is said to be one of its own"));
        }
        // The first sector counts from where the bytes begin.
        let length = (sectors + 1) * 512 - offset % 512;
        if offset < self.cluster() || offset >= self.end {
            return Err(broken("compressed bytes lie outside of the file"));
        }
        let length = length.min(self.end - offset);
        if length > 2 * self.cluster() {
            return Err(broken("compressed bytes are more than they can be"));
        }
        Ok(Mapping::Deflated(offset, length as usize))
    }

    /// The bytes of a compressed cluster, a whole one.
    pub(super) fn inflate(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        if self.inflated.as_ref().is_none_or(|(known, _)| *known != offset) {
            let mut deflated = vec![0; length];
            file::read(&self.file, &mut deflated, offset)?;
            let mut bytes = vec![0; self.cluster() as usize];
            let mut inflater = flate2::Decompress::new(false);
            inflater
                .decompress(&deflated, &mut bytes, flate2::FlushDecompress::Finish)
                .map_err(|_| broken("compressed bytes make no sense"))?;
            if inflater.total_out() != bytes.len() as u64 {
                return Err(broken("compressed bytes are no whole cluster"));
            }
            self.inflated = Some((offset, bytes));
        }
        Ok(&self.inflated.as_ref().expect("it was just put there").1)
    }
}
