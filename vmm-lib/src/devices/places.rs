//! Where functions stand on the bus: those of each kind one behind the other, with room for more where there is a comb, and behind all places of
//! the comb what it has none for.

use std::ops::Range;

use crate::pci::DEVICES;
use crate::spec::{Comb, MachineSpec};

/// Device numbers on the bus of the first function of each kind, behind the host bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// Of disks.
    pub disks: u8,
    /// Of images in place.
    pub pmems: u8,
    /// Of network interfaces.
    pub nets: u8,
    /// Of the others.
    pub others: u8,
}

/// How many of each kind stand at their kind's places, the first ones: all, but for a machine that is made of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) disks: usize,
    pub(super) pmems: usize,
    pub(super) nets: usize,
}

impl MachineSpec {
    /// Where the functions of a valid specification stand: each kind's one behind the other, with the comb's places behind those that there are.
    pub fn places(&self) -> Places {
        let placed = self.placed();
        let room = |count: usize, places: fn(&Comb) -> u8| self.comb.as_ref().map_or(0, places).min(DEVICES as u8).max(count as u8);
        let pmems = 1 + room(placed.disks, |comb| comb.disks);
        let nets = pmems + room(placed.pmems, |comb| comb.pmems);
        let others = nets + room(placed.nets, |comb| comb.nets);
        Places {
            disks: 1,
            pmems,
            nets,
            others,
        }
    }

    /// Device numbers of the disks, images, networks and memory that comes and goes that stand at places of the comb: what a guest that was made of
    /// a snapshot has to look at anew.
    pub fn filled_places(&self) -> Vec<u8> {
        let (places, placed) = (self.places(), self.placed());
        let kinds = [
            (places.disks, placed.disks),
            (places.pmems, placed.pmems),
            (places.nets, placed.nets),
        ];
        let of = |(first, count): (u8, usize)| first..first + count as u8;
        let memory = self.behind_comb() - usize::from(self.has_memory_place());
        let memory = (memory as u8, usize::from(self.hotplug.is_some() && self.comb.is_some()));
        // Memory first: what the others need may have to come out of it.
        [memory].into_iter().chain(kinds).flat_map(of).collect()
    }

    /// Device numbers of what a machine that is made of a snapshot has besides what its comb has places for: its guest has to look for it on its
    /// bus. Shares and the watchdog always are of these.
    pub fn surplus_places(&self) -> Range<u8> {
        let first = self.behind_comb();
        let end = if self.is_copy() { self.function_count() } else { first };
        first as u8..end as u8
    }

    /// Whether the bus has room for all functions, of which each kind is not too many.
    pub fn fits_bus(&self) -> bool {
        self.function_count() <= DEVICES
    }

    /// Functions in all, the host bridge among them.
    pub(crate) fn function_count(&self) -> usize {
        let (all, placed) = (self.counts(), self.placed());
        let more = [
            all.disks - placed.disks,
            all.pmems - placed.pmems,
            all.nets - placed.nets,
            self.shares.len(),
        ];
        let single = [self.console.is_some(), self.watchdog.is_some()];
        self.behind_comb() + more.into_iter().sum::<usize>() + single.into_iter().filter(|there| *there).count()
    }

    /// Whether there is a function for memory that comes and goes, the last one that a comb has a place for.
    pub(crate) fn has_memory_place(&self) -> bool {
        self.hotplug.is_some() || self.comb.as_ref().is_some_and(|comb| comb.memory_bytes > 0)
    }

    /// How many of each kind stand at their kind's places. A network interface with several pairs of queues is not like the comb's.
    pub(super) fn placed(&self) -> Placed {
        let all = self.counts();
        let Some(comb) = self.comb.as_ref().filter(|_| self.is_copy()) else {
            return all;
        };
        let alike = self.nets.iter().take_while(|net| net.more_queues.is_empty()).count();
        Placed {
            disks: all.disks.min(comb.disks.into()),
            pmems: all.pmems.min(comb.pmems.into()),
            nets: alike.min(comb.nets.into()),
        }
    }

    fn counts(&self) -> Placed {
        Placed {
            disks: self.disks.len(),
            pmems: self.pmems.len(),
            nets: self.nets.len(),
        }
    }

    fn is_copy(&self) -> bool {
        self.comb.is_some() && self.restore.is_some()
    }

    /// The first device number behind those that a comb has places for.
    fn behind_comb(&self) -> usize {
        let single = [self.vsock.is_some(), self.rng, self.balloon, self.has_memory_place()];
        usize::from(self.places().others) + single.into_iter().filter(|there| *there).count()
    }
}

#[cfg(test)]
mod tests;
