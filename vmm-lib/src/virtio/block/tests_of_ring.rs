//! Two disks alike, one by system calls and one by a ring: what drivers ask of both is answered alike, and leaves files and memory alike.

use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::{Block, BlockError};
use crate::spec::{Bucket, DiskEngine, Limits};
use crate::virtio::device::VirtioDevice;
use crate::virtio::testing::{BUFFERS, Driver, Faults, activate, memory};

/// Of each file; disks are made of pieces of two, in three extents.
const FILE: usize = 64 << 10;
const DISK: u64 = 24 << 10;
/// Requests at a time. Each has sectors and memory of its own, as their order is nobody's.
const REQUESTS: u16 = 24;
const ROOM: u64 = 64 << 10;
const DATA: u64 = 8192;

/// A disk by one engine, and its driver.
struct Rig {
    files: [File; 2],
    device: Block,
    driver: Driver,
    faults: Faults,
}

/// A request: kind, sectors from its own first one on, how its data is cut.
#[derive(Debug, Clone)]
struct Asked {
    kind: u32,
    offset: u64,
    length: u32,
    cut: u32,
}

fn extents(files: &[File; 2], kind: u8) -> Vec<(File, u64, u64)> {
    let part = |file: usize, offset: u64, length: u64| (files[file].try_clone().unwrap(), offset, length);
    match kind {
        0 => vec![part(0, 512, DISK)],
        1 => vec![part(0, 4096, 8 << 10), part(1, 512, 512), part(0, 40 << 10, DISK - (8 << 10) - 512)],
        // Longer than its file.
        _ => vec![part(0, FILE as u64 - DISK / 2, DISK)],
    }
}

impl Rig {
    fn new(engine: DiskEngine, kind: u8, read_only: bool, limits: Limits) -> Self {
        let files = [3u8, 5].map(|seed| {
            let file = tempfile::tempfile().unwrap();
            let bytes: Vec<_> = (0..FILE).map(|at| (at / 61) as u8 ^ seed).collect();
            file.write_all_at(&bytes, 0).unwrap();
            file
        });
        let device = Block::by(engine, "img0", extents(&files, kind), read_only).expect("this kernel has rings");
        let mut device = device.limited(limits);
        let driver = Driver::new(&memory(), 0, 256);
        let faults = activate(&mut device, &[&driver], 1 << 29);
        Self {
            files,
            device,
            driver,
            faults,
        }
    }

    /// Has all of it done; answers what the driver is told of each: status, and length.
    fn ask(&mut self, all: &[Asked]) -> Vec<(u8, u32)> {
        for (number, asked) in all.iter().enumerate() {
            let (first, at) = (number as u16 * 5, BUFFERS + number as u64 * ROOM);
            let own = DISK / 512 / u64::from(REQUESTS) * number as u64;
            let sector = own + asked.offset;
            let header = [&asked.kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
            self.driver.write(at, &header);
            self.driver.write(at + 1024, &[0xee]);
            let (data, written) = (at + DATA, matches!(asked.kind, 0 | 8));
            let mut chain = vec![(at, 16, false)];
            let length = match asked.kind {
                4 => 0,
                11 | 13 => {
                    let segment = [
                        &sector.to_le_bytes()[..],
                        &(asked.length / 512).to_le_bytes(),
                        &(asked.cut & 1).to_le_bytes(),
                    ];
                    self.driver.write(data, &segment.concat());
                    16
                }
                _ => asked.length,
            };
            let cut = asked.cut.min(length.saturating_sub(1));
            for (offset, length) in [(0, cut), (cut, length - cut)] {
                if length > 0 {
                    // Apart from one another.
                    let gap = if offset > 0 && length > 16 { 4096 } else { 0 };
                    chain.push((data + u64::from(offset) + gap, length, written));
                }
            }
            chain.push((at + 1024, 1, true));
            self.driver.chain(first, &chain);
            self.driver.offer(first);
        }
        self.driver.kick();
        let mut answers = vec![(0, 0); all.len()];
        for _ in all {
            let (head, length) = self.driver.wait_used();
            let number = usize::from(head / 5);
            answers[number] = (self.driver.read(BUFFERS + number as u64 * ROOM + 1024, 1)[0], length);
        }
        answers
    }

    fn content(&self) -> Vec<u8> {
        let read = |file: &File| {
            let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        [
            read(&self.files[0]),
            read(&self.files[1]),
            self.driver.read(BUFFERS, usize::from(REQUESTS) * ROOM as usize),
        ]
        .concat()
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let kind = prop_oneof![8 => Just(0u32), 8 => Just(1), 1 => Just(4), 1 => Just(8), 1 => Just(11), 2 => Just(13), 1 => Just(99)];
    // Two sectors are its own; some requests reach into what is nobody's, or are no sectors.
    let length = prop_oneof![8 => Just(512u32), 8 => Just(1024), 1 => Just(100), 1 => Just(1536)];
    let offset = prop_oneof![8 => Just(0u64), 1 => Just(1 << 40), 1 => Just(u64::MAX >> 8)];
    (kind, offset, length, 0u32..1024).prop_map(|(kind, offset, length, cut)| Asked {
        kind,
        offset,
        // What writes stays in its own sectors.
        length: if kind == 1 || kind > 8 { length.min(1024) } else { length },
        cut,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_engines_answer_alike_and_leave_the_same_bytes(
        kind in 0u8..3,
        read_only in prop::bool::weighted(0.2),
        limited in prop::bool::weighted(0.2),
        rounds in prop::collection::vec(prop::collection::vec(asked(), 1..=usize::from(REQUESTS)), 1..4),
    ) {
        // So much that nothing waits, but requests go one by one.
        let bucket = limited.then_some(Bucket { size: 1 << 40, refill: 1 << 40, burst: 0 });
        let limits = Limits { bytes: bucket, operations: None };
        let mut rigs = [DiskEngine::Calls, DiskEngine::IoUring].map(|engine| Rig::new(engine, kind, read_only, limits));
        for round in &rounds {
            // Writes to what another one reads have no order: reads that reach further than their own go alone.
            let (alone, together): (Vec<_>, Vec<_>) = round.iter().cloned().partition(|asked| asked.length > 1024);
            // And what lies behind the end of a file is there once another one has written further on: in such a file each goes alone.
            let at_once = if kind == 2 { 1 } else { usize::from(REQUESTS) };
            for all in alone.chunks(1).chain(together.chunks(at_once)) {
                let [one, other] = &mut rigs;
                prop_assert_eq!(one.ask(all), other.ask(all));
            }
        }
        let [one, other] = &mut rigs;
        one.device.reset();
        other.device.reset();
        prop_assert!(one.content() == other.content(), "files or memory differ");
        prop_assert!(one.faults.none() && other.faults.none());
    }
}

/// From here on the calling thread finds a kernel that knows no io_uring.
fn forget_rings() {
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [
        // The number of the system call.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: only a flag of this thread changes.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let mode = libc::SECCOMP_MODE_FILTER as libc::c_ulong;
    // SAFETY: the program is there during the call, which copies it.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) }, 0);
}

#[test]
fn on_a_kernel_without_rings_there_is_no_such_disk_and_the_error_says_why() {
    let disk = || tempfile::tempfile().unwrap();
    let made = std::thread::spawn(move || {
        forget_rings();
        let by = |engine| Block::by(engine, "img0", vec![(disk(), 0, 512)], false);
        by(DiskEngine::Calls).expect("calls are always there");
        by(DiskEngine::IoUring)
    });
    let refused = made.join().unwrap().expect_err("no other engine is taken in its place");
    let BlockError::Ring { step, source } = refused else {
        panic!("{refused}")
    };
    assert!(step.contains("io_uring_setup"), "{step}");
    assert_eq!(source.raw_os_error(), Some(libc::ENOSYS));
}
