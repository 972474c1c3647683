//! Looks at what devices do: memory changes in used rings and in buffers given for writing only, no chain is used that was not made
//! available, and none for more bytes than it has.

use std::ops::Range;

use super::super::model::{Snapshot, total};
use super::{Guest, Rings, overlap};
use crate::virtio::queue::QueueRegisters;

/// What is compared at once.
const BLOCK: usize = 256;

impl Guest {
    /// Lets a device do something, and looks at what became of memory.
    pub(crate) fn watch<T>(&mut self, device: impl FnOnce() -> T) -> T {
        let before = Snapshot::take(&self.memory);
        let structure = self.structure(&before);
        (0..self.queues.len()).for_each(|queue| self.learn(&before, queue, &structure));
        let outcome = device();
        if !self.blind {
            self.check(&before, &Snapshot::take(&self.memory));
        }
        outcome
    }

    /// All that devices read to find buffers, and the used rings.
    fn structure(&self, snapshot: &Snapshot) -> Vec<Range<u64>> {
        let of_one = |rings: &Rings| {
            let (table, available) = (rings.registers.descriptors, rings.registers.driver);
            let mut parts = vec![table..table + 16 * rings.size(), available..available + 6 + 2 * rings.size()];
            parts.push(rings.used_ring());
            parts.extend(snapshot.tables(table, rings.registers.size));
            parts
        };
        self.queues.iter().flat_map(of_one).collect()
    }

    /// Notes the chains that are available.
    fn learn(&mut self, before: &Snapshot, queue: usize, structure: &[Range<u64>]) {
        let rings = &self.queues[queue];
        let (size, used) = (rings.registers.size, rings.used);
        let ahead = before.short(rings.registers.driver + 2).wrapping_sub(used);
        let pending = ahead.min(size);
        // As many chains as the queue has may be out, and as many again available by the time that those were given back.
        if ahead <= 2 * size {
            self.queues[queue].reach = ahead.max(self.queues[queue].reach);
        }
        for number in 0..pending {
            let (head, _) = self.head(before, queue, used.wrapping_add(number));
            let Some(chain) = self.chain(before, queue, head) else { continue };
            for range in &chain.writable {
                self.blind |= structure.iter().any(|part| overlap(part, range));
                self.writable[range.start as usize..range.end as usize].fill(true);
            }
            let longest = &mut self.queues[queue].longest[usize::from(head)];
            *longest = (*longest).max(Some(total(&chain.writable)));
        }
    }

    fn check(&mut self, before: &Snapshot, after: &Snapshot) {
        for rings in &mut self.queues {
            let QueueRegisters { size, device, .. } = rings.registers;
            let used = after.short(device + 2);
            let moved = used.wrapping_sub(rings.used);
            assert!(moved <= rings.reach, "{moved} were used, {} were available", rings.reach);
            rings.reach -= moved;
            for number in 0..moved {
                let element = device + 4 + 8 * u64::from(rings.used.wrapping_add(number) % size);
                let (head, length) = (after.long(element), after.long(element + 4));
                let most = rings.longest.get(head as usize).copied().flatten();
                assert!(
                    most >= Some(u64::from(length)),
                    "{length} bytes in chain {head}, which has {most:?}"
                );
            }
            rings.used = used;
        }
        let rings: Vec<_> = self.queues.iter().map(Rings::used_ring).collect();
        // Most of memory is as it was: a comparison of blocks is what makes this fast.
        let blocks = before.0.chunks(BLOCK).zip(after.0.chunks(BLOCK)).enumerate();
        for (number, (old, new)) in blocks.filter(|(_, (old, new))| old != new) {
            for at in (0..old.len()).filter(|at| old[*at] != new[*at]) {
                let at = (number * BLOCK + at) as u64;
                let allowed = self.writable[at as usize] || rings.iter().any(|ring| ring.contains(&at));
                assert!(allowed, "a device wrote at {at:#x}, where it may not");
            }
        }
    }
}
