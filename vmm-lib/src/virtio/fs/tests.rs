//! The device against a peer that is a script: what goes out, what comes back, and what becomes of the guest when the peer goes wrong.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Instant,
};

use super::Fs;
use super::session::{HEADER, MAX_REQUEST};
use crate::virtio::{
    device::VirtioDevice,
    testing::{BUFFERS, DEADLINE, Driver, F_ALL, Faults, activate, memory},
};

const GETATTR: u32 = 3;
const WRITE: u32 = 16;
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
/// Where answers go.
const ANSWERS: u64 = BUFFERS + (6 << 20);

struct Rig {
    device: Fs,
    hiprio: Driver,
    requests: Driver,
    faults: Faults,
    peer: UnixStream,
}

/// A request as the peer reads it.
struct Request {
    opcode: u32,
    unique: u64,
    body: Vec<u8>,
}

fn rig() -> Rig {
    let (ours, peer) = UnixStream::pair().unwrap();
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    let (mut device, memory) = (Fs::new("data", ours), memory());
    let (hiprio, requests) = (Driver::new(&memory, 0, 128), Driver::new(&memory, 1, 512));
    let faults = activate(&mut device, &[&hiprio, &requests], F_ALL);
    Rig {
        device,
        hiprio,
        requests,
        faults,
        peer,
    }
}

/// A message's header, with a length and a user that the device must not care for.
fn header(opcode: u32, unique: u64) -> Vec<u8> {
    let mut bytes = 7u32.to_le_bytes().to_vec();
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.resize(HEADER, 0x11);
    bytes
}

impl Rig {
    /// Offers a request at descriptors `first` and next; its answer has `room` bytes at [`ANSWERS`] and a page for each descriptor.
    fn ask(&mut self, first: u16, message: &[u8], room: u32) {
        let at = BUFFERS + (u64::from(first) << 12);
        self.requests.write(at, message);
        let buffers = [(at, message.len() as u32, false), (ANSWERS + (u64::from(first) << 12), room, true)];
        self.requests.chain(first, if room == 0 { &buffers[..1] } else { &buffers });
        self.requests.offer(first);
        self.requests.kick();
    }

    fn read(&mut self) -> Request {
        let mut head = [0; HEADER];
        self.peer.read_exact(&mut head).unwrap();
        let length = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
        let mut body = vec![0; length - HEADER];
        self.peer.read_exact(&mut body).unwrap();
        assert!(head[16..].iter().all(|byte| *byte == 0x11), "the rest is as the guest wrote it");
        Request {
            opcode: u32::from_le_bytes(head[4..8].try_into().unwrap()),
            unique: u64::from_le_bytes(head[8..16].try_into().unwrap()),
            body,
        }
    }

    fn answer(&mut self, unique: u64, error: i32, body: &[u8]) {
        self.peer.write_all(&reply(unique, error, body)).unwrap();
    }

    /// What the guest finds as the answer to the request at `first`.
    fn answered(&self, first: u16, length: usize) -> Vec<u8> {
        self.requests.read(ANSWERS + (u64::from(first) << 12), length)
    }

    fn is_silent(&mut self) -> bool {
        self.peer.set_nonblocking(true).unwrap();
        let got = self.peer.read(&mut [0; 1]);
        self.peer.set_nonblocking(false).unwrap();
        got.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

fn reply(unique: u64, error: i32, body: &[u8]) -> Vec<u8> {
    let mut bytes = (16 + body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(error.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn a_request_goes_out_with_its_own_length_and_the_answer_comes_back_with_the_guests_number() {
    let mut rig = rig();
    rig.ask(0, &[header(GETATTR, 77), b"arguments".to_vec()].concat(), 64);
    let request = rig.read();
    assert_eq!((request.opcode, &request.body[..]), (GETATTR, &b"arguments"[..]));
    rig.answer(request.unique, 0, b"attributes");
    assert_eq!(rig.requests.wait_used(), (0, 26));
    assert_eq!(rig.answered(0, 26), reply(77, 0, b"attributes"));
    assert!(rig.faults.none());
}

#[test]
fn answers_find_their_requests_in_any_order_even_of_a_guest_that_counts_none() {
    let mut rig = rig();
    for first in [0, 2, 4] {
        rig.ask(first, &[header(GETATTR, 5), vec![first as u8]].concat(), 64);
    }
    let requests: Vec<_> = (0..3).map(|_| rig.read()).collect();
    for request in requests.iter().rev() {
        rig.answer(request.unique, 0, &[request.body[0] + 100]);
    }
    for first in [4, 2, 0] {
        assert_eq!(rig.requests.wait_used(), (first, 17));
        assert_eq!(rig.answered(first, 17), reply(5, 0, &[first as u8 + 100]));
    }
    assert!(rig.faults.none());
}

#[test]
fn an_answer_in_single_bytes_and_two_in_one_piece_are_the_same_answers() {
    let mut rig = rig();
    for first in [0, 2, 4] {
        rig.ask(first, &header(GETATTR, u64::from(first)), 64);
    }
    let uniques: Vec<_> = (0..3).map(|_| rig.read().unique).collect();
    for byte in reply(uniques[0], 0, b"torn") {
        rig.peer.write_all(&[byte]).unwrap();
    }
    assert_eq!(rig.requests.wait_used(), (0, 20));
    rig.peer
        .write_all(&[reply(uniques[1], -2, b""), reply(uniques[2], 0, b"x")].concat())
        .unwrap();
    assert_eq!((rig.requests.wait_used(), rig.requests.wait_used()), ((2, 16), (4, 17)));
    assert_eq!(rig.answered(0, 20), reply(0, 0, b"torn"));
    assert_eq!(rig.answered(2, 16), reply(2, -2, b""));
}

#[test]
fn a_mebibyte_goes_out_while_the_peer_is_slow_and_a_mebibyte_comes_back() {
    let mut rig = rig();
    let data: Vec<u8> = (0..1 << 20).map(|n: u32| ((n * 7) >> 3) as u8).collect();
    let message = [header(WRITE, 1), vec![0; 40], data.clone()].concat();
    rig.ask(0, &message, 16 + (1 << 20));
    // More than the socket holds: what waits behind it waits.
    rig.requests.write(BUFFERS + (5 << 20), &header(GETATTR, 2));
    rig.requests
        .chain(8, &[(BUFFERS + (5 << 20), 40, false), (BUFFERS + (5 << 20) + 4096, 64, true)]);
    rig.requests.offer(8);
    rig.requests.kick();
    let request = rig.read();
    assert!(request.body[40..] == data, "what was written is what arrives");
    assert_eq!(rig.read().opcode, GETATTR);
    rig.answer(request.unique, 0, &data);
    assert_eq!(rig.requests.wait_used(), (0, 16 + (1 << 20)));
    assert!(rig.answered(0, 16 + (1 << 20)) == reply(1, 0, &data));
}

#[test]
fn what_is_forgotten_is_sent_and_not_answered_and_an_interrupt_is_not_even_sent() {
    let mut rig = rig();
    rig.hiprio
        .write(BUFFERS, &[header(FORGET, 9), vec![1; 8], header(INTERRUPT, 9), vec![2; 8]].concat());
    rig.hiprio.chain(0, &[(BUFFERS, 48, false)]);
    rig.hiprio.chain(1, &[(BUFFERS + 48, 48, false)]);
    rig.hiprio.offer(1);
    rig.hiprio.offer(0);
    rig.hiprio.kick();
    assert_eq!((rig.hiprio.wait_used(), rig.hiprio.wait_used()), ((1, 0), (0, 0)));
    let request = rig.read();
    assert_eq!((request.opcode, request.body), (FORGET, vec![1; 8]));
    assert!(rig.is_silent() && rig.faults.none());
}

#[test]
fn a_request_that_is_too_long_fails_by_itself() {
    let mut rig = rig();
    let long = [header(WRITE, 3), vec![0; MAX_REQUEST - HEADER + 1]].concat();
    rig.ask(0, &long, 64);
    assert_eq!(rig.requests.wait_used(), (0, 16));
    assert_eq!(rig.answered(0, 16), reply(3, -libc::E2BIG, b""));
    assert!(rig.is_silent());
    rig.ask(0, &header(GETATTR, 4), 64);
    assert_eq!(rig.read().opcode, GETATTR);
}

#[test]
fn a_peer_that_dies_fails_what_is_under_way_and_what_comes_after() {
    let mut rig = rig();
    rig.ask(0, &header(GETATTR, 1), 64);
    rig.ask(2, &header(GETATTR, 2), 64);
    rig.read();
    rig.read();
    rig.peer = UnixStream::pair().unwrap().0;
    for first in [0, 2] {
        assert_eq!(rig.requests.wait_used(), (first, 16));
        assert_eq!(rig.answered(first, 16), reply(u64::from(first / 2 + 1), -libc::EIO, b""));
    }
    rig.ask(4, &header(GETATTR, 3), 64);
    assert_eq!(rig.requests.wait_used(), (4, 16));
    assert_eq!(rig.answered(4, 16), reply(3, -libc::ENOTCONN, b""));
    assert!(rig.faults.none());
}

#[test]
fn a_peer_that_dies_with_half_a_request_read_fails_it() {
    let mut rig = rig();
    rig.ask(0, &[header(WRITE, 1), vec![0; 1 << 20]].concat(), 64);
    rig.peer.read_exact(&mut [0; 4096]).unwrap();
    rig.peer = UnixStream::pair().unwrap().0;
    assert_eq!(rig.requests.wait_used(), (0, 16));
    assert_eq!(rig.answered(0, 16), reply(1, -libc::EIO, b""));
}

#[test]
fn a_peer_that_answers_nonsense_is_not_spoken_with_again() {
    type Nonsense = fn(u64) -> Vec<u8>;
    let nonsense: [(&str, Nonsense); 8] = [
        ("an answer to nothing", |unique| reply(unique + 1, 0, b"")),
        ("shorter than a header", |unique| {
            [&15u32.to_le_bytes()[..], &reply(unique, 0, b"")[4..]].concat()
        }),
        ("longer than its room", |unique| reply(unique, 0, &[0; 49])),
        ("4 GiB", |unique| {
            [&u32::MAX.to_le_bytes()[..], &reply(unique, 0, b"")[4..]].concat()
        }),
        ("an error with a body", |unique| reply(unique, -5, b"x")),
        ("a positive error", |unique| reply(unique, 5, b"")),
        ("an error that Linux has not", |unique| reply(unique, -512, b"")),
        ("an error below all", |unique| reply(unique, i32::MIN, b"")),
    ];
    for (what, bytes) in nonsense {
        let mut rig = rig();
        rig.ask(0, &header(GETATTR, 1), 64);
        let unique = rig.read().unique;
        rig.peer.write_all(&bytes(unique)).unwrap();
        assert_eq!(rig.requests.wait_used(), (0, 16), "{what}");
        assert_eq!(rig.answered(0, 16), reply(1, -libc::EIO, b""), "{what}");
        assert_eq!(rig.peer.read(&mut [0; 1]).unwrap(), 0, "{what}: it is told");
        assert!(rig.faults.none(), "{what}");
    }
}

#[test]
fn an_answer_given_twice_is_nonsense() {
    let mut rig = rig();
    rig.ask(0, &header(GETATTR, 1), 64);
    let unique = rig.read().unique;
    rig.peer
        .write_all(&[reply(unique, 0, b""), reply(unique, 0, b"")].concat())
        .unwrap();
    assert_eq!(rig.requests.wait_used(), (0, 16));
    assert_eq!(rig.answered(0, 16), reply(1, 0, b""));
    assert_eq!(rig.peer.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_guest_that_leaves_no_room_for_an_answer_or_gives_half_a_header_is_a_fault() {
    for (length, room) in [(HEADER as u32, 0), (HEADER as u32, 15), (HEADER as u32 - 1, 64)] {
        let mut rig = rig();
        rig.ask(0, &header(GETATTR, 1)[..length as usize], room);
        assert!(rig.faults.wait().what.contains("too short"));
        assert!(rig.is_silent());
    }
}

#[test]
fn a_driver_that_comes_back_goes_on_with_the_peer_only_if_nothing_was_under_way() {
    for pending in [false, true] {
        let mut rig = rig();
        rig.ask(0, &header(GETATTR, 1), 64);
        let unique = rig.read().unique;
        if !pending {
            rig.answer(unique, 0, b"");
            rig.requests.wait_used();
        }
        rig.device.reset();
        rig.hiprio.restart();
        rig.requests.restart();
        let _faults = activate(&mut rig.device, &[&rig.hiprio, &rig.requests], F_ALL);
        rig.ask(2, &header(GETATTR, 2), 64);
        if pending {
            assert_eq!(rig.requests.wait_used(), (2, 16));
            assert_eq!(rig.answered(2, 16), reply(2, -libc::ENOTCONN, b""));
        } else {
            assert_eq!(rig.read().opcode, GETATTR);
        }
    }
}

#[test]
fn a_full_queue_that_nobody_answers_does_not_hold_the_thread() {
    let mut rig = rig();
    rig.requests.write(BUFFERS, &header(GETATTR, 1));
    for first in (0..512).step_by(2) {
        rig.requests
            .chain(first, &[(BUFFERS, 40, false), (ANSWERS + u64::from(first) * 4096, 64, true)]);
        rig.requests.offer(first);
    }
    rig.requests.kick();
    let begun = Instant::now();
    rig.read();
    rig.device.reset();
    assert!(begun.elapsed() < DEADLINE && rig.faults.none());
}

#[test]
fn the_configuration_is_the_tag_and_one_queue() {
    let device = Fs::new("data", UnixStream::pair().unwrap().0);
    let mut config = [0xff; 44];
    device.read_config(0, &mut config);
    let mut expected = [0; 44];
    expected[..4].copy_from_slice(b"data");
    expected[36] = 1;
    assert_eq!(config, expected);
}
