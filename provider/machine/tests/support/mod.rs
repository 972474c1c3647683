//! Machines of a few instructions, spawned for real: the test's own program is their machine process, when its argument is `vm`.

// Not every test uses all of it.
#![allow(dead_code)]

#[path = "../../../../vmm-lib/tests/support/bzimage.rs"]
mod bzimage;
pub(crate) mod guest;
pub(crate) mod outside;

use std::{
    fs,
    panic::{UnwindSafe, catch_unwind},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use kvmlet_machine::{Machine, MachineState, Program, Spawned, Start, VERSION, jail::Jail, run, spawn};
use vmm_lib::spec::{Boot, FileSource, MachineSpec, SPEC_VERSION};

pub(crate) const SOON: Option<Duration> = Some(Duration::from_secs(20));

/// `jmp` to itself.
pub(crate) const SPIN: [u8; 2] = [0xeb, 0xfe];

/// A test and its name.
pub(crate) type Test = (&'static str, fn());

/// Runs the tests whose names contain the argument, or a machine process.
pub(crate) fn main(tests: &[Test]) {
    if std::env::args().nth(1).as_deref() == Some("vm") {
        std::process::exit(i32::from(run().is_err()));
    }
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'))
        .unwrap_or_default();
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&filter)) {
        let ok = attempt(*test);
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        if ok { passed += 1 } else { failed += 1 }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n");
    assert!(failed == 0, "{failed} failed");
}

/// This program.
pub(crate) fn own() -> Program {
    Program::open(Path::new("/proc/self/exe")).expect("it can be read")
}

fn attempt(test: impl FnOnce() + UnwindSafe) -> bool {
    let passed = catch_unwind(test).is_ok();
    if !passed {
        end_machines();
    }
    passed
}

/// A machine outlives whoever started it, also a test that failed.
fn end_machines() {
    let lists = fs::read_dir("/proc/self/task").expect("it is there");
    let children = lists.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    for child in children.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()) {
        // Nobody waits for it, so the number is still its own.
        let child = child.parse().ok().and_then(rustix::process::Pid::from_raw);
        let _ = child.map(|child| rustix::process::kill_process(child, rustix::process::Signal::KILL));
    }
}

/// A user that no other machine of this test has.
pub(crate) fn uid() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Several test programs may run at once.
    300_000 + std::process::id() % 1000 * 1000 + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The order to run a machine with this kernel.
pub(crate) fn order(kernel: FileSource, uid: u32) -> Start {
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
            pmems: vec![],
            shares: Vec::new(),
            nets: vec![],
            vsock: None,
            rng: false,
            balloon: false,
            hotplug: None,
            serial: None,
            comb: None,
            restore: None,
            pmem_room: 0,
            dirty_log: false,
            console: None,
            watchdog: None,
            count_exits: false,
        },
        jail: Jail { uid, file_size: 1 << 30 },
        template: false,
        log_filter: "info".into(),
    }
}

pub(crate) fn spawned(directory: &Path, uid: u32) -> Spawned {
    spawn(directory, uid, &own()).expect("a process is spawned")
}

/// A kernel in the directory.
pub(crate) fn kernel(directory: &Path, code: &[u8]) -> FileSource {
    let path = directory.join("kernel");
    fs::write(&path, bzimage::bzimage(code)).expect("it is written");
    FileSource::Path(path)
}

/// Starts what is ordered and waits until a guest runs.
pub(crate) fn running(directory: &Path, order: &Start) -> Machine {
    let machine = spawned(directory, order.jail.uid).start(order, &[]).expect("it starts");
    let end = Instant::now() + SOON.expect("it is soon");
    loop {
        let status = machine.control().and_then(|mut control| control.status());
        match status {
            Ok(status) if status.state == MachineState::Running => return machine,
            Ok(_) if Instant::now() < end => thread::sleep(Duration::from_millis(10)),
            other => panic!("{other:?}, {:?}, {}", machine.exit_record(), log(directory)),
        }
    }
}

pub(crate) fn log(directory: &Path) -> String {
    fs::read_to_string(directory.join("machine.log")).unwrap_or_default()
}
