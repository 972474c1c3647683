//! A raw disk made a qcow2 image (QEMU's docs/interop/qcow2.txt, version 3), in one go: header, table of refcounts, L1 table, refcounts, L2 tables, data, each
//! in clusters of its own and one behind the other. Clusters that are holes of the raw disk, or zeros, are not there.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt};

use vmm_lib::virtio::block::{MOST_FREED, MOST_OF_A_TABLE};

/// Bytes of a cluster, and the power of two.
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// Entries of an L2 table, or of the table of refcounts' cluster.
const ENTRIES: u64 = CLUSTER / 8;
/// Refcounts (of 16 bits) of a block.
const COUNTS: u64 = CLUSTER / 2;
/// The entry's cluster belongs to nobody else.
const COPIED: u64 = 1 << 63;

/// Where what is in an image of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    /// Entries of the L1 table: L2 tables of a full disk.
    tables: u64,
    /// Clusters of the table of refcounts, which can count all of a full disk.
    counters: u64,
    /// Clusters of the L1 table.
    index: u64,
    /// Clusters of a full image.
    most: u64,
}

impl Layout {
    fn of(size: u64) -> Self {
        let clusters = size.div_ceil(CLUSTER);
        let tables = clusters.div_ceil(ENTRIES);
        let index = tables.div_ceil(ENTRIES);
        let (mut counters, mut most) = (1, 0);
        // Blocks count themselves, and the table's own clusters.
        for _ in 0..3 {
            let counted = 1 + counters + index + tables + clusters;
            most = counted + counted.div_ceil(COUNTS - 1);
            counters = most.div_ceil(COUNTS).div_ceil(ENTRIES);
        }
        Self {
            tables,
            counters,
            index,
            most,
        }
    }
}

/// The most bytes that the image of a disk of `size` bytes may have.
pub(super) fn most(size: u64) -> u64 {
    (Layout::of(size).most + MOST_FREED as u64).saturating_mul(CLUSTER)
}

/// Makes `to` the image of a raw disk of `size` bytes.
pub(super) fn make(from: &File, size: u64, to: &File) -> io::Result<()> {
    let layout = Layout::of(size);
    if layout.tables * 8 > MOST_OF_A_TABLE || layout.counters * CLUSTER > MOST_OF_A_TABLE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{size} bytes are too many for qcow2"),
        ));
    }
    let data = clusters(from, size)?;
    let mut by_table: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for cluster in data {
        by_table.entry(cluster / ENTRIES).or_default().push(cluster);
    }
    let used_tables = by_table.len() as u64;
    let used_data: u64 = by_table.values().map(|clusters| clusters.len() as u64).sum();
    let fixed = 1 + layout.counters + layout.index;
    let others = fixed + used_tables + used_data;
    let blocks = others.div_ceil(COUNTS - 1);
    let (first_table, first_data) = (fixed + blocks, fixed + blocks + used_tables);
    let total = others + blocks;

    to.set_len(total * CLUSTER)?;
    to.write_all_at(&header(size, &layout), 0)?;
    let of_blocks: Vec<u64> = (fixed..first_table).map(|cluster| cluster * CLUSTER).collect();
    to.write_all_at(&table(&of_blocks), CLUSTER)?;
    let counts: Vec<u8> = (0..total).flat_map(|_| 1u16.to_be_bytes()).collect();
    to.write_all_at(&counts, fixed * CLUSTER)?;
    let mut index = vec![0; usize::try_from(layout.tables).expect("at most 1 MiB")];
    let mut next = first_data;
    let mut buffer = vec![0; CLUSTER as usize];
    for (number, (of, clusters)) in by_table.into_iter().enumerate() {
        let at = (first_table + number as u64) * CLUSTER;
        index[usize::try_from(of).expect("at most 1 MiB")] = at | COPIED;
        let mut entries = vec![0; ENTRIES as usize];
        for cluster in clusters {
            read(from, cluster, size, &mut buffer)?;
            to.write_all_at(&buffer, next * CLUSTER)?;
            entries[usize::try_from(cluster % ENTRIES).expect("a table's")] = (next * CLUSTER) | COPIED;
            next += 1;
        }
        to.write_all_at(&table(&entries), at)?;
    }
    to.write_all_at(&table(&index), (1 + layout.counters) * CLUSTER)
}

fn header(size: u64, layout: &Layout) -> Vec<u8> {
    let mut bytes = vec![0; 112];
    let mut long = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    long(0, 0x5146_49fb);
    long(4, 3);
    long(20, CLUSTER_BITS);
    long(36, u32::try_from(layout.tables).expect("at most 1 MiB"));
    long(56, u32::try_from(layout.counters).expect("at most 1 MiB"));
    // Refcounts have 2 to this power bits.
    long(96, 4);
    long(100, 104);
    for (at, value) in [(24, size), (40, (1 + layout.counters) * CLUSTER), (48, CLUSTER)] {
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }
    bytes
}

fn table(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

/// A cluster of the raw disk; what is behind its end is zeros.
fn read(from: &File, cluster: u64, size: u64, buffer: &mut [u8]) -> io::Result<()> {
    let (start, end) = (cluster * CLUSTER, size.min((cluster + 1) * CLUSTER));
    let (there, beyond) = buffer.split_at_mut(usize::try_from(end - start).expect("a cluster"));
    beyond.fill(0);
    from.read_exact_at(there, start)
}

/// Numbers of the clusters of a raw disk that are not all zeros, in order.
fn clusters(from: &File, size: u64) -> io::Result<Vec<u64>> {
    let mut found: Vec<u64> = Vec::new();
    let mut buffer = vec![0; CLUSTER as usize];
    for (start, end) in super::runs(from)? {
        let after = end.min(size).div_ceil(CLUSTER);
        // Two runs may be in one cluster.
        let first = found.last().map_or(0, |last| last + 1).max(start / CLUSTER);
        for cluster in first..after {
            read(from, cluster, size, &mut buffer)?;
            if buffer.iter().any(|byte| *byte != 0) {
                found.push(cluster);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quad(file: &File, at: u64) -> u64 {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    }

    /// What an image says of a cluster of its disk.
    fn cluster(image: &File, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; CLUSTER as usize];
        let entry = quad(image, quad(image, 40) + number / ENTRIES * 8) & !COPIED;
        if entry != 0 {
            let data = quad(image, entry + number % ENTRIES * 8) & !COPIED;
            if data != 0 {
                image.read_exact_at(&mut bytes, data).unwrap();
            }
        }
        bytes
    }

    #[test]
    fn an_image_has_the_disks_bytes_and_counts_each_of_its_clusters_once() {
        // More than an L2 table's worth, and a last cluster that is not whole.
        let size = CLUSTER * ENTRIES + 3 * CLUSTER + 512;
        let (raw, image) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        raw.set_len(size).unwrap();
        let written = [(5, 1024), (6, 0), (ENTRIES + 1, 77), (ENTRIES + 3, 100)];
        for (number, at) in written {
            raw.write_all_at(b"something", number * CLUSTER + at).unwrap();
        }
        // Data for the file system, nothing for an image.
        raw.write_all_at(&[0; 4096], 9 * CLUSTER).unwrap();
        make(&raw, size, &image).unwrap();
        assert_eq!((quad(&image, 0) >> 32, quad(&image, 24)), (0x5146_49fb, size));
        for number in 0..ENTRIES + 4 {
            let mut expected = vec![0; CLUSTER as usize];
            read(&raw, number, size, &mut expected).unwrap();
            assert!(cluster(&image, number) == expected, "cluster {number}");
        }
        // Header, refcounts, L1, a block, two L2 tables, and the data.
        let length = image.metadata().unwrap().len() / CLUSTER;
        assert_eq!(length, 1 + 1 + 1 + 1 + 2 + written.len() as u64);
        let block = quad(&image, quad(&image, 48));
        let mut counts = vec![0; CLUSTER as usize];
        image.read_exact_at(&mut counts, block).unwrap();
        let counted: Vec<u16> = counts.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        assert!(
            counted
                .iter()
                .zip(0..)
                .all(|(count, number): (&u16, u64)| u64::from(*count) == u64::from(number < length))
        );
    }

    #[test]
    fn a_disk_of_any_size_can_be_filled_and_one_that_is_too_large_is_refused() {
        for size in [512, 4 << 30, 9 << 40] {
            let Layout { counters, most: whole, .. } = Layout::of(size);
            assert!(counters * ENTRIES * COUNTS >= whole && whole * CLUSTER >= size && most(size) > whole * CLUSTER);
        }
        let error = make(&tempfile::tempfile().unwrap(), 80 << 40, &tempfile::tempfile().unwrap()).unwrap_err();
        assert!(error.to_string().contains("too many for qcow2"), "{error}");
    }
}
