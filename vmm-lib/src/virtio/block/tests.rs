//! A disk against a driver that keeps the rules, and one that breaks each of them.

use std::{fs::File, io::Write, os::unix::fs::FileExt};

use super::Block;
use crate::virtio::{
    device::VirtioDevice,
    testing::{BUFFERS, Driver, Faults, INDIRECT, MEMORY, NEXT, WRITE, activate, memory},
};

const EVENT_IDX: u64 = 1 << 29;
const STATUS: u64 = BUFFERS + 0x1000;
const DATA: u64 = BUFFERS + 0x10000;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i / 7) as u8 ^ seed).collect()
}

struct Rig {
    device: Block,
    driver: Driver,
    faults: Faults,
}

impl Rig {
    fn new(extents: Vec<(File, u64, u64)>, read_only: bool, features: u64) -> Self {
        let mut device = Block::new("img0", extents, read_only).unwrap();
        let driver = Driver::new(&memory(), 0, 256);
        let faults = activate(&mut device, &[&driver], features);
        Self { device, driver, faults }
    }

    /// One request, waited for: its status.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> u8 {
        let mut header = [0u8; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.driver.write(BUFFERS, &header);
        self.driver.write(STATUS, &[0xee]);
        let mut chain = vec![(BUFFERS, 16, false)];
        chain.extend_from_slice(data);
        chain.push((STATUS, 1, true));
        self.driver.chain(0, &chain);
        self.driver.offer(0);
        self.driver.kick();
        assert_eq!(self.driver.wait_used().0, 0);
        self.driver.read(STATUS, 1)[0]
    }

    fn fault(&mut self) -> String {
        self.driver.kick();
        self.faults.wait().what
    }
}

#[test]
fn reads_cross_extents_and_land_in_scattered_buffers() {
    for features in [0, EVENT_IDX] {
        let (a, b) = (pattern(4096, 1), pattern(8192, 2));
        let mut rig = Rig::new(vec![(file(&a), 512, 1024), (file(&b), 1536, 2048)], true, features);
        assert_eq!(rig.request(0, 1, &[(DATA, 100, true), (DATA + 4096, 1436, true)]), 0);
        let mut seen = rig.driver.read(DATA, 100);
        seen.extend(rig.driver.read(DATA + 4096, 1436));
        assert_eq!(seen, [&a[1024..1536], &b[1536..2560]].concat());
        // Past the end, by one sector; and where sector times 512 overflows.
        assert_eq!(rig.request(0, 5, &[(DATA, 1024, true)]), 1);
        assert_eq!(rig.request(0, u64::MAX / 300, &[(DATA, 512, true)]), 1);
        assert_eq!(rig.request(0, 0, &[(DATA, 511, true)]), 1);
        assert!(rig.faults.none());
    }
}

#[test]
fn what_is_written_is_read_back_and_the_neighbourhood_stays() {
    let backing = file(&pattern(16384, 3));
    let look = backing.try_clone().unwrap();
    let mut rig = Rig::new(vec![(backing, 4096, 8192)], false, EVENT_IDX);
    let bytes = pattern(1024, 9);
    rig.driver.write(DATA, &bytes);
    assert_eq!(rig.request(1, 2, &[(DATA, 1024, false)]), 0);
    assert_eq!(rig.request(4, 0, &[]), 0);
    let mut expected = pattern(16384, 3);
    expected[5120..6144].copy_from_slice(&bytes);
    let mut all = vec![0; 16384];
    look.read_exact_at(&mut all, 0).unwrap();
    assert_eq!(all, expected);
    // Discard two sectors, then write zeroes to the next.
    let segment = |sector: u64, sectors: u32| [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &[0; 4]].concat();
    rig.driver.write(DATA, &segment(0, 2));
    assert_eq!(rig.request(11, 0, &[(DATA, 16, false)]), 0);
    rig.driver.write(DATA, &segment(15, 2));
    assert_eq!(rig.request(11, 0, &[(DATA, 16, false)]), 1);
    expected[4096..5120].fill(0);
    look.read_exact_at(&mut all, 0).unwrap();
    assert_eq!(all, expected);
}

#[test]
fn a_read_only_disk_refuses_writes_and_names_itself() {
    let mut rig = Rig::new(vec![(file(&[0; 4096]), 0, 4096)], true, 0);
    assert_eq!(rig.device.features() & (1 << 5), 1 << 5);
    assert_eq!(rig.request(1, 0, &[(DATA, 512, false)]), 1);
    assert_eq!(rig.request(11, 0, &[(DATA, 16, false)]), 2);
    assert_eq!(rig.request(99, 0, &[]), 2);
    assert_eq!(rig.request(8, 0, &[(DATA, 20, true)]), 0);
    assert_eq!(&rig.driver.read(DATA, 6), b"img0\0\0");
    let mut capacity = [0; 8];
    rig.device.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 8);
    let mut past = [0xff; 4];
    rig.device.read_config(u64::MAX - 1, &mut past);
    assert_eq!(past, [0; 4]);
}

#[test]
fn a_file_that_shrank_is_an_io_error() {
    let backing = file(&[7; 8192]);
    let shrink = backing.try_clone().unwrap();
    let mut rig = Rig::new(vec![(backing, 0, 8192)], true, 0);
    assert_eq!(rig.request(0, 8, &[(DATA, 4096, true)]), 0);
    shrink.set_len(4608).unwrap();
    assert_eq!(rig.request(0, 8, &[(DATA, 4096, true)]), 1);
    assert!(rig.faults.none());
}

#[test]
fn a_file_whose_name_is_gone_serves_on() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().write_all_at(&pattern(8192, 4), 0).unwrap();
    let (backing, path) = (named.reopen().unwrap(), named.into_temp_path());
    let mut rig = Rig::new(vec![(backing, 0, 8192)], false, 0);
    path.close().unwrap();
    assert_eq!(rig.request(0, 8, &[(DATA, 4096, true)]), 0);
    assert_eq!(rig.driver.read(DATA, 4096), pattern(8192, 4)[4096..]);
    rig.driver.write(DATA, &pattern(512, 6));
    assert_eq!(rig.request(1, 0, &[(DATA, 512, false)]), 0);
    assert_eq!(rig.request(4, 0, &[]), 0);
    assert_eq!(rig.request(0, 0, &[(DATA + 4096, 512, true)]), 0);
    assert_eq!(rig.driver.read(DATA + 4096, 512), pattern(512, 6));
    assert!(rig.faults.none());
}

#[test]
fn a_file_that_was_cut_to_nothing_is_an_io_error_of_each_read_and_comes_back_with_its_bytes() {
    for read_only in [true, false] {
        let backing = file(&[7; 8192]);
        let owner = backing.try_clone().unwrap();
        let mut rig = Rig::new(vec![(backing, 0, 8192)], read_only, EVENT_IDX);
        owner.set_len(0).unwrap();
        for round in 0..1000 {
            assert_eq!(rig.request(0, round % 16, &[(DATA, 512, true)]), 1, "round {round}");
        }
        owner.write_all_at(&[9; 8192], 0).unwrap();
        assert_eq!(rig.request(0, 0, &[(DATA, 4096, true)]), 0);
        assert_eq!(rig.driver.read(DATA, 4096), [9; 4096]);
        assert!(rig.faults.none());
    }
}

/// A file whose reads and writes fail as a broken disk's do, by EIO: this process's memory, where nothing is mapped.
fn broken() -> File {
    let file = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
    assert_eq!(file.read_at(&mut [0; 512], 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    file
}

#[test]
fn a_file_whose_reads_and_writes_fail_is_an_io_error_of_the_request_and_other_extents_serve_on() {
    let mut rig = Rig::new(vec![(file(&[3; 4096]), 0, 4096), (broken(), 0, 4096)], false, 0);
    for _ in 0..100 {
        assert_eq!(rig.request(0, 8, &[(DATA, 4096, true)]), 1);
        assert_eq!(rig.request(1, 8, &[(DATA, 4096, false)]), 1);
        assert_eq!(rig.request(0, 7, &[(DATA, 1024, true)]), 1, "across both");
        assert_eq!(rig.request(4, 0, &[]), 1, "a flush is of all");
        assert_eq!(rig.request(0, 0, &[(DATA, 4096, true)]), 0);
        assert_eq!(rig.driver.read(DATA, 4096), [3; 4096]);
    }
    assert!(rig.faults.none());
}

#[test]
fn an_indirect_table_is_followed() {
    let mut rig = Rig::new(vec![(file(&pattern(4096, 5)), 0, 4096)], true, EVENT_IDX | 1 << 28);
    let table = BUFFERS + 0x2000;
    rig.driver.write(BUFFERS, &[0; 16]);
    rig.driver.raw_descriptor(table, 0, (BUFFERS, 16, NEXT, 2));
    rig.driver.raw_descriptor(table, 2, (DATA, 512, NEXT | WRITE, 1));
    rig.driver.raw_descriptor(table, 1, (STATUS, 1, WRITE, 0));
    rig.driver.descriptor(7, (table, 48, INDIRECT, 0));
    rig.driver.offer(7);
    rig.driver.kick();
    assert_eq!(rig.driver.wait_used(), (7, 513));
    assert_eq!(rig.driver.read(DATA, 512), pattern(4096, 5)[..512]);
}

#[test]
fn every_broken_chain_is_a_fault_and_never_a_panic() {
    let table = BUFFERS + 0x2000;
    type Break = fn(&Driver, u64);
    let cases: [(&str, Break); 13] = [
        ("longer than its queue", |d, _| {
            d.descriptor(0, (BUFFERS, 16, NEXT, 1));
            d.descriptor(1, (BUFFERS, 16, NEXT, 0));
        }),
        ("longer than its queue", |d, _| d.descriptor(0, (BUFFERS, 16, NEXT, 0))),
        ("index is out of range", |d, _| d.descriptor(0, (BUFFERS, 16, NEXT, 256))),
        ("not in guest memory", |d, _| {
            d.chain(0, &[(BUFFERS, 16, false), (MEMORY - 256, 512, true)])
        }),
        ("not in guest memory", |d, _| d.chain(0, &[(u64::MAX - 7, 16, false)])),
        ("empty", |d, _| d.chain(0, &[(BUFFERS, 16, false), (DATA, 0, true)])),
        ("readable buffer follows", |d, _| {
            d.chain(0, &[(STATUS, 1, true), (BUFFERS, 16, false)])
        }),
        ("too short", |d, _| d.chain(0, &[(BUFFERS, 15, false), (STATUS, 1, true)])),
        ("too short", |d, _| d.chain(0, &[(BUFFERS, 16, false)])),
        ("indirect", |d, t| {
            d.descriptor(0, (t, 32, INDIRECT, 0));
            d.raw_descriptor(t, 0, (t, 32, INDIRECT, 0));
        }),
        ("indirect", |d, t| d.descriptor(0, (t, 31, INDIRECT, 0))),
        ("indirect", |d, t| d.descriptor(0, (t, 16 * 257, INDIRECT, 0))),
        ("indirect", |d, _| d.descriptor(0, (MEMORY - 16, 32, INDIRECT, 0))),
    ];
    for (expected, break_it) in cases {
        let mut rig = Rig::new(vec![(file(&[0; 512]), 0, 512)], true, 1 << 28);
        break_it(&rig.driver, table);
        rig.driver.offer(0);
        let what = rig.fault();
        assert!(what.contains(expected), "{what:?} does not say {expected:?}");
    }
    let mut rig = Rig::new(vec![(file(&[0; 512]), 0, 512)], true, 0);
    rig.driver.offer(300);
    assert!(rig.fault().contains("index is out of range"));
    let mut rig = Rig::new(vec![(file(&[0; 512]), 0, 512)], true, 0);
    rig.driver.advance(257);
    assert!(rig.fault().contains("ahead"));
}

#[test]
fn a_device_that_was_reset_serves_again() {
    let mut rig = Rig::new(vec![(file(&pattern(512, 8)), 0, 512)], true, 0);
    rig.driver.descriptor(0, (BUFFERS, 16, NEXT, 0));
    rig.driver.offer(0);
    rig.fault();
    rig.device.reset();
    rig.driver = Driver::new(&memory(), 0, 256);
    rig.faults = activate(&mut rig.device, &[&rig.driver], 0);
    assert_eq!(rig.request(0, 0, &[(DATA, 512, true)]), 0);
    assert_eq!(rig.driver.read(DATA, 512), pattern(512, 8));
}

#[test]
fn a_disk_without_sectors_or_with_a_long_name_is_not_made() {
    assert!(Block::new(&"x".repeat(21), vec![(file(&[0; 512]), 0, 512)], true).is_err());
    assert!(Block::new("a", vec![], true).is_err());
    assert!(Block::new("a", vec![(file(&[]), 0, 100)], true).is_err());
    assert!(Block::new("a", vec![(file(&[]), u64::MAX, 512)], true).is_err());
}

#[test]
fn requests_outside_of_the_disk_or_against_its_nature_fail_by_status_and_write_nothing_else() {
    let bytes = pattern(1 << 20, 7);
    for read_only in [true, false] {
        let backing = file(&bytes);
        let look = backing.try_clone().unwrap();
        let mut rig = Rig::new(vec![(backing, 0, 1 << 20)], read_only, EVENT_IDX);
        rig.driver.write(DATA, &[0xc5; 8192]);
        let mut refused = |kind: u32, sector: u64, data: &[(u64, u32, bool)], status: u8| {
            assert_eq!(rig.request(kind, sector, data), status, "{kind} at {sector} with {data:?}");
            assert_eq!(rig.driver.read(DATA - 4096, 4096 - 512), vec![0; 4096 - 512]);
            assert_eq!(rig.driver.read(DATA, 8192), [0xc5; 8192], "{kind} at {sector}");
        };
        // Past the end by one, negative, where bytes overflow, half sectors.
        for sector in [2048, 2041, u64::MAX, u64::MAX / 512, i64::MAX as u64 / 512, 1 << 55] {
            refused(0, sector, &[(DATA, 4096, true)], 1);
            refused(1, sector, &[(DATA, 4096, false)], 1);
        }
        refused(0, 0, &[(DATA, 4095, true)], 1);
        refused(1, 0, &[(DATA, 513, false)], 1);
        for kind in [2, 3, 5, 7, 9, 10, 12, 14, 255, u32::MAX] {
            refused(kind, 0, &[], 2);
        }
        if read_only {
            refused(1, 0, &[(DATA, 512, false)], 1);
            refused(11, 0, &[(DATA, 16, false)], 2);
            refused(13, 0, &[(DATA, 16, false)], 2);
        }
        let mut all = vec![0; bytes.len()];
        look.read_exact_at(&mut all, 0).unwrap();
        assert!(all == bytes && rig.faults.none());
    }
}

#[test]
fn a_discard_of_more_than_was_announced_is_refused_before_the_disk_is_touched() {
    let backing = tempfile::tempfile().unwrap();
    backing.set_len(4 << 30).unwrap();
    backing.write_all_at(&[7; 512], 0).unwrap();
    let look = backing.try_clone().unwrap();
    let mut rig = Rig::new(vec![(backing, 0, 4 << 30)], false, 0);
    let segment = |sectors: u32, flags: u32| [&0u64.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
    for (kind, sectors, flags, status) in [
        (11, (1 << 21) + 1, 0, 1),
        (13, u32::MAX, 1, 1),
        (11, 1, 1, 2),
        (13, 1, 2, 2),
        (13, 0, 0, 0),
    ] {
        rig.driver.write(DATA, &segment(sectors, flags));
        assert_eq!(rig.request(kind, 0, &[(DATA, 16, false)]), status, "{kind} {sectors}");
    }
    // Half a segment, and two.
    assert_eq!(rig.request(11, 0, &[(DATA, 8, false)]), 2);
    assert_eq!(rig.request(11, 0, &[(DATA, 32, false)]), 2);
    let mut sector = [0; 512];
    look.read_exact_at(&mut sector, 0).unwrap();
    assert_eq!(sector, [7; 512]);
    assert!(rig.faults.none());
}

#[test]
fn zeroes_are_written_where_the_file_system_cannot_clear_and_a_hole_is_made_where_it_may() {
    // Files in memory know holes, and no cleared ranges.
    let backing = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    backing.write_all_at(&[7; 1 << 20], 0).unwrap();
    let look = backing.try_clone().unwrap();
    let blocks = |file: &File| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    let mut rig = Rig::new(vec![(backing, 0, 1 << 20)], false, 0);
    for (kind, flags, sector, sectors, freed) in [(13, 0, 8u64, 1016u32, false), (13, 1, 1024, 512, true), (11, 0, 1536, 256, true)] {
        let before = blocks(&look);
        let segment = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &u32::to_le_bytes(flags)].concat();
        rig.driver.write(DATA, &segment);
        assert_eq!(rig.request(kind, 0, &[(DATA, 16, false)]), 0);
        assert_eq!(blocks(&look), before - if freed { u64::from(sectors) } else { 0 }, "{kind} {flags}");
    }
    let mut all = vec![0xff; 1 << 20];
    look.read_exact_at(&mut all, 0).unwrap();
    assert!(all[..4096].iter().chain(&all[1792 * 512..]).all(|byte| *byte == 7));
    assert!(all[4096..1792 * 512].iter().all(|byte| *byte == 0));
    assert!(rig.faults.none());
}

#[test]
fn a_header_may_be_in_pieces_but_not_writable_or_short() {
    let mut rig = Rig::new(vec![(file(&pattern(512, 1)), 0, 512)], true, 0);
    rig.driver.write(BUFFERS, &[0; 16]);
    rig.driver.chain(
        0,
        &[(BUFFERS, 1, false), (BUFFERS + 1, 15, false), (DATA, 512, true), (STATUS, 1, true)],
    );
    rig.driver.offer(0);
    rig.driver.kick();
    assert_eq!(rig.driver.wait_used(), (0, 513));
    assert_eq!(rig.driver.read(DATA, 512), pattern(512, 1));
    for chain in [
        &[(BUFFERS, 16, true), (STATUS, 1, true)][..],
        &[(BUFFERS, 7, false), (BUFFERS, 8, false), (STATUS, 1, true)],
    ] {
        let mut rig = Rig::new(vec![(file(&[0; 512]), 0, 512)], true, 0);
        rig.driver.chain(0, chain);
        rig.driver.offer(0);
        assert!(rig.fault().contains("too short"));
    }
}
