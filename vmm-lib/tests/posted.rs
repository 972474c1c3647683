//! Writes that cost no exit: what a driver writes before it makes its device act. Payloads on this host's KVM; the exits that they cost are
//! counted by address, and what the device makes of the writes is read back.

mod support;

use support::script::Script;
use vmm_lib::exit::{ExitCounts, MachineExit};

const CONFIG: u64 = 0xe000_0000 + 0x8000;
/// Where the payload puts the BAR: below 4 GiB, which its pages reach.
const BAR: u64 = 0xc000_0000;
/// Entries of KVM's ring.
const RING: u64 = 170;

const DRIVER_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 0xc;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const TABLE: u64 = 0x2000;

fn place(script: &mut Script, bar: u64) {
    script
        .write(4, CONFIG + 0x10, bar)
        .write(4, CONFIG + 0x14, bar >> 32)
        .write(2, CONFIG + 4, 6);
}

/// Up to FEATURES_OK: from here on queue registers can be written.
fn negotiate(script: &mut Script, bar: u64) {
    for status in [1, 3] {
        script.write(1, bar + STATUS, status);
    }
    script.write(4, bar + DRIVER_SELECT, 1).write(4, bar + DRIVER_FEATURE, 1);
    script.write(1, bar + STATUS, 11);
}

fn run(script: &Script) -> (ExitCounts, Vec<u8>) {
    let (report, said) = script.run(|spec| spec.rng = true);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    (report.exits.expect("exits are counted"), said)
}

/// Exits by addresses of a BAR, from its beginning.
fn at(exits: &ExitCounts, bar: u64) -> Vec<(u64, u64)> {
    let within = exits.addresses.range(bar..bar + 0x4000);
    within.map(|(address, count)| (address - bar, *count)).collect()
}

#[test]
fn a_driver_reads_what_it_has_written_and_only_status_and_reads_are_exits() {
    let mut script = Script::default();
    place(&mut script, BAR);
    negotiate(&mut script, BAR);
    script
        .write(2, BAR + QUEUE_SELECT, 0)
        .write(2, BAR + QUEUE_SIZE, 16)
        .write(2, BAR + 0x1a, 1);
    for (register, value) in [(0x20, 0x1234_5000), (0x24, 0), (0x28, 0x6000), (0x2c, 0), (0x30, 0x7000), (0x34, 0)] {
        script.write(4, BAR + register, value);
    }
    script
        .say(BAR + QUEUE_SIZE)
        .say(BAR + 0x1a)
        .say(BAR + 0x21)
        .say(BAR + 0x29)
        .say(BAR + 0x31);
    // Another queue, which this device does not have, and back: each read is of the queue selected before it.
    script.write(2, BAR + QUEUE_SELECT, 1).say(BAR + QUEUE_SIZE);
    script.write(2, BAR + QUEUE_SELECT, 0).say(BAR + QUEUE_SIZE);
    script.write(4, BAR, 1).say(BAR + 4).write(4, BAR, 2).say(BAR + 4).say(BAR + STATUS);
    let (exits, said) = run(&script);
    assert_eq!(said, [16, 1, 0x50, 0x60, 0x70, 0, 16, 1, 0, 11]);
    let reads = [(4, 2), (STATUS, 4), (QUEUE_SIZE, 3), (0x1a, 1), (0x21, 1), (0x29, 1), (0x31, 1)];
    assert_eq!(at(&exits, BAR), reads);
}

#[test]
fn messages_of_vectors_are_posted_and_what_masks_them_is_an_exit() {
    let mut script = Script::default();
    place(&mut script, BAR);
    for vector in 0..2 {
        let entry = BAR + TABLE + 16 * vector;
        script
            .write(4, entry, 0xfee0_0000)
            .write(4, entry + 4, 0)
            .write(4, entry + 8, 0x31 + vector);
        script.write(4, entry + 12, 0).say_long(entry + 8).say_long(entry + 12);
    }
    let (exits, said) = run(&script);
    assert_eq!(said, [0x31, 0, 0x32, 0]);
    let (first, second) = (TABLE, TABLE + 16);
    assert_eq!(
        at(&exits, BAR),
        [(first + 8, 1), (first + 12, 2), (second + 8, 1), (second + 12, 2)]
    );
}

#[test]
fn more_writes_than_the_ring_holds_arrive_all_and_in_order() {
    let mut script = Script::default();
    place(&mut script, BAR);
    negotiate(&mut script, BAR);
    let count = 3 * RING;
    for size in 1..=count {
        script.write(2, BAR + QUEUE_SIZE, size);
    }
    script.say(BAR + QUEUE_SIZE).say(BAR + QUEUE_SIZE + 1);
    let (exits, said) = run(&script);
    assert_eq!(said, (count as u16).to_le_bytes());
    let of_size: u64 = at(&exits, BAR)
        .iter()
        .filter(|(register, _)| *register == QUEUE_SIZE)
        .map(|(_, count)| count)
        .sum();
    // One for the read, and one each time that the ring is full.
    assert!((2..=5).contains(&of_size), "{of_size} exits");
}

#[test]
fn what_was_posted_before_a_bar_moves_reaches_its_device_and_writes_are_posted_at_the_new_place_only() {
    let mut script = Script::default();
    place(&mut script, BAR);
    negotiate(&mut script, BAR);
    let mut bar = BAR;
    for size in 1..=8u64 {
        script.write(2, bar + QUEUE_SIZE, size);
        bar = BAR + (size % 3) * 0x10_0000;
        place(&mut script, bar);
        script.say(bar + QUEUE_SIZE);
    }
    // Where it was: nobody's.
    script.write(2, BAR + QUEUE_SIZE, 99).say(bar + QUEUE_SIZE);
    // Nowhere, and back.
    place(&mut script, 0x100_0000);
    script.write(2, bar + QUEUE_SIZE, 98);
    place(&mut script, bar);
    script.say(bar + QUEUE_SIZE);
    let (exits, said) = run(&script);
    assert_eq!(said, [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]);
    let of_size = |place: u64| exits.addresses.get(&(BAR + place * 0x10_0000 + QUEUE_SIZE)).copied();
    // Reads, and the two writes that met nobody. Places follow one another as 1, 2, 0, 1, 2, 0, 1, 2.
    assert_eq!([of_size(0), of_size(1), of_size(2)], [Some(2 + 1), Some(3), Some(3 + 1 + 1 + 1)]);
}

#[test]
fn sizing_bars_that_are_not_there_costs_no_exit_and_finds_none() {
    let sized = [0x18, 0x1c, 0x20, 0x24, 0x30];
    let mut script = Script::default();
    for register in sized {
        script
            .write(4, CONFIG + register, 0xffff_ffff)
            .say(CONFIG + register + 3)
            .write(4, CONFIG + register, 0);
    }
    let (exits, said) = run(&script);
    assert_eq!(said, [0; 5]);
    assert_eq!(exits.pci_config.get("00:01.0"), None);
    // The one that is there.
    script.write(4, CONFIG + 0x10, 0xffff_ffff).say(CONFIG + 0x11).say(CONFIG + 0x12);
    let (exits, said) = run(&script);
    assert_eq!(said[5..], [0xc0, 0xff]);
    assert_eq!(exits.pci_config["00:01.0"], 1);
}

#[test]
fn writes_of_any_width_across_any_boundary_are_posted_or_exits_and_break_nothing() {
    let mut script = Script::default();
    place(&mut script, BAR);
    for register in (0..0x48).chain(TABLE - 8..TABLE + 0x40) {
        for width in [1, 2, 4, 8] {
            script.write(width, BAR + register, u64::MAX);
        }
    }
    // All ones were a status too, of a device whose features were refused; a reset makes it as new.
    script.write(1, BAR + STATUS, 0);
    negotiate(&mut script, BAR);
    script.write(2, BAR + QUEUE_SELECT, 0).write(2, BAR + QUEUE_SIZE, 32);
    script.say(BAR + QUEUE_SIZE).say(BAR + STATUS).say(BAR + 0x12);
    let (_, said) = run(&script);
    assert_eq!(said, [32, 11, 1]);
}
