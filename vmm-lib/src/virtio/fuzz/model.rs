//! The rules of split rings once more, as simple as can be, on a copy of guest memory: what the devices' own code is held against.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use crate::dirty::Ram;

/// RAM: two pieces that adjoin, a hole, a piece.
pub(crate) const PIECES: [Range<u64>; 3] = [0..0x6000, 0x6000..0xa000, 0xc000..0x1_0000];
/// All addresses that are memory lie below.
pub(crate) const END: usize = 0x1_0000;

/// Whether all of a range is memory.
pub(crate) fn is_memory(address: u64, length: u64) -> bool {
    let Some(end) = address.checked_add(length) else { return false };
    [0..PIECES[1].end, PIECES[2].clone()]
        .iter()
        .any(|piece| piece.start <= address && end <= piece.end)
}

/// What a driver may have written into a descriptor.
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

/// A chain's buffers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Buffers {
    pub(crate) readable: Vec<Range<u64>>,
    pub(crate) writable: Vec<Range<u64>>,
}

/// Bytes of several ranges.
pub(crate) fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// A copy of guest memory; the hole is zero.
pub(crate) struct Snapshot(pub(crate) Vec<u8>);

impl Snapshot {
    /// Copies.
    pub(crate) fn take(memory: &Ram) -> Self {
        let mut bytes = vec![0; END];
        for piece in PIECES {
            let part = &mut bytes[piece.start as usize..piece.end as usize];
            memory
                .read_slice(part, GuestAddress(piece.start))
                .expect("a piece of memory is memory");
        }
        Self(bytes)
    }

    /// The bytes of several ranges, all memory.
    pub(crate) fn gather(&self, ranges: &[Range<u64>]) -> Vec<u8> {
        let slices = ranges.iter().map(|range| &self.0[range.start as usize..range.end as usize]);
        slices.flatten().copied().collect()
    }

    /// A 16-bit register that is memory.
    pub(crate) fn short(&self, address: u64) -> u16 {
        let at = address as usize;
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    /// A 32-bit one.
    pub(crate) fn long(&self, address: u64) -> u32 {
        u32::from(self.short(address)) | u32::from(self.short(address + 2)) << 16
    }

    fn descriptor(&self, address: u64) -> Descriptor {
        Descriptor {
            address: u64::from(self.long(address)) | u64::from(self.long(address + 4)) << 32,
            length: self.long(address + 8),
            flags: self.short(address + 12),
            next: self.short(address + 14),
        }
    }

    /// Where the indirect tables lie that a table of descriptors names, proper or not.
    pub(crate) fn tables(&self, table: u64, size: u16) -> impl Iterator<Item = Range<u64>> {
        let descriptors = (0..u64::from(size)).map(move |index| self.descriptor(table + 16 * index));
        let indirect = descriptors.filter(|descriptor| descriptor.flags & 4 != 0);
        indirect.map(move |descriptor| descriptor.address..descriptor.address.saturating_add(16 * u64::from(size)))
    }

    /// The chain at `head` of a table of `size` descriptors in memory; `None` when it breaks a rule.
    pub(crate) fn chain(&self, table: u64, size: u16, head: u16, may_indirect: bool) -> Option<Buffers> {
        let mut buffers = Buffers::default();
        let mut found = Vec::new();
        let (mut from, mut count, mut index, mut indirect) = (table, size, head, false);
        loop {
            if index >= count || found.len() > usize::from(size) {
                return None;
            }
            let descriptor = self.descriptor(from + 16 * u64::from(index));
            if descriptor.flags & 4 != 0 {
                let (at, length) = (descriptor.address, u64::from(descriptor.length));
                let allowed = may_indirect && !indirect && descriptor.flags & 1 == 0;
                let whole = length != 0 && length.is_multiple_of(16) && length / 16 <= u64::from(size);
                if !allowed || !whole || !is_memory(at, length) {
                    return None;
                }
                (from, count, index, indirect) = (at, (length / 16) as u16, 0, true);
                continue;
            }
            let (more, next) = (descriptor.flags & 1 != 0, descriptor.next);
            found.push(descriptor);
            if !more {
                break;
            }
            index = next;
        }
        for Descriptor {
            address, length, flags, ..
        } in &found
        {
            let writable = flags & 2 != 0;
            if *length == 0 || !is_memory(*address, u64::from(*length)) || !writable && !buffers.writable.is_empty() {
                return None;
            }
            let list = if writable { &mut buffers.writable } else { &mut buffers.readable };
            list.push(*address..*address + u64::from(*length));
        }
        (found.len() <= usize::from(size)).then_some(buffers)
    }
}
