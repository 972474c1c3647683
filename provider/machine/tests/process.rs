//! Machine processes, spawned for real: this program is its own machine process when its argument is `vm`. Their guests are a few
//! instructions; how a machine runs is shown by the machine library's tests and end to end, and how a process is confined by `jail.rs`.

mod support;

use std::{
    fs::{self, File},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use kvmlet_machine::{Adoption, ClientError, Machine, VERSION, adopt};
use vmm_lib::{
    Attachment,
    exit::MachineExit,
    spec::{Disk, DiskEngine, DiskFormat, Extent, FileSource, Limits, Serial, Watchdog, WatchdogAction},
};

use support::guest::writes_a_sector;
use support::{SOON, SPIN, kernel, order, running, spawned, uid};

fn main() {
    support::main(&[
        (
            "a_machine_that_cannot_be_built_leaves_a_record_of_why",
            a_machine_that_cannot_be_built_leaves_a_record_of_why,
        ),
        (
            "a_file_that_is_missing_is_in_the_record_by_its_field",
            a_file_that_is_missing_is_in_the_record_by_its_field,
        ),
        ("a_running_process_is_adopted_and_killed", a_running_process_is_adopted_and_killed),
        (
            "a_machine_that_is_stopped_writes_its_record_from_within_its_jail",
            a_machine_that_is_stopped_writes_its_record_from_within_its_jail,
        ),
        (
            "a_guest_that_leaves_its_watchdog_unfed_is_ended_from_within_its_jail",
            a_guest_that_leaves_its_watchdog_unfed_is_ended_from_within_its_jail,
        ),
        (
            "disks_are_attached_and_detached_from_within_its_jail",
            disks_are_attached_and_detached_from_within_its_jail,
        ),
        (
            "a_disk_is_written_by_a_ring_from_within_its_jail",
            a_disk_is_written_by_a_ring_from_within_its_jail,
        ),
        ("a_recycled_pid_is_not_adopted", a_recycled_pid_is_not_adopted),
        (
            "a_process_without_an_order_ends_with_its_daemon",
            a_process_without_an_order_ends_with_its_daemon,
        ),
        ("an_order_of_another_version_is_refused", an_order_of_another_version_is_refused),
        (
            "a_process_that_does_not_answer_is_told_apart",
            a_process_that_does_not_answer_is_told_apart,
        ),
    ]);
}

/// A machine whose guest never ends.
fn spinning(directory: &Path) -> Machine {
    running(directory, &order(kernel(directory, &SPIN), uid()))
}

fn a_machine_that_cannot_be_built_leaves_a_record_of_why() {
    let directory = tempfile::tempdir().expect("a directory");
    let kernel: OwnedFd = File::open("/dev/null").expect("/dev/null opens").into();
    let process = spawned(directory.path(), uid());
    assert!(process.pid() > 1);
    let machine = process
        .start(&order(FileSource::Passed(0), uid()), &[kernel])
        .expect("the order is taken");
    assert!(machine.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
    let record = machine.exit_record().expect("the record is read").expect("there is one");
    assert!(
        matches!(&record.report.exit, MachineExit::Error { what } if !what.is_empty()),
        "{record:?}"
    );
    assert!(record.started <= record.ended);
    assert!(matches!(adopt(directory.path()), Ok(Adoption::Ended(Some(adopted))) if adopted == record));
}

fn a_file_that_is_missing_is_in_the_record_by_its_field() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = FileSource::Path(directory.path().join("missing"));
    let machine = spawned(directory.path(), uid())
        .start(&order(missing, uid()), &[])
        .expect("the order is taken");
    assert!(machine.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
    let record = machine.exit_record().expect("the record is read").expect("there is one");
    assert!(
        matches!(&record.report.exit, MachineExit::Error { what } if what.contains("boot.kernel") && what.contains("No such file")),
        "{record:?}"
    );
}

fn a_machine_that_is_stopped_writes_its_record_from_within_its_jail() {
    let directory = tempfile::tempdir().expect("a directory");
    let machine = spinning(directory.path());
    assert_eq!(machine.exit_record().expect("it is read"), None, "an open record is none yet");
    machine.control().and_then(|mut control| control.kill()).expect("it is told");
    assert!(machine.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
    let record = machine.exit_record().expect("the record is read").expect("there is one");
    assert_eq!(record.report.exit, MachineExit::Stopped);
    // Killed while it wrote: cut short.
    let path = directory.path().join("exit.json");
    let text = fs::read(&path).expect("it is there");
    fs::write(&path, &text[..text.len() / 2]).expect("it is written");
    assert!(matches!(adopt(directory.path()), Ok(Adoption::Ended(None))));
}

/// What cannot be one is refused: the process goes on either way.
fn disks_are_attached_and_detached_from_within_its_jail() {
    let directory = tempfile::tempdir().expect("a directory");
    let machine = spinning(directory.path());
    let mut control = machine.control().expect("it answers");
    let file = tempfile::tempfile().expect("a file");
    file.set_len(1 << 20).expect("it grows");
    let disk = |format| {
        Attachment::Disk(Disk {
            serial: "later".into(),
            extents: vec![Extent {
                file: FileSource::Passed(0),
                offset: 0,
                length: 1 << 20,
            }],
            read_only: false,
            format,
            limits: Limits::default(),
            engine: DiskEngine::Calls,
        })
    };
    let slot = control.attach(&disk(DiskFormat::Raw), &[file.as_fd()]).expect("there is a place");
    let told = control.devices().expect("it tells");
    assert!(
        told.iter().any(|device| device.slot == slot && device.name == "block later"),
        "{told:?}"
    );
    let why = |refused: Result<u8, ClientError>| match refused {
        Err(ClientError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    let refused = why(control.attach(&disk(DiskFormat::Raw), &[file.as_fd()]));
    assert!(refused.contains("a device of that name: block later"), "{refused}");
    control.detach(slot, false).expect("nobody uses it");
    let refused = why(control.detach(slot, false).map(|()| 0));
    assert!(refused.contains("has no device"), "{refused}");
    let refused = why(control.attach(&disk(DiskFormat::Qcow2), &[file.as_fd()]));
    assert!(refused.contains("qcow2"), "{refused}");
    let refused = why(control.attach(&disk(DiskFormat::Raw), &[]));
    assert!(refused.contains("names descriptor 0"), "{refused}");
    control.kill().expect("it is told");
    assert!(machine.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
    let record = machine.exit_record().expect("the record is read").expect("there is one");
    assert_eq!(record.report.exit, MachineExit::Stopped);
}

/// The list of such a disk's thread has nothing else by which a file could be written.
fn a_disk_is_written_by_a_ring_from_within_its_jail() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = directory.path().join("disk");
    fs::write(&disk, [0; 4096]).expect("it can be written");
    let mut order = order(kernel(directory.path(), &writes_a_sector()), uid());
    order.spec.rng = false;
    order.spec.disks = vec![Disk {
        serial: "ring".into(),
        extents: vec![Extent {
            file: FileSource::Path(disk.clone()),
            offset: 0,
            length: 4096,
        }],
        read_only: false,
        format: DiskFormat::Raw,
        limits: Limits::default(),
        engine: DiskEngine::IoUring,
    }];
    let machine = running(directory.path(), &order);
    let end = Instant::now() + SOON.expect("it is soon");
    while fs::read(&disk).expect("it is there")[512..516] != *b"Hell" {
        let gone = machine.wait(Some(Duration::from_millis(5))).expect("its pidfd can be polled");
        let log = || support::log(directory.path());
        assert!(!gone && Instant::now() < end, "nothing was written: {}", log());
    }
    machine.control().and_then(|mut control| control.kill()).expect("it is told");
    assert!(machine.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
    let record = machine.exit_record().expect("the record is read").expect("there is one");
    assert_eq!(record.report.exit, MachineExit::Stopped);
    assert_eq!(fs::read(&disk).expect("it is there")[1020..1022], *b"o!");
}

/// Its serial port gets input meanwhile, more than it reads.
fn a_guest_that_leaves_its_watchdog_unfed_is_ended_from_within_its_jail() {
    /// Of the only device, behind the host bridge; and where its registers are.
    const CONFIG: u32 = 0xe000_8000;
    const BAR: u32 = 0xc000_0000;
    // mov $address, %edi; then a mov of 1, 2 or 4 bytes to (%rdi).
    let write = |address: u32, what: &[u8]| {
        let code: &[u8] = match what.len() {
            1 => &[0xc6, 0x07],
            2 => &[0x66, 0xc7, 0x07],
            _ => &[0xc7, 0x07],
        };
        [&[0xbf], &address.to_le_bytes()[..], code, what].concat()
    };
    let mut code = [write(CONFIG + 4, &[6, 0]), write(CONFIG + 0x60, &[3, 0])].concat();
    for (register, value) in [(0, &100u32.to_le_bytes()[..]), (4, &100u32.to_le_bytes()), (0xc, &[0, 1])] {
        code.extend(
            [
                write(BAR + 0xc, &[0x80, 0]),
                write(BAR + 0xc, &[0x86, 0]),
                write(BAR + register, value),
            ]
            .concat(),
        );
    }
    code.extend(write(CONFIG + 0x68, &[2]));
    code.extend(SPIN);
    let directory = tempfile::tempdir().expect("a directory");
    let mut order = order(kernel(directory.path(), &code), uid());
    order.spec.watchdog = Some(Watchdog {
        action: WatchdogAction::Reset,
    });
    order.spec.serial = Some(Serial {
        output: FileSource::Path(directory.path().join("console.log")),
        input: Some(FileSource::Path("/dev/zero".into())),
    });
    let machine = spawned(directory.path(), order.jail.uid).start(&order, &[]).expect("it starts");
    assert!(machine.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
    let record = machine.exit_record().expect("the record is read");
    let record = record.unwrap_or_else(|| panic!("signal {:?}, {}", machine.signal(), support::log(directory.path())));
    let action = WatchdogAction::Reset;
    assert_eq!(record.report.exit, MachineExit::Watchdog { action });
}

fn a_running_process_is_adopted_and_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = spinning(directory.path());
    let Ok(Adoption::Running(second)) = adopt(directory.path()) else {
        panic!("it runs and answers")
    };
    assert_eq!((first.pid(), first.start_time()), (second.pid(), second.start_time()));
    assert_eq!(
        second.control().and_then(|mut control| control.status()).expect("status").pid,
        first.pid()
    );
    second.kill_process().expect("it is killed");
    assert!(second.wait(SOON).expect("its pidfd can be polled"));
    first.reap();
    assert!(matches!(adopt(directory.path()), Ok(Adoption::Ended(None))));
}

fn a_recycled_pid_is_not_adopted() {
    let directory = tempfile::tempdir().expect("a directory");
    assert!(matches!(adopt(directory.path()), Ok(Adoption::Never)));
    let machine = spinning(directory.path());
    let record = directory.path().join("machine.json");
    let text = fs::read_to_string(&record).expect("it is there");
    // The same pid, started at another time: another process.
    let other = text.replace(&machine.start_time().to_string(), &(machine.start_time() + 1).to_string());
    assert_ne!(other, text);
    fs::write(&record, other).expect("it is written");
    assert!(matches!(adopt(directory.path()), Ok(Adoption::Ended(None))));
    // The same pid and time in another boot.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("it is there");
    fs::write(&record, text.replace(boot.trim(), "00000000-0000-0000-0000-000000000000")).expect("it is written");
    assert!(matches!(adopt(directory.path()), Ok(Adoption::Ended(None))));
    fs::write(&record, text).expect("it is written");
    assert!(matches!(adopt(directory.path()), Ok(Adoption::Running(_))));
    machine.kill_process().expect("it is killed");
    assert!(machine.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
}

fn a_process_without_an_order_ends_with_its_daemon() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(spawned(directory.path(), uid()));
    let machine = match adopt(directory.path()).expect("the record is read") {
        Adoption::Unresponsive(machine, _) => machine,
        Adoption::Ended(None) => return,
        other => panic!("{other:?}"),
    };
    assert!(machine.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
    assert!(matches!(adopt(directory.path()), Ok(Adoption::Ended(None))));
}

fn an_order_of_another_version_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut start = order(FileSource::Passed(0), uid());
    start.version = VERSION + 1;
    let refused = spawned(directory.path(), uid()).start(&start, &[]);
    assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
    assert!(matches!(adopt(directory.path()), Ok(Adoption::Ended(None))));
}

fn a_process_that_does_not_answer_is_told_apart() {
    let directory = tempfile::tempdir().expect("a directory");
    let machine = spinning(directory.path());
    fs::remove_file(directory.path().join("control.sock")).expect("it is there");
    let Ok(Adoption::Unresponsive(same, _)) = adopt(directory.path()) else {
        panic!("it lives without a socket")
    };
    assert_eq!(same.pid(), machine.pid());
    same.kill_process().expect("it is killed");
    assert!(same.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
}
