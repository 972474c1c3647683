//! Images that are good, unknown, and broken in each way that an image can be.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};

use vm_memory::{Bytes, GuestAddress, Permissions};

use super::writer::{Image, check};
use super::{Qcow2, Qcow2Error};
use crate::dirty::Ram;
use crate::virtio::block::extents::Direction;
use crate::virtio::chain::Segments;

const DISK: u64 = 4 << 20;
const BITS: [u32; 4] = [9, 12, 16, 21];

fn file(image: &Image) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&image.bytes, 0).unwrap();
    file
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A disk, and memory for what it moves.
struct Disk {
    image: Qcow2,
    memory: Ram,
}

fn open(file: &File, writable: bool) -> Result<Disk, Qcow2Error> {
    Ok(Disk {
        image: Qcow2::open(file.try_clone().unwrap(), writable)?,
        memory: Ram::from_ranges(&[(GuestAddress(0), DISK as usize)]).unwrap(),
    })
}

impl Disk {
    fn transfer(&mut self, direction: Direction, position: u64, length: usize) -> io::Result<()> {
        let mut segments = Segments::default();
        let access = Permissions::ReadWrite;
        segments.push(&self.memory, GuestAddress(0), length as u32, access).unwrap();
        self.image.transfer(direction, &segments, 0..length, position)
    }

    fn read(&mut self, position: u64, length: usize) -> io::Result<Vec<u8>> {
        // What the disk leaves out is seen.
        self.memory.write_slice(&vec![0xee; length], GuestAddress(0)).unwrap();
        self.transfer(Direction::FromDisk, position, length)?;
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        Ok(bytes)
    }

    fn write(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write_slice(bytes, GuestAddress(0)).unwrap();
        self.transfer(Direction::ToDisk, position, bytes.len())
    }
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i / 5) as u8 ^ seed).collect()
}

#[test]
fn what_an_image_has_is_read_and_the_rest_is_zeros() {
    for (bits, version) in BITS.into_iter().flat_map(|bits| [(bits, 2), (bits, 3)]) {
        let mut image = Image::new(version, bits, DISK);
        let (cluster, last) = (image.cluster(), (DISK >> bits) as usize - 1);
        let mut expected = vec![0; DISK as usize];
        let mut put = |number: usize, seed| {
            let bytes = pattern(cluster, seed);
            expected[number * cluster..][..cluster].copy_from_slice(&bytes);
            bytes
        };
        let (one, two) = (put(1, 1), put(last, 2));
        image.deflated(1, &one, cluster / 2 - 100);
        image.data(last, &two);
        if version == 3 && bits < 21 {
            // A cluster whose bytes do not count.
            image.data(2, &pattern(cluster, 9));
            let entry = image.entry(2);
            image.quad(entry, image.look(entry) | 1);
        }
        let file = file(&image);
        let mut disk = open(&file, false).unwrap();
        assert_eq!(disk.image.size(), DISK);
        assert!(disk.read(0, DISK as usize).unwrap() == expected, "clusters of 2^{bits} bytes");
        assert_eq!(disk.read(512, 1024).unwrap(), expected[512..1536]);
        assert!(contents(&file) == image.bytes);
    }
}

#[test]
fn what_the_file_does_not_have_of_its_last_cluster_is_zeros_and_may_be_written() {
    let mut image = Image::new(3, 16, DISK);
    let at = image.data(0, &pattern(5000, 1));
    image.bytes.truncate(at + 5000);
    let file = file(&image);
    let mut disk = open(&file, true).unwrap();
    let mut expected = pattern(5000, 1);
    expected.resize(64 << 10, 0);
    assert_eq!(disk.read(0, 64 << 10).unwrap(), expected);
    disk.image.zero(4096, 32 << 10, false).unwrap();
    expected[4096..].fill(0);
    disk.write(40 << 10, &[7; 512]).unwrap();
    expected[40 << 10..][..512].fill(7);
    assert_eq!(disk.read(0, 64 << 10).unwrap(), expected);
    // Another process has cut it: nothing is made up.
    file.set_len(at as u64).unwrap();
    assert_eq!(disk.read(0, 512).unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn what_is_written_lasts_and_the_image_is_in_order_at_any_time() {
    for (bits, version) in [(9, 2), (12, 3), (16, 2), (16, 3), (21, 3)] {
        let mut image = Image::new(version, bits, DISK);
        let cluster = image.cluster();
        let mut expected = vec![0; DISK as usize];
        expected[cluster..2 * cluster].copy_from_slice(&pattern(cluster, 1));
        image.deflated(1, &pattern(cluster, 1), 0);
        let file = file(&image);
        let mut disk = open(&file, true).unwrap();
        // Odd places, edges of clusters and tables, over what is deflated, over all, and again in place.
        let all = DISK as usize;
        for (number, (position, length)) in [
            (512, 512),
            (cluster + 512, 512),
            (all / 2 - 512, 4096),
            (0, all / 4),
            (all - 512, 512),
            (512, 1024),
        ]
        .into_iter()
        .enumerate()
        {
            let bytes = pattern(length.min(all - position), number as u8);
            disk.write(position as u64, &bytes).unwrap();
            expected[position..position + bytes.len()].copy_from_slice(&bytes);
            check(&contents(&file)).unwrap();
            if number % 2 == 1 {
                disk.image.flush().unwrap();
                assert_eq!(check(&contents(&file)), Ok(0), "clusters of 2^{bits} bytes");
            }
        }
        assert!(disk.read(0, all).unwrap() == expected, "clusters of 2^{bits} bytes");
        drop(disk);
        assert_eq!(check(&contents(&file)), Ok(0));
        assert!(
            open(&file, false).unwrap().read(0, all).unwrap() == expected,
            "clusters of 2^{bits} bytes"
        );
    }
}

#[test]
fn a_machine_that_dies_loses_nothing_that_was_flushed_and_leaves_the_image_in_order() {
    let file = file(&Image::new(3, 12, DISK));
    let mut disk = open(&file, true).unwrap();
    let bytes = pattern(1 << 20, 3);
    disk.write(0, &bytes).unwrap();
    disk.image.flush().unwrap();
    disk.image.discard(512 << 10, 256 << 10).unwrap();
    disk.write(2 << 20, &bytes).unwrap();
    disk.write(0, &pattern(4096, 4)).unwrap();
    // As a process that is killed: nothing of what it has in memory is written any more.
    std::mem::forget(disk);
    check(&contents(&file)).unwrap();
    let mut after = open(&file, true).unwrap();
    let now = after.read(0, 1 << 20).unwrap();
    assert!(now[..4096] == pattern(4096, 4) && now[4096..512 << 10] == bytes[4096..512 << 10]);
    assert!(
        now[512 << 10..] == bytes[512 << 10..],
        "what was discarded and not flushed is still there"
    );
    assert!(after.read(2 << 20, 512).unwrap() == [0; 512], "nothing was left to be written");
    // New clusters are none that the image still needs.
    after.write(3 << 20, &bytes).unwrap();
    after.image.flush().unwrap();
    assert!(after.read(0, 512 << 10).unwrap() == now[..512 << 10]);
    check(&contents(&file)).unwrap();
}

#[test]
fn more_changes_than_are_kept_in_memory_are_written_in_their_order() {
    // Each write has an L2 table of its own.
    let file = file(&Image::new(3, 9, 7 << 20));
    let mut disk = open(&file, true).unwrap();
    let reach = 64 * 512;
    for number in 0..200 {
        disk.write(number * reach, &pattern(512, number as u8)).unwrap();
        check(&contents(&file)).unwrap();
    }
    for number in 0..200 {
        assert_eq!(disk.read(number * reach, 512).unwrap(), pattern(512, number as u8));
    }
    drop(disk);
    assert_eq!(check(&contents(&file)), Ok(0));
}

#[test]
fn what_is_discarded_is_given_back_to_the_host_and_used_again() {
    let file = file(&Image::new(3, 16, DISK));
    let mut disk = open(&file, true).unwrap();
    disk.write(0, &vec![7; DISK as usize]).unwrap();
    disk.image.flush().unwrap();
    let (full, length) = (file.metadata().unwrap().blocks(), file.metadata().unwrap().len());
    disk.image.discard(512, DISK - 1024).unwrap();
    disk.image.flush().unwrap();
    let left = file.metadata().unwrap().blocks();
    assert!(full >= DISK / 512 && left < full / 8, "{left} of {full} blocks are left");
    let mut expected = vec![0; DISK as usize];
    expected[..64 << 10].fill(7);
    expected[DISK as usize - (64 << 10)..].fill(7);
    assert!(disk.read(0, DISK as usize).unwrap() == expected);
    for round in 0..4 {
        disk.write(1 << 20, &vec![round; 1 << 20]).unwrap();
        disk.image.zero(1 << 20, 1 << 20, true).unwrap();
        disk.image.flush().unwrap();
    }
    assert_eq!(file.metadata().unwrap().len(), length, "the file grows although it has room");
    assert_eq!(check(&contents(&file)), Ok(0));
    // Bytes of an earlier life are not seen.
    disk.write(1 << 20, &[9; 512]).unwrap();
    expected[1 << 20..][..512].fill(9);
    assert!(disk.read(0, DISK as usize).unwrap() == expected);
}

#[test]
fn zeroes_that_may_not_be_given_back_stay_where_they_are() {
    let mut image = Image::new(3, 16, DISK);
    let at = image.data(0, &[7; 64 << 10]);
    image.deflated(1, &[7; 64 << 10], 0);
    let file = file(&image);
    let mut disk = open(&file, true).unwrap();
    disk.image.zero(512, 96 << 10, false).unwrap();
    disk.image.flush().unwrap();
    let mut expected = vec![7; 128 << 10];
    expected[512..][..96 << 10].fill(0);
    assert!(disk.read(0, 128 << 10).unwrap() == expected);
    let bytes = contents(&file);
    assert_eq!(check(&bytes), Ok(0));
    assert_eq!((bytes[at + 511], bytes[at + 512]), (7, 0));
}

/// Changes one thing of a good image.
type Change = fn(&mut Image);

#[test]
fn what_is_not_done_here_is_refused_by_its_name() {
    let cases: [(&str, bool, Change); 14] = [
        ("no qcow2 image", true, |image| image.long(0, 0x1234_5678)),
        ("version 4", true, |image| image.long(4, 4)),
        ("version 1", true, |image| image.long(4, 1)),
        ("a backing file", true, |image| image.quad(8, 200)),
        ("encryption (method 1)", true, |image| image.long(32, 1)),
        ("encryption (method 2)", true, |image| image.long(32, 2)),
        ("an external data file", true, |image| image.quad(72, 1 << 2)),
        ("a compression that is not deflate", true, |image| image.quad(72, 1 << 3)),
        ("extended L2 entries", true, |image| image.quad(72, 1 << 4)),
        ("the unknown feature 63", true, |image| image.quad(72, 1 << 63)),
        ("not closed", false, |image| image.quad(72, 1)),
        ("marked as corrupt", false, |image| image.quad(72, 2)),
        ("snapshots", false, |image| image.long(60, 1)),
        ("not 16 bits", false, |image| image.long(96, 3)),
    ];
    for (name, always, change) in cases {
        let mut image = Image::new(3, 16, DISK);
        image.data(0, &[1]);
        change(&mut image);
        let file = file(&image);
        let error = open(&file, true).map(|disk| disk.image).unwrap_err().to_string();
        assert!(error.contains(name), "{error:?} does not say {name:?}");
        assert_eq!(open(&file, false).is_err(), always, "{name} for reading");
        assert!(contents(&file) == image.bytes, "{name}");
    }
    // As much as one block of refcounts of a table with 64 can count.
    let error = open(&file(&Image::new(3, 9, 16 << 20)), true).map(|disk| disk.image).unwrap_err();
    assert!(error.to_string().contains("cannot count"), "{error}");
}

#[test]
fn tables_that_are_too_large_outside_or_over_one_another_are_refused_at_once() {
    let cases: [(&str, Change); 17] = [
        ("clusters", |image| image.long(20, 8)),
        ("clusters", |image| image.long(20, u32::MAX)),
        ("size", |image| image.quad(24, 0)),
        ("size", |image| image.quad(24, 1000)),
        ("size", |image| image.quad(24, u64::MAX - 511)),
        ("L1 table is too short", |image| image.quad(24, 1 << 40)),
        ("L1 table is larger", |image| image.long(36, u32::MAX)),
        ("L1 table lies outside", |image| image.long(36, 100_000)),
        ("L1 table begins between", |image| image.quad(40, 3 * 4096 + 8)),
        ("L1 table lies outside", |image| image.quad(40, u64::MAX << 12)),
        ("L1 table lies over", |image| image.quad(40, 0)),
        ("table of refcounts is empty", |image| image.long(56, 0)),
        ("table of refcounts is empty, or larger", |image| image.long(56, u32::MAX)),
        ("table of refcounts lies over", |image| image.quad(48, 3 * 4096)),
        ("block of refcounts lies over", |image| image.quad(4096, 4096)),
        ("L2 table lies over", |image| {
            let table = image.look(3 * 4096);
            image.quad(3 * 4096 + 8, table);
        }),
        ("header has a wrong length", |image| image.long(100, 16)),
    ];
    for (problem, change) in cases {
        let mut image = Image::new(3, 12, DISK);
        image.data(0, &[1]);
        change(&mut image);
        for writable in [false, true] {
            let error = open(&file(&image), writable).map(|disk| disk.image).unwrap_err().to_string();
            assert!(error.contains(problem), "{error:?} does not say {problem:?}");
        }
    }
    // Any shorter file than the shortest.
    let image = Image::new(3, 9, DISK);
    for length in [0, 3, 71, 103, 511, 512, 1024, 1536, image.bytes.len() - 1] {
        let short = file(&image);
        short.set_len(length as u64).unwrap();
        assert!(open(&short, true).is_err(), "{length} bytes");
    }
}

#[test]
fn what_is_wrong_further_in_is_an_error_of_the_request_and_hurts_no_table() {
    let cases: [(&str, Change); 9] = [
        ("between clusters", |image| entry(image, |old| old + 512)),
        ("out of the file", |image| entry(image, |_| 1 << 63 | 1 << 40)),
        ("points to a table", |image| entry(image, |_| 1 << 63 | 3 << 12)),
        ("points to a table", |image| entry(image, |_| 1 << 63 | 1 << 12)),
        ("mean nothing", |image| entry(image, |old| old | 1 << 60)),
        ("mean nothing", |image| entry(image, |old| old | 2)),
        ("compressed bytes lie outside", |image| entry(image, |_| 1 << 62 | 1 << 50)),
        ("make no sense", |image| {
            let at = image.add();
            image.bytes[at..at + 4096].fill(0xff);
            entry(image, |_| 1 << 62 | at as u64);
        }),
        ("no whole cluster", |image| {
            // One stored block of no bytes, the last.
            let at = image.add();
            image.bytes[at..at + 5].copy_from_slice(&[1, 0, 0, 0xff, 0xff]);
            entry(image, |_| 1 << 62 | at as u64);
        }),
    ];
    for (problem, change) in cases {
        let mut image = Image::new(3, 12, DISK);
        image.data(0, &[1; 4096]);
        image.data(1, &[2; 4096]);
        change(&mut image);
        let file = file(&image);
        let mut disk = open(&file, true).unwrap();
        let read = disk.read(0, 512).unwrap_err();
        assert!(read.to_string().contains(problem), "{read} does not say {problem:?}");
        assert_eq!(disk.write(512, &[1; 512]).unwrap_err().kind(), ErrorKind::InvalidData, "{problem}");
        // Others go on.
        assert_eq!(disk.read(4096, 512).unwrap(), [2; 512]);
        drop(disk);
        assert!(contents(&file) == image.bytes, "{problem}");
    }
}

fn entry(image: &mut Image, change: impl Fn(u64) -> u64) {
    let at = image.entry(0);
    let old = image.look(at);
    image.quad(at, change(old));
}

#[test]
fn a_cluster_of_two_owners_is_read_and_not_written() {
    let mut image = Image::new(3, 12, DISK);
    image.data(0, &[1; 4096]);
    entry(&mut image, |old| old & !(1 << 63));
    let file = file(&image);
    let mut disk = open(&file, true).unwrap();
    assert_eq!(disk.read(0, 512).unwrap(), [1; 512]);
    for outcome in [
        disk.write(0, &[2; 512]),
        disk.image.zero(0, 512, false),
        disk.image.discard(0, 4096),
    ] {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::InvalidData);
    }
}

#[test]
fn counts_that_are_wrong_never_give_a_table_away() {
    let mut image = Image::new(3, 12, DISK);
    for number in 0..8 {
        image.count(number, 0);
    }
    let file = file(&image);
    let mut disk = open(&file, true).unwrap();
    // Once round: what lies behind the end comes first, then the table that says it is free.
    disk.image.cursor = 0;
    assert_eq!(disk.write(0, &[1; 512]).unwrap_err().kind(), ErrorKind::InvalidData);
    drop(disk);
    assert!(contents(&file)[..3 * 4096] == image.bytes[..3 * 4096]);
}

#[test]
fn a_disk_that_cannot_grow_any_more_is_an_error_of_the_request() {
    let mut image = Image::new(3, 12, DISK);
    for number in 0..2048 {
        image.count(number, 1);
    }
    let file = file(&image);
    let mut disk = open(&file, true).unwrap();
    // All that can be counted but for what a new block counts is in use.
    disk.image.blocks.truncate(1);
    assert_eq!(disk.write(0, &[1; 512]).unwrap_err().kind(), ErrorKind::StorageFull);
}

#[test]
fn refcounts_get_a_block_that_counts_itself_where_the_last_one_ends() {
    // One block counts 128 KiB.
    let file = file(&Image::new(3, 9, 4 << 20));
    let mut disk = open(&file, true).unwrap();
    let bytes = pattern(1 << 20, 5);
    disk.write(0, &bytes).unwrap();
    disk.image.flush().unwrap();
    assert_eq!(check(&contents(&file)), Ok(0));
    assert!(disk.image.blocks.iter().filter(|block| **block != 0).count() > 8);
    assert!(disk.read(0, 1 << 20).unwrap() == bytes);
}

#[test]
fn features_that_a_writer_must_forget_are_forgotten() {
    let mut image = Image::new(3, 12, DISK);
    image.quad(88, 3);
    let file = file(&image);
    open(&file, false).unwrap();
    assert!(contents(&file) == image.bytes);
    open(&file, true).unwrap();
    image.quad(88, 0);
    assert!(contents(&file) == image.bytes);
}
