//! Payloads: guests of a few instructions, and how they are run. Each test program uses a part of it.
#![allow(dead_code)]

mod bzimage;
pub mod script;

use std::fmt::Write as _;
use std::time::Duration;

pub(crate) use bzimage::{LOAD, bzimage};
use vmm_lib::exit::MachineReport;
use vmm_lib::spec::{Boot, FileSource, MachineSpec, SPEC_VERSION};
use vmm_lib::{Builder, Machine};

/// `mov $value, %al; mov $port, %dx; out %al, %dx`.
pub fn out_byte(port: u16, value: u8) -> Vec<u8> {
    // The 16-bit immediate needs an operand size prefix both in 32 and in 64 bits.
    let [low, high] = port.to_le_bytes();
    vec![0xb0, value, 0x66, 0xba, low, high, 0xee]
}

pub const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];

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
            serial: None,
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
