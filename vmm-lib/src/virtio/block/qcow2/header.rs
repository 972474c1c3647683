//! The header of a qcow2 image (QEMU's docs/interop/qcow2.txt, versions 2 and 3), checked as a whole. Refuses, by name, what this library
//! does not do and what an image must not say.

use super::Qcow2Error;

/// `QFI\xfb`.
const MAGIC: u32 = 0x5146_49fb;
/// Bytes of the header that are looked at.
pub(super) const LENGTH: usize = 112;
/// Bytes of a header of version 3, at least.
const LENGTH_3: u32 = 104;
/// Most bytes of an image's first table, and of its table of refcounts: they are kept in memory.
pub const MOST_OF_A_TABLE: u64 = 1 << 20;

/// Refcounts may be wrong until somebody repairs them.
const DIRTY: u64 = 1 << 0;
/// Somebody has seen that the image is broken.
const CORRUPT: u64 = 1 << 1;
/// What changes the meaning of an image and is not done here.
const NAMES: [(u32, &str); 3] = [
    (2, "an external data file"),
    (3, "a compression that is not deflate"),
    (4, "extended L2 entries"),
];

/// What an image says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    /// A cluster has 2 to this power bytes.
    pub(super) cluster_bits: u32,
    /// Of the disk, bytes.
    pub(super) size: u64,
    pub(super) l1_offset: u64,
    /// Entries.
    pub(super) l1_size: u32,
    pub(super) refcounts_offset: u64,
    pub(super) refcounts_clusters: u32,
    /// Features that must be forgotten by whoever writes without knowing them.
    pub(super) autoclear: u64,
}

impl Header {
    /// Reads and checks one; `writable`: what only a writer has to understand is refused, too.
    pub(super) fn read(bytes: &[u8; LENGTH], writable: bool) -> Result<Self, Qcow2Error> {
        let long = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let quad = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if long(0) != MAGIC {
            return Err(Qcow2Error::NotOne);
        }
        let version = long(4);
        if !(2..=3).contains(&version) {
            return Err(Qcow2Error::Unsupported(format!("version {version}")));
        }
        // Version 2 ends before them.
        let of_3 = |value: u64| if version >= 3 { value } else { 0 };
        let (incompatible, autoclear) = (of_3(quad(72)), of_3(quad(88)));
        let unsupported = |what: &str| Err(Qcow2Error::Unsupported(what.into()));
        if quad(8) != 0 {
            return unsupported("a backing file");
        }
        match long(32) {
            0 => {}
            method => return unsupported(&format!("encryption (method {method})")),
        }
        for bit in 2..64 {
            if incompatible & 1 << bit != 0 {
                let known = NAMES.iter().find(|(number, _)| *number == bit);
                let name = known.map_or_else(|| format!("the unknown feature {bit}"), |(_, name)| (*name).into());
                return unsupported(&name);
            }
        }
        if writable {
            if incompatible & DIRTY != 0 {
                return unsupported("writing to an image that was not closed (`qemu-img check -r all` repairs it)");
            }
            if incompatible & CORRUPT != 0 {
                return unsupported("writing to an image that is marked as corrupt");
            }
            if long(60) != 0 {
                return unsupported("writing to an image with snapshots in it");
            }
            if of_3(long(96).into()) != 4 && version >= 3 {
                return unsupported("writing to an image whose refcounts have not 16 bits");
            }
        }
        let header = Self {
            version,
            cluster_bits: long(20),
            size: quad(24),
            l1_offset: quad(40),
            l1_size: long(36),
            refcounts_offset: quad(48),
            refcounts_clusters: long(56),
            autoclear,
        };
        header.check(if version >= 3 { long(100) } else { 72 })?;
        Ok(header)
    }

    fn check(&self, length: u32) -> Result<(), Qcow2Error> {
        let broken = |what: &str| Err(Qcow2Error::Broken(what.into()));
        if !(9..=21).contains(&self.cluster_bits) {
            return broken("its clusters have neither 512 bytes nor 2 MiB, nor anything between");
        }
        if self.version >= 3 && (length < LENGTH_3 || u64::from(length) > self.cluster()) {
            return broken("its header has a wrong length");
        }
        if self.size == 0 || !self.size.is_multiple_of(512) || self.size > i64::MAX as u64 {
            return broken("its size is not one of a disk");
        }
        let needed = self.size.div_ceil(self.cluster() << self.l2_bits());
        if u64::from(self.l1_size) < needed {
            return broken("its L1 table is too short for its size");
        }
        if u64::from(self.l1_size) * 8 > MOST_OF_A_TABLE {
            return broken("its L1 table is larger than 1 MiB");
        }
        if self.refcounts_length() > MOST_OF_A_TABLE.max(self.cluster()) || self.refcounts_clusters == 0 {
            return broken("its table of refcounts is empty, or larger than 1 MiB");
        }
        Ok(())
    }

    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// An L2 table has 2 to this power entries.
    pub(super) fn l2_bits(&self) -> u32 {
        self.cluster_bits - 3
    }

    /// Bytes of the table of refcounts.
    pub(super) fn refcounts_length(&self) -> u64 {
        u64::from(self.refcounts_clusters) << self.cluster_bits
    }
}
