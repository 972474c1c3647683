//! Snapshots of what was written since another one: they have what guest and devices wrote and little else, are with their base what a whole
//! snapshot is, byte for byte, and are taken up by nothing else.

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::drive::*;
use support::script::{Running, Script};
use vmm_lib::exit::MachineExit;
use vmm_lib::snapshot::{MergeError, RestoreError, SnapshotError, SnapshotFiles, check, merge};
use vmm_lib::spec::{Disk, DiskEngine, DiskFormat, Extent, FileSource, Limits, MachineSpec, Restore};

const PAGE: u64 = 4096;
/// Another one in each machine that is made of a snapshot: the guest waits for it.
const GENERATION: u64 = 0xf_f000;
/// Where the guest writes, far apart.
const WRITTEN: [u64; 4] = [0x20_0008, 0x60_0ff8, 0xa0_0000, 0x1ff_f000];
/// The disk, and the random numbers behind it.
const DISK: u64 = 1;
const RNG: u64 = 2;
/// Where devices write: three pages from the one, a sector from the other.
const RANDOM: u64 = DATA + 0x10_0000;
const SECTOR: u64 = DATA + 0x20_0000;
const HEADER: u64 = DATA;

/// Waits to be another machine, writes, and has devices write; says that it is done, and stays.
fn writing() -> Script {
    let mut script = Script::default();
    script.write(1, DATA, 1).say(DATA).wait_for_another(GENERATION);
    for place in WRITTEN {
        script.write(8, place, place);
    }
    place(&mut script, RNG, BAR);
    bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
    descriptor(&mut script, TABLE, 0, (RANDOM + 100, 2 * PAGE, WRITE, 0));
    offer(&mut script, BAR, 1, 0);
    script.wait(USED + 2, 1).write(1, BAR + STATUS, 0);
    let other = BAR + 0x10_0000;
    place(&mut script, DISK, other);
    bring_up(&mut script, other, [TABLE, AVAILABLE, USED]);
    script.write(8, HEADER, 0).write(8, HEADER + 8, 0);
    descriptor(&mut script, TABLE, 0, (HEADER, 16, NEXT, 1));
    descriptor(&mut script, TABLE, 1, (SECTOR, 512, WRITE | NEXT, 2));
    descriptor(&mut script, TABLE, 2, (HEADER + 512, 1, WRITE, 0));
    offer(&mut script, other, 1, 0);
    script.wait(USED + 2, 1).say(SECTOR).stay();
    script
}

/// Pages that are written by a guest of [`writing`], or by its devices: the guest's own, three rings, a header, three random ones, a sector, the
/// generation; and those in which a processor notes what of its page tables it has used, at most.
const FEWEST: u64 = 4 + 3 + 1 + 3 + 1 + 1;
const MOST: u64 = FEWEST + 8;

/// A directory of snapshots by name.
struct Rig {
    directory: tempfile::TempDir,
    script: Script,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("disk"), [0x5a; 512]).expect("it can be written");
        Self {
            directory,
            script: writing(),
        }
    }

    fn path(&self, name: &str, what: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.{what}"))
    }

    /// Files of a new snapshot.
    fn new_files(&self, name: &str) -> SnapshotFiles {
        let create = |what| {
            let options = File::options().read(true).write(true).create_new(true).open(self.path(name, what));
            options.expect("a file can be made")
        };
        SnapshotFiles {
            state: create("state"),
            memory: create("memory"),
        }
    }

    /// Files of one that is there, to be read from their beginning on.
    fn files(&self, name: &str) -> SnapshotFiles {
        let open = |what| File::open(self.path(name, what)).expect("it is there");
        SnapshotFiles {
            state: open("state"),
            memory: open("memory"),
        }
    }

    fn devices(&self, spec: &mut MachineSpec) {
        spec.dirty_log = true;
        spec.rng = true;
        spec.disks = vec![disk(&self.directory.path().join("disk"))];
    }

    fn restore(&self, name: &str) -> Option<Restore> {
        Some(Restore {
            state: FileSource::Path(self.path(name, "state")),
            memory: FileSource::Path(self.path(name, "memory")),
            working_set: None,
            verify: true,
        })
    }

    /// A machine that waits to be another one, of which `base` is a whole snapshot.
    fn waiting(&self) -> Running {
        let running = self.script.begin(|spec| self.devices(spec));
        running.said(1);
        running.handle.snapshot(self.new_files("base"), true).expect("a whole snapshot");
        running
    }

    /// One made of a snapshot that has written all it writes.
    fn written(&self, of: &str) -> Running {
        let running = self.script.begin(|spec| {
            self.devices(spec);
            spec.restore = self.restore(of);
        });
        assert_eq!(running.said(1), [0x5a], "the sector was read");
        running
    }

    fn merge(&self, base: &str, changes: &str, into: &str) -> Result<(), MergeError> {
        merge(&self.files(base), &self.files(changes), &self.new_files(into))
    }

    fn memory(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name, "memory")).expect("it is there")
    }

    fn pages(&self, name: &str) -> u64 {
        fs::metadata(self.path(name, "memory")).expect("it is there").len() / PAGE
    }
}

fn disk(path: &Path) -> Disk {
    Disk {
        serial: "disk".into(),
        extents: vec![Extent {
            file: FileSource::Path(path.into()),
            offset: 0,
            length: 512,
        }],
        read_only: true,
        format: DiskFormat::Raw,
        limits: Limits::default(),
        engine: DiskEngine::Calls,
    }
}

fn stop(running: Running) {
    running.handle.stop();
    assert_eq!(running.end().0.exit, MachineExit::Stopped);
}

/// Whether two memories are the same, told without 32 MiB of text.
fn same(one: &[u8], other: &[u8]) {
    assert_eq!(one.len(), other.len());
    let differ = |page: &u64| {
        let range = (page * PAGE) as usize..((page + 1) * PAGE) as usize;
        one[range.clone()] != other[range]
    };
    let pages: Vec<_> = (0..one.len() as u64 / PAGE).filter(differ).collect();
    assert!(pages.is_empty(), "pages differ: {pages:x?}");
}

#[test]
fn what_guest_and_devices_wrote_and_little_else_makes_of_the_base_what_a_whole_snapshot_is() {
    let rig = Rig::new();
    stop(rig.waiting());
    let running = rig.written("base");
    running.handle.snapshot_changes(rig.new_files("changes"), true).expect("changes");
    running.handle.snapshot(rig.new_files("whole"), true).expect("a whole snapshot");
    let pages = rig.pages("changes");
    assert!(
        (FEWEST..=MOST).contains(&pages),
        "{pages} pages were written, not {FEWEST} to {MOST}"
    );
    rig.merge("base", "changes", "merged").expect("both are as they were written");
    let (merged, whole) = (rig.memory("merged"), rig.memory("whole"));
    same(&merged, &whole);
    for place in WRITTEN {
        assert_eq!(merged[place as usize..][..8], place.to_le_bytes());
    }
    assert_eq!(merged[SECTOR as usize..][..512], [0x5a; 512]);
    for name in ["base", "changes", "whole", "merged"] {
        let SnapshotFiles { state, memory } = rig.files(name);
        check(&state, &memory).expect("it is what was written");
    }
    // A whole snapshot is where the next changes begin, and one that was merged is one of its own name.
    running.handle.snapshot_changes(rig.new_files("more"), false).expect("changes");
    assert_eq!(running.end().0.exit, MachineExit::Stopped);
    assert!(rig.pages("more") <= 4, "{} pages were written", rig.pages("more"));
    rig.merge("whole", "more", "merged-later").expect("its base is the whole one");
    assert!(matches!(rig.merge("merged", "more", "neither"), Err(MergeError::OtherBase { .. })));
}

#[test]
fn changes_of_changes_are_merged_one_after_the_other_and_a_machine_goes_on_from_there() {
    let rig = Rig::new();
    stop(rig.waiting());
    let running = rig.written("base");
    for name in ["first", "second", "third"] {
        running.handle.snapshot_changes(rig.new_files(name), true).expect("changes");
    }
    running.handle.snapshot(rig.new_files("whole"), false).expect("a whole snapshot");
    running.end();
    assert!(rig.pages("second") <= 4 && rig.pages("third") <= 4);
    assert!(matches!(rig.merge("base", "second", "gap"), Err(MergeError::OtherBase { .. })));
    for (base, changes, into) in [("base", "first", "one"), ("one", "second", "two"), ("two", "third", "three")] {
        rig.merge(base, changes, into).expect("in order");
    }
    same(&rig.memory("three"), &rig.memory("whole"));
    // Of all of it a machine is made; its changes have what was merged as their base.
    let running = rig.script.begin(|spec| {
        rig.devices(spec);
        spec.restore = rig.restore("three");
    });
    running.handle.snapshot_changes(rig.new_files("fourth"), false).expect("changes");
    running.end();
    rig.merge("three", "fourth", "four").expect("they follow");
}

#[test]
fn a_snapshot_that_fails_forgets_nothing_of_what_was_written() {
    let rig = Rig::new();
    stop(rig.waiting());
    let running = rig.written("base");
    for (name, what) in [("cannot", "memory"), ("cannot-either", "state")] {
        drop(rig.new_files(name));
        let read_only = rig.files(name);
        let writable = |file: &str| File::options().write(true).open(rig.path(name, file)).expect("it is there");
        let files = match what {
            "memory" => SnapshotFiles {
                state: writable("state"),
                ..read_only
            },
            _ => SnapshotFiles {
                memory: writable("memory"),
                ..read_only
            },
        };
        let refused = running.handle.snapshot_changes(files, false).expect_err("it cannot be written");
        assert!(matches!(refused, SnapshotError::Write(part, _) if part == what), "{refused:?}");
    }
    running.handle.snapshot_changes(rig.new_files("changes"), true).expect("changes");
    running.handle.snapshot(rig.new_files("whole"), false).expect("a whole snapshot");
    running.end();
    assert!(rig.pages("changes") >= FEWEST);
    rig.merge("base", "changes", "merged").expect("both are as they were written");
    same(&rig.memory("merged"), &rig.memory("whole"));
}

#[test]
fn changes_are_refused_of_a_machine_that_noted_none_and_before_there_is_a_base() {
    let rig = Rig::new();
    let mut script = Script::default();
    script.say(DATA).stay();
    for log in [false, true] {
        let running = script.begin(|spec| spec.dirty_log = log);
        running.said(1);
        let name = if log { "with" } else { "without" };
        let refused = running
            .handle
            .snapshot_changes(rig.new_files(name), true)
            .expect_err("there is none");
        match (log, &refused) {
            (false, SnapshotError::NoLog) | (true, SnapshotError::NoBase) => {}
            _ => panic!("{refused:?}"),
        }
        stop(running);
    }
}

#[test]
fn changes_without_their_base_or_that_are_not_what_was_written_are_refused_by_name() {
    let rig = Rig::new();
    let running = rig.waiting();
    running
        .handle
        .snapshot(rig.new_files("other"), false)
        .expect("another whole snapshot");
    running.end();
    let running = rig.written("base");
    running.handle.snapshot_changes(rig.new_files("changes"), false).expect("changes");
    running.end();
    let alone = rig.script.refused(|spec| {
        rig.devices(spec);
        spec.restore = rig.restore("changes");
    });
    let source = std::error::Error::source(&alone).expect("it has a reason").to_string();
    assert!(source.contains("only what was written since"), "{source}");
    let mut count = 0;
    let mut refused = |base: &str, changes: &str| {
        count += 1;
        let into = format!("never{count}");
        let error = rig.merge(base, changes, &into).expect_err("it is refused");
        let state = fs::read(rig.path(&into, "state")).expect("it was made");
        assert!(state.is_empty(), "of what is refused nothing can be taken up");
        error
    };
    assert!(matches!(refused("other", "changes"), MergeError::OtherBase { .. }));
    assert!(matches!(refused("base", "other"), MergeError::Whole));
    assert!(matches!(refused("changes", "changes"), MergeError::PartialBase));
    let open = |name: &str, what: &str| {
        let file = File::options().read(true).write(true).open(rig.path(name, what));
        file.expect("it is there")
    };
    for (name, what, at) in [
        ("base", "state", 100),
        ("base", "memory", WRITTEN[0]),
        ("base", "memory", 0x1000),
        ("changes", "state", 30),
        ("changes", "memory", 5),
    ] {
        let (file, mut byte) = (open(name, what), [0]);
        file.read_exact_at(&mut byte, at).expect("it is as long");
        file.write_all_at(&[byte[0] ^ 4], at).expect("it can be");
        let error = refused("base", "changes");
        match (name, &error) {
            ("base", MergeError::Base(RestoreError::Checksum(of))) | ("changes", MergeError::Changes(RestoreError::Checksum(of))) => {
                assert_eq!(*of, what);
            }
            _ => panic!("{name} {what}: {error:?}"),
        }
        file.write_all_at(&byte, at).expect("it can be");
    }
    for (name, what) in [("base", "memory"), ("changes", "memory"), ("base", "state"), ("changes", "state")] {
        let whole = fs::read(rig.path(name, what)).expect("it is there");
        open(name, what).set_len(whole.len() as u64 - 1).expect("it can be");
        match (name, refused("base", "changes")) {
            ("base", MergeError::Base(RestoreError::Shape { .. } | RestoreError::Length { .. })) => {}
            ("changes", MergeError::Changes(RestoreError::Shape { .. } | RestoreError::Length { .. })) => {}
            (_, error) => panic!("{name} {what}: {error:?}"),
        }
        open(name, what).write_all(&whole).expect("it can be");
    }
    rig.merge("base", "changes", "good").expect("all is as it was");
}
