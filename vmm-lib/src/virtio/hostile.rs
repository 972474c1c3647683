//! Drivers that break one rule of virtio each, against every queue of every device. The outcome is always the same: the device stops with
//! a typed fault that names the rule, nothing but its used ring was written, the thread ends without a panic, and after a reset it serves.
//! Rules of one device only are broken in that device's tests; the registers' rules in the transport's.

use std::{
    os::unix::net::{UnixDatagram, UnixListener, UnixStream},
    sync::Arc,
    time::{Duration, Instant},
};

use std::io::Write as _;

use vm_memory::{Bytes, GuestAddress};

use super::balloon::Balloon;
use super::block::Block;
use super::console::Console;
use super::device::{Memory, VirtioDevice};
use super::fs::Fs;
use super::mem::Mem;
use super::net::Net;
use super::pmem::Pmem;
use super::rng::Rng;
use super::testing::{DEADLINE, Driver, Faults, INDIRECT, NEXT, WRITE, activate};
use super::vsock::Vsock;
use crate::dirty::Ram;
use crate::hotplug::Hotplug;

const MIB: u64 = 1 << 20;
/// RAM as a machine has it, only smaller: a piece, a hole, a piece.
const LOW_END: u64 = 2 * MIB;
const HIGH: u64 = 3 * MIB;
const HIGH_END: u64 = 4 * MIB;
/// A buffer and an indirect table.
const BUFFER: u64 = MIB;
const TABLE: u64 = MIB + 0x8000;
/// VIRTIO_F_INDIRECT_DESC and VIRTIO_NET_F_MRG_RXBUF.
const F_INDIRECT: u64 = 1 << 28;
const F_MERGE: u64 = 1 << 15;
/// VIRTIO_NET_F_GUEST_CSUM and GUEST_TSO4: frames of 64 KiB.
const F_LARGE: u64 = 1 << 1 | 1 << 7;

fn memory() -> Memory {
    let pieces = [
        (GuestAddress(0), LOW_END as usize),
        (GuestAddress(HIGH), (HIGH_END - HIGH) as usize),
    ];
    let memory = Ram::from_ranges(&pieces).unwrap();
    for (base, size) in pieces {
        memory.write_slice(&vec![0xc5; size], base).unwrap();
    }
    // Rings begin empty.
    memory.write_slice(&vec![0; 0x4_0000], GuestAddress(0)).unwrap();
    Arc::new(memory.into())
}

/// A device, and the queue of it that is attacked.
struct Victim {
    name: &'static str,
    device: Box<dyn VirtioDevice>,
    queues: usize,
    attacked: usize,
    /// Whether a proper buffer of that queue is writable.
    writable: bool,
    _wire: Option<UnixDatagram>,
    _peer: Option<UnixStream>,
    socket: Option<(tempfile::TempDir, std::path::PathBuf)>,
}

/// A console that writes nowhere, and whose input never ends.
fn console() -> Box<Console> {
    let open = |path: &str, write: bool| std::fs::File::options().read(!write).write(write).open(path).unwrap();
    Box::new(Console::new(open("/dev/null", true), Some(open("/dev/zero", false)), None))
}

impl Victim {
    fn all() -> Vec<Self> {
        let plain = |name, device, queues, attacked, writable| Self {
            name,
            device,
            queues,
            attacked,
            writable,
            _wire: None,
            _peer: None,
            socket: None,
        };
        let block = Block::new("disk", vec![(tempfile::tempfile().unwrap(), 0, 4096)], true).unwrap();
        let mut all = vec![
            plain("block", Box::new(block), 1, 0, false),
            plain("rng", Box::new(Rng::new()), 1, 0, true),
            plain("balloon inflate", Box::<Balloon>::default(), 3, 0, false),
            plain("balloon report", Box::<Balloon>::default(), 3, 2, true),
            plain("console receive", console(), 2, 0, true),
            plain("console transmit", console(), 2, 1, false),
            plain("pmem", Box::new(Pmem::new("image", 0..1)), 1, 0, false),
            plain(
                "mem",
                Box::new(Mem::new(Arc::new(Hotplug::new(HIGH_END..HIGH_END, 0)))),
                1,
                0,
                false,
            ),
        ];
        for (name, attacked) in [("net receive", 0), ("net transmit", 1)] {
            let (ours, wire) = UnixDatagram::pair().unwrap();
            let mut victim = plain(name, Box::new(Net::on_socket(ours)), 2, attacked, attacked == 0);
            victim._wire = Some(wire);
            all.push(victim);
        }
        for (name, attacked) in [("fs hiprio", 0), ("fs request", 1)] {
            let (ours, peer) = UnixStream::pair().unwrap();
            let mut victim = plain(name, Box::new(Fs::new("data", ours)), 2, attacked, false);
            victim._peer = Some(peer);
            all.push(victim);
        }
        for (name, attacked) in [("vsock receive", 0), ("vsock transmit", 1)] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("vsock.sock");
            let device = Vsock::new(3, UnixListener::bind(&path).unwrap(), None);
            let mut victim = plain(name, Box::new(device), 3, attacked, attacked == 0);
            victim.socket = Some((directory, path));
            all.push(victim);
        }
        all
    }

    /// Drivers of all queues, and where faults arrive.
    fn start(&mut self, memory: &Memory, features: u64) -> (Vec<Driver>, Faults) {
        let sizes = self.device.queue_sizes().to_vec();
        let drivers: Vec<_> = (0..self.queues)
            .map(|index| Driver::new(memory, index as u64, sizes[index]))
            .collect();
        let faults = activate(self.device.as_mut(), &drivers.iter().collect::<Vec<_>>(), features);
        (drivers, faults)
    }

    /// Something for the guest, so that the device looks for a buffer.
    fn provoke(&self) -> Option<UnixStream> {
        let (_, path) = self.socket.as_ref().filter(|_| self.attacked == 0)?;
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(b"CONNECT 1024\n").unwrap();
        Some(client)
    }
}

/// All of memory but what the device may write: its used rings.
fn untouchable(memory: &Memory, drivers: &[Driver]) -> Vec<u8> {
    let mut bytes = vec![0; (LOW_END + HIGH_END - HIGH) as usize];
    let (low, high) = bytes.split_at_mut(LOW_END as usize);
    memory.read_slice(low, GuestAddress(0)).unwrap();
    memory.read_slice(high, GuestAddress(HIGH)).unwrap();
    for driver in drivers {
        let ring = driver.used_ring();
        bytes[ring.start as usize..ring.end as usize].fill(0);
    }
    bytes
}

/// Does the wrong thing; gets the driver and the flag of a proper buffer, returns the words of the fault.
type Break = fn(&mut Driver, u16) -> &'static str;

const TOO_FAR: &str = "runs ahead";
const OUT_OF_RANGE: &str = "index is out of range";
const TOO_LONG: &str = "longer than its queue";
const BAD_TABLE: &str = "indirect table is malformed";
const NOT_MEMORY: &str = "not in guest memory";

/// Offers a chain that begins at descriptor 0.
fn single(driver: &mut Driver, address: u64, length: u32, flags: u16, next: u16) {
    driver.descriptor(0, (address, length, flags, next));
    driver.offer(0);
}

/// Offers an indirect table of so many bytes.
fn table(driver: &mut Driver, address: u64, length: u32, more: u16) -> &'static str {
    single(driver, address, length, INDIRECT | more, 1);
    BAD_TABLE
}

fn at(driver: &mut Driver, flag: u16, address: u64, length: u32) -> &'static str {
    single(driver, address, length, flag, 0);
    NOT_MEMORY
}

const BREAKS: &[(&str, Break)] = &[
    ("the available index jumps too far", |d, _| {
        d.advance(d.size + 1);
        TOO_FAR
    }),
    ("the available index goes back", |d, _| {
        d.advance(u16::MAX);
        TOO_FAR
    }),
    ("a head just beyond the table", |d, _| {
        d.offer(d.size);
        OUT_OF_RANGE
    }),
    ("a head far beyond it", |d, _| {
        d.offer(u16::MAX);
        OUT_OF_RANGE
    }),
    ("a next beyond the table", |d, flag| {
        single(d, BUFFER, 64, flag | NEXT, d.size);
        OUT_OF_RANGE
    }),
    ("a descriptor that follows itself", |d, flag| {
        single(d, BUFFER, 64, flag | NEXT, 0);
        TOO_LONG
    }),
    ("two that follow one another", |d, flag| {
        d.descriptor(1, (BUFFER, 64, flag | NEXT, 0));
        single(d, BUFFER, 64, flag | NEXT, 1);
        TOO_LONG
    }),
    ("a loop through the whole table", |d, flag| {
        for index in 0..d.size {
            d.descriptor(index, (BUFFER, 1, flag | NEXT, (index + 1) % d.size));
        }
        d.offer(0);
        TOO_LONG
    }),
    ("a chain and its table, together longer than the queue", |d, flag| {
        for index in 0..d.size {
            let more = if index + 1 < d.size { NEXT } else { 0 };
            d.raw_descriptor(TABLE, index, (BUFFER, 1, flag | more, index + 1));
        }
        d.descriptor(1, (TABLE, 16 * u32::from(d.size), INDIRECT, 0));
        single(d, BUFFER, 1, flag | NEXT, 1);
        TOO_LONG
    }),
    ("a table in a table", |d, _| {
        d.raw_descriptor(TABLE, 0, (TABLE + 64, 16, INDIRECT, 0));
        table(d, TABLE, 32, 0)
    }),
    ("a table of half a descriptor more", |d, _| table(d, TABLE, 24, 0)),
    ("a table of less than one", |d, _| table(d, TABLE, 15, 0)),
    ("an empty table", |d, _| table(d, TABLE, 0, 0)),
    ("a table larger than the queue", |d, _| {
        let size = 16 * (u32::from(d.size) + 1);
        table(d, TABLE, size, 0)
    }),
    ("a table of 4 GiB", |d, _| table(d, TABLE, u32::MAX - 15, 0)),
    ("a table that has a next", |d, _| table(d, TABLE, 32, NEXT)),
    ("a table across memory's end", |d, _| table(d, LOW_END - 16, 32, 0)),
    ("a table in the hole", |d, _| table(d, LOW_END, 32, 0)),
    ("a table at the top of all addresses", |d, _| table(d, u64::MAX - 15, 32, 0)),
    ("a next beyond the indirect table", |d, flag| {
        d.raw_descriptor(TABLE, 0, (BUFFER, 64, flag | NEXT, 2));
        single(d, TABLE, 32, INDIRECT, 0);
        OUT_OF_RANGE
    }),
    ("a loop in the indirect table", |d, flag| {
        d.raw_descriptor(TABLE, 0, (BUFFER, 64, flag | NEXT, 1));
        d.raw_descriptor(TABLE, 1, (BUFFER, 64, flag | NEXT, 0));
        single(d, TABLE, 32, INDIRECT, 0);
        TOO_LONG
    }),
    ("readable behind writable", |d, _| {
        d.descriptor(1, (BUFFER, 64, 0, 0));
        single(d, BUFFER + 64, 64, WRITE | NEXT, 1);
        "readable buffer follows"
    }),
    ("no bytes", |d, flag| {
        single(d, BUFFER, 0, flag, 0);
        "buffer is empty"
    }),
    ("no bytes at its end", |d, flag| {
        d.descriptor(1, (BUFFER, 0, flag, 0));
        single(d, BUFFER, 64, flag | NEXT, 1);
        "buffer is empty"
    }),
    ("across memory's end", |d, flag| at(d, flag, LOW_END - 8, 16)),
    ("from the hole into memory", |d, flag| at(d, flag, HIGH - 8, 16)),
    ("over the whole hole", |d, flag| {
        at(d, flag, LOW_END - MIB / 2, (HIGH - LOW_END + MIB) as u32)
    }),
    ("in the hole", |d, flag| at(d, flag, LOW_END, 64)),
    ("behind all memory", |d, flag| at(d, flag, HIGH_END, 1)),
    ("4 GiB less one", |d, flag| at(d, flag, BUFFER, u32::MAX)),
    ("past the last address", |d, flag| at(d, flag, u64::MAX - 7, 16)),
    ("the last address", |d, flag| at(d, flag, u64::MAX, 1)),
    ("the configuration space", |d, flag| at(d, flag, crate::arch::layout::ECAM, 64)),
    ("the window of BARs below 4 GiB", |d, flag| {
        at(d, flag, crate::arch::layout::MMIO32.start, 64)
    }),
    ("the window of BARs above", |d, flag| at(d, flag, 1 << 32, 64)),
    ("an MSI-X table there", |d, flag| at(d, flag, (1 << 32) + 0x2000, 16)),
    ("the interrupt controllers", |d, flag| {
        at(d, flag, u64::from(crate::arch::layout::LAPIC), 64)
    }),
];

fn attack(victim: &mut Victim, features: u64, what: &str, break_it: Break) {
    let memory = memory();
    let (mut drivers, faults) = victim.start(&memory, features);
    let flag = if victim.writable { WRITE } else { 0 };
    let expected = break_it(&mut drivers[victim.attacked], flag);
    let before = untouchable(&memory, &drivers);
    drivers[victim.attacked].kick();
    let _client = victim.provoke();
    let fault = faults.wait();
    assert!(
        fault.what.contains(expected),
        "{}, {what}: {fault} does not say {expected:?}",
        victim.name
    );
    assert!(drivers[victim.attacked].take_used().is_none(), "{}, {what}", victim.name);
    // Joins the thread: nothing writes any more.
    victim.device.reset();
    assert!(before == untouchable(&memory, &drivers), "{}, {what}: memory changed", victim.name);
    assert!(faults.none(), "{}, {what}: more than one fault", victim.name);
}

#[test]
fn every_broken_rule_stops_every_device_by_name_and_leaves_memory_as_it_was() {
    for mut victim in Victim::all() {
        for (what, break_it) in BREAKS {
            attack(&mut victim, F_INDIRECT | F_MERGE, what, *break_it);
            if !what.contains("table") {
                attack(&mut victim, 1 << 29, what, *break_it);
            }
        }
    }
}

#[test]
fn an_indirect_table_that_was_never_agreed_on_is_a_fault() {
    for mut victim in Victim::all() {
        attack(&mut victim, 0, "an indirect table without the feature", |d, flag| {
            d.raw_descriptor(TABLE, 0, (BUFFER, 64, flag, 0));
            table(d, TABLE, 16, 0)
        });
    }
}

#[test]
fn more_buffers_than_descriptors_are_never_held() {
    // Small buffers are collected until the largest frame fits, and none is given back: the index may not pass them by.
    let mut victim = Victim::all().into_iter().find(|victim| victim.name == "net receive").unwrap();
    let memory = memory();
    let (mut drivers, faults) = victim.start(&memory, F_MERGE | F_LARGE);
    drivers[0].chain(0, &[(BUFFER, 12, true)]);
    for _ in 0..256 {
        drivers[0].offer(0);
    }
    drivers[0].kick();
    let end = Instant::now() + Duration::from_millis(200);
    assert!(!drivers[0].interrupted(end) && faults.none(), "256 may be out");
    drivers[0].offer(0);
    drivers[0].kick();
    assert!(faults.wait().what.contains(TOO_FAR));
}

#[test]
fn a_kick_without_anything_new_is_ignored() {
    for mut victim in Victim::all() {
        let memory = memory();
        let (drivers, faults) = victim.start(&memory, 1 << 29);
        let before = untouchable(&memory, &drivers);
        for _ in 0..100 {
            drivers.iter().for_each(Driver::kick);
        }
        victim.device.reset();
        assert!(faults.none() && before == untouchable(&memory, &drivers), "{}", victim.name);
    }
}

#[test]
fn a_reset_in_mid_flight_is_the_last_that_memory_hears_of_a_device() {
    for mut victim in Victim::all() {
        let memory = memory();
        let (mut drivers, _faults) = victim.start(&memory, F_MERGE);
        let driver = &mut drivers[victim.attacked];
        for index in 0..driver.size {
            driver.chain(index, &[(BUFFER + 4096 * u64::from(index % 200), 4096, victim.writable)]);
            driver.offer(index);
        }
        driver.kick();
        let _client = victim.provoke();
        let begun = Instant::now();
        victim.device.reset();
        assert!(begun.elapsed() < DEADLINE, "{}", victim.name);
        let everything = untouchable(&memory, &[]);
        std::thread::sleep(Duration::from_millis(20));
        assert!(everything == untouchable(&memory, &[]), "{}", victim.name);
    }
}
