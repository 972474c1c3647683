use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::dirty::Ram;
use crate::virtio::balloon::Balloon;
use crate::virtio::device::{Interrupt, Memory};
use crate::virtio::testing::{BUFFERS, Driver, Faults, MEMORY, activate};

/// Of a region of three words of blocks, the last not whole.
const START: u64 = 1 << 32;
const BLOCKS: u64 = 130;
const ANSWER: u64 = BUFFERS + 64;

struct Rig {
    device: Mem,
    driver: Driver,
    hotplug: Arc<Hotplug>,
    faults: Faults,
}

/// Guest memory with a region that comes and goes.
fn space(requested: u64) -> (Memory, Arc<Hotplug>) {
    let size = BLOCKS * HOTPLUG_BLOCK;
    let ranges = [(GuestAddress(0), MEMORY as usize), (GuestAddress(START), size as usize)];
    let ram = Ram::from_ranges(&ranges).unwrap();
    let hotplug = Arc::new(Hotplug::new(START..START + size, requested * HOTPLUG_BLOCK));
    let memory = GuestSpace::from(ram).with_hotplug(Some(hotplug.clone()));
    (Arc::new(memory), hotplug)
}

fn rig(requested: u64) -> Rig {
    let (memory, hotplug) = space(requested);
    let mut device = Mem::new(hotplug.clone());
    let driver = Driver::new(&memory, 0, QUEUE_SIZE);
    let faults = activate(&mut device, &[&driver], u64::MAX);
    Rig {
        device,
        driver,
        hotplug,
        faults,
    }
}

impl Rig {
    fn ask(&mut self, kind: u16, address: u64, blocks: u16) -> (u16, u16) {
        let mut request = [0xee; REQUEST];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&blocks.to_le_bytes());
        self.driver.write(BUFFERS, &request);
        self.driver.write(ANSWER, &[0xff; RESPONSE]);
        self.driver
            .chain(0, &[(BUFFERS, REQUEST as u32, false), (ANSWER, RESPONSE as u32, true)]);
        self.driver.offer(0);
        self.driver.kick();
        assert_eq!(self.driver.wait_used(), (0, RESPONSE as u32));
        let answer = self.driver.read(ANSWER, RESPONSE);
        assert_eq!(answer[2..8], [0; 6]);
        (
            u16::from_le_bytes([answer[0], answer[1]]),
            u16::from_le_bytes([answer[8], answer[9]]),
        )
    }

    fn config(&self, field: u64) -> u64 {
        let mut data = [0xff; 8];
        self.device.read_config(8 * field, &mut data);
        u64::from_le_bytes(data)
    }
}

fn block(number: u64) -> u64 {
    START + number * HOTPLUG_BLOCK
}

#[test]
fn a_driver_reads_where_the_region_lies_and_how_much_of_it_is_wanted() {
    let mut rig = rig(5);
    let size = BLOCKS * HOTPLUG_BLOCK;
    let read = |rig: &Rig| [0, 1, 2, 3, 4, 5, 6, 7].map(|field| rig.config(field));
    assert_eq!(read(&rig), [HOTPLUG_BLOCK, 0, START, size, size, 0, 5 * HOTPLUG_BLOCK, 0]);
    assert_eq!(rig.ask(PLUG, block(7), 2), (ACK, 0));
    rig.hotplug.request(HOTPLUG_BLOCK).unwrap();
    assert_eq!(read(&rig)[5..7], [2 * HOTPLUG_BLOCK, HOTPLUG_BLOCK]);
    let (mut half, mut far) = ([0; 4], [0xff]);
    rig.device.read_config(44, &mut half);
    assert_eq!(half, [0; 4], "the upper half of plugged_size");
    rig.device.read_config(u64::MAX, &mut far);
    assert_eq!(far, [0]);
}

#[test]
fn every_kind_of_request_is_answered_as_the_blocks_stand() {
    let mut rig = rig(10);
    for (kind, first, count, answer) in [
        (STATE, 0, 130, (ACK, UNPLUGGED)),
        (PLUG, 60, 8, (ACK, 0)),
        (STATE, 60, 8, (ACK, PLUGGED)),
        (STATE, 59, 2, (ACK, MIXED)),
        (STATE, 67, 2, (ACK, MIXED)),
        (PLUG, 67, 1, (ERROR, 0)),
        (PLUG, 68, 3, (NACK, 0)),
        (PLUG, 128, 2, (ACK, 0)),
        (PLUG, 0, 1, (NACK, 0)),
        (UNPLUG, 59, 2, (ERROR, 0)),
        (UNPLUG, 67, 2, (ERROR, 0)),
        (UNPLUG, 62, 3, (ACK, 0)),
        (UNPLUG, 62, 1, (ERROR, 0)),
        (STATE, 62, 3, (ACK, UNPLUGGED)),
        (STATE, 65, 3, (ACK, PLUGGED)),
        (PLUG, 0, 3, (ACK, 0)),
        (UNPLUG_ALL, 77, 5, (ACK, 0)),
        (STATE, 0, 130, (ACK, UNPLUGGED)),
        (UNPLUG_ALL, 0, 0, (ACK, 0)),
        (4, 0, 1, (ERROR, 0)),
        (u16::MAX, 0, 1, (ERROR, 0)),
    ] {
        let before = rig.config(5);
        assert_eq!(rig.ask(kind, block(first), count), answer, "{kind} {first} {count}");
        if answer.0 != ACK {
            assert_eq!(rig.config(5), before, "{kind} {first} {count}");
        }
    }
    assert_eq!(rig.config(5), 0);
    assert!(rig.faults.none());
}

#[test]
fn a_request_for_what_is_no_block_of_the_region_is_an_error() {
    let mut rig = rig(BLOCKS);
    for (address, count) in [
        (START, 0),
        (START, BLOCKS as u16 + 1),
        (START, u16::MAX),
        (block(BLOCKS - 1), 2),
        (START + 4096, 1),
        (block(BLOCKS), 1),
        (0, 1),
        (START - HOTPLUG_BLOCK, 1),
        (START - HOTPLUG_BLOCK, 2),
        (u64::MAX, 1),
        (u64::MAX - HOTPLUG_BLOCK + 1, u16::MAX),
    ] {
        for kind in [PLUG, UNPLUG, STATE] {
            assert_eq!(rig.ask(kind, address, count), (ERROR, 0), "{kind} {address:#x} {count}");
        }
    }
    assert_eq!(rig.config(5), 0);
    assert!(rig.faults.none());
}

#[test]
fn a_request_that_is_cut_short_stops_the_device() {
    for (readable, writable) in [(REQUEST - 1, RESPONSE), (REQUEST, RESPONSE - 1)] {
        let mut rig = rig(1);
        let buffers = [(BUFFERS, readable as u32, false), (ANSWER, writable as u32, true)];
        rig.driver.chain(0, &buffers);
        rig.driver.offer(0);
        rig.driver.kick();
        assert!(rig.faults.wait().what.contains("too short"));
        assert_eq!(rig.config(5), 0);
    }
}

/// Resident bytes of a range of the guest's memory.
fn resident(memory: &Memory, start: u64, length: usize) -> usize {
    use vm_memory::GuestMemoryBackend as _;
    let address = memory.get_host_address(GuestAddress(start)).unwrap();
    let mut pages = vec![0u8; length / 4096];
    // SAFETY: the range is guest memory, and mapped; the vector has a byte for each of its pages.
    let done = unsafe { libc::mincore(address.cast(), length, pages.as_mut_ptr()) };
    assert_eq!(done, 0);
    pages.iter().filter(|page| **page & 1 != 0).count() * 4096
}

#[test]
fn in_10_000_rounds_no_block_that_is_plugged_again_holds_a_byte_of_before() {
    let mut rig = rig(3);
    let places = [block(3), block(4) - 8, block(3) + (1 << 20)];
    for round in 0..10_000u64 {
        assert_eq!(rig.ask(PLUG, block(2), 2), (ACK, 0), "round {round}");
        for place in places {
            assert_eq!(rig.driver.read(place, 8), [0; 8], "round {round}");
            rig.driver.write(place, &(round + 1).to_le_bytes());
        }
        if round % 2 == 0 {
            assert_eq!(rig.ask(UNPLUG, block(3), 1), (ACK, 0));
            assert_eq!(rig.ask(UNPLUG, block(2), 1), (ACK, 0));
        } else {
            assert_eq!(rig.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
        }
        // Against the rules, and it must not be found later.
        rig.driver.write(places[1], b"not mine");
    }
    assert!(rig.faults.none());
}

#[test]
fn memory_that_is_unplugged_is_the_hosts_again_and_its_neighbours_stay_whole() {
    let mut rig = rig(4);
    assert_eq!(rig.ask(PLUG, block(10), 4), (ACK, 0));
    let bytes = vec![0x5a; 4 * HOTPLUG_BLOCK as usize];
    rig.driver.write(block(10), &bytes);
    let (memory, size) = (rig.driver.memory.clone(), HOTPLUG_BLOCK as usize);
    assert_eq!(resident(&memory, block(10), 4 * size), 4 * size);
    assert_eq!(rig.ask(UNPLUG, block(11), 2), (ACK, 0));
    assert_eq!(
        [10, 11, 12, 13].map(|number| resident(&memory, block(number), size)),
        [size, 0, 0, size]
    );
    assert!(rig.driver.read(block(10), size) == bytes[..size] && rig.driver.read(block(13), size) == bytes[..size]);
    assert_eq!(rig.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
    assert_eq!(resident(&memory, START, BLOCKS as usize * size), 0);
}

#[test]
fn a_buffer_of_any_device_may_lie_in_blocks_that_are_plugged_and_in_no_others() {
    for (first, count, address, length, taken) in [
        (0, 2, block(0) + 4096, HOTPLUG_BLOCK as u32, true),
        (1, 1, block(1), 4096, true),
        (1, 1, block(0), 4096, false),
        (1, 1, block(1) - 1, 2, false),
        (1, 1, block(2) - 4096, 8192, false),
    ] {
        let mut rig = rig(2);
        assert_eq!(rig.ask(PLUG, block(first), count), (ACK, 0));
        let memory = rig.driver.memory.clone();
        let drivers = [1, 2, 3].map(|index| Driver::new(&memory, index, QUEUE_SIZE));
        let mut balloon = Balloon::default();
        let faults = activate(&mut balloon, &[&drivers[0], &drivers[1], &drivers[2]], 1 << 29);
        let [_, _, mut report] = drivers;
        report.write(block(first), &[0x5a; 8192]);
        report.chain(0, &[(address, length, true)]);
        report.offer(0);
        report.kick();
        if taken {
            assert_eq!(report.wait_used(), (0, 0));
            assert_eq!(report.read(address, 4096), [0; 4096], "it was reported free");
            assert!(faults.none());
        } else {
            assert!(faults.wait().what.contains("not in guest memory"), "{address:#x}");
        }
    }
}

#[test]
fn a_ring_and_an_indirect_table_lie_in_no_memory_that_is_not_plugged() {
    use crate::virtio::queue::{QueueError, QueueRegisters, ready};
    let (memory, hotplug) = space(1);
    let place = |base: u64| QueueRegisters {
        size: 16,
        enabled: true,
        descriptors: base,
        driver: base + 0x200,
        device: base + 0x400,
        ..QueueRegisters::new(16)
    };
    let registers = [place(block(0))];
    assert!(matches!(ready(&registers, &memory, false), Err(QueueError::NotMemory { .. })));
    hotplug.set(0..1, true);
    assert!(ready(&registers, &memory, false).is_ok());

    use crate::virtio::testing::INDIRECT;
    let mut rig = rig(1);
    let table = (block(5), 16, INDIRECT, 0);
    rig.driver.descriptor(0, table);
    rig.driver.raw_descriptor(block(5), 0, (BUFFERS, REQUEST as u32, 0, 0));
    rig.driver.offer(0);
    rig.driver.kick();
    assert!(rig.faults.wait().what.contains("indirect table"));
}

#[test]
fn a_driver_hears_of_a_new_request_once_it_is_ready_and_what_it_plugged_outlives_it() {
    let mut rig = rig(2);
    assert_eq!(rig.ask(PLUG, block(0), 2), (ACK, 0));
    let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    rig.hotplug.listener().set(Some(Interrupt::new(event.clone())));
    rig.hotplug.request(4 * HOTPLUG_BLOCK).unwrap();
    assert_eq!(event.read().unwrap(), 1);
    rig.device.reset();
    rig.hotplug.request(3 * HOTPLUG_BLOCK).unwrap();
    assert!(event.read().is_err(), "nobody listens");
    let mut next = Driver::new(&rig.driver.memory, 0, QUEUE_SIZE);
    next.restart();
    rig.faults = activate(&mut rig.device, &[&next], u64::MAX);
    rig.driver = next;
    assert_eq!((rig.config(5), rig.config(6)), (2 * HOTPLUG_BLOCK, 3 * HOTPLUG_BLOCK));
    assert_eq!(rig.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
    assert_eq!(rig.config(5), 0);
}

#[test]
fn a_full_queue_of_requests_is_served_in_order() {
    let mut rig = rig(BLOCKS);
    for number in 0..20u16 {
        let at = BUFFERS + u64::from(number) * 256;
        let mut request = [0; REQUEST];
        request[8..16].copy_from_slice(&block(u64::from(number) * 3).to_le_bytes());
        request[16] = 3;
        rig.driver.write(at, &request);
        rig.driver
            .chain(2 * number, &[(at, REQUEST as u32, false), (at + 64, RESPONSE as u32, true)]);
        rig.driver.offer(2 * number);
    }
    rig.driver.kick();
    for number in 0..20u16 {
        assert_eq!(rig.driver.wait_used(), (2 * number, RESPONSE as u32));
    }
    assert_eq!(rig.config(5), 60 * HOTPLUG_BLOCK);
    let end = Instant::now() + Duration::from_millis(1);
    while rig.driver.interrupted(end) {}
    assert!(rig.driver.take_used().is_none());
}
