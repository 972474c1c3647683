//! A disk with limits: it takes requests at its pace, in order, and hears of its end at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Block, turn};
use crate::spec::{Bucket, Limits};
use crate::virtio::{
    device::VirtioDevice,
    pace::{
        Pace,
        tests::{Hand, operations},
    },
    ring::Ring,
    testing::{BUFFERS, DEADLINE, Driver, activate, memory},
};

const COUNT: u16 = 8;

fn disk() -> Block {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    Block::new("img0", vec![(file, 0, 1 << 20)], false).unwrap()
}

/// Requests of `kind` with one sector each, all of them there at once.
fn offer(driver: &mut Driver, kind: u32) {
    for number in 0..COUNT {
        let at = BUFFERS + u64::from(number) * 4096;
        driver.write(at, &[&kind.to_le_bytes()[..], &[0; 4], &u64::from(number).to_le_bytes()].concat());
        let chain = [(at, 16, false), (at + 512, 512, kind == 0), (at + 2048, 1, true)];
        driver.chain(number * 3, &chain);
        driver.offer(number * 3);
    }
}

/// How many requests a disk of these limits serves in each of four turns, between which a hundred milliseconds pass.
fn served(limits: Limits, kind: u32) -> [usize; 4] {
    let (hand, memory, disk) = (Hand::new(), memory(), disk());
    let mut driver = Driver::new(&memory, 0, 256);
    offer(&mut driver, kind);
    let pace = hand.pace(limits);
    let mut ring = Ring::new(&memory, driver.active(), 0);
    let mut next = 0;
    [(); 4].map(|()| {
        // As often as it likes.
        let waits = [(); 3].map(|()| turn(&mut ring, &disk.disk, &pace, "img0", &mut false).unwrap());
        hand.forward(Duration::from_millis(100));
        let before = next;
        while let Some((head, _)) = driver.take_used() {
            assert_eq!(head, next * 3, "requests are served in order");
            next += 1;
        }
        assert!(waits[2].is_some() || next == COUNT, "{waits:?}");
        usize::from(next - before)
    })
}

#[test]
fn requests_wait_in_the_ring_until_there_are_tokens_and_none_is_lost_or_overtaken() {
    assert_eq!(served(operations(2, 20, 0), 0), [2, 2, 2, 2]);
    assert_eq!(served(operations(1, 30, 4), 1), [5, 1, 1, 1]);
    let bytes = |size, refill| Limits {
        bytes: Some(Bucket { size, refill, burst: 0 }),
        operations: None,
    };
    // A sector is more than the bucket holds: one at a time, each paid for afterwards.
    assert_eq!(served(bytes(100, 5120), 0), [1, 1, 1, 1]);
    assert_eq!(served(bytes(1024, 15_360), 1), [2, 2, 2, 2]);
    assert_eq!(served(Limits::default(), 0), [8, 0, 0, 0]);
}

#[test]
fn a_disk_goes_on_by_itself_when_its_time_has_come() {
    let (memory, mut disk) = (memory(), disk().limited(operations(1, 50, 0)));
    let mut driver = Driver::new(&memory, 0, 256);
    let faults = activate(&mut disk, &[&driver], 0);
    offer(&mut driver, 0);
    let begun = Instant::now();
    driver.kick();
    for number in 0..COUNT {
        assert_eq!(driver.wait_used(), (number * 3, 513));
    }
    assert!(begun.elapsed() >= Duration::from_millis(20 * 7), "{:?}", begun.elapsed());
    assert!(faults.none());
}

#[test]
fn a_disk_that_waits_is_stopped_at_once_and_owes_as_much_afterwards() {
    let (memory, mut disk) = (memory(), disk());
    disk.pace = Arc::new(Pace::new(Limits {
        bytes: Some(Bucket {
            size: 512,
            refill: 1,
            burst: 0,
        }),
        operations: None,
    }));
    let mut driver = Driver::new(&memory, 0, 256);
    activate(&mut disk, &[&driver], 0);
    offer(&mut driver, 0);
    driver.kick();
    assert_eq!(driver.wait_used(), (0, 513));
    let begun = Instant::now();
    disk.reset();
    assert!(begun.elapsed() < DEADLINE);
    assert!(disk.pace.wait().is_some(), "a reset fills the bucket");
}
