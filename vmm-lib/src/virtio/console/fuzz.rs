//! A driver out of a fuzzer's bytes on one side, a terminal on the other: the device keeps to its rings and buffers, and never waits long.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::{Console, Ends, PATIENCE, RECEIVE, Receiver, Screen, TRANSMIT, Transmitter, Wish};
use crate::fuzz::input::Input;
use crate::virtio::fuzz::configuration;
use crate::virtio::fuzz::guest::{BUFFERS, Guest, memory};
use crate::virtio::ring::Ring;

fn pipe() -> (File, File) {
    let (reader, writer) = std::io::pipe().expect("a pipe is to be had");
    let end = |end: OwnedFd| {
        rustix::io::ioctl_fionbio(&end, true).expect("pipes can be told");
        File::from(end)
    };
    (end(reader.into()), end(writer.into()))
}

/// A console.
pub fn console(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = memory();
    let mut guest = Guest::new(&memory, 2, &mut input);
    let ((mut screen, output), (typed, mut keys)) = (pipe(), pipe());
    let shared = output.try_clone().expect("a descriptor is to be had");
    configuration(&mut Console::new(shared, None, Some(Screen::new(80, 25))), &mut input);
    let mut ends = Ends::new(output, Some(typed));
    let mut receive = Receiver::new(Ring::new(&memory, guest.active(RECEIVE), guest.features()));
    let mut transmit = Transmitter::new(Ring::new(&memory, guest.active(TRANSMIT), guest.features()));
    let mut now = Instant::now();
    let mut block = [0; 70_000];
    let done = guest.play(&mut input, |guest, code, input| {
        match code & 0xf {
            7 | 8 => {
                now += PATIENCE / 2 * u32::from(code >> 4);
                match guest.watch(|| transmit.turn(&mut ends.output, now)) {
                    Ok(wait) => assert!(wait.is_none_or(|wait| wait <= Duration::from_secs(1)), "{wait:?}"),
                    Err(_) => return false,
                }
            }
            9 => {
                let Some(typed) = &ends.input else { return true };
                match guest.watch(|| receive.turn(typed)) {
                    Ok(Wish::Ended) => ends.input = None,
                    Ok(_) => {}
                    Err(_) => return false,
                }
            }
            // What does not fit any more is dropped, as by a terminal.
            10 => drop(keys.write(&block[..usize::from(input.short())])),
            11 => drop(screen.read(&mut block)),
            12 | 13 => {
                let at = BUFFERS + 0x800 * u64::from(code >> 4);
                guest.give(RECEIVE, code >> 4, &[(at, input.length(), true)]);
            }
            _ => {
                let at = BUFFERS + 0x800 * u64::from(code >> 4);
                guest.give(TRANSMIT, code >> 4, &[(at, input.length(), false)]);
            }
        }
        true
    });
    if !done {
        return;
    }
    let _ = guest.watch(|| transmit.turn(&mut ends.output, now));
}
