//! An image is opened: its tables are read, and seen to lie in the file and apart.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, seek};

use super::file::{self, Slices};
use super::header::{Header, LENGTH};
use super::{COPIED, OFFSET, Qcow2, Qcow2Error};
use crate::virtio::block::extents::Extents;

impl Qcow2 {
    /// Opens an image; `writable`: the file is open for writing, and shall be written to.
    pub(in super::super) fn open(file: File, writable: bool) -> Result<Self, Qcow2Error> {
        let end = seek(&file, SeekFrom::End(0)).map_err(io::Error::from)?;
        let mut bytes = [0; LENGTH];
        // A header of version 2 may be the whole of a very short file: what is missing is none of its fields.
        let there = usize::try_from(end).unwrap_or(LENGTH).min(LENGTH);
        file::read(&file, &mut bytes[..there], 0)?;
        let header = Header::read(&bytes, writable)?;
        let mut tables = Tables {
            cluster: header.cluster(),
            end,
            taken: BTreeSet::from([0]),
        };
        tables.take("the L1 table", header.l1_offset, u64::from(header.l1_size) * 8)?;
        tables.take("the table of refcounts", header.refcounts_offset, header.refcounts_length())?;
        let l1 = file::table(&file, header.l1_offset, header.l1_size as usize)?;
        for entry in &l1 {
            if entry & !(OFFSET | COPIED) != 0 {
                return Err(Qcow2Error::Broken("an L1 entry has bits that mean nothing".into()));
            }
            if entry & OFFSET != 0 {
                tables.take("an L2 table", entry & OFFSET, header.cluster())?;
            }
        }
        let blocks = file::table(&file, header.refcounts_offset, (header.refcounts_length() / 8) as usize)?;
        for block in blocks.iter().filter(|block| **block != 0) {
            tables.take("a block of refcounts", *block, header.cluster())?;
        }
        let data = file.try_clone()?;
        let data = Extents::new(vec![(data, 0, i64::MAX as u64)]).expect("a file has no more bytes than that");
        let image = Self {
            l2: Slices::new(header.cluster()),
            refcounts: Slices::new(header.cluster()),
            cursor: end.div_ceil(header.cluster()),
            tables: tables.taken,
            l1_dirty: BTreeSet::new(),
            written: false,
            freed: Vec::new(),
            free: VecDeque::new(),
            inflated: None,
            file,
            data,
            header,
            end,
            l1,
            blocks,
        };
        if writable {
            image.begin_to_write()?;
        }
        Ok(image)
    }

    fn begin_to_write(&self) -> Result<(), Qcow2Error> {
        let (clusters, tables) = (self.size().div_ceil(self.cluster()), self.l1.len() as u64);
        let own = self.header.refcounts_length() / self.cluster() + (tables * 8).div_ceil(self.cluster()) + 1;
        let countable = self.blocks.len() as u64 * self.counts();
        // Each block counts itself, too.
        if countable < clusters + tables + own + clusters.div_ceil(self.counts()) {
            return Err(Qcow2Error::Unsupported(
                "writing to an image that cannot count all clusters of its disk (larger clusters help)".into(),
            ));
        }
        if self.header.autoclear != 0 {
            file::write(&self.file, &[0; 8], 88)?;
            self.data.flush()?;
        }
        Ok(())
    }
}

/// Whose clusters are whose.
struct Tables {
    cluster: u64,
    end: u64,
    taken: BTreeSet<u64>,
}

impl Tables {
    fn take(&mut self, what: &str, offset: u64, length: u64) -> Result<(), Qcow2Error> {
        let broken = |problem: &str| Err(Qcow2Error::Broken(format!("{what} {problem}")));
        if !offset.is_multiple_of(self.cluster) {
            return broken("begins between clusters");
        }
        let Some(end) = offset.checked_add(length).filter(|end| *end <= self.end) else {
            return broken("lies outside of the file");
        };
        let mut at = offset;
        while at < end {
            if !self.taken.insert(at) {
                return broken("lies over something else");
            }
            at += self.cluster;
        }
        Ok(())
    }
}
