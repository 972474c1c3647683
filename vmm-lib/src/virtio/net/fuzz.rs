//! A driver out of a fuzzer's bytes on one side, a wire on the other: frames leave whole, and no larger than frames can be.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use super::pairs::Control;
use super::receive::Receiver;
use super::transmit::transmit;
use super::{GUEST_CSUM, GUEST_TSO4, HEADER, MRG_RXBUF, Net};
use crate::fuzz::input::Input;
use crate::spec::Limits;
use crate::virtio::fuzz::configuration;
use crate::virtio::fuzz::guest::{BUFFERS, Guest, memory};
use crate::virtio::pace::Pace;
use crate::virtio::ring::Ring;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;

/// A network device.
pub fn net(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = memory();
    let mut guest = Guest::new(&memory, 3, &mut input);
    let (ours, wire) = UnixDatagram::pair().expect("a pair of sockets is to be had");
    for socket in [&ours, &wire] {
        socket.set_nonblocking(true).expect("sockets can be told");
    }
    let tap = File::from(OwnedFd::from(ours));
    let chosen = input.byte();
    let large = if chosen & 2 == 0 { 0 } else { GUEST_CSUM | GUEST_TSO4 };
    let merge = if chosen & 1 == 0 { 0 } else { MRG_RXBUF };
    let features = guest.features() | merge | large;
    let shared = tap.try_clone().expect("a descriptor is to be had");
    let second = shared.try_clone().expect("a descriptor is to be had");
    let taps = if chosen & 4 == 0 { vec![shared] } else { vec![shared, second] };
    let mut device = Net::on(taps, ([2, 0, 0, 0, 0, 1], 1450), false);
    configuration(&mut device, &mut input);
    let control = Ring::new(&memory, guest.active(CONTROL), features);
    let mut control = Control::new(control, Arc::clone(&device.taps), device.taps.count());
    let mut receiver = Receiver::new(Ring::new(&memory, guest.active(RECEIVE), features), features);
    let mut outgoing = Ring::new(&memory, guest.active(TRANSMIT), features);
    let pace = Pace::new(Limits::default());
    let mut frame = vec![0; 70_000];
    let done = guest.play(&mut input, |guest, code, input| {
        match code & 0xf {
            7 => {
                let sent = guest.watch(|| transmit(&mut outgoing, &tap, &pace, &mut Vec::new()));
                while let Ok(length) = wire.recv(&mut frame) {
                    assert!((HEADER..=65_535 + 18 + HEADER).contains(&length), "a frame of {length} bytes");
                }
                if sent.is_err() {
                    return false;
                }
            }
            8 => {
                let asked = guest.watch(|| control.turn());
                let (used, most) = (device.taps.used(), device.taps.count());
                assert!((1..=most).contains(&used), "{used} of {most} pairs");
                if asked.is_err() {
                    return false;
                }
            }
            9 => {
                if guest.watch(|| receiver.fill(&tap, &pace)).is_err() {
                    return false;
                }
            }
            10 | 11 => {
                // What does not fit any more is dropped, as on a wire.
                let length = usize::from(input.short());
                frame[..length].fill(code);
                let _ = wire.send(&frame[..length]);
            }
            12 if code >> 4 == 15 => {
                // Nearly a command.
                let at = BUFFERS + 0x7800;
                guest.poke(at, &[4, input.byte() & 1, input.byte() & 3, 0]);
                guest.give(CONTROL, 0, &[(at, 4, false), (at + 0x40, 1, true)]);
            }
            12 | 13 => {
                let at = BUFFERS + 0x800 * u64::from(code >> 4);
                guest.give(RECEIVE, code >> 4, &[(at, input.length().saturating_add(HEADER as u32), true)]);
            }
            _ => {
                let (at, length) = (BUFFERS + 0x800 * u64::from(code >> 4), input.length());
                guest.give(TRANSMIT, code >> 4, &[(at, HEADER as u32, false), (at + 0x40, length, false)]);
            }
        }
        true
    });
    if !done {
        return;
    }
    if guest.watch(|| receiver.fill(&tap, &pace)).is_err() {
        return;
    }
    let _ = guest.watch(|| transmit(&mut outgoing, &tap, &pace, &mut Vec::new()));
}
