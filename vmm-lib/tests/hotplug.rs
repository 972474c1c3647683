//! Memory that comes and goes, on this machine's KVM: where it lies, that it costs nothing by itself, and who may ask for it.

mod support;

use support::{HALT, Kernel, at_4_gib, bzimage, out_byte, run_machine};
use vmm_lib::exit::MachineExit;
use vmm_lib::spec::{HOTPLUG_BLOCK, HOTPLUG_STEP, Hotplug, MachineSpec};
use vmm_lib::{Builder, Hotplugged, ResizeError};

fn machine(kernel: &Kernel, size: u64, requested: u64) -> MachineSpec {
    let mut spec = kernel.spec(1);
    spec.hotplug = Some(Hotplug { size, requested });
    spec
}

#[test]
fn the_region_lies_behind_ram_and_is_reached_without_an_exit() {
    let off = out_byte(0x600, 0x34);
    let skip = u8::try_from(off.len()).expect("the payload is short");
    // mov dword [rbx], 0x12345678; cmp dword [rbx], 0x12345678; jne halt; power off.
    let word = [0x78, 0x56, 0x34, 0x12];
    let code = [&[0xc7, 0x03][..], &word, &[0x81, 0x3b], &word, &[0x75, skip], &off].concat();
    let kernel = Kernel::new(&bzimage(&at_4_gib(&[&code])));
    let machine = Builder::new(machine(&kernel, 64 << 30, 0), Vec::new()).build();
    let report = run_machine(machine.expect("room for more memory than this host has costs it nothing"));
    assert_eq!(report.exit, MachineExit::PoweredOff);
    assert_eq!(report.exits.expect("counted").total, 1, "the power-off");
}

#[test]
fn whoever_has_a_handle_asks_for_memory_and_is_told_what_there_is() {
    let kernel = Kernel::new(&bzimage(&HALT));
    let machine = Builder::new(machine(&kernel, HOTPLUG_STEP, HOTPLUG_BLOCK), Vec::new()).build();
    let handle = machine.expect("this KVM makes machines").handle();
    let told = |requested| Hotplugged {
        size: HOTPLUG_STEP,
        requested,
        plugged: 0,
    };
    assert_eq!(handle.hotplugged(), Some(told(HOTPLUG_BLOCK)));
    assert_eq!(handle.resize_memory(HOTPLUG_STEP), Ok(told(HOTPLUG_STEP)));
    assert_eq!(handle.resize_memory(4096), Err(ResizeError::NotWhole(4096)));
    let (requested, size) = (HOTPLUG_STEP + HOTPLUG_BLOCK, HOTPLUG_STEP);
    assert_eq!(handle.resize_memory(requested), Err(ResizeError::TooMuch { requested, size }));
    assert_eq!(handle.hotplugged(), Some(told(HOTPLUG_STEP)));
    let without = Builder::new(kernel.spec(1), Vec::new())
        .build()
        .expect("this KVM makes machines")
        .handle();
    assert_eq!((without.hotplugged(), without.resize_memory(0)), (None, Err(ResizeError::NoRegion)));
}
