//! Requests out of a fuzzer's bytes, on a disk in the middle of a file: what lies around it stays, and all of it when it is read-only.

use std::cell::OnceCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::MemfdFlags;

pub use super::qcow2::fuzz::qcow2;
use super::{Block, turn};
use crate::fuzz::input::Input;
use crate::virtio::fuzz::configuration;
use crate::virtio::fuzz::guest::{BUFFERS, Guest, memory};
use crate::virtio::ring::Ring;

const FILE: usize = 16 << 10;
/// The disk within the file.
const START: usize = 512;
const END: usize = START + (8 << 10);

fn file() -> File {
    thread_local! {
        static SHARED: OnceCell<File> = const { OnceCell::new() };
    }
    let made = || File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).expect("the host makes files in memory"));
    let file = SHARED
        .with(|shared| shared.get_or_init(made).try_clone())
        .expect("a descriptor is to be had");
    file.write_all_at(&[0xd1; FILE], 0).expect("and takes 16 KiB");
    file
}

/// A disk.
pub fn block(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = memory();
    let mut guest = Guest::new(&memory, 1, &mut input);
    let (kind, file) = (input.byte(), file());
    let part = |offset: usize, length: usize| (file.try_clone().expect("a descriptor is to be had"), offset as u64, length as u64);
    let (extents, read_only, end) = match kind % 4 {
        0 => (vec![part(START, END - START)], false, END),
        1 => (vec![part(START, END - START)], true, START),
        2 => (
            vec![part(START + 4096, 4096), part(START, 1024), part(START + 1024, 3072)],
            false,
            END,
        ),
        // Longer than its file.
        _ => (vec![part(START, FILE)], false, FILE + START),
    };
    let mut device = Block::new("fuzz", extents, read_only).expect("the extents are whole sectors");
    configuration(&mut device, &mut input);
    let mut ring = Ring::new(&memory, guest.active(0), guest.features());
    let mut reported = false;
    let mut serve = |guest: &mut Guest| guest.watch(|| turn(&mut ring, &device.disk, &device.pace, "fuzz", &mut reported));
    let done = guest.play(&mut input, |guest, code, input| {
        match code & 0xf {
            7 | 8 => return serve(guest).is_ok(),
            _ => request(guest, code >> 4, input),
        }
        true
    });
    if done {
        let _ = serve(&mut guest);
    }
    let mut left = vec![0; FILE + START];
    let length = file.read_at(&mut left, 0).expect("the file is readable");
    assert!(length == FILE || end > FILE, "the file is {length} bytes long");
    assert!(
        left[..START].iter().chain(&left[end.min(length)..length]).all(|byte| *byte == 0xd1),
        "around the disk, or all of it"
    );
    if length > FILE {
        file.set_len(FILE as u64).expect("a file can be cut");
    }
}

/// A request with header, data and status, each nearly right.
fn request(guest: &mut Guest, slot: u8, input: &mut Input<'_>) {
    const KINDS: [u32; 8] = [0, 1, 4, 8, 11, 13, 2, u32::MAX];
    let (selector, sector, sectors) = (input.byte(), input.byte(), input.byte());
    let at = BUFFERS + 0x800 * u64::from(slot);
    let kind = KINDS[usize::from(selector & 7)];
    let sector = if sector == 0xff { input.quad() } else { u64::from(sector) };
    guest.poke(at, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    let header = (at, 16, false);
    let data = match kind {
        11 | 13 => {
            let (first, count, flags) = (u64::from(input.byte()), input.length(), u32::from(input.byte()));
            guest.poke(
                at + 16,
                &[&first.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat(),
            );
            (at + 16, 16, false)
        }
        _ => (at + 0x40, 512 * u32::from(sectors % 24) + u32::from(selector >> 7), kind != 1),
    };
    let status = (at + 0x20, 1, true);
    let chain: Vec<_> = [header, data, status].into_iter().filter(|part| part.1 > 0).collect();
    guest.give(0, slot * 3, &chain);
}
