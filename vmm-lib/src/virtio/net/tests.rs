//! The net device against a driver and a socket of datagrams that stands for the tap.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    time::{Duration, Instant},
};

use super::{
    GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HEADER, MRG_RXBUF, Net, offloads,
    receive::{Filled, Receiver},
    transmit::transmit,
};
use crate::spec::{Limits, NetLimits};
use crate::virtio::{
    device::VirtioDevice,
    pace::tests::{Hand, operations},
    ring::Ring,
    testing::{BUFFERS, DEADLINE, Driver, Faults, activate, memory},
};

struct Rig {
    _device: Net,
    receive: Driver,
    transmit: Driver,
    wire: UnixDatagram,
    faults: Faults,
}

fn rig(features: u64) -> Rig {
    let (ours, wire) = UnixDatagram::pair().unwrap();
    wire.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut device = Net::on_socket(ours);
    let memory = memory();
    let (receive, transmit) = (Driver::new(&memory, 0, 256), Driver::new(&memory, 1, 256));
    let faults = activate(&mut device, &[&receive, &transmit], features);
    Rig {
        _device: device,
        receive,
        transmit,
        wire,
        faults,
    }
}

pub(super) fn frame(length: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend((0..length).map(|i| (i % 251) as u8 ^ seed));
    frame
}

#[test]
fn frames_leave_in_order_with_their_headers() {
    let mut rig = rig(1 << 29);
    for n in 0..600u32 {
        let bytes = frame(60 + n as usize, n as u8);
        let (head, at) = ((n % 64) as u16 * 2, BUFFERS + u64::from(n % 64) * 4096);
        rig.transmit.write(at, &bytes);
        rig.transmit
            .chain(head, &[(at, 20, false), (at + 20, bytes.len() as u32 - 20, false)]);
        rig.transmit.offer(head);
        rig.transmit.kick();
        let mut seen = [0; 4096];
        let length = rig.wire.recv(&mut seen).unwrap();
        assert_eq!(seen[..length], bytes[..]);
        assert_eq!(rig.transmit.wait_used(), (head, 0));
    }
}

#[test]
fn a_large_frame_is_merged_over_buffers_seen_at_once() {
    let mut rig = rig(MRG_RXBUF | GUEST_CSUM | GUEST_TSO4);
    for i in 0..64u16 {
        rig.receive.chain(i, &[(BUFFERS + u64::from(i) * 2048, 1536, true)]);
        rig.receive.offer(i);
    }
    rig.receive.kick();
    for (length, buffers) in [(60, 1u16), (4000, 3), (1524, 1), (20_000, 14)] {
        let bytes = frame(length, length as u8);
        rig.wire.send(&bytes).unwrap();
        let (first, used) = rig.receive.wait_used();
        let mut seen = rig.receive.read(BUFFERS + u64::from(first) * 2048, used as usize);
        let count = u16::from_le_bytes([seen[10], seen[11]]);
        assert_eq!(count, buffers);
        let mut heads = vec![first];
        for _ in 1..count {
            let (head, used) = rig.receive.take_used().expect("all buffers of a frame appear at once");
            seen.extend(rig.receive.read(BUFFERS + u64::from(head) * 2048, used as usize));
            heads.push(head);
        }
        seen[10..12].fill(0);
        assert_eq!(seen, bytes);
        for head in heads {
            rig.receive.offer(head);
        }
        rig.receive.kick();
    }
}

#[test]
fn frames_wait_in_the_tap_until_the_guest_gives_buffers() {
    let mut rig = rig(1 << 29);
    for n in 0..3u8 {
        rig.wire.send(&frame(100, n)).unwrap();
    }
    for n in 0..3u8 {
        assert!(rig.receive.take_used().is_none());
        rig.receive.chain(0, &[(BUFFERS, 1526, true)]);
        rig.receive.offer(0);
        rig.receive.kick();
        assert_eq!(rig.receive.wait_used(), (0, 112));
        assert_eq!(rig.receive.read(BUFFERS + 12, 100), frame(100, n)[12..]);
    }
}

#[test]
fn buffers_without_room_for_a_header_are_faults() {
    let mut short = rig(0);
    short.transmit.chain(0, &[(BUFFERS, 11, false)]);
    short.transmit.offer(0);
    short.transmit.kick();
    assert!(short.faults.wait().what.contains("too short"));
    for features in [0, MRG_RXBUF] {
        let mut short = rig(features);
        short.receive.chain(0, &[(BUFFERS, 11, true)]);
        short.receive.offer(0);
        short.receive.kick();
        assert!(short.faults.wait().what.contains("too short"));
    }
    let mut wrong = rig(0);
    wrong.receive.chain(0, &[(BUFFERS, 2048, false)]);
    wrong.receive.offer(0);
    wrong.receive.kick();
    assert!(wrong.faults.wait().what.contains("too short"));
}

#[test]
fn segmentation_is_asked_of_the_tap_only_with_checksums() {
    assert_eq!(offloads(GUEST_TSO4 | GUEST_TSO6), 0);
    assert_eq!(offloads(GUEST_CSUM), 1);
    assert_eq!(offloads(GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6), 7);
}

#[test]
fn configuration_has_address_and_mtu() {
    let (ours, _wire) = UnixDatagram::pair().unwrap();
    let device = Net::new(File::from(OwnedFd::from(ours)), [2, 0, 0, 0, 0, 1], 1450);
    let mut config = [0; 12];
    device.read_config(0, &mut config);
    assert_eq!(config[..6], [2, 0, 0, 0, 0, 1]);
    assert_eq!(u16::from_le_bytes([config[10], config[11]]), 1450);
}

#[test]
fn frames_longer_than_any_are_dropped_and_their_buffers_come_back() {
    let mut rig = rig(0);
    rig.transmit.write(BUFFERS, &frame(65_535 + 19, 1));
    for (length, expected) in [(65_535 + 19 + 12, None), (1 << 20, None), (60 + 12, Some(60 + 12))] {
        rig.transmit.chain(0, &[(BUFFERS, length, false)]);
        rig.transmit.offer(0);
        rig.transmit.kick();
        assert_eq!(rig.transmit.wait_used(), (0, 0));
        if let Some(expected) = expected {
            // The first to arrive: those before it never did.
            assert_eq!(rig.wire.recv(&mut [0; 4096]).unwrap(), expected);
        }
    }
    assert!(rig.faults.none());
}

#[test]
fn a_frame_larger_than_its_only_buffer_writes_nothing_behind_it() {
    let mut rig = rig(0);
    rig.receive.write(BUFFERS, &[0xc5; 4096]);
    rig.receive.chain(0, &[(BUFFERS + 64, 100, true)]);
    rig.receive.offer(0);
    rig.receive.kick();
    rig.wire.send(&frame(1400, 1)).unwrap();
    assert_eq!(rig.receive.wait_used(), (0, 100));
    assert_eq!(rig.receive.read(BUFFERS, 64), [0xc5; 64]);
    assert_eq!(rig.receive.read(BUFFERS + 164, 1000), [0xc5; 1000]);
}

#[test]
fn a_readable_buffer_to_receive_into_or_a_writable_one_to_send_is_a_fault() {
    for features in [0, MRG_RXBUF] {
        let mut wrong = rig(features);
        wrong.transmit.chain(0, &[(BUFFERS, 2048, true)]);
        wrong.transmit.offer(0);
        wrong.transmit.kick();
        assert!(wrong.faults.wait().what.contains("too short"));
    }
}

/// A wire, and the tap at its other end.
fn wire() -> (File, UnixDatagram) {
    let (ours, wire) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    (File::from(OwnedFd::from(ours)), wire)
}

#[test]
fn frames_that_are_too_many_wait_in_the_guests_queue_and_leave_in_order() {
    let (hand, memory, (tap, wire)) = (Hand::new(), memory(), wire());
    let mut driver = Driver::new(&memory, 1, 256);
    for n in 0..6u16 {
        let at = BUFFERS + u64::from(n) * 4096;
        driver.write(at, &frame(60, n as u8));
        driver.chain(n, &[(at, 72, false)]);
        driver.offer(n);
    }
    let (pace, mut ring) = (hand.pace(operations(2, 20, 0)), Ring::new(&memory, driver.active(), 0));
    let mut next = 0;
    for _ in 0..3 {
        for _ in 0..3 {
            transmit(&mut ring, &tap, &pace, &mut Vec::new()).unwrap();
        }
        for _ in 0..2 {
            let mut seen = [0; 128];
            assert_eq!(wire.recv(&mut seen).unwrap(), 72);
            assert_eq!(seen[..72], frame(60, next as u8)[..]);
            assert_eq!(driver.take_used(), Some((next, 0)));
            next += 1;
        }
        assert!(wire.recv(&mut [0; 128]).is_err() && driver.take_used().is_none());
        assert_eq!(
            transmit(&mut ring, &tap, &pace, &mut Vec::new()).unwrap(),
            Some(Duration::from_millis(51))
        );
        hand.forward(Duration::from_millis(100));
    }
    assert_eq!(transmit(&mut ring, &tap, &pace, &mut Vec::new()).unwrap(), None);
}

#[test]
fn frames_that_are_too_many_wait_in_the_tap_and_arrive_in_order() {
    let (hand, memory, (tap, wire)) = (Hand::new(), memory(), wire());
    let mut driver = Driver::new(&memory, 0, 256);
    for n in 0..16u16 {
        driver.chain(n, &[(BUFFERS + u64::from(n) * 4096, 2048, true)]);
        driver.offer(n);
    }
    for n in 0..6 {
        wire.send(&frame(100, n)).unwrap();
    }
    let (pace, mut receiver) = (
        hand.pace(operations(2, 20, 0)),
        Receiver::new(Ring::new(&memory, driver.active(), MRG_RXBUF), MRG_RXBUF),
    );
    let mut next = 0;
    for _ in 0..3 {
        for _ in 0..3 {
            assert_eq!(receiver.fill(&tap, &pace).unwrap(), Filled::Wait(Duration::from_millis(51)));
        }
        for _ in 0..2 {
            assert_eq!(driver.take_used(), Some((next, 112)));
            let seen = driver.read(BUFFERS + u64::from(next) * 4096 + 12, 100);
            assert_eq!(seen, frame(100, next as u8)[12..]);
            next += 1;
        }
        assert!(driver.take_used().is_none());
        hand.forward(Duration::from_millis(100));
    }
    assert_eq!(receiver.fill(&tap, &pace).unwrap(), Filled::Drained);
}

#[test]
fn after_a_lone_frame_turns_take_one_and_say_that_there_may_be_more() {
    let (hand, memory, (tap, wire)) = (Hand::new(), memory(), wire());
    let mut driver = Driver::new(&memory, 0, 256);
    for n in 0..32u16 {
        driver.chain(n, &[(BUFFERS + u64::from(n) * 4096, 2048, true)]);
        driver.offer(n);
    }
    let pace = hand.pace(Limits::default());
    let mut receiver = Receiver::new(Ring::new(&memory, driver.active(), MRG_RXBUF), MRG_RXBUF);
    let send = |count| (0..count).for_each(|n| assert_eq!(wire.send(&frame(100, n)).unwrap(), 112));
    let mut taken = |fill| {
        assert_eq!(receiver.fill(&tap, &pace).unwrap(), fill);
        std::iter::from_fn(|| driver.take_used()).count()
    };
    send(1);
    assert_eq!(taken(Filled::Drained), 1);
    send(9);
    for _ in 0..7 {
        assert_eq!(taken(Filled::More), 1);
    }
    assert_eq!(taken(Filled::Drained), 2, "then it looks again");
    send(3);
    assert_eq!(taken(Filled::Drained), 3, "and goes on to look, as there was more than one");
}

#[test]
fn a_slow_device_goes_on_by_itself_in_both_directions_and_is_stopped_at_once() {
    let (ours, wire) = UnixDatagram::pair().unwrap();
    wire.set_read_timeout(Some(DEADLINE)).unwrap();
    let limits = operations(1, 50, 0);
    let mut device = Net::on_socket(ours).limited(NetLimits {
        receive: limits,
        transmit: limits,
    });
    let memory = memory();
    let (mut receive, mut transmit) = (Driver::new(&memory, 0, 256), Driver::new(&memory, 1, 256));
    let faults = activate(&mut device, &[&receive, &transmit], MRG_RXBUF);
    let begun = Instant::now();
    for n in 0..6u16 {
        receive.chain(n, &[(BUFFERS + u64::from(n) * 4096, 2048, true)]);
        receive.offer(n);
        transmit.chain(n, &[(BUFFERS + 0x10_0000, 72, false)]);
        transmit.offer(n);
        wire.send(&frame(100, n as u8)).unwrap();
    }
    receive.kick();
    transmit.kick();
    for n in 0..6u16 {
        assert_eq!(receive.wait_used(), (n, 112));
        assert_eq!(wire.recv(&mut [0; 128]).unwrap(), 72);
        assert_eq!(transmit.wait_used(), (n, 0));
    }
    assert!(begun.elapsed() >= Duration::from_millis(20 * 5), "{:?}", begun.elapsed());
    assert!(faults.none());
    let endless = NetLimits {
        transmit: operations(1, 1, 0),
        ..NetLimits::default()
    };
    device.reset();
    device = device.limited(endless);
    transmit.restart();
    // An hour's worth of debt.
    for _ in 0..3600 {
        device.paces.transmit.spend(0);
    }
    activate(&mut device, &[&receive, &transmit], MRG_RXBUF);
    transmit.offer(0);
    transmit.kick();
    let begun = Instant::now();
    device.reset();
    assert!(begun.elapsed() < DEADLINE && transmit.take_used().is_none());
}
