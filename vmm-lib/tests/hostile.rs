//! Guests that break the rules, as guests: a payload on this host's KVM that writes whatever it likes to its devices' registers and rings.
//! Each time the device asks for its reset or ignores it, memory beside the buffers stays as it was, and the machine goes on to power off;
//! or the machine ends with a typed reason.

mod support;

use std::io::Write as _;

use support::drive::*;
use support::script::Script;
use vmm_lib::exit::MachineExit;
use vmm_lib::spec::{Disk, DiskEngine, DiskFormat, Extent, FileSource, Limits, MachineSpec};

fn rng(spec: &mut MachineSpec) {
    spec.rng = true;
}

#[test]
fn a_payload_that_keeps_the_rules_is_served_and_only_where_it_asked() {
    let mut script = Script::default();
    place(&mut script, 1, BAR);
    for at in [DATA - 8, DATA, DATA + 8] {
        script.write(8, at, CANARY);
    }
    bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
    descriptor(&mut script, TABLE, 0, (DATA, 8, WRITE, 0));
    offer(&mut script, BAR, 1, 0);
    script.wait(USED + 2, 1).say(USED + 8).say(BAR + STATUS).say(DATA - 1).say(DATA + 8);
    let (report, said) = script.run(rng);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    assert_eq!(said, [8, READY, 0xc5, 0xc5]);
}

#[test]
fn each_broken_chain_asks_for_a_reset_and_the_device_serves_after_it() {
    type Break = fn(&mut Script);
    let indirect = |s: &mut Script, length: u64, more: u64| descriptor(s, TABLE, 0, (DATA + 0x1000, length, INDIRECT | more, 1));
    let cases: &[&dyn Fn(&mut Script)] = &[
        &|s| descriptor(s, TABLE, 0, (DATA, 8, WRITE | NEXT, 0)),
        &|s| descriptor(s, TABLE, 0, (DATA, 8, WRITE | NEXT, 8)),
        &|s| descriptor(s, TABLE, 0, (DATA, 0, WRITE, 0)),
        &|s| descriptor(s, TABLE, 0, (DATA, 8, 0, 0)),
        &|s| descriptor(s, TABLE, 0, (MEMORY - 4, 8, WRITE, 0)),
        &|s| descriptor(s, TABLE, 0, (u64::MAX - 3, 8, WRITE, 0)),
        &|s| descriptor(s, TABLE, 0, (ECAM, 8, WRITE, 0)),
        &|s| descriptor(s, TABLE, 0, (BAR + 0x2000, 16, WRITE, 0)),
        &|s| descriptor(s, TABLE, 0, (0xfee0_0000, 8, WRITE, 0)),
        &|s| {
            descriptor(s, TABLE, 1, (DATA, 8, 0, 0));
            descriptor(s, TABLE, 0, (DATA, 8, WRITE | NEXT, 1));
        },
        &|s| indirect(s, 0, 0),
        &|s| indirect(s, 24, 0),
        &|s| indirect(s, 16 * 9, 0),
        &|s| indirect(s, 16, NEXT),
        &|s| {
            descriptor(s, DATA + 0x1000, 0, (DATA + 0x2000, 16, INDIRECT, 0));
            indirect(s, 16, 0);
        },
    ];
    let heads: &[Break] = &[
        |s| offer(s, BAR, 1, 8),
        |s| offer(s, BAR, 1, 0xffff),
        |s| offer(s, BAR, 9, 0),
        |s| offer(s, BAR, 0xffff, 0),
    ];
    let mut script = Script::default();
    place(&mut script, 1, BAR);
    for at in [DATA - 8, DATA, DATA + 8, TABLE - 8, USED - 8, MEMORY - 8] {
        script.write(8, at, CANARY);
    }
    let after = |script: &mut Script| {
        script.wait(BAR + STATUS, NEEDS_RESET).say(BAR + STATUS).say(USED + 2);
    };
    for break_it in cases {
        bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
        break_it(&mut script);
        offer(&mut script, BAR, 1, 0);
        after(&mut script);
    }
    for break_it in heads {
        bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
        descriptor(&mut script, TABLE, 0, (DATA, 8, 0, 0));
        break_it(&mut script);
        after(&mut script);
    }
    bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
    descriptor(&mut script, TABLE, 0, (DATA + 64, 8, WRITE, 0));
    offer(&mut script, BAR, 1, 0);
    script.wait(USED + 2, 1).say(BAR + STATUS);
    for at in [DATA - 1, DATA, DATA + 7, DATA + 15, TABLE - 1, USED - 1, MEMORY - 8, MEMORY - 1] {
        script.say(at);
    }
    let (report, said) = script.run(rng);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    let mut expected = [READY | NEEDS_RESET, 0].repeat(cases.len() + heads.len());
    expected.push(READY);
    expected.extend([0xc5; 8]);
    assert_eq!(said, expected);
}

#[test]
fn rings_that_are_registers_or_nowhere_start_nothing() {
    let places = [
        [ECAM, AVAILABLE, USED],
        [TABLE, BAR + 0x2000, USED],
        [TABLE, AVAILABLE, BAR],
        [TABLE, AVAILABLE, MEMORY - 8],
        [MEMORY, AVAILABLE, USED],
        [TABLE + 8, AVAILABLE, USED],
        [TABLE, AVAILABLE + 1, USED],
        [TABLE, AVAILABLE, USED + 2],
        [TABLE, TABLE, TABLE],
        [u64::MAX - 15, AVAILABLE, USED],
    ];
    let mut script = Script::default();
    place(&mut script, 1, BAR);
    for rings in places {
        bring_up(&mut script, BAR, rings);
        script.write(2, BAR + NOTIFY, 0).say(BAR + STATUS);
    }
    bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
    script.say(BAR + STATUS);
    let (report, said) = script.run(rng);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    let mut expected = vec![READY | NEEDS_RESET; places.len()];
    expected.push(READY);
    assert_eq!(said, expected);
}

#[test]
fn registers_written_while_the_device_runs_change_nothing() {
    let mut script = Script::default();
    place(&mut script, 1, BAR);
    bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
    for (register, value) in [(0x18, 0xffff), (0x1c, 0), (0x1c, 1), (0x20, 0), (0x28, 0), (0x30, DATA)] {
        script.write(if register < 0x20 { 2 } else { 8 }, BAR + register, value);
    }
    script
        .write(4, BAR + 8, 0)
        .write(4, BAR + 0xc, 0xffff_ffff)
        .write(1, BAR + STATUS, 15);
    descriptor(&mut script, TABLE, 0, (DATA, 8, WRITE, 0));
    offer(&mut script, BAR, 1, 0);
    script
        .wait(USED + 2, 1)
        .say(BAR + 0x18)
        .say(BAR + 0x1c)
        .say(BAR + 0x22)
        .say(BAR + STATUS);
    let (report, said) = script.run(rng);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    assert_eq!(said, [8, 1, 0, READY]);
}

#[test]
fn a_bar_moves_under_traffic_and_its_notifications_with_it() {
    let mut script = Script::default();
    place(&mut script, 1, BAR);
    bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
    descriptor(&mut script, TABLE, 0, (DATA, 8, WRITE, 0));
    let mut bar = BAR;
    for count in 1..=8u64 {
        offer(&mut script, bar, count, 0);
        // The low byte of the used index, once its lowest bits say so.
        script.wait(USED + 2, 1 << count.trailing_zeros());
        bar = BAR + (count % 3) * 0x10_0000;
        place(&mut script, 1, bar);
    }
    // Over RAM and over the configuration space it is not decoded, and comes back.
    for nowhere in [TABLE, ECAM, 0xfee0_0000] {
        place(&mut script, 1, nowhere);
    }
    place(&mut script, 1, BAR);
    offer(&mut script, BAR, 9, 0);
    script.wait(USED + 2, 1).say(USED + 2).say(BAR + STATUS);
    let (report, said) = script.run(rng);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    assert_eq!(said, [9, READY]);
}

#[test]
fn a_guest_that_writes_all_over_its_configuration_space_powers_off_like_any_other() {
    let mut script = Script::default();
    for device in 0..32 {
        for (width, offset) in [
            (1, 0),
            (2, 3),
            (4, 0x0e),
            (8, 0x10),
            (4, 0x3d),
            (8, 0x42),
            (8, 0xfc),
            (8, 0x100),
            (8, 0xffc),
        ] {
            script.write(width, ECAM + device * 0x8000 + offset, u64::MAX);
            script.write(width, ECAM + device * 0x8000 + 0x1000 + offset, u64::MAX);
        }
    }
    for address in [0xc800_0000u64, 0xe010_0000, 0xfec0_0000, 0xfff0_0000] {
        script.write(8, address, u64::MAX).say(address);
    }
    script.say(ECAM + 0x8000).say(ECAM + 0x8001);
    let (report, said) = script.run(rng);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    assert_eq!(said[said.len() - 2..], [0xf4, 0x1a]);
}

#[test]
fn a_flood_of_notifications_costs_the_guest_its_own_time_only() {
    let mut script = Script::default();
    place(&mut script, 1, BAR);
    for _ in 0..500 {
        script.write(2, BAR + NOTIFY, 0);
    }
    bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
    for queue in 0..500 {
        script.write(2, BAR + NOTIFY + 4 * queue, queue);
    }
    script.say(BAR + STATUS);
    let (report, said) = script.run(rng);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    assert_eq!(said, [READY]);
}

#[test]
fn a_read_only_disk_and_sectors_past_its_end_are_errors_of_the_request() {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(&[0xd1; 4096]).expect("and written");
    let mut script = Script::default();
    place(&mut script, 1, BAR);
    bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
    let requests: [(u64, u64, u64, u8); 6] = [
        (0, 0, WRITE, 0),
        (1, 0, 0, 1),
        (0, 8, WRITE, 1),
        (0, u64::MAX, WRITE, 1),
        (0, 1 << 55, WRITE, 1),
        (77, 0, WRITE, 2),
    ];
    for (index, (kind, sector, flag, _)) in requests.iter().enumerate() {
        let (count, header) = (index as u64 + 1, DATA + 0x1000);
        script
            .write(8, header, *kind)
            .write(8, header + 8, *sector)
            .write(1, DATA + 0x2000, 0xee);
        descriptor(&mut script, TABLE, 0, (header, 16, NEXT, 1));
        descriptor(&mut script, TABLE, 1, (DATA, 512, NEXT | flag, 2));
        descriptor(&mut script, TABLE, 2, (DATA + 0x2000, 1, WRITE, 0));
        script.write(8, DATA + 512, CANARY);
        offer(&mut script, BAR, count, 0);
        script
            .wait(USED + 2, 1 << count.trailing_zeros())
            .say(DATA + 0x2000)
            .say(DATA + 512);
    }
    script.say(DATA).say(BAR + STATUS);
    let (report, said) = script.run(|spec| {
        spec.disks.push(Disk {
            serial: "image".into(),
            extents: vec![Extent {
                file: FileSource::Path(file.path().into()),
                offset: 0,
                length: 4096,
            }],
            read_only: true,
            format: DiskFormat::Raw,
            limits: Limits::default(),
            engine: DiskEngine::Calls,
        });
    });
    assert_eq!(report.exit, MachineExit::PoweredOff);
    let mut expected: Vec<_> = requests.iter().flat_map(|(.., status)| [*status, 0xc5]).collect();
    expected.extend([0xd1, READY]);
    assert_eq!(said, expected);
    assert_eq!(std::fs::read(file.path()).expect("it is there"), [0xd1; 4096]);
}

/// What a guest does, and how.
type Case = (&'static str, fn(&mut Script));

#[test]
fn a_guest_that_runs_or_pushes_where_there_is_no_memory_ends_its_machine_by_name() {
    let wild: [Case; 4] = [
        ("runs its device's registers", |s| {
            place(s, 1, BAR);
            s.jump(BAR);
        }),
        ("runs what nobody has", |s| {
            s.jump(0xd000_0000);
        }),
        ("pushes where it has no page", |s| {
            s.push(1 << 40);
        }),
        ("runs where it has no page", |s| {
            s.jump(1 << 40);
        }),
    ];
    for (what, script) in wild {
        let mut list = Script::default();
        script(&mut list);
        let (report, _) = list.run(rng);
        let typed = matches!(
            report.exit,
            MachineExit::Crashed { .. } | MachineExit::TripleFault | MachineExit::MemoryFault { .. }
        );
        assert!(typed, "{what}: {:?}", report.exit);
    }
}
