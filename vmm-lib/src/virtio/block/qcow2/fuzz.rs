//! An image made by the tests' writer, with what a fuzzer's bytes change in it, and the requests that they ask for. Where nothing was changed
//! the disk is compared with plain memory, its image stays in order whenever one looks, and it is the same after it was opened again.

use std::cell::OnceCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::MemfdFlags;
use vm_memory::{Bytes, GuestAddress, Permissions};

use super::Qcow2;
use super::writer::{Image, check};
use crate::dirty::Ram;
use crate::fuzz::input::Input;
use crate::virtio::block::extents::Direction;
use crate::virtio::chain::Segments;

const DISK: usize = 256 << 10;
const MOST: usize = 64 << 10;
const MAX_ACTS: usize = 64;
/// More than the file could ever need: the disk, its tables, and all that can leak in one input.
const FILE: u64 = 4 << 20;

fn file() -> File {
    thread_local! {
        static SHARED: OnceCell<File> = const { OnceCell::new() };
    }
    let made = || File::from(rustix::fs::memfd_create("image", MemfdFlags::CLOEXEC).expect("the host makes files in memory"));
    let shared = SHARED.with(|shared| shared.get_or_init(made).try_clone());
    shared.expect("a descriptor is to be had")
}

fn memory() -> Ram {
    thread_local! {
        static MEMORY: Ram = Ram::from_ranges(&[(GuestAddress(0), MOST)]).expect("the host has 64 KiB");
    }
    MEMORY.with(Clone::clone)
}

fn segments(memory: &Ram, length: usize) -> Segments<'_> {
    let mut segments = Segments::default();
    let split = (length / 3) as u32;
    for (from, part) in [(0, split), (split, length as u32 - split)] {
        if part > 0 {
            let pushed = segments.push(memory, GuestAddress(from.into()), part, Permissions::ReadWrite);
            pushed.expect("it is memory");
        }
    }
    segments
}

fn contents(file: &File) -> Vec<u8> {
    let length = file.metadata().expect("a file has a length").len();
    assert!(length <= FILE, "the file has grown to {length} bytes");
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).expect("the file is readable");
    bytes
}

/// An image.
pub fn qcow2(data: &[u8]) {
    let mut input = Input::new(data);
    let shape = input.byte();
    let mut image = Image::new(2 + u32::from(shape & 1), 9 + u32::from(shape >> 1 & 3), DISK as u64);
    let mut model = vec![0; DISK];
    for number in 0..usize::from(shape >> 4).min(13) {
        let bytes = vec![0x11 * (number as u8 + 1); image.cluster()];
        if number % 3 == 2 {
            image.deflated(number * 5, &bytes, 0);
        } else {
            image.data(number * 5, &bytes);
        }
        model[number * 5 * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
    }
    let changes = usize::from(input.byte() % 16);
    for _ in 0..changes {
        let (at, width) = (usize::from(input.short()), input.byte());
        let bytes = input.bytes(usize::from(width % 8) + 1);
        let end = (at + bytes.len()).min(image.bytes.len());
        if let Some(place) = image.bytes.get_mut(at..end) {
            place.copy_from_slice(&bytes[..place.len()]);
        }
    }
    let file = file();
    file.set_len(0).expect("a file can be cut");
    file.write_all_at(&image.bytes, 0).expect("a file can be written");
    let writable = shape & 8 == 0;
    let open = || Qcow2::open(file.try_clone().expect("a descriptor is to be had"), writable);
    let mut disk = match open() {
        Ok(disk) => disk,
        Err(error) => return assert!(changes > 0, "a good image is refused: {error:?}"),
    };
    let memory = memory();
    let size = disk.size();
    for _ in 0..MAX_ACTS {
        if input.is_empty() {
            break;
        }
        let (code, sector, sectors, fill) = (input.byte(), input.short(), input.byte(), input.byte());
        let position = u64::from(sector) * 512 % size;
        let length = ((usize::from(sectors) * 512) % MOST + 512).min(usize::try_from(size - position).unwrap_or(MOST));
        let there = position as usize..position as usize + length;
        let all = segments(&memory, length);
        let outcome = match code % 8 {
            0..=2 => {
                let read = disk.transfer(Direction::FromDisk, &all, 0..length, position);
                if changes == 0 {
                    let mut seen = vec![0; length];
                    memory.read_slice(&mut seen, GuestAddress(0)).expect("it is memory");
                    assert!(seen == model[there], "{length} bytes at {position} are others");
                }
                read
            }
            _ if !writable => Ok(()),
            3..=5 => {
                memory.write_slice(&vec![fill; length], GuestAddress(0)).expect("it is memory");
                if changes == 0 {
                    model[there].fill(fill);
                }
                disk.transfer(Direction::ToDisk, &all, 0..length, position)
            }
            6 if fill & 1 == 0 => {
                if changes == 0 {
                    model[there].fill(0);
                }
                disk.zero(position, length as u64, fill & 2 == 0)
            }
            6 => {
                let dropped = disk.discard(position, length as u64);
                if changes == 0 {
                    // Whole clusters; what reads as before is as good.
                    let now = segments(&memory, length);
                    disk.transfer(Direction::FromDisk, &now, 0..length, position)
                        .expect("it is a good image");
                    let mut seen = vec![0; length];
                    memory.read_slice(&mut seen, GuestAddress(0)).expect("it is memory");
                    assert!(
                        seen.iter()
                            .zip(&model[there.clone()])
                            .all(|(now, before)| *now == 0 || now == before)
                    );
                    model[there].copy_from_slice(&seen);
                }
                dropped
            }
            _ => disk.flush(),
        };
        if changes == 0 {
            outcome.expect("it is a good image");
            check(&contents(&file)).expect("it is in order at any time");
        }
    }
    let settled = disk.flush();
    drop(disk);
    if changes > 0 {
        return;
    }
    let bytes = contents(&file);
    settled.expect("it is a good image");
    assert!(writable || bytes == image.bytes, "a read-only image was written to");
    assert_eq!(check(&bytes), Ok(0), "clusters leak");
    let mut again = open().expect("it is still good");
    for position in (0..DISK).step_by(MOST) {
        let read = again.transfer(Direction::FromDisk, &segments(&memory, MOST), 0..MOST, position as u64);
        read.expect("it is still good");
        let mut seen = vec![0; MOST];
        memory.read_slice(&mut seen, GuestAddress(0)).expect("it is memory");
        assert!(seen == model[position..position + MOST], "bytes at {position} did not last");
    }
}
