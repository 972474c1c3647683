//! The arithmetic of split rings, for any index, size and address: each test says the rule in numbers that cannot wrap, and compares.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::device::GuestSpace;
use crate::dirty::Ram;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::{Chain, ChainError, Table};
use super::device::{ActiveQueue, Interrupt};
use super::queue::{QueueRegisters, ready};
use super::ring::Ring;

const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;
const BUFFERS: u64 = 0x8000;
/// RAM: a piece, a hole, a piece.
const PIECES: [(u64, u64); 2] = [(0, 0x1_0000), (0x2_0000, 0x1_0000)];
const EVENT_IDX: u64 = 1 << 29;

fn memory() -> GuestSpace {
    Ram::from_ranges(&PIECES.map(|(base, size)| (GuestAddress(base), size as usize)))
        .unwrap()
        .into()
}

/// A driver that keeps count in 64 bits, and the device's ring.
struct Rig<'m> {
    memory: &'m GuestSpace,
    ring: Ring<'m>,
    interrupt: Arc<EventFd>,
    size: u64,
    /// Chains made available so far, from where the indices begin.
    offered: u64,
}

impl<'m> Rig<'m> {
    fn new(memory: &'m GuestSpace, size: u16, start: u16, features: u64) -> Self {
        let registers = QueueRegisters {
            size,
            enabled: true,
            descriptors: TABLE,
            driver: AVAILABLE,
            device: USED,
            ..QueueRegisters::new(256)
        };
        let mut queue = ready(&[registers], memory, false).unwrap().pop().unwrap().unwrap();
        queue.set_next_avail(start);
        queue.set_next_used(start);
        let interrupt = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let active = ActiveQueue {
            queue,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            interrupt: Interrupt::new(interrupt.clone()),
        };
        for index in 0..size {
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&BUFFERS.to_le_bytes());
            descriptor[8] = 1;
            descriptor[12] = 2;
            memory
                .write_slice(&descriptor, GuestAddress(TABLE + 16 * u64::from(index)))
                .unwrap();
        }
        let mut rig = Self {
            memory,
            ring: Ring::new(memory, active, features),
            interrupt,
            size: u64::from(size),
            offered: u64::from(start),
        };
        rig.advance(0);
        memory.write_obj(start, GuestAddress(USED + 2)).unwrap();
        rig
    }

    fn advance(&mut self, by: u64) {
        self.offered += by;
        self.memory.write_obj(self.offered as u16, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    /// Makes so many chains available, each under the lowest bits of its number.
    fn offer(&mut self, count: u64) {
        for number in self.offered..self.offered + count {
            let place = (number % 0x1_0000) % self.size;
            self.memory
                .write_obj(place as u16, GuestAddress(AVAILABLE + 4 + 2 * place))
                .unwrap();
        }
        self.advance(count);
    }

    fn pop(&mut self) -> Result<Option<u16>, ChainError> {
        Ok(self.ring.pop()?.map(|chain| chain.head))
    }
}

fn size() -> impl Strategy<Value = u16> {
    (0u32..=8).prop_map(|power| 1 << power)
}

/// Any index, often close to where indices wrap.
fn index() -> impl Strategy<Value = u16> {
    prop_oneof![any::<u16>(), 0xff00..=0xffffu16, 0..0x100u16]
}

/// Where a ring lies: anywhere, at the end or beginning of memory, behind the ring before it or in front of it; nearly.
fn place() -> impl Strategy<Value = (usize, u64, i64)> {
    (0usize..5, any::<u64>(), prop_oneof![Just(0i64), -9..=9i64])
}

fn settle((kind, raw, by): (usize, u64, i64), length: u64, before: (u64, u64)) -> u64 {
    let edge = [0, 0x1_0000, 0x2_0000, 0x3_0000][raw as usize % 4];
    let near = match kind {
        0 => raw,
        1 => edge,
        2 => edge.wrapping_sub(length),
        3 => before.0.wrapping_add(before.1),
        _ => before.0.wrapping_sub(length),
    };
    near.wrapping_add_signed(by)
}

fn lies_in_one_piece(start: u64, length: u64) -> bool {
    let (start, end) = (u128::from(start), u128::from(start) + u128::from(length));
    PIECES
        .iter()
        .any(|(base, size)| u128::from(*base) <= start && end <= u128::from(base + size))
}

proptest! {
    #[test]
    fn chains_come_once_and_in_order_and_go_back_to_the_next_place_wherever_indices_wrap(
        (size, start) in (size(), index()),
        batches in vec(1u64..=256, 1..8),
    ) {
        let memory = memory();
        let mut rig = Rig::new(&memory, size, start, 0);
        let mut used = u64::from(start);
        for batch in batches {
            let batch = batch.min(rig.size);
            rig.offer(batch);
            for number in 0..batch {
                let head = rig.pop().unwrap();
                prop_assert_eq!(head.map(u64::from), Some(((used + number) % 0x1_0000) % rig.size));
                rig.ring.give_back(head.unwrap(), number as u32).unwrap();
            }
            prop_assert_eq!(rig.pop(), Ok(None));
            let before: u16 = memory.read_obj(GuestAddress(USED + 2)).unwrap();
            prop_assert_eq!(u64::from(before), used % 0x1_0000, "nothing is seen before it is published");
            rig.ring.publish().unwrap();
            for number in 0..batch {
                let place = ((used + number) % 0x1_0000) % rig.size;
                let element: u64 = memory.read_obj(GuestAddress(USED + 4 + 8 * place)).unwrap();
                prop_assert_eq!(element, place | number << 32);
            }
            used += batch;
            let after: u16 = memory.read_obj(GuestAddress(USED + 2)).unwrap();
            prop_assert_eq!(u64::from(after), used % 0x1_0000);
        }
    }

    #[test]
    fn as_many_chains_are_pending_as_the_index_is_ahead_and_no_more_are_out_than_the_queue_has(
        (size, start) in (size(), index()),
        held in 0u64..=256,
        ahead in prop_oneof![0u64..=0xffff, 0u64..=300],
    ) {
        let memory = memory();
        let mut rig = Rig::new(&memory, size, start, 0);
        let held = held.min(rig.size);
        rig.offer(held);
        for _ in 0..held {
            prop_assert!(rig.pop().unwrap().is_some());
        }
        rig.advance(ahead);
        let room = rig.size - held;
        let taken = if ahead > room { 0 } else { ahead };
        for _ in 0..taken {
            prop_assert!(rig.pop().unwrap().is_some());
        }
        let expected = if ahead > room { Err(ChainError::AvailableIndex) } else { Ok(None) };
        prop_assert_eq!(rig.pop(), expected);
    }

    #[test]
    fn a_queue_is_ready_exactly_where_its_rings_are_aligned_in_memory_and_apart(
        wishes in [place(), place(), place()],
        aligned in any::<bool>(),
        size in prop_oneof![3 => size(), 1 => any::<u16>()],
    ) {
        let alignments = [16, 2, 4];
        let wide = u64::from(size);
        let lengths = [16 * wide, 6 + 2 * wide, 6 + 8 * wide];
        let mut places = [0; 3];
        let mut before = (0x8000, 0);
        for ring in 0..3 {
            places[ring] = settle(wishes[ring], lengths[ring], before);
            if aligned {
                places[ring] -= places[ring] % alignments[ring];
            }
            before = (places[ring], lengths[ring]);
        }
        let apart = |a: usize, b: usize| {
            let [a, b] = [a, b].map(|i| (u128::from(places[i]), u128::from(places[i]) + u128::from(lengths[i])));
            a.1 <= b.0 || b.1 <= a.0
        };
        let expected = size.is_power_of_two() && size <= 256
            && (0..3).all(|ring| places[ring] % alignments[ring] == 0 && lies_in_one_piece(places[ring], lengths[ring]))
            && apart(0, 1) && apart(0, 2) && apart(1, 2);
        let registers = QueueRegisters {
            size,
            enabled: true,
            descriptors: places[0],
            driver: places[1],
            device: places[2],
            ..QueueRegisters::new(256)
        };
        let made = ready(&[registers], &memory(), false);
        prop_assert_eq!(made.is_ok(), expected, "{:?}", made);
        if let Ok(made) = made {
            let queue = made[0].as_ref().unwrap();
            prop_assert_eq!([queue.desc_table(), queue.avail_ring(), queue.used_ring()], places);
        }
    }

    #[test]
    fn a_driver_is_interrupted_exactly_when_the_index_it_waits_for_was_passed(
        (size, start) in (size(), index()),
        batches in vec((0u64..=256, prop_oneof![(-3i64..300).boxed(), any::<i64>().boxed()]), 1..6),
    ) {
        let memory = memory();
        let mut rig = Rig::new(&memory, size, start, EVENT_IDX);
        for (batch, distance) in batches {
            let (old, batch) = (rig.offered, batch.min(rig.size));
            rig.offer(batch);
            let event = old.wrapping_add_signed(distance) % 0x1_0000;
            memory.write_obj(event as u16, GuestAddress(AVAILABLE + 4 + 2 * rig.size)).unwrap();
            while let Some(head) = rig.pop().unwrap() {
                rig.ring.give_back(head, 0).unwrap();
            }
            rig.ring.notify().unwrap();
            let passed = (old..old + batch).any(|index| index % 0x1_0000 == event);
            prop_assert_eq!(rig.interrupt.read().is_ok(), passed);
        }
    }

    #[test]
    fn a_ring_that_is_armed_asks_for_the_next_chain_and_tells_of_one_that_is_there(
        (size, start, event_idx) in (size(), index(), any::<bool>()),
        (offered, taken) in (0u64..=256, 0u64..=256),
    ) {
        let memory = memory();
        let mut rig = Rig::new(&memory, size, start, if event_idx { EVENT_IDX } else { 0 });
        let offered = offered.min(rig.size);
        let taken = taken.min(offered);
        rig.ring.disarm().unwrap();
        rig.offer(offered);
        for _ in 0..taken {
            prop_assert!(rig.pop().unwrap().is_some());
        }
        prop_assert_eq!(rig.ring.arm(), Ok(taken < offered));
        let at = if event_idx { USED + 4 + 8 * rig.size } else { USED };
        let said: u16 = memory.read_obj(GuestAddress(at)).unwrap();
        let expected = if event_idx { (u64::from(start) + taken) % 0x1_0000 } else { 0 };
        prop_assert_eq!(u64::from(said), expected);
    }

    #[test]
    fn pieces_of_memory_are_one_run_of_bytes_and_end_where_they_end(
        lengths in vec(1u32..400, 1..8),
        (offset, length) in (0usize..3500, 0usize..3500),
        far in any::<bool>(),
    ) {
        let memory = memory();
        let bytes: Vec<u8> = (0..0x8000u32).map(|at| (at % 251) as u8).collect();
        memory.write_slice(&bytes, GuestAddress(BUFFERS)).unwrap();
        // From the end of memory backwards, so that no piece follows the one before it.
        let mut end = 0x1_0000;
        let mut expected = Vec::new();
        for (index, length) in lengths.iter().enumerate() {
            let start = end - u64::from(*length);
            let mut raw = [0; 16];
            raw[..8].copy_from_slice(&start.to_le_bytes());
            raw[8..12].copy_from_slice(&length.to_le_bytes());
            raw[12] = 2 | u8::from(index + 1 < lengths.len());
            raw[14] = index as u8 + 1;
            memory.write_slice(&raw, GuestAddress(TABLE + 16 * index as u64)).unwrap();
            expected.extend_from_slice(&bytes[(start - BUFFERS) as usize..(end - BUFFERS) as usize]);
            end = start;
        }
        let table = Table::new(&memory, GuestAddress(TABLE), 8).unwrap();
        let chain = Chain::walk(&memory, &table, 8, 0, false).unwrap();
        prop_assert_eq!((chain.readable.len(), chain.writable.len()), (0, expected.len()));
        let offset = if far { usize::MAX - offset } else { offset };
        let inside = offset.checked_add(length).is_some_and(|end| end <= expected.len());
        let mut seen = vec![0; length];
        prop_assert_eq!(chain.writable.read(offset, &mut seen).is_ok(), inside);
        prop_assert_eq!(chain.writable.write(offset, &vec![0xee; length]).is_ok(), inside);
        if inside {
            prop_assert_eq!(&seen, &expected[offset..offset + length]);
            expected[offset..offset + length].fill(0xee);
        }
        let mut all = vec![0; expected.len()];
        chain.writable.read(0, &mut all).unwrap();
        prop_assert_eq!(all, expected.as_slice());
        let mut iovecs = Vec::new();
        chain.writable.iovecs(offset..offset.saturating_add(length), &mut iovecs);
        let clipped = expected.len().saturating_sub(offset).min(length);
        prop_assert_eq!(iovecs.iter().map(|part| part.iov_len).sum::<usize>(), clipped);
        prop_assert!(iovecs.len() <= chain.writable.pieces());
    }
}
