//! A driver out of a fuzzer's bytes on one side, a peer on the other: requests go out whole and bounded, and nothing that a peer answers
//! ends the session or reaches memory that is not its request's.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use super::session::{HEADER, MAX_REQUEST, Session};
use super::{Fs, HIPRIO, REQUESTS};
use crate::fuzz::input::Input;
use crate::virtio::fuzz::configuration;
use crate::virtio::fuzz::guest::{BUFFERS, Guest, memory};
use crate::virtio::ring::Ring;

/// What the peer has seen.
struct Peer {
    socket: UnixStream,
    bytes: Vec<u8>,
    /// Numbers of requests that it may answer.
    asked: Vec<u64>,
}

impl Peer {
    /// Reads what has come, and holds it against the rules.
    fn read(&mut self) {
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = self.socket.read(&mut piece) {
            self.bytes.extend_from_slice(&piece[..length]);
        }
        while let Some(head) = self.bytes.first_chunk::<HEADER>() {
            let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
            assert!((HEADER..=MAX_REQUEST).contains(&length), "a request of {length} bytes");
            let unique = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes"));
            if self.bytes.len() < length {
                break;
            }
            assert!(!self.asked.contains(&unique), "a number is used once");
            self.asked.push(unique);
            self.bytes.drain(..length);
        }
    }
}

/// A shared directory's device.
pub fn fs(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = memory();
    let mut guest = Guest::new(&memory, 2, &mut input);
    let (ours, socket) = UnixStream::pair().expect("a pair of sockets is to be had");
    for socket in [&ours, &socket] {
        socket.set_nonblocking(true).expect("sockets can be told");
    }
    let other = ours.try_clone().expect("a descriptor is to be had");
    configuration(&mut Fs::new("data", other), &mut input);
    let ring = |queue: u64| Ring::new(&memory, guest.active(queue as usize), guest.features());
    let mut session = Session::new([ring(HIPRIO), ring(REQUESTS)], Some(ours));
    let mut peer = Peer {
        socket,
        bytes: Vec::new(),
        asked: Vec::new(),
    };
    let done = guest.play(&mut input, |guest, code, input| {
        match code & 0xf {
            7 | 8 => {
                if guest.watch(|| session.turn()).is_err() {
                    return false;
                }
            }
            9 | 10 => peer.read(),
            // An answer, right or not; a peer that the device has left is not heard.
            11 | 12 => {
                let place = usize::from(input.byte());
                let unique = peer.asked.get(place).copied().unwrap_or(u64::from(code));
                let (length, error) = (input.length(), i32::from(code >> 4 & 7) * -100);
                let mut bytes = 16u32.wrapping_add(length).to_le_bytes().to_vec();
                bytes.extend(error.to_le_bytes());
                bytes.extend(unique.to_le_bytes());
                bytes.resize(16 + length.min(0x1_0000) as usize, code);
                let _ = peer.socket.write(&bytes);
            }
            13 => {
                let _ = peer.socket.write(input.bytes(usize::from(code >> 4)));
            }
            // A request: its kind, so many bytes of arguments, so much room.
            _ => {
                let slot = code >> 4;
                let (at, queue) = (BUFFERS + 0x400 * u64::from(slot), usize::from(code & 1));
                let mut header = [0; HEADER];
                header[4] = input.byte();
                header[8] = slot;
                guest.poke(at, &header);
                let (arguments, room) = (input.length(), input.length());
                let all = [(at, HEADER as u32, false), (at + 0x40, arguments, false), (at + 0x200, room, true)];
                let chosen: Vec<_> = all.into_iter().filter(|(_, length, _)| *length > 0).collect();
                guest.give(queue, slot, &chosen);
            }
        }
        true
    });
    if !done {
        return;
    }
    let _ = guest.watch(|| session.turn());
}
