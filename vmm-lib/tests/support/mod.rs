//! Payloads: guests of a few instructions, and how they are run. Each test program uses a part of it.
#![allow(dead_code)]

mod bzimage;
pub mod drive;
pub mod network;
pub mod script;

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::time::Duration;

pub(crate) use bzimage::{LOAD, bzimage};
use vmm_lib::exit::MachineReport;
use vmm_lib::spec::{Boot, FileSource, MachineSpec, SPEC_VERSION};
use vmm_lib::{BuildError, Builder, Machine};

/// `mov $value, %al; mov $port, %dx; out %al, %dx`.
pub fn out_byte(port: u16, value: u8) -> Vec<u8> {
    // The 16-bit immediate needs an operand size prefix both in 32 and in 64 bits.
    let [low, high] = port.to_le_bytes();
    vec![0xb0, value, 0x66, 0xba, low, high, 0xee]
}

pub const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];

/// Maps the first 2 MiB behind 4 GiB, where a small machine has what lies behind its RAM, in a page directory at 3 MiB behind the fifth
/// entry of the table of directories; their address is in rbx.
const MAP: [u8; 46] = [
    0x0f, 0x20, 0xd8, // mov rax, cr3
    0x48, 0x8b, 0x38, // mov rdi, [rax]
    0x48, 0x81, 0xe7, 0x00, 0xf0, 0xff, 0xff, // and rdi, -4096
    0xb8, 0x00, 0x00, 0x30, 0x00, // mov eax, 3 MiB
    0x48, 0xb9, 0x83, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, // mov rcx, 4 GiB, present, writable, large
    0x48, 0x89, 0x08, // mov [rax], rcx
    0x83, 0xc8, 0x03, // or eax, 3
    0x48, 0x89, 0x47, 0x20, // mov [rdi + 32], rax
    0xbb, 0x01, 0x00, 0x00, 0x00, // mov ebx, 1
    0x90, 0x90, 0x90, // nop
];
/// shl rbx, 32
const AT_4_GIB: [u8; 4] = [0x48, 0xc1, 0xe3, 0x20];

/// Does `what` with an address in rbx, 4 GiB, behind which 2 MiB are mapped; then halts.
pub fn at_4_gib(what: &[&[u8]]) -> Vec<u8> {
    [&MAP[..], &AT_4_GIB, &what.concat(), &HALT].concat()
}

/// A kernel in a temporary file.
pub struct Kernel {
    file: tempfile::NamedTempFile,
}

impl Kernel {
    /// Writes it.
    pub fn new(image: &[u8]) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        std::fs::write(file.path(), image).expect("and written");
        Self { file }
    }

    /// A machine that boots it.
    pub fn spec(&self, cpus: u8) -> MachineSpec {
        MachineSpec {
            version: SPEC_VERSION,
            name: "payload".into(),
            cpus,
            memory: 32 << 20,
            boot: Boot {
                kernel: FileSource::Path(self.file.path().into()),
                initramfs: None,
                command_line: "quiet".into(),
            },
            disks: Vec::new(),
            pmems: Vec::new(),
            shares: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            rng: true,
            balloon: false,
            hotplug: None,
            serial: None,
            comb: None,
            restore: None,
            pmem_room: 0,
            dirty_log: false,
            console: None,
            watchdog: None,
            count_exits: true,
        }
    }
}

/// Says in the test's output which KVM it ran on.
pub fn say_which_kvm() {
    let info = std::fs::read_to_string("/proc/cpuinfo").expect("Linux has it");
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or("");
    let hardware = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let mut line = String::new();
    write!(
        line,
        "KVM: {}",
        if hardware {
            "hardware (vmx or svm)"
        } else {
            "software (neither vmx nor svm)"
        }
    )
    .expect("strings take all");
    eprintln!("{line}, check: {:?}", vmm_lib::kvm::check());
}

/// Why there is no such machine, with all reasons.
pub fn refusal(spec: MachineSpec, files: Vec<OwnedFd>) -> String {
    told(&Builder::new(spec, files).build().err().expect("it is refused"))
}

/// An error with all its reasons.
pub fn told(error: &BuildError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Runs an image to its end.
pub fn run(image: &[u8], cpus: u8) -> MachineReport {
    run_spec(Kernel::new(image).spec(cpus))
}

/// Runs a machine to its end, or stops it after a while.
pub fn run_spec(spec: MachineSpec) -> MachineReport {
    say_which_kvm();
    run_machine(Builder::new(spec, Vec::new()).build().expect("this KVM makes machines"))
}

/// Runs what was built, as [`run_spec`] does.
pub fn run_machine(machine: Machine) -> MachineReport {
    let handle = machine.handle();
    let (done, ended) = std::sync::mpsc::channel();
    let guard = std::thread::spawn(move || {
        // A payload that hangs fails its test in place of hanging it.
        if ended.recv_timeout(Duration::from_secs(20)).is_err() {
            handle.stop();
        }
    });
    let report = machine.run();
    done.send(()).ok();
    guard.join().expect("the guard does not panic");
    report
}
