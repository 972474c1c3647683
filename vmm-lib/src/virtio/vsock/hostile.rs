//! Guests whose packets lie: each field of the header in turn, against a connection that is in order. What a header can say wrong ends that
//! connection, with a reset, or is ignored; never the device, never another connection, and no byte of memory but the buffers given.

use std::io::{Read, Write};

use super::packet::{self, HEADER, Header};
use super::tests::{Guest, RX_SIZE, TX};
use crate::virtio::testing::BUFFERS;

/// What became of the connection that was attacked.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The guest was told that it is over, or that such a connection never was.
    Reset,
    /// As if nothing had been said.
    Ignored,
}

/// Says the wrong thing, then asks for credit on the same connection: the next packet is a reset, or the credit.
fn outcome(guest: &mut Guest, port: u32, bad: &Header, payload: &[u8]) -> Outcome {
    guest.send_raw(bad, payload);
    guest.send(port, packet::CREDIT_REQUEST, &[]);
    let header = guest.packet().0;
    match header.op {
        packet::RST => Outcome::Reset,
        packet::CREDIT_UPDATE => Outcome::Ignored,
        other => panic!("answered by {other}: {header:?} to {bad:?}"),
    }
}

#[test]
fn each_wrong_field_resets_its_connection_or_is_ignored_and_others_go_on() {
    let mut guest = Guest::new(16);
    let (mut honest, honest_port) = guest.connect();
    type Lie = fn(Header) -> Header;
    let lies: &[(&str, Lie, Outcome)] = &[
        ("another sender", |h| Header { src_cid: 4, ..h }, Outcome::Ignored),
        (
            "the host as sender",
            |h| Header {
                src_cid: packet::HOST_CID,
                ..h
            },
            Outcome::Ignored,
        ),
        ("a sender of 64 bits", |h| Header { src_cid: 1 << 32 | 3, ..h }, Outcome::Ignored),
        ("another receiver", |h| Header { dst_cid: 1, ..h }, Outcome::Reset),
        ("itself as receiver", |h| Header { dst_cid: 3, ..h }, Outcome::Reset),
        ("a receiver of 64 bits", |h| Header { dst_cid: u64::MAX, ..h }, Outcome::Reset),
        ("a port that is not its own", |h| Header { src_port: 0, ..h }, Outcome::Reset),
        ("a port of nobody", |h| Header { dst_port: u32::MAX, ..h }, Outcome::Reset),
        ("no type", |h| Header { kind: 0, ..h }, Outcome::Reset),
        ("a seqpacket", |h| Header { kind: 2, ..h }, Outcome::Reset),
        ("any type", |h| Header { kind: u16::MAX, ..h }, Outcome::Reset),
        ("no operation", |h| Header { op: 0, ..h }, Outcome::Reset),
        ("an unknown operation", |h| Header { op: 8, ..h }, Outcome::Reset),
        ("any operation", |h| Header { op: u16::MAX, ..h }, Outcome::Reset),
        ("a request", |h| Header { op: packet::REQUEST, ..h }, Outcome::Reset),
        ("a second response", |h| Header { op: packet::RESPONSE, ..h }, Outcome::Reset),
        ("more than the chain has", |h| Header { len: 5, ..h }, Outcome::Reset),
        ("4 GiB less one", |h| Header { len: u32::MAX, ..h }, Outcome::Reset),
        ("less than the chain has", |h| Header { len: 0, ..h }, Outcome::Ignored),
        ("flags that are none", |h| Header { flags: u32::MAX, ..h }, Outcome::Ignored),
        ("no room", |h| Header { buf_alloc: 0, ..h }, Outcome::Ignored),
        ("more taken than sent", |h| Header { fwd_cnt: u32::MAX, ..h }, Outcome::Ignored),
        (
            "a shutdown of no direction",
            |h| Header {
                op: packet::SHUTDOWN,
                flags: 4,
                ..h
            },
            Outcome::Ignored,
        ),
        (
            "a shutdown of everything",
            |h| Header {
                op: packet::SHUTDOWN,
                flags: u32::MAX,
                ..h
            },
            Outcome::Reset,
        ),
    ];
    for (what, lie, expected) in lies {
        let (client, port) = guest.connect();
        let good = Header {
            len: 4,
            ..Guest::to_host(port, packet::RW)
        };
        let bad = lie(good);
        assert_eq!(outcome(&mut guest, port, &bad, b"four"), *expected, "{what}");
        drop(client);
        // Ends whatever is left of it, so that no later word is of this one.
        guest.send(port, packet::RST, &[]);
        while let Some((head, _)) = guest.receive.take_used() {
            guest.receive.offer(head);
        }
        guest.receive.kick();
    }
    guest.send(honest_port, packet::RW, b"still here");
    let mut seen = [0; 10];
    honest.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"still here");
    assert!(guest.faults.none());
}

#[test]
fn data_after_the_guests_own_end_is_a_reset() {
    let mut guest = Guest::new(8);
    let (_client, port) = guest.connect();
    let end = Header {
        flags: packet::NO_SEND,
        ..Guest::to_host(port, packet::SHUTDOWN)
    };
    guest.send_raw(&end, &[]);
    guest.send(port, packet::RW, b"after all");
    guest.expect(packet::RST);
    assert!(guest.faults.none());
}

#[test]
fn credit_that_makes_no_sense_is_no_credit_and_payload_stays_in_its_buffer() {
    let mut guest = Guest::new(8);
    let (mut client, port) = guest.connect();
    // All room there is, and more taken than was ever sent: on the way is then nearly 4 GiB.
    let lie = Header {
        buf_alloc: u32::MAX,
        fwd_cnt: 1,
        ..Guest::to_host(port, packet::CREDIT_UPDATE)
    };
    guest.send_raw(&lie, &[]);
    client.get_mut().write_all(&[9; 20_000]).unwrap();
    let mut seen = 0;
    while seen < 20_000 {
        let (header, payload) = guest.packet();
        match header.op {
            packet::RW => {
                assert!(payload.len() <= RX_SIZE as usize - HEADER);
                seen += payload.len();
            }
            packet::CREDIT_REQUEST => guest.send(port, packet::CREDIT_UPDATE, &[]),
            other => panic!("{other}"),
        }
    }
    assert!(guest.faults.none());
}

#[test]
fn receive_buffers_without_room_for_one_byte_stop_the_device() {
    for length in [1, HEADER as u32 - 1, HEADER as u32] {
        let mut guest = Guest::new(0);
        guest.receive.chain(0, &[(BUFFERS, length, true)]);
        guest.receive.offer(0);
        guest.receive.kick();
        let _client = guest.client("CONNECT 1024\n");
        assert!(guest.faults.wait().what.contains("too short"), "{length}");
    }
    let mut guest = Guest::new(0);
    guest.receive.chain(0, &[(BUFFERS, 4096, false)]);
    guest.receive.offer(0);
    guest.receive.kick();
    let _client = guest.client("CONNECT 1024\n");
    assert!(guest.faults.wait().what.contains("too short"));
    let mut guest = Guest::new(8);
    guest.transmit.chain(0, &[(TX, HEADER as u32, true)]);
    guest.transmit.offer(0);
    guest.transmit.kick();
    assert!(guest.faults.wait().what.contains("too short"));
}

#[test]
fn a_flood_of_garbage_is_answered_within_bounds_and_served_after() {
    let mut guest = Guest::new(0);
    let garbage = Guest::to_host(7, packet::RW);
    for _ in 0..2000 {
        guest.send_raw(&garbage, &[]);
    }
    guest.post(64);
    let mut resets = 0;
    guest.send(9, packet::RST, &[]);
    let _client = guest.client("CONNECT 1024\n");
    loop {
        match guest.packet().0.op {
            packet::RST => resets += 1,
            packet::REQUEST => break,
            other => panic!("{other}"),
        }
    }
    assert_eq!(resets, 256, "as many as are kept");
    assert!(guest.faults.none());
}
