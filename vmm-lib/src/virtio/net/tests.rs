//! The net device against a driver and a socket of datagrams that stands for the tap.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
};

use super::{GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HEADER, MRG_RXBUF, Net, offloads};
use crate::virtio::{
    device::VirtioDevice,
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

fn frame(length: usize, seed: u8) -> Vec<u8> {
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
