//! A guest that carries out a list: writes and reads of any address, waits, ports. What it reads comes out of its serial port.

use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use vmm_lib::exit::MachineReport;
use vmm_lib::spec::{FileSource, MachineSpec, Serial};
use vmm_lib::{BuildError, Builder, Handle};

use super::{HALT, Kernel, LOAD, bzimage, out_byte, run_machine, run_spec};

/// Behind the code.
const LIST: u64 = LOAD + 0x400;
const READ: u64 = 0x10;
const WAIT: u64 = 0x11;
const JUMP: u64 = 0x12;
const PUSH: u64 = 0x13;
const READ_LONG: u64 = 0x14;
const WAIT_FOR_ANOTHER: u64 = 0x15;
const FLOOD: u64 = 0x16;

/// The list: kind (or width), address, value.
#[derive(Default)]
pub struct Script(Vec<[u64; 3]>);

impl Script {
    /// Writes `width` bytes, 1, 2, 4 or 8.
    pub fn write(&mut self, width: u64, address: u64, value: u64) -> &mut Self {
        self.0.push([width, address, value]);
        self
    }

    /// Reads a byte and says it.
    pub fn say(&mut self, address: u64) -> &mut Self {
        self.0.push([READ, address, 0]);
        self
    }

    /// Reads four bytes at once and says the lowest.
    pub fn say_long(&mut self, address: u64) -> &mut Self {
        self.0.push([READ_LONG, address, 0]);
        self
    }

    /// Waits until one of `bits` is set in a byte.
    pub fn wait(&mut self, address: u64, bits: u8) -> &mut Self {
        self.0.push([WAIT, address, u64::from(bits)]);
        self
    }

    /// Waits until eight bytes are others than they are now.
    pub fn wait_for_another(&mut self, address: u64) -> &mut Self {
        self.0.push([WAIT_FOR_ANOTHER, address, 0]);
        self
    }

    /// Writes two bytes of zeros so often.
    pub fn flood(&mut self, address: u64, count: u64) -> &mut Self {
        self.0.push([FLOOD, address, count]);
        self
    }

    /// Stays there, and writes nothing.
    pub fn stay(&mut self) -> &mut Self {
        self.wait(LIST, 0)
    }

    /// Goes on at an address, for good.
    pub fn jump(&mut self, address: u64) -> &mut Self {
        self.0.push([JUMP, address, 0]);
        self
    }

    /// Pushes onto a stack that ends there.
    pub fn push(&mut self, address: u64) -> &mut Self {
        self.0.push([PUSH, address, 0]);
        self
    }

    /// Runs it, then powers off. The report, and what was said.
    pub fn run(&self, devices: impl FnOnce(&mut MachineSpec)) -> (MachineReport, Vec<u8>) {
        let (output, spec) = self.spec(devices);
        let report = run_spec(spec.1);
        (report, std::fs::read(output.path()).expect("it is there"))
    }

    /// Runs it on a thread of its own.
    pub fn begin(&self, devices: impl FnOnce(&mut MachineSpec)) -> Running {
        self.begin_with(Vec::new(), devices)
    }

    /// The same of a machine that gets these open files.
    pub fn begin_with(&self, files: Vec<OwnedFd>, devices: impl FnOnce(&mut MachineSpec)) -> Running {
        let (output, (_kernel, spec)) = self.spec(devices);
        let machine = Builder::new(spec, files).build().expect("this KVM makes machines");
        let handle = machine.handle();
        let named = std::thread::Builder::new().name("machine".into());
        let thread = named.spawn(|| run_machine(machine));
        Running {
            handle,
            output,
            thread: thread.expect("the host has a thread"),
        }
    }

    /// Why there is no such machine.
    pub fn refused(&self, devices: impl FnOnce(&mut MachineSpec)) -> BuildError {
        let (_output, (_kernel, spec)) = self.spec(devices);
        let built = Builder::new(spec, Vec::new()).build();
        built.err().expect("it is refused")
    }

    /// Where it will say what it says, and a machine that runs it, whose kernel has to stay.
    pub fn spec(&self, devices: impl FnOnce(&mut MachineSpec)) -> (NamedTempFile, (Kernel, MachineSpec)) {
        let output = NamedTempFile::new().expect("a temporary file can be made");
        let kernel = Kernel::new(&bzimage(&self.code()));
        let mut spec = kernel.spec(1);
        spec.serial = Some(Serial {
            output: FileSource::Path(output.path().into()),
            input: None,
        });
        devices(&mut spec);
        (output, (kernel, spec))
    }

    fn code(&self) -> Vec<u8> {
        // mov $LIST, %rsi; then for each: kind to %rcx, address to %rdi, value to %rax.
        let mut code = vec![0x48, 0xbe];
        code.extend(LIST.to_le_bytes());
        let next = code.len();
        code.extend([0x48, 0xad, 0x48, 0x89, 0xc1, 0x48, 0xad, 0x48, 0x89, 0xc7, 0x48, 0xad]);
        let serial = [&[0x8a, 0x07, 0x66, 0xba, 0xf8, 0x03][..], &[0xee]].concat();
        let serial_long = [&[0x8b][..], &serial[1..]].concat();
        let kinds: [(u64, &[u8]); 11] = [
            (1, &[0x88, 0x07]),
            (2, &[0x66, 0x89, 0x07]),
            (4, &[0x89, 0x07]),
            (8, &[0x48, 0x89, 0x07]),
            // mov (%rdi), %al; mov $0x3f8, %dx; out %al, %dx
            (READ, &serial),
            // The same with mov (%rdi), %eax.
            (READ_LONG, &serial_long),
            // pause; test %al, (%rdi); jz back
            (WAIT, &[0xf3, 0x90, 0x84, 0x07, 0x74, 0xfa]),
            // mov (%rdi), %rax; pause; cmp %rax, (%rdi); je back to pause
            (WAIT_FOR_ANOTHER, &[0x48, 0x8b, 0x07, 0xf3, 0x90, 0x48, 0x39, 0x07, 0x74, 0xf9]),
            // movw $0, (%rdi); dec %rax; jnz back
            (FLOOD, &[0x66, 0xc7, 0x07, 0x00, 0x00, 0x48, 0xff, 0xc8, 0x75, 0xf6]),
            // jmp *%rdi
            (JUMP, &[0xff, 0xe7]),
            // mov %rdi, %rsp; push %rax
            (PUSH, &[0x48, 0x89, 0xfc, 0x50]),
        ];
        for (kind, body) in kinds {
            // cmp $kind, %cl; jne over; body; jmp next
            code.extend([0x80, 0xf9, kind as u8, 0x75, body.len() as u8 + 5]);
            code.extend(body);
            let back = next as i64 - (code.len() as i64 + 5);
            code.push(0xe9);
            code.extend((back as i32).to_le_bytes());
        }
        code.extend(out_byte(0x600, 0x34));
        code.extend(HALT);
        assert!(code.len() < 0x200, "the list lies behind the code");
        code.resize(0x200, 0x90);
        code.extend(self.0.iter().flatten().flat_map(|word| word.to_le_bytes()));
        code.extend([0; 24]);
        code
    }
}

/// A script that runs.
pub struct Running {
    pub handle: Handle,
    output: NamedTempFile,
    thread: JoinHandle<MachineReport>,
}

impl Running {
    /// Waits until it has said so many bytes, which are returned.
    pub fn said(&self, count: usize) -> Vec<u8> {
        let begun = Instant::now();
        loop {
            let said = std::fs::read(self.output.path()).expect("it is there");
            if said.len() >= count {
                return said;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "the guest has only said {said:x?}");
            std::thread::yield_now();
        }
    }

    /// Its end, and all that it has said.
    pub fn end(self) -> (MachineReport, Vec<u8>) {
        let report = self.thread.join().expect("the machine does not panic");
        (report, std::fs::read(self.output.path()).expect("it is there"))
    }
}
