//! A driver that does to its rings, and to all of its memory, whatever a fuzzer's bytes say.

mod watch;

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::model::{END, PIECES, Snapshot};
use crate::dirty::Ram;
use crate::fuzz::input::Input;
use crate::virtio::device::{ActiveQueue, Interrupt, Memory};
use crate::virtio::queue::{QueueRegisters, ready};

/// Rings lie below, buffers above.
pub(crate) const BUFFERS: u64 = 0x1000;
/// Descriptors of a queue, at most.
pub(crate) const MAX_SIZE: u16 = 32;
/// What a driver does in one input, at most.
const MAX_ACTS: usize = 96;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
/// What unused memory holds.
const FILL: u8 = 0xc5;

/// Guest memory, the same for each input: what an earlier one left is gone.
pub(crate) fn memory() -> Memory {
    thread_local! {
        static MEMORY: OnceCell<Memory> = const { OnceCell::new() };
    }
    let pieces = PIECES.map(|piece| (GuestAddress(piece.start), (piece.end - piece.start) as usize));
    let memory = MEMORY.with(|memory| {
        memory
            .get_or_init(|| Arc::new(Ram::from_ranges(&pieces).expect("the host has 56 KiB").into()))
            .clone()
    });
    for (base, size) in pieces {
        memory.write_slice(&[FILL; END][..size], base).expect("it is memory");
    }
    memory.write_slice(&[0; BUFFERS as usize], GuestAddress(0)).expect("it is memory");
    memory
}

/// A queue as its driver and its watcher see it.
struct Rings {
    registers: QueueRegisters,
    start: u16,
    /// The used index, when last looked at.
    used: u16,
    /// How many chains behind it were available, or had been before the driver took its word back.
    reach: u16,
    /// By head: bytes of the largest chain that was available under it.
    longest: [Option<u64>; MAX_SIZE as usize],
}

impl Rings {
    fn size(&self) -> u64 {
        u64::from(self.registers.size)
    }

    fn used_ring(&self) -> Range<u64> {
        self.registers.device..self.registers.device + 6 + 8 * self.size()
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// The driver and its watcher.
pub(crate) struct Guest {
    pub(crate) memory: Memory,
    features: u64,
    queues: Vec<Rings>,
    /// By address: whether a device may write there.
    writable: Vec<bool>,
    /// A device may rewrite the rings themselves: what it finds in them later nobody can foretell.
    blind: bool,
}

impl Guest {
    /// So many queues in their usual places; `input` says their size, where their indices begin, and the ring's features.
    pub(crate) fn new(memory: &Memory, queues: u64, input: &mut Input<'_>) -> Self {
        let size = 1u16 << (input.byte() % 6);
        let registers = (0..queues).map(|index| usual(index, size)).collect();
        Self::with(memory, registers, input).expect("the usual places are proper ones")
    }

    /// Queues anywhere; `None` when the transport would refuse them.
    pub(crate) fn with(memory: &Memory, registers: Vec<QueueRegisters>, input: &mut Input<'_>) -> Option<Self> {
        ready(&registers, memory, false).ok()?;
        let (features, start) = (input.byte(), input.short());
        let feature = |bit: u8, feature: u64| if features & bit == 0 { 0 } else { feature };
        let features = VERSION_1 | feature(1, INDIRECT) | feature(2, EVENT_IDX);
        let rings = |registers: QueueRegisters| {
            for ring in [registers.driver, registers.device] {
                memory.write_obj(start, GuestAddress(ring + 2)).expect("rings are memory");
            }
            Rings {
                registers,
                start,
                used: start,
                reach: 0,
                longest: [None; MAX_SIZE as usize],
            }
        };
        Some(Self {
            memory: memory.clone(),
            features,
            queues: registers.into_iter().map(rings).collect(),
            writable: vec![false; END],
            blind: false,
        })
    }

    /// What was agreed on of the ring's features.
    pub(crate) fn features(&self) -> u64 {
        self.features
    }

    /// Whether indirect tables were.
    pub(crate) fn may_indirect(&self) -> bool {
        self.features & INDIRECT != 0
    }

    /// A queue as its device gets it, with its interrupt.
    pub(crate) fn active(&self, queue: usize) -> ActiveQueue {
        let rings = &self.queues[queue];
        let checked = ready(std::slice::from_ref(&rings.registers), &self.memory, self.features & EVENT_IDX != 0);
        let mut checked = checked.expect("it was checked before").pop().flatten().expect("it is enabled");
        checked.set_next_avail(rings.start);
        checked.set_next_used(rings.start);
        ActiveQueue {
            queue: checked,
            kick: EventFd::new(EFD_NONBLOCK).expect("the host has eventfds"),
            interrupt: Interrupt::new(Arc::new(EventFd::new(EFD_NONBLOCK).expect("the host has eventfds"))),
        }
    }

    /// The head that the driver put into place `index` of the available ring, and the size of the queue.
    pub(crate) fn head(&self, snapshot: &Snapshot, queue: usize, index: u16) -> (u16, u16) {
        let QueueRegisters { size, driver, .. } = self.queues[queue].registers;
        (snapshot.short(driver + 4 + 2 * u64::from(index % size)), size)
    }

    /// Where a queue's indices begin.
    pub(crate) fn start(&self, queue: usize) -> u16 {
        self.queues[queue].start
    }

    /// The chain at `head`.
    pub(crate) fn chain(&self, snapshot: &Snapshot, queue: usize, head: u16) -> Option<super::model::Buffers> {
        let QueueRegisters { size, descriptors, .. } = self.queues[queue].registers;
        snapshot.chain(descriptors, size, head, self.may_indirect())
    }

    /// Has the driver do what `input` says, until that ends; what is not the driver's own is up to `other`, which gets its code and says whether to
    /// go on. Whether all of it was done.
    pub(crate) fn play<'i>(&mut self, input: &mut Input<'i>, mut other: impl FnMut(&mut Self, u8, &mut Input<'i>) -> bool) -> bool {
        for _ in 0..MAX_ACTS {
            if input.is_empty() {
                break;
            }
            let code = input.byte();
            if code & 0xf < 7 {
                self.act(code, input);
            } else if !other(self, code, input) {
                return false;
            }
        }
        true
    }

    /// Writes, where there is memory.
    pub(crate) fn poke(&mut self, address: u64, bytes: &[u8]) {
        let range = address..address.saturating_add(bytes.len() as u64);
        self.blind |= self.queues.iter().any(|rings| overlap(&rings.used_ring(), &range));
        // Where there is no memory, nothing happens.
        let _ = self.memory.write_slice(bytes, GuestAddress(address));
    }

    /// An address: in a buffer, beside an edge, in the rings, or anything.
    pub(crate) fn address(&self, input: &mut Input<'_>) -> u64 {
        const EDGES: [u64; 8] = [0, 0x6000, 0xa000, 0xc000, END as u64, u64::MAX, 1 << 32, 0xe000_0000];
        let kind = input.byte();
        match kind >> 6 {
            0 | 1 => BUFFERS + u64::from(kind & 0x7f) * 0x100 + u64::from(input.byte()),
            2 => EDGES[usize::from(kind & 7)].wrapping_add_signed(i64::from(input.byte() as i8)),
            _ if kind & 1 == 0 => u64::from(input.short()),
            _ => input.quad(),
        }
    }

    fn descriptor(&mut self, at: u64, (address, length, flags, next): (u64, u32, u16, u16)) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&length.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.poke(at, &raw);
    }

    /// Makes a proper chain available, as long as its buffers are proper.
    pub(crate) fn give(&mut self, queue: usize, first: u8, buffers: &[(u64, u32, bool)]) {
        let QueueRegisters { size, descriptors, .. } = self.queues[queue].registers;
        let place = |number: usize| (u16::from(first) + number as u16) % size;
        for (number, (address, length, write)) in buffers.iter().enumerate() {
            let more = if number + 1 < buffers.len() { NEXT } else { 0 };
            let flags = more | if *write { WRITE } else { 0 };
            let at = descriptors + 16 * u64::from(place(number));
            self.descriptor(at, (*address, *length, flags, place(number + 1)));
        }
        self.offer(queue, place(0));
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let QueueRegisters { size, driver, .. } = self.queues[queue].registers;
        let index: u16 = self.memory.read_obj(GuestAddress(driver + 2)).expect("rings are memory");
        self.poke(driver + 4 + 2 * u64::from(index % size), &head.to_le_bytes());
        self.poke(driver + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// Does one of the things that drivers do, by the low bits of `code`; queue and kind come from it and from `input`.
    pub(crate) fn act(&mut self, code: u8, input: &mut Input<'_>) {
        let queue = usize::from(code >> 4) % self.queues.len();
        let QueueRegisters {
            size, descriptors, driver, ..
        } = self.queues[queue].registers;
        match code & 0xf {
            0 | 1 => {
                let table = if code & 1 == 0 { descriptors } else { self.address(input) };
                let index = u64::from(input.byte());
                let fields = (
                    self.address(input),
                    input.length(),
                    u16::from(input.byte()),
                    u16::from(input.byte()),
                );
                self.descriptor(table.wrapping_add(16 * index), fields);
            }
            2 => {
                let (first, count) = (input.byte(), input.byte());
                let buffers: Vec<_> = (0..1 + count % 4)
                    .map(|number| (self.address(input), input.length(), count >> (4 + number) & 1 != 0))
                    .collect();
                self.give(queue, first, &buffers);
            }
            3 => {
                let head = u16::from(input.byte());
                self.offer(queue, if head == 0xff { input.short() } else { head % (size + 1) });
            }
            4 => {
                let index: u16 = self.memory.read_obj(GuestAddress(driver + 2)).expect("rings are memory");
                self.poke(driver + 2, &index.wrapping_add_signed(i16::from(input.byte() as i8)).to_le_bytes());
            }
            5 => {
                let (address, length) = (self.address(input), input.byte());
                self.poke(address, input.bytes(usize::from(length)));
            }
            // Flags, and the index at which the driver wants to be interrupted.
            _ => {
                self.poke(driver, &u16::from(code >> 7).to_le_bytes());
                self.poke(driver + 4 + 2 * u64::from(size), &input.short().to_le_bytes());
            }
        }
    }
}

/// Where the rings of a queue usually are.
pub(crate) fn usual(index: u64, size: u16) -> QueueRegisters {
    let base = 0x400 * (index + 1) - 0x200;
    QueueRegisters {
        size,
        enabled: true,
        descriptors: base,
        driver: base + 0x200,
        device: base + 0x280,
        ..QueueRegisters::new(MAX_SIZE)
    }
}
