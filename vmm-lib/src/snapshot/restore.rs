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
    match cpuid.differs_from(&state.cpuid) {
        None => Ok(()),
        Some(what) => Err(RestoreError::Host(what)),
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use crate::arch::cpuid::Leaf;
    use crate::builder::{BuildError, Builder};
    use crate::snapshot::{RestoreError, State};
    use crate::testing::{SPIN, Snapshotted};

    /// What is done to a leaf.
    type Change = fn(&mut Leaf);

    /// What a host says of a state that was taken on it and then changed, and written with a checksum that is right.
    fn refusal(of: &Snapshotted, change: impl FnOnce(&mut State)) -> Option<String> {
        let changed = of.directory.path().join("changed");
        let mut state = State::read(&fs::File::open(of.state()).expect("it was written")).expect("and can be read");
        change(&mut state);
        state
            .write(&fs::File::create(&changed).expect("it can be made"))
            .expect("it can be written");
        match build(of, &changed) {
            Ok(()) => None,
            Err(BuildError::Restore(error @ RestoreError::Host(_))) => Some(error.to_string()),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn build(of: &Snapshotted, state: &Path) -> Result<(), BuildError> {
        let mut spec = of.restored();
        spec.restore.as_mut().expect("it is one").state = crate::spec::FileSource::Path(state.into());
        Builder::new(spec, Vec::new()).build().map(drop)
    }

    #[test]
    fn a_snapshot_of_a_host_with_another_processor_or_kvm_is_refused_by_the_leaf_that_differs() {
        let snapshot = Snapshotted::new(&SPIN);
        assert_eq!(refusal(&snapshot, |_| {}), None, "the host is as it was");
        let begins = "the host's processor or KVM has changed since the snapshot was taken: CPUID leaf ";
        let of = |leaf: u32, change: Change| {
            let refused = refusal(&snapshot, |state| {
                change(
                    state
                        .cpuid
                        .iter_mut()
                        .find(|known| known.function == leaf)
                        .expect("every processor has it"),
                );
            });
            refused.expect("it is another host").strip_prefix(begins).map(str::to_owned)
        };
        // A feature fewer; another model; another KVM.
        let cases: [(u32, Change, &str); 3] = [
            (1, |leaf| leaf.ecx ^= 1, "0x1.0: ecx was "),
            (1, |leaf| leaf.eax ^= 0x10, "0x1.0: eax was "),
            (0x4000_0001, |leaf| leaf.eax ^= 8, "0x40000001.0: eax was "),
        ];
        for (leaf, change, words) in cases {
            let said = of(leaf, change).expect("it begins so");
            assert!(said.starts_with(words), "{said}");
        }
        let without = refusal(&snapshot, |state| state.cpuid.retain(|leaf| leaf.function != 1));
        assert_eq!(without, Some(format!("{begins}0x1.0: there was none")));
        let with = refusal(&snapshot, |state| {
            let leaf = Leaf {
                function: 0x77,
                ..state.cpuid[0]
            };
            state.cpuid.push(leaf);
        });
        assert_eq!(with, Some(format!("{begins}0x77.0: there is none")));
    }

    #[test]
    fn a_snapshot_with_a_register_that_this_host_cannot_set_is_refused_by_its_number() {
        let snapshot = Snapshotted::new(&SPIN);
        let refused = refusal(&snapshot, |state| state.processors[0].add_register(0x4b56_4dff, 7));
        let words = "model-specific register 0x4b564dff was 0x7, which cannot be set";
        assert!(refused.as_ref().is_some_and(|said| said.ends_with(words)), "{refused:?}");
    }
}
