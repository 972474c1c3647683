//! Images for tests: made by hand, small, without this library's code; and looked at, as `qemu-img check` does.

use std::collections::BTreeMap;

/// An image in the making, which starts with header, table of refcounts, one block of them, and L1 table, each in clusters of its own.
pub(crate) struct Image {
    pub(crate) bits: u32,
    pub(crate) bytes: Vec<u8>,
}

/// Offset of the cluster of the L1 table, in clusters.
const L1: usize = 3;

impl Image {
    /// A disk of `size` bytes of zeros.
    pub(crate) fn new(version: u32, bits: u32, size: u64) -> Self {
        let cluster = 1usize << bits;
        let entries = size.div_ceil((cluster * (cluster / 8)) as u64) as u32;
        let l1 = (entries as usize * 8).div_ceil(cluster);
        let mut image = Self {
            bits,
            bytes: vec![0; (L1 + l1) * cluster],
        };
        for (at, value) in [(0, 0x5146_49fb), (4, version), (20, bits), (36, entries), (56, 1)] {
            image.long(at, value);
        }
        image.quad(24, size);
        image.quad(40, (L1 * cluster) as u64);
        image.quad(48, cluster as u64);
        if version == 3 {
            image.long(96, 4);
            image.long(100, 104);
        }
        image.quad(cluster, 2 * cluster as u64);
        for number in 0..L1 + l1 {
            image.count(number, 1);
        }
        image
    }

    pub(crate) fn cluster(&self) -> usize {
        1 << self.bits
    }

    pub(crate) fn long(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn quad(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn look(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    pub(crate) fn count(&mut self, number: usize, count: u16) {
        let at = 2 * self.cluster() + 2 * number;
        self.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }

    /// One more cluster with one reference; where it is.
    pub(crate) fn add(&mut self) -> usize {
        let at = self.bytes.len().next_multiple_of(self.cluster());
        self.bytes.resize(at + self.cluster(), 0);
        self.count(at >> self.bits, 1);
        at
    }

    /// Where the L2 entry of the disk's cluster `number` is; its table is made where there is none.
    pub(crate) fn entry(&mut self, number: usize) -> usize {
        let per_table = self.cluster() / 8;
        let at = L1 * self.cluster() + number / per_table * 8;
        let table = match self.look(at) & !(1 << 63) {
            0 => {
                let table = self.add();
                self.quad(at, table as u64 | 1 << 63);
                table
            }
            table => table as usize,
        };
        table + number % per_table * 8
    }

    /// Gives the disk's cluster `number` these bytes.
    pub(crate) fn data(&mut self, number: usize, bytes: &[u8]) -> usize {
        let entry = self.entry(number);
        let at = self.add();
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.quad(entry, at as u64 | 1 << 63);
        at
    }

    /// The same, compressed, from `skip` bytes of a cluster on.
    pub(crate) fn deflated(&mut self, number: usize, bytes: &[u8], skip: usize) -> usize {
        let mut whole = bytes.to_vec();
        whole.resize(self.cluster(), 0);
        let mut deflated = vec![0; self.cluster()];
        let mut deflater = flate2::Compress::new(flate2::Compression::fast(), false);
        let done = deflater.compress(&whole, &mut deflated, flate2::FlushCompress::Finish);
        assert_eq!(done.expect("it can be compressed"), flate2::Status::StreamEnd);
        let length = deflater.total_out() as usize;
        let entry = self.entry(number);
        let at = self.add() + skip;
        self.bytes[at..at + length].copy_from_slice(&deflated[..length]);
        let sectors = ((at + length - 1) / 512 - at / 512) as u64;
        self.quad(entry, 1 << 62 | sectors << (70 - self.bits) | at as u64);
        at
    }
}

/// How many clusters are counted as used that nobody uses; the error is what is worse: a cluster used more often than it is counted, or a
/// table or cluster outside of the file. Of an image whose header is good.
pub(crate) fn check(bytes: &[u8]) -> Result<usize, String> {
    let quad = |at: u64| -> Result<u64, String> {
        let at = usize::try_from(at).map_err(|_| "far outside")?;
        let bytes = bytes.get(at..at + 8).ok_or_else(|| format!("{at:#x} is outside of the file"))?;
        Ok(u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
    };
    let long = |at: u64| quad(at).map(|number| number >> 32);
    let bits = long(20)?;
    let cluster = 1u64 << bits;
    let mut used: BTreeMap<u64, u64> = BTreeMap::new();
    let mut take = |from: u64, length: u64| {
        for number in from >> bits..(from + length).div_ceil(cluster) {
            *used.entry(number).or_default() += 1;
        }
    };
    take(0, cluster);
    let (l1, entries, refcounts, clusters) = (quad(40)?, long(36)?, quad(48)?, long(56)?);
    take(l1, entries * 8);
    take(refcounts, clusters * cluster);
    let mut blocks = Vec::new();
    for index in 0..clusters * cluster / 8 {
        let block = quad(refcounts + index * 8)?;
        if block != 0 {
            take(block, cluster);
            blocks.push((index, block));
        }
    }
    for index in 0..entries {
        let table = quad(l1 + index * 8)? & !(1 << 63);
        if table == 0 {
            continue;
        }
        take(table, cluster);
        for inner in 0..cluster / 8 {
            let entry = quad(table + inner * 8)?;
            if entry >> 62 & 1 == 1 {
                let (offset, sectors) = (entry & ((1 << (70 - bits)) - 1), (entry & !(3 << 62)) >> (70 - bits));
                take(offset, (sectors + 1) * 512 - offset % 512);
            } else if entry & 0x00ff_ffff_ffff_fe00 != 0 {
                take(entry & 0x00ff_ffff_ffff_fe00, cluster);
            }
        }
    }
    let mut leaks = 0;
    let mut counted: BTreeMap<u64, u64> = BTreeMap::new();
    for (index, block) in blocks {
        for inner in 0..cluster / 2 {
            let count = quad(block + inner / 4 * 8)? >> (48 - inner % 4 * 16) & 0xffff;
            if count > 0 {
                counted.insert(index * cluster / 2 + inner, count);
            }
        }
    }
    for (number, uses) in &used {
        let count = counted.remove(number).unwrap_or_default();
        if count < *uses {
            return Err(format!("cluster {number} is used {uses} times and counted {count} times"));
        }
        leaks += usize::from(count > *uses);
    }
    Ok(leaks + counted.len())
}
