//! Hostile drivers out of a fuzzer's bytes: rings by themselves, and the smallest devices. The other devices have theirs beside them.

pub(crate) mod guest;
pub(crate) mod model;

use std::collections::VecDeque;
use std::sync::Arc;

use vm_memory::GuestAddress;

use self::guest::{Guest, MAX_SIZE, memory, usual};
use self::model::{Snapshot, total};
use super::balloon::{self, Balloon};
use super::chain::{Chain, ChainError};
use super::device::{GuestSpace, VirtioDevice};
use super::mem::{self, Mem};
use super::pmem::{self, Pmem};
use super::queue::QueueRegisters;
use super::ring::Ring;
use super::rng::{self, Rng};
use super::worker::WorkError;
use crate::dirty::Ram;
use crate::fuzz::input::Input;
use crate::hotplug::{Hotplug, Hotplugged};
use crate::spec::HOTPLUG_BLOCK;

/// Where memory that comes and goes lies.
const REGION: u64 = 1 << 32;

/// A ring by itself, with a device that holds chains back: what is popped is what a simple model finds, and no more than the queue has.
pub fn queue(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = memory();
    let places = input.byte();
    let made = if places & 1 == 0 {
        Some(Guest::new(&memory, 1, &mut input))
    } else {
        let address = |input: &mut Input<'_>| if places & 2 == 0 { u64::from(input.short()) } else { input.quad() };
        let registers = QueueRegisters {
            size: input.short(),
            descriptors: address(&mut input),
            driver: address(&mut input),
            device: address(&mut input),
            ..usual(0, 1)
        };
        Guest::with(&memory, vec![registers], &mut input)
    };
    let Some(mut guest) = made else { return };
    let mut device = Holder {
        ring: Ring::new(&memory, guest.active(0), guest.features()),
        held: VecDeque::new(),
        next: None,
    };
    guest.play(&mut input, |guest, code, input| {
        let done = match code & 0xf {
            7..=9 => device.take(guest, u16::from(code >> 4)),
            10 | 11 => guest.watch(|| device.serve(input.byte())),
            12 | 13 => guest.watch(|| device.ring.notify()),
            14 => guest.watch(|| device.ring.arm().map(|_| ())),
            _ => guest.watch(|| device.ring.disarm()),
        };
        done.is_ok()
    });
}

/// A device that holds chains back.
struct Holder<'m> {
    ring: Ring<'m>,
    held: VecDeque<Chain<'m>>,
    /// Index of the next chain, once one was taken.
    next: Option<u16>,
}

impl Holder<'_> {
    /// Takes chains, each held against the model.
    fn take(&mut self, guest: &mut Guest, most: u16) -> Result<(), ChainError> {
        for _ in 0..=most {
            let snapshot = Snapshot::take(&guest.memory);
            let next = self.next.unwrap_or_else(|| guest.start(0));
            let (head, size) = guest.head(&snapshot, 0, next);
            let expected = guest.chain(&snapshot, 0, head);
            match guest.watch(|| self.ring.pop()) {
                Ok(None) => return Ok(()),
                Ok(Some(chain)) => {
                    assert!(self.held.len() < usize::from(size), "more chains than descriptors are out");
                    let buffers = expected.expect("a chain that breaks a rule is no chain");
                    let mut seen = vec![0; chain.readable.len()];
                    chain.readable.read(0, &mut seen).expect("it has these bytes");
                    assert_eq!((chain.head, &seen), (head, &snapshot.gather(&buffers.readable)));
                    assert_eq!(chain.writable.len() as u64, total(&buffers.writable));
                    assert_eq!(chain.readable.read(chain.readable.len(), &mut [0]), Err(ChainError::TooShort));
                    self.next = Some(next.wrapping_add(1));
                    self.held.push_back(chain);
                }
                Err(error @ (ChainError::AvailableIndex | ChainError::Ring | ChainError::TooShort)) => return Err(error),
                Err(error) => {
                    assert_eq!(expected, None, "{error}, by no rule");
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Fills the oldest chain as far as `fill` says, and gives it back.
    fn serve(&mut self, fill: u8) -> Result<(), ChainError> {
        let Some(chain) = self.held.pop_front() else { return Ok(()) };
        let length = chain.writable.len() * usize::from(fill) / 255;
        chain.writable.write(chain.writable.len() - length, &vec![fill; length])?;
        assert_eq!(chain.writable.write(chain.writable.len(), &[fill]), Err(ChainError::TooShort));
        self.ring.give_back(chain.head, length as u32)?;
        self.ring.publish()
    }
}

/// Random bytes.
pub fn rng(data: &[u8]) {
    let mut block = [0; 4096];
    one_queue(&mut Input::new(data), &mut Rng::new(), |guest, ring| {
        guest.watch(|| rng::turn(ring, &mut block))
    });
}

/// An image that is read in place: its driver's requests.
pub fn pmem(data: &[u8]) {
    let mut device = Pmem::new("image", 1 << 32..1 << 33);
    one_queue(&mut Input::new(data), &mut device, |guest, ring| guest.watch(|| pmem::turn(ring)));
}

/// A balloon: free pages that are reported, and pages by their numbers, which may be any of RAM.
pub fn balloon(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = usize::from(input.byte() % 3);
    one_queue(&mut input, &mut Balloon::default(), |guest, ring| {
        let memory = guest.memory.clone();
        if kind == balloon::INFLATE {
            return balloon::turn(kind, ring, &memory);
        }
        guest.watch(|| balloon::turn(kind, ring, &memory))
    });
}

/// Memory that comes and goes: what is plugged is what is counted, and never more than was requested.
pub fn mem(data: &[u8]) {
    let mut input = Input::new(data);
    let (blocks, requested) = (u64::from(input.byte()), u64::from(input.byte()));
    let hotplug = Arc::new(Hotplug::new(REGION..REGION + blocks * HOTPLUG_BLOCK, requested * HOTPLUG_BLOCK));
    let space = Ram::from_ranges(&[(GuestAddress(REGION), (blocks.max(1) * HOTPLUG_BLOCK) as usize)]);
    let space = GuestSpace::from(space.expect("the host reserves 512 MiB")).with_hotplug(Some(hotplug.clone()));
    let mut device = Mem::new(hotplug.clone());
    one_queue(&mut input, &mut device, |guest, ring| {
        guest.watch(|| mem::turn(ring, &space, &hotplug))
    });
    let Hotplugged { plugged, size, .. } = hotplug.status();
    let count = (0..blocks)
        .filter(|block| hotplug.allows(REGION + block * HOTPLUG_BLOCK, 1))
        .count() as u64;
    assert!(
        plugged == count * HOTPLUG_BLOCK && plugged <= size,
        "{count} blocks are {plugged} bytes"
    );
    assert!(count <= requested, "{count} blocks where {requested} were requested");
}

/// A device of one queue that matters, served by `turn` between what its driver does, until it finds a rule broken.
fn one_queue(
    input: &mut Input<'_>,
    device: &mut dyn VirtioDevice,
    mut turn: impl FnMut(&mut Guest, &mut Ring<'_>) -> Result<(), WorkError>,
) {
    let memory = memory();
    let mut guest = Guest::new(&memory, 1, input);
    configuration(device, input);
    let mut ring = Ring::new(&memory, guest.active(0), guest.features());
    if guest.play(input, |guest, _, _| turn(guest, &mut ring).is_ok()) {
        let _ = turn(&mut guest, &mut ring);
    }
}

/// Reads and writes a device's configuration: whole registers are their bytes, and nothing lies past its end.
pub(crate) fn configuration(device: &mut dyn VirtioDevice, input: &mut Input<'_>) {
    assert!(device.queue_sizes().iter().all(|size| size.is_power_of_two()));
    for _ in 0..input.byte() % 8 {
        let (offset, length) = (u64::from(input.length()), 1usize << (input.byte() % 4));
        let mut whole = [0x5a; 8];
        device.read_config(offset, &mut whole[..length]);
        for (index, byte) in whole[..length].iter().enumerate() {
            let mut single = [0x5a];
            device.read_config(offset + index as u64, &mut single);
            assert_eq!(single, [*byte], "byte {index} at {offset:#x}");
            assert!(offset < 0x200 || *byte == 0, "{byte} at {offset:#x}");
        }
        let before = whole;
        device.write_config(offset, input.bytes(length));
        device.read_config(offset, &mut whole[..length]);
        assert_eq!(before, whole, "no register of ours is writable");
    }
}

const _: () = assert!(MAX_SIZE.is_power_of_two());
