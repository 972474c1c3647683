//! How a [`Script`] drives a device by its registers and rings, in the way of a driver with one queue of 8.

use std::io::Write as _;
use std::os::fd::OwnedFd;

use vmm_lib::Attachment;
use vmm_lib::spec::{Disk, DiskEngine, DiskFormat, Extent, FileSource, Limits};

use super::script::Script;

pub const ECAM: u64 = 0xe000_0000;
/// Where the payload puts the BARs: below 4 GiB, which its pages reach.
pub const BAR: u64 = 0xc000_0000;
pub const TABLE: u64 = 0x100_0000;
pub const AVAILABLE: u64 = 0x101_0000;
pub const USED: u64 = 0x102_0000;
pub const DATA: u64 = 0x103_0000;
pub const CANARY: u64 = 0xc5c5_c5c5_c5c5_c5c5;
pub const MEMORY: u64 = 32 << 20;

pub const STATUS: u64 = 0x14;
pub const NOTIFY: u64 = 0x1000;
pub const NEXT: u64 = 1;
pub const WRITE: u64 = 2;
pub const INDIRECT: u64 = 4;
/// ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK; and what a device adds that wants to be reset.
pub const READY: u8 = 15;
pub const NEEDS_RESET: u8 = 64;

/// Lets a device decode its BAR at `bar`.
pub fn place(script: &mut Script, device: u64, bar: u64) {
    let config = ECAM + device * 0x8000;
    script
        .write(4, config + 0x10, bar)
        .write(4, config + 0x14, 0)
        .write(2, config + 4, 6);
}

/// Brings the device at `bar` up to DRIVER_OK with one queue of 8, rings as stated.
pub fn bring_up(script: &mut Script, bar: u64, rings: [u64; 3]) {
    for (register, value) in [(STATUS, 0), (STATUS, 1), (STATUS, 3)] {
        script.write(1, bar + register, value);
    }
    // VERSION_1, INDIRECT_DESC.
    for (half, value) in [(0, 1 << 28), (1, 1)] {
        script.write(4, bar + 8, half).write(4, bar + 0xc, value);
    }
    script.write(1, bar + STATUS, 11).write(2, bar + 0x16, 0).write(2, bar + 0x18, 8);
    for (register, value) in [(0x20, rings[0]), (0x28, rings[1]), (0x30, rings[2])] {
        script.write(8, bar + register, value);
    }
    script.write(2, bar + 0x1c, 1);
    for ring in rings.iter().skip(1).filter(|ring| **ring < MEMORY - 8) {
        script.write(4, *ring, 0);
    }
    script.write(1, bar + STATUS, u64::from(READY));
}

pub fn descriptor(script: &mut Script, table: u64, index: u64, (address, length, flags, next): (u64, u64, u64, u64)) {
    let at = table + 16 * index;
    script.write(8, at, address).write(8, at + 8, length | flags << 32 | next << 48);
}

/// Makes chain `head` the `count`-th that is available, and knocks.
pub fn offer(script: &mut Script, bar: u64, count: u64, head: u64) {
    let slot = AVAILABLE + 4 + 2 * ((count - 1) % 8);
    script.write(2, slot, head).write(2, AVAILABLE + 2, count).write(2, bar + NOTIFY, 0);
}

/// A disk of one sector of these bytes.
pub fn disk(serial: &str, byte: u8) -> (Attachment, Vec<OwnedFd>) {
    let mut file = tempfile::tempfile().expect("a temporary file can be made");
    file.write_all(&[byte; 512]).expect("and written");
    (of(serial), vec![file.into()])
}

/// The same, of the first descriptor that is passed.
pub fn of(serial: &str) -> Attachment {
    Attachment::Disk(Disk {
        serial: serial.into(),
        extents: vec![Extent {
            file: FileSource::Passed(0),
            offset: 0,
            length: 512,
        }],
        read_only: true,
        format: DiskFormat::Raw,
        limits: Limits::default(),
        engine: DiskEngine::Calls,
    })
}
