//! Takes a snapshot of a machine whose processors stand still.

use std::fs::File;
use std::io;

use kvm_ioctls::VmFd;

use super::{Identity, Pages, State, memory, merge};
use crate::arch::board::BoardState;
use crate::arch::cpuid::Leaf;
use crate::arch::processor::ProcessorState;
use crate::bus::Bus;
use crate::dirty::{DirtyLog, runs};
use crate::memory::Layout;
use crate::virtio::device::Memory;

/// How much of memory a snapshot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All.
    All,
    /// What was written since the last one.
    Changes,
}

/// Where a snapshot goes.
#[derive(Debug)]
pub struct SnapshotFiles {
    /// The state, from where the file stands.
    pub state: File,
    /// Memory, in place of what the file holds.
    pub memory: File,
}

/// Why there is no snapshot. The machine goes on as if nothing had been asked.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The machine does not run, or ended meanwhile.
    #[error("the machine does not run")]
    NotRunning,
    /// A processor could not be read.
    #[error("processor {0}: {1}")]
    Processor(usize, String),
    /// KVM refused a step.
    #[error("{0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// The machine has what no snapshot can hold.
    #[error("the machine has {0}, which a snapshot cannot hold")]
    Device(String),
    /// Nobody has noted what was written.
    #[error("the machine has no log of what was written: its specification has no dirtyLog")]
    NoLog,
    /// There is nothing that it could be the changes of.
    #[error("no snapshot of the machine was taken before: the first one is a whole one")]
    NoBase,
    /// A file could not be written.
    #[error("write the {0}")]
    Write(&'static str, #[source] io::Error),
}

/// What a snapshot is taken from.
pub(crate) struct Source<'a> {
    pub(crate) vm: &'a VmFd,
    pub(crate) bus: &'a Bus,
    pub(crate) memory: &'a Memory,
    pub(crate) layout: &'a Layout,
    pub(crate) log: Option<&'a DirtyLog>,
    pub(crate) possible_cpus: u8,
    pub(crate) cpuid: &'a [Leaf],
}

/// Stops the devices, asks the processors, which stand, and writes both files.
pub(crate) fn take(
    source: &Source<'_>,
    processors: impl FnOnce() -> Option<Vec<Result<ProcessorState, String>>>,
    files: &SnapshotFiles,
    extent: Extent,
) -> Result<(), SnapshotError> {
    let base = match (extent, source.log) {
        (Extent::All, _) => None,
        (Extent::Changes, None) => return Err(SnapshotError::NoLog),
        (Extent::Changes, Some(log)) => Some(log.base().ok_or(SnapshotError::NoBase)?),
    };
    // Devices first: what they still have to say to the processors is then in these.
    let functions = source.bus.pci.save().map_err(SnapshotError::Device)?;
    let serial = source.bus.serial.as_ref().map(|serial| serial.save());
    let processors = processors().ok_or(SnapshotError::NotRunning)?;
    let processors = processors
        .into_iter()
        .enumerate()
        .map(|(index, told)| told.map_err(|why| SnapshotError::Processor(index, why)))
        .collect::<Result<_, _>>()?;
    let board = BoardState::save(source.vm).map_err(|(what, error)| SnapshotError::Kvm(what, error))?;
    let broken = |what: &'static str| move |error| SnapshotError::Write(what, error);
    let identity = Identity::new().map_err(broken("snapshot's name"))?;
    if let Some(log) = source.log {
        // Last of all that happens to memory: reading a processor may have written to it.
        let collected = log.collect(source.vm, source.memory, source.layout);
        collected.map_err(|error| SnapshotError::Kvm("read the log of written pages", error))?;
    }
    let (pages, written) = match base {
        None => (Pages::All, memory::write(source.memory, source.layout, &files.memory)),
        Some(base) => {
            let runs = runs(source.memory, source.layout);
            let written = memory::write_runs(source.memory, source.layout, &runs, &files.memory);
            let runs = merge::pack(&runs);
            (Pages::Since { base, runs }, written)
        }
    };
    let state = State {
        identity,
        pages,
        memory: source.layout.low + source.layout.high,
        memory_checksum: written.map_err(broken("memory"))?,
        window: source.layout.mmio64.start,
        possible_cpus: source.possible_cpus,
        cpuid: source.cpuid.to_vec(),
        processors,
        board,
        functions,
        serial,
    };
    state.write(&files.state).map_err(broken("state"))?;
    if let Some(log) = source.log {
        log.begin_anew(identity, source.memory, source.layout);
    }
    Ok(())
}
