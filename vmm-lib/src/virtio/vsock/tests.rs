//! Clients of the Unix socket on one side, a guest written by hand on the other: one that keeps credit and shuts down as Linux does, and one
//! that sends garbage.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    thread,
    time::Instant,
};

use super::{
    Dialer, Vsock,
    connection::BUFFER,
    dialer,
    packet::{self, HEADER, Header},
};
use crate::virtio::device::VirtioDevice;
use crate::virtio::testing::{BUFFERS, DEADLINE, Driver, Faults, activate, memory};

const GUEST: u64 = 3;
const PORT: u32 = 1024;
pub(super) const RX_SIZE: u32 = 4096;
pub(super) const TX: u64 = BUFFERS + 0x20_0000;

pub(super) struct Guest {
    device: Vsock,
    dialer: Dialer,
    socket: std::path::PathBuf,
    _directory: tempfile::TempDir,
    pub(super) receive: Driver,
    pub(super) transmit: Driver,
    event: Driver,
    pub(super) faults: Faults,
}

impl Guest {
    pub(super) fn new(buffers: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vsock.sock");
        let (dialer, inlet) = dialer().unwrap();
        let mut device = Vsock::new(GUEST as u32, UnixListener::bind(&socket).unwrap(), Some(inlet));
        let memory = memory();
        let drivers = [0, 1, 2].map(|index| Driver::new(&memory, index, 256));
        let faults = activate(&mut device, &[&drivers[0], &drivers[1], &drivers[2]], 1 << 29);
        let [receive, transmit, event] = drivers;
        let mut guest = Self {
            device,
            dialer,
            socket,
            _directory: directory,
            receive,
            transmit,
            event,
            faults,
        };
        guest.post(buffers);
        guest
    }

    pub(super) fn post(&mut self, buffers: u16) {
        for index in 0..buffers {
            self.receive.chain(index, &[(BUFFERS + u64::from(index) * 4096, RX_SIZE, true)]);
            self.receive.offer(index);
        }
        self.receive.kick();
    }

    pub(super) fn client(&self, line: &str) -> UnixStream {
        let mut client = UnixStream::connect(&self.socket).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.set_write_timeout(Some(DEADLINE)).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        client
    }

    pub(super) fn packet(&mut self) -> (Header, Vec<u8>) {
        let (head, length) = self.receive.wait_used();
        let at = BUFFERS + u64::from(head) * 4096;
        let bytes = self.receive.read(at, length as usize);
        self.receive.offer(head);
        self.receive.kick();
        let header = Header::parse(bytes[..HEADER].try_into().unwrap());
        assert_eq!(header.len as usize, bytes.len() - HEADER);
        (header, bytes[HEADER..].to_vec())
    }

    pub(super) fn expect(&mut self, op: u16) -> Header {
        let header = self.packet().0;
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    pub(super) fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        self.transmit.write(TX, &header.bytes());
        if payload.is_empty() {
            self.transmit.chain(0, &[(TX, HEADER as u32, false)]);
        } else {
            self.transmit.write(TX + 4096, payload);
            self.transmit
                .chain(0, &[(TX, HEADER as u32, false), (TX + 4096, payload.len() as u32, false)]);
        }
        self.transmit.offer(0);
        self.transmit.kick();
        assert_eq!(self.transmit.wait_used().0, 0);
    }

    pub(super) fn to_host(host_port: u32, op: u16) -> Header {
        Header {
            src_cid: GUEST,
            dst_cid: packet::HOST_CID,
            src_port: PORT,
            dst_port: host_port,
            len: 0,
            kind: packet::STREAM,
            op,
            flags: 0,
            buf_alloc: 128 << 10,
            fwd_cnt: 0,
        }
    }

    pub(super) fn send(&mut self, host_port: u32, op: u16, payload: &[u8]) {
        let header = Header {
            len: payload.len() as u32,
            ..Self::to_host(host_port, op)
        };
        self.send_raw(&header, payload);
    }

    /// A client that the guest has accepted, and its host port.
    pub(super) fn connect(&mut self) -> (BufReader<UnixStream>, u32) {
        let client = self.client("CONNECT 1024\n");
        let request = self.expect(packet::REQUEST);
        assert_eq!((request.src_cid, request.dst_cid, request.dst_port), (2, GUEST, PORT));
        assert_eq!(request.buf_alloc, BUFFER);
        self.send(request.src_port, packet::RESPONSE, &[]);
        let mut client = BufReader::new(client);
        let mut line = String::new();
        client.read_line(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", request.src_port));
        (client, request.src_port)
    }
}

fn all(client: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn bytes_go_both_ways_and_a_close_reaches_the_other_side() {
    let mut guest = Guest::new(8);
    let (mut client, port) = guest.connect();
    client.get_mut().write_all(b"hello").unwrap();
    let (header, payload) = guest.packet();
    assert_eq!((header.op, payload.as_slice()), (packet::RW, &b"hello"[..]));
    guest.send(port, packet::RW, b"and back");
    let mut back = [0; 8];
    client.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"and back");
    drop(client);
    assert_eq!(guest.expect(packet::SHUTDOWN).flags, 3);
    guest.send(port, packet::RST, &[]);
    // Its port is free: what comes now belongs to nobody.
    guest.send(port, packet::RW, b"x");
    guest.expect(packet::RST);
    assert!(guest.faults.none());
}

#[test]
fn what_a_client_sends_at_once_fills_one_buffer_after_the_other_and_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new(8);
    let (mut client, _) = guest.connect();
    // As much as the guest has room for, and one byte.
    let sent: Vec<u8> = (0..(128 << 10) + 1).map(|at: u32| (at >> 4) as u8).collect();
    client.get_mut().write_all(&sent).unwrap();
    let mut came = Vec::new();
    while came.len() < sent.len() - 1 {
        let (header, payload) = guest.packet();
        assert_eq!(header.op, packet::RW);
        assert!(payload.len() <= RX_SIZE as usize - HEADER);
        came.extend(payload);
    }
    assert_eq!(came, sent[..sent.len() - 1]);
    guest.expect(packet::CREDIT_REQUEST);
    assert!(guest.faults.none());
}

#[test]
fn a_connection_of_this_process_is_like_any_other_and_closed_with_the_device() {
    let mut guest = Guest::new(8);
    let mut client = guest.dialer.dial().unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"CONNECT 1024\n").unwrap();
    let request = guest.expect(packet::REQUEST);
    guest.send(request.src_port, packet::RESPONSE, &[]);
    let mut line = [0; 14];
    client.read_exact(&mut line).unwrap();
    assert_eq!(line, format!("OK {}\n", request.src_port).as_bytes());
    guest.device.reset();
    assert!(matches!(client.read(&mut line), Ok(0) | Err(_)));
    // Waits for a driver that never comes, then for nobody.
    let mut late = guest.dialer.dial().unwrap();
    let dialer = guest.dialer.clone();
    drop(guest);
    assert!(matches!(late.read(&mut line), Ok(0) | Err(_)));
    assert!(dialer.dial().is_err());
}

#[test]
fn a_refusal_closes_the_client_without_a_word() {
    let mut guest = Guest::new(8);
    let mut client = guest.client("CONNECT 77\n");
    let request = guest.expect(packet::REQUEST);
    assert_eq!(request.dst_port, 77);
    let mut reply = request.reset();
    reply.op = packet::RST;
    guest.send_raw(&reply, &[]);
    assert!(all(&mut client).is_empty());
}

#[test]
fn a_client_that_says_anything_else_is_closed() {
    let guest = Guest::new(8);
    for line in ["GET / HTTP/1.1\n", "CONNECT x\n", "CONNECT 4294967296\n", &"9".repeat(64)] {
        let mut client = guest.client(line);
        let mut byte = [0];
        // The device may close with bytes unread, which is a reset.
        assert!(matches!(client.read(&mut byte), Ok(0) | Err(_)), "{line:?}");
    }
}

#[test]
fn what_follows_the_connect_line_at_once_is_not_lost() {
    let mut guest = Guest::new(8);
    let client = guest.client("CONNECT 1024\nearly");
    let request = guest.expect(packet::REQUEST);
    guest.send(request.src_port, packet::RESPONSE, &[]);
    let (_, payload) = guest.packet();
    assert_eq!(payload, b"early");
    drop(client);
}

#[test]
fn half_closes_are_kept_apart() {
    let mut guest = Guest::new(8);
    let (mut client, port) = guest.connect();
    client.get_mut().write_all(b"last words").unwrap();
    client.get_mut().shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.packet().1, b"last words");
    assert_eq!(guest.expect(packet::SHUTDOWN).flags, packet::NO_SEND);
    guest.send(port, packet::RW, b"answer");
    let header = Header {
        flags: 3,
        ..Guest::to_host(port, packet::SHUTDOWN)
    };
    guest.send_raw(&header, &[]);
    assert_eq!(all(&mut client), b"answer");
    guest.expect(packet::RST);
}

#[test]
fn a_guest_that_resets_does_not_take_back_what_it_said() {
    let mut guest = Guest::new(8);
    let (mut client, port) = guest.connect();
    let bytes: Vec<u8> = (0..BUFFER).map(|i| i as u8).collect();
    for piece in bytes.chunks(32 << 10) {
        guest.send(port, packet::RW, piece);
    }
    guest.send(port, packet::RST, &[]);
    assert_eq!(all(&mut client), bytes);
}

#[test]
fn a_guest_above_its_credit_is_reset_and_others_go_on() {
    let mut guest = Guest::new(8);
    let (_silent, port) = guest.connect();
    let (mut other, other_port) = guest.connect();
    // The client reads nothing: its socket's buffer, then ours, then no more.
    let piece = vec![7; 64 << 10];
    let mut sent = 0;
    let header = loop {
        guest.send(port, packet::RW, &piece);
        sent += piece.len();
        assert!(sent < 8 << 20, "the host must not buffer without bound");
        if let Some((head, _)) = guest.receive.take_used() {
            let bytes = guest.receive.read(BUFFERS + u64::from(head) * 4096, HEADER);
            let header = Header::parse(bytes[..].try_into().unwrap());
            guest.receive.offer(head);
            if header.op == packet::RST {
                break header;
            }
        }
    };
    assert_eq!((header.src_port, header.dst_port), (port, PORT));
    guest.receive.kick();
    guest.send(other_port, packet::RW, b"still here");
    let mut seen = [0; 10];
    other.read_exact(&mut seen).unwrap();
    assert!(guest.faults.none());
}

#[test]
fn garbage_is_answered_by_resets() {
    let mut guest = Guest::new(8);
    let (_client, port) = guest.connect();
    let good = Guest::to_host(port, packet::RW);
    // The guest's own wishes, unknown ports, other types and destinations.
    for bad in [
        Header {
            op: packet::REQUEST,
            dst_port: 22,
            ..good
        },
        Header { dst_port: 9, ..good },
        Header { src_port: 9, ..good },
        Header { kind: 2, ..good },
        Header { dst_cid: 77, ..good },
    ] {
        guest.send_raw(&bad, &[]);
        let reset = guest.expect(packet::RST);
        assert_eq!(
            (reset.src_port, reset.dst_port, reset.src_cid),
            (bad.dst_port, bad.src_port, bad.dst_cid)
        );
    }
    // Not even its own address: nothing. A reset of nothing: nothing.
    guest.send_raw(&Header { src_cid: 9, ..good }, &[]);
    guest.send_raw(
        &Header {
            op: packet::RST,
            dst_port: 9,
            ..good
        },
        &[],
    );
    // Each of these ends a connection that was in order.
    guest.send_raw(&Header { len: u32::MAX, ..good }, b"short");
    guest.expect(packet::RST);
    for op in [0, 8, 0xffff, packet::REQUEST, packet::RESPONSE] {
        let (_client, port) = guest.connect();
        guest.send(port, op, &[]);
        guest.expect(packet::RST);
    }
    assert!(guest.faults.none());
    // Too short for a header: the device stops.
    guest.transmit.chain(0, &[(TX, HEADER as u32 - 1, false)]);
    guest.transmit.offer(0);
    guest.transmit.kick();
    assert!(guest.faults.wait().what.contains("too short"));
}

#[test]
fn without_buffers_the_host_waits_and_then_goes_on() {
    let mut guest = Guest::new(0);
    let _client = guest.client("CONNECT 1024\n");
    guest.send(5, packet::RW, &[]);
    assert!(guest.receive.take_used().is_none());
    guest.post(1);
    let ops = [guest.packet().0.op, guest.packet().0.op];
    assert!(ops.contains(&packet::REQUEST) && ops.contains(&packet::RST), "{ops:?}");
}

#[test]
fn a_reset_of_the_device_closes_its_clients_and_it_serves_again() {
    let mut guest = Guest::new(8);
    let (mut client, _) = guest.connect();
    guest.device.reset();
    assert!(all(&mut client).is_empty());
    let memory = memory();
    let drivers = [0, 1, 2].map(|index| Driver::new(&memory, index, 256));
    guest.faults = activate(&mut guest.device, &[&drivers[0], &drivers[1], &drivers[2]], 0);
    [guest.receive, guest.transmit, guest.event] = drivers;
    guest.post(8);
    guest.connect();
}

/// What a guest that echoes owes and may send.
struct Echo {
    port: u32,
    queue: VecDeque<u8>,
    received: u32,
    taken: u32,
    taken_told: u32,
    sent: u32,
    host_room: (u32, u32),
    ended: bool,
}

#[test]
fn a_hundred_megabytes_go_there_and_back_under_credit() {
    const TOTAL: usize = 100 << 20;
    const ROOM: u32 = 64 << 10;
    let mut guest = Guest::new(64);
    let (client, port) = guest.connect();
    let mut writer = client.get_ref().try_clone().unwrap();
    let mut reader = client;
    let started = Instant::now();
    let sending = thread::spawn(move || {
        let block: Vec<u8> = (0..65_521u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut left = TOTAL;
        while left > 0 {
            let part = left.min(block.len());
            writer.write_all(&block[..part]).unwrap();
            left -= part;
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let reading = thread::spawn(move || {
        let block: Vec<u8> = (0..65_521u32).map(|i| (i * 7 % 251) as u8).collect();
        let (mut seen, mut buffer) = (0usize, vec![0; 65_521]);
        while seen < TOTAL {
            let part = (TOTAL - seen).min(buffer.len());
            reader.read_exact(&mut buffer[..part]).unwrap();
            assert!(buffer[..part] == block[..part], "bytes differ after {seen}");
            seen += part;
        }
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
    });
    let mut echo = Echo {
        port,
        queue: VecDeque::new(),
        received: 0,
        taken: 0,
        taken_told: 0,
        sent: 0,
        host_room: (BUFFER, 0),
        ended: false,
    };
    loop {
        let (header, payload) = guest.packet();
        echo.host_room = (header.buf_alloc, header.fwd_cnt);
        match header.op {
            packet::RW => {
                echo.received = echo.received.wrapping_add(payload.len() as u32);
                assert!(
                    echo.received.wrapping_sub(echo.taken) <= ROOM,
                    "the host sent above the guest's credit"
                );
                echo.queue.extend(payload);
            }
            packet::SHUTDOWN => echo.ended = true,
            packet::RST => break,
            _ => {}
        }
        echo.answer(&mut guest, ROOM);
    }
    sending.join().unwrap();
    reading.join().unwrap();
    println!("{} MiB echoed in {:?}", TOTAL >> 20, started.elapsed());
    assert!(guest.faults.none());
}

impl Echo {
    fn answer(&mut self, guest: &mut Guest, room: u32) {
        loop {
            let free = self.host_room.0 - self.sent.wrapping_sub(self.host_room.1);
            let count = self.queue.len().min(free as usize).min(32 << 10);
            // Small answers are kept until they are worth a packet.
            if count == 0 || (count < 8 << 10 && !self.ended && free > 8 << 10 && self.queue.len() < 8 << 10) {
                break;
            }
            let payload: Vec<u8> = self.queue.drain(..count).collect();
            self.taken = self.taken.wrapping_add(count as u32);
            self.sent = self.sent.wrapping_add(count as u32);
            self.send(guest, packet::RW, 0, room, &payload);
        }
        if self.taken.wrapping_sub(self.taken_told) >= room / 2 {
            self.send(guest, packet::CREDIT_UPDATE, 0, room, &[]);
        }
        if self.ended && self.queue.is_empty() {
            self.send(guest, packet::SHUTDOWN, 3, room, &[]);
        }
    }

    fn send(&mut self, guest: &mut Guest, op: u16, flags: u32, room: u32, payload: &[u8]) {
        self.taken_told = self.taken;
        let header = Header {
            len: payload.len() as u32,
            flags,
            buf_alloc: room,
            fwd_cnt: self.taken,
            ..Guest::to_host(self.port, op)
        };
        guest.send_raw(&header, payload);
    }
}
