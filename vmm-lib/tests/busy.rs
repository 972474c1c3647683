//! A guest that notifies its devices without end: it pays with its processor's time and with that of the one device, whose notifications are a
//! number and no queue; nobody else of its machine has anything to do for it. A program of its own, as it looks at all of its threads.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;

use support::drive::*;
use support::script::Script;
use vmm_lib::exit::MachineExit;
use vmm_lib::spec::{Disk, DiskEngine, DiskFormat, Extent, FileSource, Limits, MachineSpec};

/// The disk's, which is flooded and never asked for anything.
const DISK: u64 = BAR + 0x10_0000;
const RINGS: [u64; 3] = [TABLE + 0x8000, AVAILABLE + 0x8000, USED + 0x8000];
const ROUNDS: u64 = 8;
/// Of each round.
const NOTIFICATIONS: u64 = 5_000;

/// How often each thread of a name has been given a processor, by the thread's number.
fn turns(name: &str) -> BTreeMap<String, u64> {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux has it").filter_map(Result::ok);
    let status = |path| fs::read_to_string(path).unwrap_or_default();
    let turns = |status: String| {
        let field = |field: &str| status.lines().find_map(|line| line.strip_prefix(field)).map(str::trim);
        let count = |name: &str| field(name).and_then(|count| count.parse::<u64>().ok());
        let all = count("voluntary_ctxt_switches:")? + count("nonvoluntary_ctxt_switches:")?;
        Some((field("Name:")?.to_owned(), all))
    };
    let all = tasks.filter_map(|task| {
        let (of, count) = turns(status(task.path().join("status")))?;
        (of == name).then(|| (task.file_name().to_string_lossy().into_owned(), count))
    });
    all.collect()
}

#[test]
fn a_guest_that_notifies_without_end_keeps_nobody_busy_but_its_processor_and_that_device() {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(&[7; 512]).expect("and written");
    let devices = |spec: &mut MachineSpec| {
        spec.disks.push(Disk {
            serial: "flooded".into(),
            extents: vec![Extent {
                file: FileSource::Path(file.path().into()),
                offset: 0,
                length: 512,
            }],
            read_only: true,
            format: DiskFormat::Raw,
            limits: Limits::default(),
            engine: DiskEngine::Calls,
        });
    };
    let mut script = Script::default();
    place(&mut script, 1, DISK);
    bring_up(&mut script, DISK, RINGS);
    place(&mut script, 2, BAR);
    bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
    descriptor(&mut script, TABLE, 0, (DATA, 8, WRITE, 0));
    script.say(DISK + STATUS);
    for count in 1..=ROUNDS {
        script.flood(DISK + NOTIFY, NOTIFICATIONS);
        offer(&mut script, BAR, count, 0);
        script.wait(USED + 2, (count & !(count - 1)) as u8);
    }
    // All that was asked of the other device was answered, and of the disk nothing was.
    script.say(USED + 2).say(RINGS[2] + 2).say(DISK + STATUS).say(BAR + STATUS);
    script.flood(DISK + NOTIFY, u64::MAX);
    let running = script.begin(devices);
    assert_eq!(running.said(1), [READY]);
    let before = turns("machine");
    assert!(!before.is_empty(), "the machine's own thread has its name");
    assert_eq!(running.said(5), [READY, ROUNDS as u8, 0, READY, READY]);
    for (thread, count) in turns("machine") {
        // It may have been on its way to its rest.
        let more = before.get(&thread).map(|before| count - before);
        assert!(
            more.is_some_and(|more| more <= 2),
            "the thread that serves wishes had none to serve: {more:?}"
        );
    }
    let exits = running.handle.exit_counts().expect("they are counted");
    assert_eq!(
        exits.addresses.get(&(DISK + NOTIFY)),
        None,
        "a notification is no exit to user space"
    );
    // It goes on for ever; who asks the machine for something is answered, and it can be stopped.
    for _ in 0..100 {
        let devices = running.handle.devices().expect("it runs");
        assert!(devices.iter().any(|device| device.name == "block flooded"), "{devices:?}");
    }
    running.handle.stop();
    assert_eq!(running.end().0.exit, MachineExit::Stopped);
}
