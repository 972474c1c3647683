//! Takes up a snapshot: whether a machine can become what it was, and how it does.

use std::fs::File;

use kvm_ioctls::{VcpuFd, VmFd};

use super::{RestoreError, State, WorkingSet, memory, same};
use crate::arch::cpuid::Shown;
use crate::builder::BuildError;
use crate::bus::Bus;
use crate::files::Files;
use crate::memory::Layout;
use crate::spec::{MachineSpec, Restore};

/// A snapshot's state, the file of its memory, and what of that is touched first.
pub(crate) fn open_snapshot(restore: &Restore, files: &Files) -> Result<(State, File, WorkingSet), BuildError> {
    let state = State::read(&files.open_existing("restore.state", &restore.state, false)?)?;
    state.check_whole()?;
    let memory = files.open_existing("restore.memory", &restore.memory, false)?;
    state.check_length(&memory, state.memory)?;
    if restore.verify {
        memory::verify(&memory, state.memory, state.memory_checksum)?;
    }
    let set = restore.working_set.as_ref();
    let set = set.map(|set| files.open_existing("restore.workingSet", set, false)).transpose()?;
    let set = set.map_or_else(|| Ok(WorkingSet::default()), |set| WorkingSet::parse(&set));
    let set = set.map_err(|source| RestoreError::Read("working set", source))?;
    Ok((state, memory, set))
}

/// Whether a machine can become what a snapshot was, on this host.
pub(crate) fn check_shape(state: &State, spec: &MachineSpec, layout: &Layout, cpuid: &Shown) -> Result<(), RestoreError> {
    same("memory, bytes,", &spec.memory, &state.memory)?;
    same("the device window's address", &layout.mmio64.start, &state.window)?;
    let ports = |there: bool| usize::from(there);
    same(
        "the number of serial ports",
        &ports(spec.serial.is_some()),
        &ports(state.serial.is_some()),
    )?;
    let cpus = spec.comb.as_ref().map_or(spec.cpus, |comb| comb.cpus);
    same("the number of possible processors", &cpus, &state.possible_cpus)?;
    if state.processors.len() > usize::from(spec.cpus) {
        return same("the number of processors", &usize::from(spec.cpus), &state.processors.len());
    }
    if cpuid.leaves() == state.cpuid {
        Ok(())
    } else {
        Err(RestoreError::Host)
    }
}

/// Makes a machine that has not run what it was. Processors beyond those of the snapshot wait for the guest to start them, up to `surplus`
/// functions for it to look for them.
pub(crate) fn restore(state: &State, vm: &VmFd, vcpus: &[VcpuFd], bus: &Bus, surplus: usize) -> Result<(), RestoreError> {
    state.board.restore(vm).map_err(|(what, error)| RestoreError::Kvm(what, error))?;
    bus.pci
        .restore(&state.functions, surplus)
        .map_err(|(device, what)| RestoreError::Device(device, what))?;
    for (processor, vcpu) in state.processors.iter().zip(vcpus) {
        processor.restore(vcpu)?;
    }
    Ok(())
}
