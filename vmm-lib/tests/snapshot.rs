//! Snapshots of guests of a few instructions: what was taken goes on where it stood, as often as one likes, and what was changed since is refused.

mod support;

use std::fs::{self, File};
use std::io::Seek;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use support::{Kernel, LOAD, bzimage, out_byte, refusal, run_machine};
use vmm_lib::exit::MachineExit;
use vmm_lib::snapshot::SnapshotFiles;
use vmm_lib::spec::{Comb, Disk, DiskEngine, DiskFormat, Extent, FileSource, Limits, MachineSpec, Restore, Serial};
use vmm_lib::{Builder, Machine};

/// Where a machine's generation identifier is.
const GENERATION: u64 = 0xf_f000;
/// Where the guest counts.
const COUNTER: u64 = 0x20_0000;

/// `movabs $COUNTER, %rdi`, then `incq (%rdi)` and `inc %rbx` for ever, the latter so that registers matter: it is written behind the counter.
fn counting() -> Kernel {
    let mut code = vec![0x48, 0xbf];
    code.extend(COUNTER.to_le_bytes());
    code.extend([0x48, 0x31, 0xdb]);
    // again: inc %rbx; mov %rbx, 8(%rdi); incq (%rdi); jmp again
    code.extend([0x48, 0xff, 0xc3, 0x48, 0x89, 0x5f, 0x08, 0x48, 0xff, 0x07, 0xeb, 0xf4]);
    assert!(LOAD + (code.len() as u64) < COUNTER);
    Kernel::new(&bzimage(&code))
}

fn files(directory: &Path, name: &str) -> SnapshotFiles {
    let create = |what: &str| {
        let path = directory.join(format!("{name}.{what}"));
        let options = File::options().read(true).write(true).create(true).truncate(true).open(path);
        options.expect("a file can be made")
    };
    SnapshotFiles {
        state: create("state"),
        memory: create("memory"),
    }
}

fn restored(spec: &MachineSpec, directory: &Path, name: &str) -> MachineSpec {
    MachineSpec {
        restore: Some(Restore {
            state: FileSource::Path(directory.join(format!("{name}.state"))),
            memory: FileSource::Path(directory.join(format!("{name}.memory"))),
            working_set: None,
            verify: true,
        }),
        ..spec.clone()
    }
}

fn build(spec: MachineSpec) -> Machine {
    Builder::new(spec, Vec::new()).build().expect("this KVM makes machines")
}

/// What the guest has counted, in memory and in a register.
fn counted(memory: &File) -> (u64, u64) {
    let mut bytes = [0; 16];
    memory.read_exact_at(&mut bytes, COUNTER).expect("memory is as long");
    let [one, other] = [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight")));
    (one, other)
}

/// Takes snapshots of a machine, which goes on, until it has counted beyond `beyond`, and one at which it ends; what that one has.
fn take(machine: Machine, files: &SnapshotFiles, beyond: u64) -> (u64, u64) {
    let handle = machine.handle();
    let running = thread::spawn(|| run_machine(machine));
    let snapshot = |go_on: bool| {
        let again = |file: &File| {
            let mut file = file.try_clone().expect("it is open");
            file.set_len(0).and_then(|()| file.rewind()).expect("it is a file");
            file
        };
        let to = SnapshotFiles {
            state: again(&files.state),
            memory: again(&files.memory),
        };
        handle.snapshot(to, go_on).expect("a snapshot");
        counted(&files.memory)
    };
    // A guest that does not go on after a snapshot is stopped in the end, and the next one fails.
    while snapshot(true).0 <= beyond {}
    let last = snapshot(false);
    assert_eq!(running.join().expect("no panic").exit, MachineExit::Stopped);
    last
}

#[test]
fn a_machine_goes_on_where_its_snapshot_was_taken_and_as_often_as_one_likes() {
    let (kernel, directory) = (counting(), tempfile::tempdir().expect("a directory"));
    let spec = kernel.spec(2);
    let first = take(build(spec.clone()), &files(directory.path(), "first"), 0);
    assert!(first.0.abs_diff(first.1) <= 1, "{first:?}");
    for name in ["second", "third"] {
        let machine = build(restored(&spec, directory.path(), "first"));
        let later = take(machine, &files(directory.path(), name), first.0);
        assert!(later.0 > first.0 && later.0.abs_diff(later.1) <= 1, "{first:?}, then {later:?}");
    }
    let memory = File::open(directory.path().join("first.memory")).expect("it is there");
    assert_eq!(counted(&memory), first, "the file is only read");
}

#[test]
fn each_machine_that_is_made_of_a_snapshot_has_a_generation_identifier_of_its_own() {
    let (kernel, directory) = (counting(), tempfile::tempdir().expect("a directory"));
    let spec = kernel.spec(1);
    let mut seen = Vec::new();
    for name in ["first", "second", "third"] {
        let spec = if seen.is_empty() {
            spec.clone()
        } else {
            restored(&spec, directory.path(), "first")
        };
        take(build(spec), &files(directory.path(), name), 0);
        let memory = File::open(directory.path().join(format!("{name}.memory"))).expect("it was written");
        let mut identifier = [0; 16];
        memory.read_exact_at(&mut identifier, GENERATION).expect("memory is as long");
        assert!(identifier != [0; 16] && !seen.contains(&identifier), "{name}: {identifier:?}");
        seen.push(identifier);
    }
}

#[test]
fn a_machine_of_a_comb_may_have_more_than_its_places_behind_them_and_one_without_a_comb_may_not() {
    let (kernel, directory) = (counting(), tempfile::tempdir().expect("a directory"));
    let content = directory.path().join("content");
    fs::write(&content, [0; 512]).expect("a file can be made");
    let plain = kernel.spec(1);
    let template = MachineSpec {
        comb: Some(Comb {
            cpus: 1,
            disks: 1,
            pmems: 0,
            nets: 0,
            pmem_bytes: 0,
            memory_bytes: 0,
        }),
        ..plain.clone()
    };
    let with_disks = |spec: &MachineSpec| MachineSpec {
        disks: ["one", "two"].map(|serial| disk(serial, &content)).into(),
        ..spec.clone()
    };
    for (name, spec) in [("plain", &plain), ("template", &template)] {
        take(build(spec.clone()), &files(directory.path(), name), 0);
    }
    let spec = with_disks(&restored(&template, directory.path(), "template"));
    // Bridge, the comb's disk, entropy.
    assert_eq!(spec.surplus_places(), 3..4);
    let machine = build(spec);
    let handle = machine.handle();
    let running = thread::spawn(|| run_machine(machine));
    let devices = handle.devices().expect("it runs, or will");
    let of = |name: &str| devices.iter().find(|device| device.name == name).map(|device| device.slot);
    assert_eq!((of("block one"), of("block two")), (Some(1), Some(3)), "{devices:?}");
    handle.stop();
    assert_eq!(running.join().expect("no panic").exit, MachineExit::Stopped);
    let why = refusal(with_disks(&restored(&plain, directory.path(), "plain")), Vec::new());
    assert!(why.contains("the machine has 4 functions, the snapshot 2"), "{why}");
}

/// A disk of one sector.
fn disk(serial: &str, content: &Path) -> Disk {
    Disk {
        serial: serial.into(),
        extents: vec![Extent {
            file: FileSource::Path(content.into()),
            offset: 0,
            length: 512,
        }],
        read_only: true,
        format: DiskFormat::Raw,
        limits: Limits::default(),
        engine: DiskEngine::Calls,
    }
}

#[test]
fn a_serial_port_goes_on_with_what_its_guest_wrote_to_it() {
    let scratch = 0x3ff;
    // movabs $COUNTER, %rdi; again: mov $scratch, %dx; in %dx, %al; mov %al, 16(%rdi); incq (%rdi); incq 8(%rdi); jmp again
    let mut code = [&out_byte(scratch, 0x5a)[..], &[0x48, 0xbf], &COUNTER.to_le_bytes()].concat();
    code.extend([
        0x66, 0xba, 0xff, 0x03, 0xec, 0x88, 0x47, 0x10, 0x48, 0xff, 0x07, 0x48, 0xff, 0x47, 0x08, 0xeb, 0xef,
    ]);
    let (kernel, directory) = (Kernel::new(&bzimage(&code)), tempfile::tempdir().expect("a directory"));
    let spec = MachineSpec {
        serial: Some(Serial {
            output: FileSource::Path(directory.path().join("output")),
            input: None,
        }),
        ..kernel.spec(1)
    };
    let first = take(build(spec.clone()), &files(directory.path(), "first"), 0);
    let again = restored(&spec, directory.path(), "first");
    take(build(again.clone()), &files(directory.path(), "second"), first.0);
    let memory = File::open(directory.path().join("second.memory")).expect("it was written");
    let mut read = [0];
    memory.read_exact_at(&mut read, COUNTER + 16).expect("memory is as long");
    assert_eq!(read, [0x5a]);
    let refused = refusal(MachineSpec { serial: None, ..again }, Vec::new());
    assert!(
        refused.contains("serial ports of the machine is 0, and the snapshot's is 1"),
        "{refused}"
    );
}

#[test]
fn a_snapshot_that_is_cut_short_changed_or_of_another_machine_is_refused_by_name() {
    let (kernel, directory) = (counting(), tempfile::tempdir().expect("a directory"));
    let spec = kernel.spec(1);
    take(build(spec.clone()), &files(directory.path(), "it"), 0);
    let (state, memory) = (directory.path().join("it.state"), directory.path().join("it.memory"));
    let good = fs::read(&state).expect("it was written");
    let again = || restored(&spec, directory.path(), "it");
    let changed = |at: usize, bit: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= bit;
        bytes
    };
    for (bytes, words) in [
        (good[..10].to_vec(), "says 24"),
        (good[..good.len() - 1].to_vec(), "and says"),
        ([&good[..], &[0]].concat(), "and says"),
        (changed(0, 1), "not that of a machine"),
        (changed(8, 1), "has version 2"),
        (changed(24, 1), "checksum"),
        (changed(good.len() - 1, 0x80), "checksum"),
    ] {
        fs::write(&state, bytes).expect("it can be");
        let refused = refusal(again(), Vec::new());
        assert!(refused.contains(words), "{refused}");
    }
    fs::write(&state, &good).expect("it can be");
    let mut byte = [0];
    let file = File::options().read(true).write(true).open(&memory).expect("it is there");
    file.read_exact_at(&mut byte, LOAD).expect("it is as long");
    file.write_all_at(&[byte[0] ^ 4], LOAD).expect("it can be");
    assert!(refusal(again(), Vec::new()).contains("memory is not what was written"));
    file.write_all_at(&byte, LOAD).expect("it can be");
    for (spec, words) in [
        (
            MachineSpec {
                memory: 64 << 20,
                ..again()
            },
            "memory, bytes, of the machine is 67108864",
        ),
        (MachineSpec { rng: false, ..again() }, "functions"),
    ] {
        let refused = refusal(spec, Vec::new());
        assert!(refused.contains(words), "{refused}");
    }
    file.set_len(4096).expect("it can be");
    assert!(refusal(again(), Vec::new()).contains("memory, bytes,"));
}
