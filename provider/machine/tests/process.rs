//! Machine processes, spawned for real: this program is its own machine process when its argument is `vm`. None of these machines gets as far
//! as a processor; how a machine runs is shown by the machine library's tests and end to end.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::Duration,
};

use kvmlet_machine::{Adoption, ClientError, Machine, Spawned, Start, VERSION, adopt, run, spawn};
use vmm_lib::{
    exit::MachineExit,
    spec::{Boot, FileSource, MachineSpec, SPEC_VERSION},
};

const SOON: Option<Duration> = Some(Duration::from_secs(20));

fn main() {
    if std::env::args().nth(1).as_deref() == Some("vm") {
        std::process::exit(i32::from(run().is_err()));
    }
    let tests: [(&str, fn()); 6] = [
        (
            "a_machine_that_cannot_be_built_leaves_a_record_of_why",
            a_machine_that_cannot_be_built_leaves_a_record_of_why,
        ),
        ("a_running_process_is_adopted_and_killed", a_running_process_is_adopted_and_killed),
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
    ];
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'))
        .unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&filter)) {
        let ok = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        if ok { passed += 1 } else { failed += 1 }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n");
    assert!(failed == 0, "{failed} failed");
}

fn order(kernel: FileSource) -> Start {
    Start {
        version: VERSION,
        spec: MachineSpec {
            version: SPEC_VERSION,
            name: "test".into(),
            cpus: 1,
            memory: 64 << 20,
            boot: Boot {
                kernel,
                initramfs: None,
                command_line: String::new(),
            },
            disks: vec![],
            nets: vec![],
            vsock: None,
            rng: false,
            serial: None,
            count_exits: false,
        },
        log_filter: "info".into(),
    }
}

fn spawned(directory: &Path) -> Spawned {
    spawn(directory, None, &["vm"]).expect("a process is spawned")
}

/// A machine process that does not get further than opening its kernel, which is a pipe nobody writes to.
fn stuck(directory: &Path) -> Machine {
    let pipe = directory.join("kernel");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("a pipe is made");
    let machine = spawned(directory).start(&order(FileSource::Path(pipe)), &[]).expect("it starts");
    assert!(!machine.wait(Some(Duration::ZERO)).expect("its pidfd can be polled"));
    machine
}

fn a_machine_that_cannot_be_built_leaves_a_record_of_why() {
    let directory = tempfile::tempdir().expect("a directory");
    let kernel: OwnedFd = File::open("/dev/null").expect("/dev/null opens").into();
    let process = spawned(directory.path());
    assert!(process.pid() > 1);
    let machine = process.start(&order(FileSource::Passed(0)), &[kernel]).expect("the order is taken");
    assert!(machine.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
    let record = machine.exit_record().expect("the record is read").expect("there is one");
    assert!(
        matches!(&record.report.exit, MachineExit::Error { what } if !what.is_empty()),
        "{record:?}"
    );
    assert!(record.started <= record.ended);
    assert!(matches!(adopt(directory.path()), Ok(Adoption::Ended(Some(adopted))) if adopted == record));
    assert!(!directory.path().join("control.sock").exists());
}

fn a_running_process_is_adopted_and_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = stuck(directory.path());
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
    let machine = stuck(directory.path());
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
    drop(spawned(directory.path()));
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
    let mut start = order(FileSource::Passed(0));
    start.version = VERSION + 1;
    let refused = spawned(directory.path()).start(&start, &[]);
    assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
    assert!(matches!(adopt(directory.path()), Ok(Adoption::Ended(None))));
}

fn a_process_that_does_not_answer_is_told_apart() {
    let directory = tempfile::tempdir().expect("a directory");
    let machine = stuck(directory.path());
    fs::remove_file(directory.path().join("control.sock")).expect("it is there");
    let Ok(Adoption::Unresponsive(same, _)) = adopt(directory.path()) else {
        panic!("it lives without a socket")
    };
    assert_eq!(same.pid(), machine.pid());
    same.kill_process().expect("it is killed");
    assert!(same.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
}
