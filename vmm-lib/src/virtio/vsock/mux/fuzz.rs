//! Packets and clients out of a fuzzer's bytes, the multiplexer between them: bounded in all that either can make grow.

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use super::super::packet::{HEADER, HOST_CID, Header, STREAM};
use super::super::{Vsock, dialer, stream};
use super::{FIRST_PORT, MAX_CONNECTIONS, MAX_RESETS, Mux};
use crate::fuzz::input::Input;
use crate::virtio::fuzz::configuration;
use crate::virtio::fuzz::guest::{BUFFERS, Guest, memory};
use crate::virtio::ring::Ring;
use crate::virtio::worker::Poller;

const GUEST: u64 = 3;
const PORT: u32 = 1024;
const CLIENTS: usize = 4;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// A socket that listens without a name in the file system.
fn listener() -> UnixListener {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket is to be had");
    // Without a name the kernel chooses one.
    rustix::net::bind(socket.as_fd(), &SocketAddrUnix::new_unnamed()).expect("names are to be had");
    rustix::net::listen(socket.as_fd(), 4).expect("it has a name");
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true).expect("sockets can be told");
    listener
}

/// A vsock device.
pub fn vsock(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = memory();
    let mut guest = Guest::new(&memory, 2, &mut input);
    let (dialer, inlet) = dialer().expect("an eventfd is to be had");
    let view = inlet.share();
    let mut device = Vsock::new(GUEST as u32, listener(), Some(inlet));
    configuration(&mut device, &mut input);
    let [receive, transmit] = [RECEIVE, TRANSMIT].map(|queue| Ring::new(&memory, guest.active(queue), guest.features()));
    let poller = Poller::new().expect("an epoll is to be had");
    let mut mux = Mux::new(GUEST, poller, (listener(), Some(view)), receive, transmit);
    mux.watch().expect("descriptors can be watched");
    let mut clients: Vec<UnixStream> = Vec::new();
    let done = guest.play(&mut input, |guest, code, input| {
        match code & 0xf {
            7 | 8 => {
                if !turn(&mut mux, guest) {
                    return false;
                }
            }
            9 => {
                // Refused when too many wait.
                if let Ok(client) = dialer.dial() {
                    client.set_nonblocking(true).expect("sockets can be told");
                    let _ = match code >> 4 {
                        0..=9 => stream::write(&client, b"CONNECT 1024\n"),
                        10 | 11 => stream::write(&client, b"CONNECT 1024\nearly"),
                        _ => stream::write(&client, input.bytes(usize::from(code >> 4))),
                    };
                    clients.truncate(CLIENTS - 1);
                    clients.push(client);
                }
            }
            10 => {
                if let Some(client) = clients.get(usize::from(code >> 4) % CLIENTS) {
                    let length = input.length() as usize % 0x2_0000;
                    let _ = stream::write(client, &vec![code; length]);
                }
            }
            11 => end(&mut clients, code >> 4, input.byte()),
            12 => {
                let at = BUFFERS + 0x800 * u64::from(code >> 4);
                guest.give(RECEIVE, code >> 4, &[(at, input.length().saturating_add(HEADER as u32), true)]);
            }
            _ => say(guest, code >> 4, input),
        }
        true
    });
    if !done {
        return;
    }
    turn(&mut mux, &mut guest);
}

/// One turn of the device; `false` when it stops.
fn turn(mux: &mut Mux<'_>, guest: &mut Guest) -> bool {
    let goes_on = guest.watch(|| mux.turn(Some(Duration::ZERO))).unwrap_or(false);
    assert!(mux.connections.len() <= MAX_CONNECTIONS && mux.resets.len() <= MAX_RESETS);
    assert!(mux.ready.len() <= mux.connections.len(), "those that are gone wait for their turn");
    goes_on
}

/// A client reads all there is, ends one way, or goes.
fn end(clients: &mut Vec<UnixStream>, which: u8, how: u8) {
    let which = usize::from(which) % CLIENTS;
    let Some(client) = clients.get_mut(which) else { return };
    let mut bytes = [0; 4096];
    match how % 4 {
        0 => while matches!(client.read(&mut bytes), Ok(1..)) {},
        1 => client.shutdown(Shutdown::Write).unwrap_or(()),
        2 => client.shutdown(Shutdown::Read).unwrap_or(()),
        _ => drop(clients.remove(which)),
    }
}

/// The guest sends a packet, nearly right where its bits do not say otherwise.
fn say(guest: &mut Guest, slot: u8, input: &mut Input<'_>) {
    let (op, wrong) = (u16::from(input.byte()), input.byte());
    let payload = input.length();
    let port = FIRST_PORT + u32::from(wrong >> 6);
    let mut header = Header {
        src_cid: GUEST,
        dst_cid: HOST_CID,
        src_port: PORT,
        dst_port: port,
        len: payload,
        kind: STREAM,
        op: op % 9,
        flags: u32::from(op >> 6),
        buf_alloc: 128 << 10,
        fwd_cnt: 0,
    };
    if wrong & 1 != 0 {
        header.buf_alloc = input.length();
    }
    if wrong & 2 != 0 {
        header.fwd_cnt = input.length();
    }
    if wrong & 4 != 0 {
        header.len = input.length();
    }
    if wrong & 8 != 0 {
        (header.src_port, header.dst_port) = (input.length(), input.long());
    }
    if wrong & 16 != 0 {
        (header.src_cid, header.dst_cid) = (input.quad(), input.quad());
    }
    if wrong & 32 != 0 {
        (header.kind, header.op, header.flags) = (input.short(), input.short(), input.long());
    }
    assert_eq!(Header::parse(&header.bytes()), header);
    let at = BUFFERS + 0x800 * u64::from(slot);
    guest.poke(at, &header.bytes());
    let parts = [(at, HEADER as u32, false), (at + 0x40, payload, false)];
    let chain: Vec<_> = parts.into_iter().filter(|part| part.1 > 0).collect();
    guest.give(TRANSMIT, 2 * slot, &chain);
}
