//! Bytes of the disk become zeros, and their clusters the host's again.

use std::io;

use super::{COPIED, Mapping, Qcow2, file};

impl Qcow2 {
    /// Gives back what lies in whole clusters; what does not stays, as a driver must expect.
    pub(in super::super) fn discard(&mut self, position: u64, length: u64) -> io::Result<()> {
        let cluster = self.cluster();
        // The last cluster of the disk may be less than one.
        let end = if position + length == self.size() {
            u64::MAX
        } else {
            position + length
        };
        let mut at = position.next_multiple_of(cluster);
        while at < self.size() && at.checked_add(cluster).is_none_or(|next| next <= end) {
            self.drop_cluster(at)?;
            at += cluster;
        }
        Ok(())
    }

    /// Makes bytes read as zeros; what they take may be given back only when `unmap`.
    pub(in super::super) fn zero(&mut self, position: u64, length: u64, unmap: bool) -> io::Result<()> {
        let (mut at, end) = (position, position + length);
        while at < end {
            let inside = at % self.cluster();
            let here = (self.cluster() - inside).min(end - at);
            let whole = inside == 0 && (here == self.cluster() || end == self.size());
            let (entry, mapping) = self.mapping(at)?;
            match mapping {
                Mapping::Zeros(_) => {}
                _ if whole && unmap => self.drop_cluster(at)?,
                Mapping::Data(offset) => {
                    self.own(entry, offset)?;
                    self.written = true;
                    // What the file does not have of the cluster reads as zeros already.
                    let there = self.end.saturating_sub(offset + inside).min(here);
                    if there > 0 {
                        self.data.zero(offset + inside, there, false)?;
                    }
                }
                Mapping::Deflated(..) => {
                    let zeros = vec![0; here as usize];
                    self.rewrite(at, &zeros)?;
                }
            }
            at += here;
        }
        Ok(())
    }

    /// Writes bytes of this process into a deflated cluster, which is one no more.
    fn rewrite(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let (_, mapping) = self.mapping(position)?;
        let Mapping::Deflated(from, length) = mapping else { return Ok(()) };
        let at = self.entry_to_change(position)?;
        let mut whole = self.inflate(from, length)?.to_vec();
        let inside = (position % self.cluster()) as usize;
        whole[inside..inside + bytes.len()].copy_from_slice(bytes);
        let offset = self.allocate()?;
        self.written = true;
        file::write(&self.file, &whole, offset)?;
        self.end = self.end.max(offset + self.cluster());
        self.l2.set(&self.file, at, (offset | COPIED).to_be_bytes())?;
        self.release(from..from + length as u64)
    }

    /// Forgets a cluster of the disk, which reads as zeros from now on.
    fn drop_cluster(&mut self, position: u64) -> io::Result<()> {
        let (entry, mapping) = self.mapping(position)?;
        if mapping == Mapping::Zeros(None) {
            return Ok(());
        }
        let at = self.entry_to_change(position)?;
        match mapping {
            Mapping::Deflated(from, length) => {
                self.l2.set(&self.file, at, [0; 8])?;
                self.release(from..from + length as u64)
            }
            Mapping::Data(offset) | Mapping::Zeros(Some(offset)) => {
                self.own(entry, offset)?;
                self.l2.set(&self.file, at, [0; 8])?;
                self.release(offset..offset + 1)
            }
            Mapping::Zeros(None) => Ok(()),
        }
    }
}
