//! Devices that come and go while a guest runs: it finds them by looking at its bus, drives them, moves their BARs, and goes on when they are
//! taken away, whether it has let go of them or not.

mod support;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use support::drive::*;
use support::script::{Running, Script};
use support::{HALT, Kernel, bzimage, run_machine};
use vmm_lib::exit::MachineExit;
use vmm_lib::snapshot::{SnapshotError, SnapshotFiles};
use vmm_lib::spec::FileSource;
use vmm_lib::{AttachError, Attachment, Builder, DetachError, Occupied};

/// Where the first device goes that is attached to a machine with one besides its bridge.
const SLOT: u8 = 2;
/// Its configuration space: who it is, and where its capabilities are, which is zero where there is no device.
const CONFIG: u64 = ECAM + SLOT as u64 * 0x8000;
const CAPABILITIES: u64 = CONFIG + 0x34;
const OTHER_BAR: u64 = BAR + 0x10_0000;
/// Where a driver writes what it asks of a disk.
const HEADER: u64 = DATA + 0x4000;

fn attach(running: &Running, serial: &str, byte: u8) -> Result<u8, AttachError> {
    let (attachment, files) = disk(serial, byte);
    running.handle.attach(attachment, files)
}

/// Has the guest read the disk's sector as its `count`-th request, and say its first byte and the request's status.
fn read_sector(script: &mut Script, bar: u64, count: u64) {
    script.write(8, HEADER, 0).write(8, HEADER + 8, 0).write(1, DATA + 512, 0xff);
    descriptor(script, TABLE, 0, (HEADER, 16, NEXT, 1));
    descriptor(script, TABLE, 1, (DATA, 512, WRITE | NEXT, 2));
    descriptor(script, TABLE, 2, (DATA + 512, 1, WRITE, 0));
    offer(script, bar, count, 0);
    answered(script, count).say(DATA).say(DATA + 512);
}

/// Waits for the `count`-th answer, where only that one is missing.
fn answered(script: &mut Script, count: u64) -> &mut Script {
    let bit = count & !(count - 1);
    script.wait(USED + 2, bit as u8)
}

/// Waits for the device, and brings it up.
fn find(script: &mut Script) {
    script.wait(CAPABILITIES, 0x40);
    place(script, u64::from(SLOT), BAR);
    bring_up(script, BAR, [TABLE, AVAILABLE, USED]);
}

/// Detaches once the guest lets go.
fn detach(running: &Running) {
    let begun = Instant::now();
    while let Err(error) = running.handle.detach(SLOT, false) {
        let name = "block one".to_owned();
        assert_eq!(error, DetachError::InUse { slot: SLOT, name });
        assert!(begun.elapsed() < Duration::from_secs(20), "the guest does not let go");
        thread::yield_now();
    }
}

#[test]
fn a_disk_that_is_attached_is_found_read_from_and_taken_away_once_the_guest_lets_go() {
    let mut script = Script::default();
    find(&mut script);
    read_sector(&mut script, BAR, 1);
    // Lets go; where it was there is nothing then, and a second one is found there as the first was.
    script.write(1, BAR + STATUS, 0).wait(CONFIG, 1).say(CONFIG + 2).say(BAR + STATUS);
    find(&mut script);
    read_sector(&mut script, BAR, 1);
    let running = script.begin(|_| {});
    assert_eq!(attach(&running, "one", 0x11).expect("there is a place"), SLOT);
    assert_eq!(running.said(2), [0x11, 0]);
    detach(&running);
    assert_eq!(running.said(4)[2..], [0xff, 0xff]);
    assert_eq!(attach(&running, "two", 0x22).expect("the place is free again"), SLOT);
    let (report, said) = running.end();
    assert_eq!((report.exit, &said[4..]), (MachineExit::PoweredOff, &[0x22, 0][..]));
}

#[test]
fn a_guest_that_goes_on_using_a_device_that_was_taken_away_finds_all_ones() {
    let mut script = Script::default();
    find(&mut script);
    read_sector(&mut script, BAR, 1);
    script.wait(CONFIG, 1);
    // Whatever it does there, nobody answers: registers, notifications, configuration, a reset.
    for _ in 0..50 {
        script
            .write(2, BAR + NOTIFY, 0)
            .write(1, BAR + STATUS, 15)
            .write(8, BAR + 0x2000, u64::MAX);
        script.write(4, CONFIG + 0x10, OTHER_BAR).write(2, CONFIG + 4, 6);
    }
    script.say(BAR + STATUS).say(OTHER_BAR + STATUS).say(CONFIG).say(DATA);
    // Another one comes to the same place: it is decoded nowhere until the guest says so.
    script.wait(CAPABILITIES, 0x40).say(BAR + STATUS).say(OTHER_BAR + STATUS);
    find(&mut script);
    read_sector(&mut script, BAR, 1);
    let running = script.begin(|_| {});
    attach(&running, "one", 0x11).expect("there is a place");
    running.said(2);
    let name = "block one".to_owned();
    assert_eq!(running.handle.detach(SLOT, false), Err(DetachError::InUse { slot: SLOT, name }));
    running.handle.detach(SLOT, true).expect("by force");
    assert_eq!(running.said(6)[2..], [0xff, 0xff, 0xff, 0x11]);
    attach(&running, "two", 0x22).expect("the place is free again");
    let (report, said) = running.end();
    assert_eq!((report.exit, &said[6..]), (MachineExit::PoweredOff, &[0xff, 0xff, 0x22, 0][..]));
}

#[test]
fn an_attached_device_goes_on_where_its_bar_is_moved_under_traffic() {
    let mut script = Script::default();
    find(&mut script);
    read_sector(&mut script, BAR, 1);
    for round in 0..3 {
        let (here, there) = if round % 2 == 0 { (BAR, OTHER_BAR) } else { (OTHER_BAR, BAR) };
        place(&mut script, u64::from(SLOT), here);
        // The BAR moves before there is an answer.
        offer(&mut script, here, 2 * round + 2, 0);
        place(&mut script, u64::from(SLOT), there);
        answered(&mut script, 2 * round + 2).say(here + STATUS).say(there + STATUS);
        read_sector(&mut script, there, 2 * round + 3);
    }
    let running = script.begin(|_| {});
    attach(&running, "one", 0x11).expect("there is a place");
    let (report, said) = running.end();
    assert_eq!(report.exit, MachineExit::PoweredOff);
    let rounds = [[0xff, READY, 0x11, 0]; 3].concat();
    assert_eq!(said, [&[0x11, 0][..], &rounds].concat());
}

#[test]
fn what_cannot_be_attached_or_detached_is_refused_with_its_reason() {
    let kernel = Kernel::new(&bzimage(&HALT));
    let machine = Builder::new(kernel.spec(1), Vec::new()).build().expect("this KVM makes machines");
    let handle = machine.handle();
    let running = thread::spawn(|| run_machine(machine));
    let attach = |serial: &str| {
        let (attachment, files) = disk(serial, 0);
        handle.attach(attachment, files)
    };
    for slot in 2..32 {
        assert_eq!(attach(&format!("disk{slot}")).expect("there is a place"), slot);
    }
    assert!(matches!(attach("disk2"), Err(AttachError::Taken(name)) if name == "block disk2"));
    assert!(matches!(attach("more"), Err(AttachError::Full)));
    let invalid = |attachment: Attachment, passed: Vec<OwnedFd>| match handle.attach(attachment, passed) {
        Err(AttachError::Invalid(errors)) => errors.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        invalid(of("x"), Vec::new()),
        "disk.extents[0].file: names descriptor 0, but 0 were passed"
    );
    let Attachment::Disk(mut by_path) = of("x") else {
        panic!("it is a disk")
    };
    by_path.extents[0].file = FileSource::Path("/dev/null".into());
    assert!(invalid(Attachment::Disk(by_path), Vec::new()).contains("must be passed open"));
    let fixed = |slot, name: &str| {
        let name = name.to_owned();
        Err(DetachError::Fixed { slot, name })
    };
    assert_eq!(handle.detach(1, true), fixed(1, "rng"));
    assert_eq!(handle.detach(0, true), fixed(0, "a function of the bus"));
    assert_eq!(handle.detach(5, false), Ok(()));
    assert_eq!(handle.detach(5, false), Err(DetachError::Empty(5)));
    assert_eq!(handle.detach(200, true), Err(DetachError::Empty(200)));
    assert_eq!(attach("more").expect("one place is free"), 5);
    let devices = handle.devices().expect("it runs");
    assert_eq!(devices.len(), 31);
    let told = Occupied {
        slot: 5,
        name: "block more".into(),
        in_use: false,
        detachable: true,
    };
    assert_eq!(devices[4], told);
    let file = || tempfile::tempfile().expect("a temporary file can be made");
    let files = SnapshotFiles {
        state: file(),
        memory: file(),
    };
    let refused = handle.snapshot(files, true).expect_err("it has other devices than it began with");
    assert!(matches!(refused, SnapshotError::Device(what) if what.contains("other devices")));
    handle.stop();
    running.join().expect("the machine does not panic");
    assert!(matches!(attach("late"), Err(AttachError::NotRunning)));
    assert_eq!(handle.detach(5, true), Err(DetachError::NotRunning));
    assert_eq!(handle.devices(), None);
}

#[test]
fn coming_and_going_a_hundred_times_leaves_nothing_behind() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("Linux has it").count();
    let kernel = Kernel::new(&bzimage(&HALT));
    let machine = Builder::new(kernel.spec(1), Vec::new()).build().expect("this KVM makes machines");
    let handle = machine.handle();
    let running = thread::spawn(|| run_machine(machine));
    let file = File::open("/dev/null").expect("it is there");
    let once = || {
        let files = vec![file.try_clone().expect("a descriptor is to be had").into()];
        let slot = handle.attach(of("one"), files).expect("there is a place");
        handle.detach(slot, false).expect("nobody uses it");
    };
    once();
    let before = descriptors();
    (0..100).for_each(|_| once());
    // Other tests of this program open and close files meanwhile: what each round left would be far more.
    assert!(descriptors() < before + 200, "{before} descriptors have become {}", descriptors());
    handle.stop();
    running.join().expect("the machine does not panic");
}
