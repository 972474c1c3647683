//! The serial port as a console in both directions, and a guest that floods it.

mod support;

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::thread;

use vmm_lib::Builder;
use vmm_lib::exit::MachineExit;
use vmm_lib::spec::{Console, FileSource, Serial};

use support::{HALT, Kernel, bzimage, out_byte, refusal, run_machine, run_spec};

/// Echoes what its serial port gets until a `q`, then powers off.
fn echo() -> Vec<u8> {
    // wait: mov $0x3fd, %dx; in %dx, %al; test $1, %al; jz wait; mov $0x3f8, %dx; in %dx, %al; out %al, %dx; cmp $'q', %al; jne wait
    let mut code = vec![0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7];
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0x3c, b'q', 0x75, 0xed]);
    code.extend(out_byte(0x600, 0x34));
    code.extend(HALT);
    bzimage(&code)
}

/// Says the same for ever: mov $'y', %al; mov $0x3f8, %dx; out %al, %dx; jmp back.
fn flood() -> Vec<u8> {
    bzimage(&[0xb0, b'y', 0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd])
}

fn unblocking(end: impl Into<OwnedFd>) -> OwnedFd {
    let end = end.into();
    rustix::io::ioctl_fionbio(&end, true).expect("pipes can be told");
    end
}

fn pipes() -> ((PipeReader, PipeWriter), (PipeReader, PipeWriter)) {
    let pipe = || std::io::pipe().expect("a pipe is to be had");
    (pipe(), pipe())
}

#[test]
fn what_is_typed_reaches_the_serial_port_however_much_it_is() {
    let kernel = Kernel::new(&echo());
    let ((mut shown, output), (input, mut typed)) = pipes();
    let mut spec = kernel.spec(1);
    spec.serial = Some(Serial {
        output: FileSource::Passed(0),
        input: Some(FileSource::Passed(1)),
    });
    let machine = Builder::new(spec, vec![unblocking(output), unblocking(input)]);
    let machine = machine.build().expect("this KVM makes machines");
    let text = vec![b'x'; 5000];
    let mut all = text.clone();
    all.push(b'q');
    typed.write_all(&all).expect("a pipe has room for it");
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        shown.read_to_end(&mut said).expect("it ends with the machine");
        said
    });
    assert_eq!(run_machine(machine).exit, MachineExit::PoweredOff);
    assert_eq!(reader.join().expect("it does not panic"), all);
}

#[test]
fn a_machine_ends_though_nobody_types_and_its_input_stays_open() {
    let kernel = Kernel::new(&bzimage(&[out_byte(0x600, 0x34), HALT.to_vec()].concat()));
    let (_, (input, _typed)) = pipes();
    let mut spec = kernel.spec(1);
    spec.serial = Some(Serial {
        output: FileSource::Path("/dev/null".into()),
        input: Some(FileSource::Passed(0)),
    });
    let machine = Builder::new(spec, vec![unblocking(input)])
        .build()
        .expect("this KVM makes machines");
    assert_eq!(run_machine(machine).exit, MachineExit::PoweredOff);
}

#[test]
fn a_guest_that_floods_its_serial_port_is_held_to_a_rate_and_stopped_at_once() {
    let kernel = Kernel::new(&flood());
    let output = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    let mut spec = kernel.spec(1);
    spec.serial = Some(Serial {
        output: FileSource::Path(output.path().into()),
        input: None,
    });
    let begun = std::time::Instant::now();
    let machine = Builder::new(spec, Vec::new()).build().expect("this KVM makes machines");
    let handle = machine.handle();
    let stopper = thread::spawn(move || {
        thread::sleep(std::time::Duration::from_secs(2));
        handle.stop();
    });
    let report = run_machine(machine);
    stopper.join().expect("it does not panic");
    assert_eq!(report.exit, MachineExit::Stopped);
    let written = output.path().metadata().expect("it is there").len();
    // 4 MiB at once, then 1 MiB a second.
    let most = (4 << 20) + (begun.elapsed().as_secs() + 1) * (1 << 20);
    assert!((1..most).contains(&written), "{written} bytes");
    let said = report.exits.expect("counted").ports[&0x3f8];
    eprintln!("{said} bytes said, {written} written");
}

#[test]
fn a_host_that_does_not_read_the_serial_port_holds_no_processor_up() {
    // A page of a pipe is soon full; then the guest goes on to power off.
    let say: Vec<u8> = [0xb9u8].into_iter().chain(80_000u32.to_le_bytes()).collect();
    // mov $80000, %ecx; mov $'y', %al; mov $0x3f8, %dx; again: out %al, %dx; dec %ecx; jnz again
    let mut code = [say, vec![0xb0, b'y', 0x66, 0xba, 0xf8, 0x03, 0xee, 0xff, 0xc9, 0x75, 0xfb]].concat();
    code.extend(out_byte(0x600, 0x34));
    code.extend(HALT);
    let kernel = Kernel::new(&bzimage(&code));
    let ((_shown, output), _) = pipes();
    let mut spec = kernel.spec(1);
    spec.serial = Some(Serial {
        output: FileSource::Passed(0),
        input: None,
    });
    let machine = Builder::new(spec, vec![unblocking(output)])
        .build()
        .expect("this KVM makes machines");
    assert_eq!(run_machine(machine).exit, MachineExit::PoweredOff);
}

#[test]
fn a_console_that_could_block_is_refused_by_name() {
    let kernel = Kernel::new(&echo());
    let ((_shown, output), (input, _typed)) = pipes();
    let mut spec = kernel.spec(1);
    spec.console = Some(Console {
        output: FileSource::Passed(0),
        input: Some(FileSource::Passed(1)),
        size: None,
    });
    let blocking: [OwnedFd; 2] = [output.into(), input.into()];
    let copy = |fd: &OwnedFd| fd.try_clone().expect("a descriptor is to be had");
    let text = refusal(spec.clone(), blocking.iter().map(copy).collect());
    assert!(text.contains("console.output") && text.contains("O_NONBLOCK"), "{text}");
    rustix::io::ioctl_fionbio(&blocking[0], true).expect("pipes can be told");
    let text = refusal(spec.clone(), blocking.iter().map(copy).collect());
    assert!(text.contains("console.input") && text.contains("O_NONBLOCK"), "{text}");
    rustix::io::ioctl_fionbio(&blocking[1], true).expect("pipes can be told");
    Builder::new(spec, blocking.into()).build().expect("now it is taken");
}

#[test]
fn a_machine_with_a_console_that_its_guest_never_uses_runs_and_ends() {
    let kernel = Kernel::new(&bzimage(&[out_byte(0x600, 0x34), HALT.to_vec()].concat()));
    let mut spec = kernel.spec(1);
    spec.console = Some(Console {
        output: FileSource::Path("/dev/null".into()),
        input: Some(FileSource::Path("/dev/zero".into())),
        size: None,
    });
    assert_eq!(run_spec(spec).exit, MachineExit::PoweredOff);
}
