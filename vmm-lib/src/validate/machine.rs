//! The machine itself: its size, how it begins, room for what may come, places on its bus.

use super::Checker;
use crate::memory::IMAGE_STEP;
use crate::pci::DEVICES;
use crate::spec::{
    HOTPLUG_BLOCK, HOTPLUG_STEP, MAX_COMMAND_LINE, MAX_CPUS, MAX_DISKS, MAX_MEMORY, MAX_NETS, MAX_PMEM, MAX_STORES, MIN_MEMORY,
    MachineSpec, SPEC_VERSION,
};

/// Granularity of guest memory.
const MEMORY_STEP: u64 = 2 << 20;

impl MachineSpec {
    pub(super) fn shape(&self, check: &mut Checker) {
        check.require(self.version == SPEC_VERSION, "version", || {
            format!("{} is not {SPEC_VERSION}", self.version)
        });
        check.require(!self.name.is_empty(), "name", || "is empty".to_owned());
        check.require((1..=MAX_CPUS).contains(&self.cpus), "cpus", || {
            format!("{} is not 1 to {MAX_CPUS}", self.cpus)
        });
        let range = MIN_MEMORY..=MAX_MEMORY;
        check.require(range.contains(&self.memory), "memory", || {
            format!("{} is not {MIN_MEMORY} to {MAX_MEMORY}", self.memory)
        });
        check.require(self.memory.is_multiple_of(MEMORY_STEP), "memory", || {
            format!("{} is not a multiple of {MEMORY_STEP}", self.memory)
        });
    }

    pub(super) fn boot(&self, check: &mut Checker) {
        if let Some(restore) = &self.restore {
            check.file(&restore.state, "restore.state");
            check.file(&restore.memory, "restore.memory");
            if let Some(set) = &restore.working_set {
                check.file(set, "restore.workingSet");
            }
        } else {
            check.file(&self.boot.kernel, "boot.kernel");
            if let Some(initramfs) = &self.boot.initramfs {
                check.file(initramfs, "boot.initramfs");
            }
        }
        let line = &self.boot.command_line;
        let path = "boot.commandLine";
        check.require(line.len() <= MAX_COMMAND_LINE, path, || {
            format!("has {} bytes, more than {MAX_COMMAND_LINE}", line.len())
        });
        check.require(!line.contains('\0'), path, || "contains a NUL byte".to_owned());
    }

    pub(super) fn hotplug(&self, check: &mut Checker) {
        let Some(hotplug) = &self.hotplug else { return };
        let (size, requested) = (hotplug.size, hotplug.requested);
        let whole = size > 0 && size <= MAX_MEMORY && size.is_multiple_of(HOTPLUG_STEP);
        check.require(whole, "hotplug.size", || {
            format!("{size} is not a multiple of {HOTPLUG_STEP} above 0, up to {MAX_MEMORY}")
        });
        check.require(requested <= size, "hotplug.requested", || {
            format!("{requested} is more than the size, {size}")
        });
        check.require(requested.is_multiple_of(HOTPLUG_BLOCK), "hotplug.requested", || {
            format!("{requested} is not a multiple of {HOTPLUG_BLOCK}")
        });
    }

    /// The bus has room for all functions.
    pub(super) fn functions(&self, check: &mut Checker) {
        let counts = [self.disks.len(), self.pmems.len(), self.nets.len(), self.shares.len()];
        // Each of these is refused by itself when it is too large.
        if counts.into_iter().all(|count| count <= MAX_STORES) {
            check.require(self.fits_bus(), "disks", || {
                let functions = self.function_count();
                format!("and all other devices are {functions}, more than the {DEVICES} of a bus")
            });
        }
    }

    pub(super) fn comb(&self, check: &mut Checker) {
        let Some(comb) = &self.comb else { return };
        let mut room = |path: &str, places: u8, least: usize, most: usize| {
            check.require((least..=most).contains(&usize::from(places)), path, || {
                format!("{places} is not {least} to {most}")
            });
        };
        room("comb.cpus", comb.cpus, usize::from(self.cpus), usize::from(MAX_CPUS));
        // What a machine that is made of a snapshot has besides stands behind the comb.
        let least = |count: usize| if self.restore.is_some() { 0 } else { count };
        room("comb.disks", comb.disks, least(self.disks.len()), MAX_DISKS);
        let left = MAX_STORES.saturating_sub(usize::from(comb.disks));
        room("comb.pmems", comb.pmems, least(self.pmems.len()), left);
        room("comb.nets", comb.nets, least(self.nets.len()), MAX_NETS);
        let needs = self
            .pmems
            .iter()
            .map(|pmem| pmem.length().saturating_add(IMAGE_STEP - 1) / IMAGE_STEP * IMAGE_STEP);
        let needs = needs.fold(0u64, u64::saturating_add);
        let (least, room) = (self.hotplug.map_or(0, |hotplug| hotplug.size), comb.memory_bytes);
        let whole = (least..=MAX_MEMORY).contains(&room) && room.is_multiple_of(HOTPLUG_STEP);
        check.require(whole, "comb.memoryBytes", || {
            format!("{room} is not a multiple of {HOTPLUG_STEP} from {least} to {MAX_MEMORY}")
        });
        check.require((needs..=MAX_PMEM).contains(&comb.pmem_bytes), "comb.pmemBytes", || {
            format!("{} is not {needs} to {MAX_PMEM}", comb.pmem_bytes)
        });
    }
}
