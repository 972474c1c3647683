//! A host that is out of files or of memory: there is no machine, and the error names what there was not; or a device cannot start, its guest is
//! told, and the machine goes on. Nothing panics. Each case is a process of its own, this program, as a limit is a process's.

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::drive::*;
use support::script::Script;
use support::{HALT, Kernel, bzimage, out_byte, refusal, told};
use vmm_lib::exit::MachineExit;
use vmm_lib::spec::{Console, Disk, DiskEngine, DiskFormat, Extent, FileSource, Limits, MachineSpec, Vsock};
use vmm_lib::threads::ThreadKind;
use vmm_lib::{BuildError, Builder};

/// Tells the process that it is one of these, and which.
const CASE: &str = "VMM_LIB_LIMITED";
const MIB: u64 = 1 << 20;

const CASES: [(&str, fn()); 4] = [
    ("files", each_file_that_there_is_not_is_named),
    ("memory", memory_that_there_is_not_is_named),
    ("stacks", a_processor_without_a_thread_ends_its_machine_by_name),
    (
        "devices",
        a_device_without_files_or_a_thread_asks_for_a_reset_and_the_machine_goes_on,
    ),
];

#[test]
fn a_host_out_of_files_or_memory_makes_no_machine_and_says_what_it_is_out_of() {
    for (name, _) in CASES {
        let program = std::env::current_exe().expect("it has a path");
        let mut command = Command::new(program);
        command.args(["--exact", "one_case", "--nocapture"]).env(CASE, name);
        let output = command.output().expect("it starts");
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        assert!(
            output.status.success() && said[0].contains("1 passed"),
            "{name}: {}",
            said.join("\n")
        );
    }
}

/// What the processes do.
#[test]
fn one_case() {
    let Ok(name) = std::env::var(CASE) else { return };
    let case = CASES.iter().find(|(known, _)| *known == name);
    case.expect("it is one of them").1();
}

/// The soft limit, which can be taken back; none for 0.
fn limit(resource: Resource, most: u64) {
    let maximum = getrlimit(resource).maximum;
    let current = if most == 0 { maximum } else { Some(most) };
    setrlimit(resource, Rlimit { current, maximum }).expect("a soft limit may be anything below");
}

/// The lowest number that an open file can have: a limit of so many leaves none.
fn files() -> u64 {
    let next = File::open("/dev/null").expect("there is one more").as_raw_fd();
    next.try_into().expect("a number")
}

/// Bytes of address space.
fn size() -> u64 {
    let status = fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages: u64 = status
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .expect("a number");
    pages * 4096
}

fn power_off() -> Kernel {
    Kernel::new(&bzimage(&[&out_byte(0x600, 0x34)[..], &HALT].concat()))
}

fn each_file_that_there_is_not_is_named() {
    let (kernel, directory) = (power_off(), tempfile::tempdir().expect("a directory"));
    let disk = directory.path().join("disk");
    fs::write(&disk, [0; 512]).expect("it can be written");
    let spec = MachineSpec {
        disks: vec![Disk {
            serial: "disk".into(),
            extents: vec![Extent {
                file: FileSource::Path(disk),
                offset: 0,
                length: 512,
            }],
            read_only: true,
            format: DiskFormat::Raw,
            limits: Limits::default(),
            engine: DiskEngine::Calls,
        }],
        vsock: Some(Vsock {
            cid: 3,
            socket: FileSource::Path(directory.path().join("vsock")),
        }),
        console: Some(Console {
            output: FileSource::Path(directory.path().join("console")),
            input: None,
            size: None,
        }),
        balloon: true,
        ..kernel.spec(2)
    };
    let (open, mut refused) = (files(), Vec::new());
    let machine = loop {
        limit(Resource::Nofile, open + refused.len() as u64);
        match Builder::new(spec.clone(), Vec::new()).build() {
            Ok(machine) => break machine,
            // Made once: whether the files of the kernel are closed by the time that others are opened is a matter of time.
            Err(error) => refused.push(told(&error)),
        }
        assert!(refused.len() < 500, "a machine has not so many files");
    };
    limit(Resource::Nofile, 0);
    assert_eq!(machine.run().exit, MachineExit::PoweredOff);
    for text in &refused {
        assert!(text.contains("Too many open files"), "{text}");
    }
    // Which steps these were.
    let steps: BTreeSet<_> = refused.iter().filter_map(|text| text.split(": ").next()).collect();
    for step in ["open the machine's files", "use KVM", "create the virtual machine", "make devices"] {
        assert!(steps.contains(step), "{step:?} is not among {steps:?}");
    }
    assert_eq!(files(), open, "nothing stays open of machines that were not made");
}

fn memory_that_there_is_not_is_named() {
    let kernel = power_off();
    let spec = MachineSpec {
        memory: 1024 * MIB,
        ..kernel.spec(1)
    };
    limit(Resource::As, size() + 256 * MIB);
    let refused = Builder::new(spec.clone(), Vec::new()).build().err().expect("there is not so much");
    assert!(matches!(refused, BuildError::Memory(_)), "{refused:?}");
    let text = refusal(spec, Vec::new());
    assert!(
        text.starts_with("make guest memory: map 1073741824 bytes of guest memory: ") && text.contains("os error 12"),
        "{text}"
    );
    let small = Builder::new(kernel.spec(1), Vec::new()).build();
    assert_eq!(small.expect("for a small one there is enough").run().exit, MachineExit::PoweredOff);
}

fn a_processor_without_a_thread_ends_its_machine_by_name() {
    let kernel = power_off();
    let machine = Builder::new(kernel.spec(1), Vec::new()).build().expect("this KVM makes machines");
    // libc keeps the stack of the thread that loaded the kernel for the next one.
    let _taken = thread::spawn(thread::park);
    // Less than a stack.
    limit(Resource::As, size() + MIB);
    let exit = machine.run().exit;
    limit(Resource::As, 0);
    let MachineExit::Error { what } = exit else {
        panic!("{exit:?}");
    };
    assert!(what.starts_with("start processor 0: "), "{what}");
}

fn a_device_without_files_or_a_thread_asks_for_a_reset_and_the_machine_goes_on() {
    let mut script = Script::default();
    place(&mut script, 1, BAR);
    bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
    script.say(BAR + STATUS);
    let said = |take: fn()| {
        let (output, (_kernel, spec)) = script.spec(|spec| spec.rng = true);
        let enter = move |kind| {
            if kind == ThreadKind::Vcpu {
                take();
            }
            Ok(())
        };
        let machine = Builder::new(spec, Vec::new()).enter(Arc::new(enter)).build();
        let exit = machine.expect("this KVM makes machines").run().exit;
        limit(Resource::Nofile, 0);
        limit(Resource::As, 0);
        assert_eq!(exit, MachineExit::PoweredOff);
        fs::read(output.path()).expect("it is there")
    };
    // Less than its stack; first, as the C library keeps stacks of threads that have ended.
    assert_eq!(said(|| limit(Resource::As, size() + 128 * 1024)), [READY | NEEDS_RESET]);
    assert_eq!(said(|| limit(Resource::Nofile, files())), [READY | NEEDS_RESET]);
    assert_eq!(said(|| {}), [READY]);
}
