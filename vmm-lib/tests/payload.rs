//! Machines whose whole guest is a few instructions of ours: what every KVM that this library supports must do, a software one too.

mod support;

use std::time::{Duration, Instant};

use vmm_lib::exit::MachineExit;
use vmm_lib::spec::FileSource;
use vmm_lib::{BuildError, Builder};

use support::{HALT, Kernel, LOAD, bzimage, out_byte, run, say_which_kvm};

const SPIN: [u8; 2] = [0xeb, 0xfe];

/// An ELF kernel with a PVH note; `segments` are physical address and content, the entry is [`LOAD`].
fn elf(segments: &[(u64, &[u8])]) -> Vec<u8> {
    let note: Vec<u8> = [4u32, 4, 18]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .chain(*b"Xen\0")
        .chain((LOAD as u32).to_le_bytes())
        .collect();
    let headers = 64 + 56 * (segments.len() + 1);
    let mut body: Vec<u8> = Vec::new();
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(64, 0);
    image[16..18].copy_from_slice(&2u16.to_le_bytes());
    image[18..20].copy_from_slice(&62u16.to_le_bytes());
    image[32..40].copy_from_slice(&64u64.to_le_bytes());
    image[54..56].copy_from_slice(&56u16.to_le_bytes());
    image[56..58].copy_from_slice(&(segments.len() as u16 + 1).to_le_bytes());
    let pieces = segments
        .iter()
        .map(|(address, content)| (1u32, *address, *content))
        .chain([(4u32, 0, note.as_slice())]);
    for (kind, address, content) in pieces {
        image.extend(kind.to_le_bytes());
        image.extend(7u32.to_le_bytes());
        let size = content.len() as u64;
        for value in [(headers + body.len()) as u64, address, address, size, size, 4] {
            image.extend(value.to_le_bytes());
        }
        body.extend(content);
    }
    image.extend(body);
    image
}

fn build_error(image: &[u8]) -> String {
    let kernel = Kernel::new(image);
    let error = Builder::new(kernel.spec(1), Vec::new())
        .build()
        .err()
        .expect("such a kernel is refused");
    match error {
        BuildError::Boot(error) => error.to_string(),
        other => panic!("not an error of booting: {other}"),
    }
}

#[test]
fn a_64_bit_payload_powers_off_by_the_sleep_register() {
    let report = run(&bzimage(&[out_byte(0x600, 0x34), HALT.to_vec()].concat()), 1);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    let exits = report.exits.expect("counted");
    assert_eq!((exits.total, exits.ports.get(&0x600)), (1, Some(&1)));
}

#[test]
fn a_32_bit_pvh_payload_resets_by_the_reset_register() {
    let report = run(&elf(&[(LOAD, &[out_byte(0x602, 1), HALT.to_vec()].concat())]), 1);
    assert_eq!(report.exit, MachineExit::Reset);
}

#[test]
fn ports_and_memory_that_nobody_has_read_as_ones_and_swallow_writes() {
    // in $0x71, %al; mov %al, (0xd0000000); mov (0xd0000000), %eax; cmp $-1, %eax; jne halt; then power off.
    let mut code = vec![0xe4, 0x71, 0xbb, 0, 0, 0, 0xd0, 0x88, 0x03, 0x8b, 0x03, 0x83, 0xf8, 0xff, 0x75, 7];
    code.extend(out_byte(0x600, 0x34));
    code.extend(HALT);
    let report = run(&bzimage(&code), 1);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    let exits = report.exits.expect("counted");
    assert_eq!(exits.addresses.get(&0xd000_0000), Some(&2));
    assert_eq!(exits.ports.get(&0x71), Some(&1));
}

#[test]
fn configuration_space_is_read_without_an_exit_and_written_with_one() {
    // 10,000 reads of the host bridge's identity; the last one is compared.
    let mut code = vec![0xbb, 0, 0, 0, 0xe0, 0xb9, 0x10, 0x27, 0, 0, 0x8b, 0x03, 0xff, 0xc9, 0x75, 0xfa];
    code.extend([0x3d, 0x36, 0x1b, 0x08, 0x00, 0x75, 0]);
    let first_jump = code.len() - 1;
    // Sizing of the second function's BAR: write ones, read the mask back.
    code.extend([
        0xbb, 0x10, 0x80, 0, 0xe0, 0xc7, 0x03, 0xff, 0xff, 0xff, 0xff, 0x8b, 0x03, 0x3d, 0x0c, 0xc0, 0xff, 0xff, 0x75, 0,
    ]);
    let second_jump = code.len() - 1;
    code.extend(out_byte(0x600, 0x34));
    let end = code.len();
    code.extend(HALT);
    code[first_jump] = (end - first_jump - 1) as u8;
    code[second_jump] = (end - second_jump - 1) as u8;
    let report = run(&bzimage(&code), 1);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    let exits = report.exits.expect("counted");
    assert_eq!(exits.pci_config.get("00:01.0"), Some(&1));
    assert_eq!(exits.pci_config.get("00:00.0"), None, "{exits:?}");
}

#[test]
fn a_triple_fault_is_said_to_be_one() {
    // A read of an address without a page, and nobody to take the fault.
    let report = run(&bzimage(&[0x48, 0xbb, 0, 0, 0, 0, 0, 1, 0, 0, 0x8a, 0x03]), 1);
    assert_eq!(report.exit, MachineExit::TripleFault);
}

#[test]
fn a_spinning_guest_of_several_processors_is_stopped_at_once() {
    say_which_kvm();
    let kernel = Kernel::new(&bzimage(&SPIN));
    let machine = Builder::new(kernel.spec(4), Vec::new()).build().expect("this KVM makes machines");
    let handle = machine.handle();
    let stopper = std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(10);
        while handle.exit_counts().is_some_and(|counts| counts.total > 0) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        handle.stop();
        Instant::now()
    });
    let report = machine.run();
    let stopped = stopper.join().expect("the stopper does not panic");
    assert_eq!(report.exit, MachineExit::Stopped);
    assert_eq!(report.vcpu_cpu_micros.len(), 4);
    assert!(stopped.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_machine_that_was_stopped_before_it_ran_does_not_run() {
    let kernel = Kernel::new(&bzimage(&SPIN));
    let machine = Builder::new(kernel.spec(2), Vec::new()).build().expect("this KVM makes machines");
    machine.handle().stop();
    assert_eq!(machine.run().exit, MachineExit::Stopped);
}

#[test]
fn truncated_overlapping_and_misplaced_kernels_are_refused_by_name() {
    let good = elf(&[(LOAD, &HALT)]);
    let truncated = build_error(&good[..good.len() - 1]);
    assert!(truncated.contains("truncated"), "{truncated}");
    let whole = bzimage(&[0x90; 64]);
    let short = build_error(&whole[..whole.len() - 32]);
    assert!(short.contains("truncated"), "{short}");
    let overlapping = build_error(&elf(&[(LOAD, &[0; 64]), (LOAD + 32, &[0; 64])]));
    assert_eq!(overlapping, "pieces of the kernel overlap at 0x100020");
    let low = build_error(&elf(&[(0x1000, &HALT)]));
    assert!(low.starts_with("the kernel needs memory at 0x1000"), "{low}");
    let high = build_error(&elf(&[((32 << 20) - 1, &HALT)]));
    assert!(high.starts_with("the kernel needs memory at 0x1ffffff"), "{high}");
    let elsewhere = build_error(&elf(&[(LOAD + 0x1000, &HALT)]));
    assert!(elsewhere.contains("outside of what is loaded"), "{elsewhere}");
    for nothing in [&b""[..], b"\x7fEL", b"#!/bin/sh\n"] {
        assert_eq!(build_error(nothing), "the kernel is neither an x86-64 ELF file nor a bzImage");
    }
}

#[test]
fn an_initramfs_that_does_not_fit_is_refused() {
    let kernel = Kernel::new(&elf(&[(LOAD, &HALT)]));
    let initramfs = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    initramfs.as_file().set_len(31 << 20).expect("sparse files cost nothing");
    let mut spec = kernel.spec(1);
    spec.boot.initramfs = Some(FileSource::Path(initramfs.path().into()));
    let error = Builder::new(spec, Vec::new()).build().err().expect("there is no room");
    let BuildError::Boot(error) = error else {
        panic!("not an error of booting: {error}")
    };
    assert!(
        error.to_string().starts_with("the initramfs of 32505856 bytes does not fit"),
        "{error}"
    );
}
