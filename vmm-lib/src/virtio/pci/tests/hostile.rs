//! Drivers that break the transport's rules. What is out of order is ignored; queues that cannot be make the device ask for a reset; the
//! machine goes on in every case.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::*;
use crate::virtio::block::Block;
use crate::virtio::testing::{BUFFERS, Driver, F_ALL, memory};

const ALL: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// A rig whose features are agreed on.
fn negotiated() -> Rig {
    let mut rig = Rig::new();
    rig.negotiate(F_VERSION_1 | F_OWN);
    rig
}

#[test]
fn a_driver_that_is_ready_without_agreed_features_is_not() {
    for steps in [
        &[DRIVER_OK][..],
        &[ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | DRIVER_OK],
    ] {
        let mut rig = Rig::new();
        rig.set_up_queue(0, 0x8000);
        for step in steps {
            rig.put(0x14, [*step]);
        }
        assert_eq!(rig.status() & (DRIVER_OK | NEEDS_RESET), 0);
        assert!(rig.activations.try_recv().is_err());
    }
    // All in one write, with features that were never written.
    let mut rig = Rig::new();
    rig.put(0x14, [ALL]);
    assert_eq!(rig.status(), ACKNOWLEDGE | DRIVER);
    assert!(rig.activations.try_recv().is_err());
}

#[test]
fn features_agreed_on_stay_and_other_halves_are_none() {
    let mut rig = negotiated();
    for half in [0u32, 1, 2, u32::MAX] {
        rig.put(0x08, half.to_le_bytes());
        rig.put(0x0c, u32::MAX.to_le_bytes());
        rig.put(0x00, half.to_le_bytes());
        if half > 1 {
            assert_eq!((rig.get(0x04), rig.get(0x0c)), ([0; 4], [0; 4]));
        }
    }
    rig.set_up_queue(0, 0x8000);
    rig.go();
    assert_eq!(rig.activations.try_recv().expect("activated").features, F_VERSION_1 | F_OWN);
}

#[test]
fn an_enabled_queue_keeps_its_registers_and_is_enabled_once() {
    let mut rig = negotiated();
    rig.set_up_queue(0, 0x8000);
    for enable in [0u16, 1, 2, 0xffff] {
        rig.put(0x1c, enable.to_le_bytes());
        assert_eq!(rig.get(0x1c), 1u16.to_le_bytes());
    }
    for register in [0x20, 0x28, 0x30] {
        let before: [u8; 8] = rig.get(register);
        rig.put(register, [0xff; 8]);
        rig.put(register + 4, [0xff; 4]);
        assert_eq!(rig.get::<8>(register), before);
    }
    rig.put(0x1a, 0u16.to_le_bytes());
    assert_eq!(rig.get(0x1a), 1u16.to_le_bytes());
    rig.go();
    rig.go();
    assert!(
        rig.activations.try_recv().is_ok() && rig.activations.try_recv().is_err(),
        "started once"
    );
    rig.put(0x1c, 0u16.to_le_bytes());
    rig.put(0x20, [0; 8]);
    assert_eq!(rig.get(0x20), 0x8000u64.to_le_bytes());
}

#[test]
fn queues_that_cannot_be_ask_for_a_reset_and_start_nothing() {
    let end = 1u64 << 20;
    let good = [0x8000, 0x9000, 0xa000];
    let cases: &[(&str, u16, [u64; 3])] = &[
        ("no descriptors", 0, good),
        ("three", 3, good),
        ("more than offered", 128, good),
        ("all ones", u16::MAX, good),
        ("a table off its boundary", 64, [0x8008, 0x9000, 0xa000]),
        ("an available ring off its boundary", 64, [0x8000, 0x9001, 0xa000]),
        ("a used ring off its boundary", 64, [0x8000, 0x9000, 0xa002]),
        ("a table across the end", 64, [end - 512, 0x9000, 0xa000]),
        ("an available ring across the end", 64, [0x8000, end - 132, 0xa000]),
        ("a used ring across the end", 64, [0x8000, 0x9000, end - 516]),
        ("all at one place", 64, [0x8000; 3]),
        ("a used ring within the table", 64, [0x8000, 0x9000, 0x8200]),
        ("the configuration space", 64, [crate::arch::layout::ECAM, 0x9000, 0xa000]),
        ("its own MSI-X table", 64, [0x8000, BAR + TABLE, 0xa000]),
        ("its own registers", 64, [0x8000, 0x9000, BAR]),
        ("the last address", 64, [u64::MAX - 15, 0x9000, 0xa000]),
        ("behind the last address", 64, [0x8000, u64::MAX - 1, 0xa000]),
    ];
    for (what, size, [descriptors, driver, device]) in cases {
        let mut rig = negotiated();
        rig.put(0x16, 1u16.to_le_bytes());
        rig.put(0x18, size.to_le_bytes());
        rig.put(0x20, descriptors.to_le_bytes());
        rig.put(0x28, driver.to_le_bytes());
        rig.put(0x30, device.to_le_bytes());
        rig.put(0x1c, 1u16.to_le_bytes());
        rig.go();
        assert_eq!(rig.status(), ALL | NEEDS_RESET, "{what}");
        assert!(rig.activations.try_recv().is_err(), "{what}");
        rig.put(NOTIFY + NOTIFY_STEP, [1, 0]);
        rig.put(0x14, [0]);
        assert_eq!(rig.status(), 0, "{what}");
    }
}

#[test]
fn queues_and_vectors_that_do_not_exist_swallow_what_is_written() {
    let mut rig = negotiated();
    for index in [2u16, 254, u16::MAX] {
        rig.put(0x16, index.to_le_bytes());
        rig.put(0x18, 8u16.to_le_bytes());
        rig.put(0x20, [0xff; 8]);
        rig.put(0x1c, 1u16.to_le_bytes());
        assert_eq!(rig.get::<32>(0x18), [0; 32], "{index}");
    }
    rig.put(0x16, 0u16.to_le_bytes());
    // Three vectors: one of configuration, two of queues.
    for vector in [3u16, 0x7ff, 0xfffe] {
        rig.put(0x1a, vector.to_le_bytes());
        assert_eq!(rig.get(0x1a), 0xffffu16.to_le_bytes());
        rig.put(0x10, vector.to_le_bytes());
        assert_eq!(rig.get(0x10), 0xffffu16.to_le_bytes());
    }
    rig.set_up_queue(0, 0x8000);
    rig.go();
    let activation = rig.activations.try_recv().expect("activated");
    let queue = activation.queues[0].as_ref().expect("enabled");
    for offset in [NOTIFY + 2 * NOTIFY_STEP, NOTIFY + 0x100, TABLE - 2] {
        rig.put(offset, [0xff; 2]);
    }
    assert!(queue.kick.read().is_err(), "nobody knocked on this one");
    rig.put(TABLE + 3 * ENTRY, [0xff; 8]);
    assert_eq!(rig.get::<8>(TABLE + 3 * ENTRY), [0; 8]);
}

#[test]
fn a_kick_before_the_driver_is_ready_starts_nothing() {
    let mut rig = Rig::new();
    rig.put(NOTIFY, [0; 2]);
    rig.negotiate(F_VERSION_1);
    rig.put(NOTIFY, [0; 2]);
    rig.set_up_queue(0, 0x8000);
    rig.put(NOTIFY, [0; 2]);
    assert!(rig.activations.try_recv().is_err());
    rig.put(0x14, [0]);
    rig.negotiate(F_VERSION_1);
    rig.set_up_queue(0, 0x8000);
    rig.go();
    let activation = rig.activations.try_recv().expect("activated");
    let queue = activation.queues[0].as_ref().expect("enabled");
    assert!(queue.kick.read().is_err(), "what came before the reset is forgotten");
}

#[test]
fn a_driver_cannot_ask_for_a_reset_in_the_devices_name_nor_take_bits_back() {
    let mut rig = negotiated();
    let agreed = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    for value in [NEEDS_RESET | 0x30, ACKNOWLEDGE] {
        rig.put(0x14, [value]);
        assert_eq!(rig.status(), agreed);
    }
    rig.transport.write(0x14, &[0; 4]);
    assert_eq!(rig.status(), agreed, "the status is one byte");
}

#[test]
fn reads_and_writes_of_any_length_across_any_boundary_stay_inside() {
    let mut rig = negotiated();
    for edge in [0x38, ISR, DEVICE_CONFIG, NOTIFY, TABLE, PENDING, BAR_SIZE] {
        for before in 0..8 {
            for length in 1..=8 {
                let mut data = [0xff; 8];
                rig.transport.read(edge - before, &mut data[..length]);
                assert!(data[length..].iter().all(|byte| *byte == 0xff));
                rig.transport.write(edge - before, &data[..length]);
            }
        }
    }
    // A register is written whole or not at all.
    rig.put(0x16, 0u16.to_le_bytes());
    let size: [u8; 2] = rig.get(0x18);
    rig.transport.write(0x18, &[1]);
    rig.transport.write(0x19, &[1]);
    rig.transport.write(0x18, &[1, 0, 0, 0]);
    assert_eq!(rig.get(0x18), size);
}

#[test]
fn messages_that_kvm_cannot_send_are_complained_of_and_no_more() {
    let mut rig = negotiated();
    let control = rig.transport.msix_control;
    rig.transport.config_mut().write(control, &0x8000u16.to_le_bytes());
    rig.transport.config_written();
    for address in [0, 0xfee0_0000, u64::MAX, 0xffff_ffff_fee0_0000, BAR] {
        for vector in 0..3 {
            rig.put(TABLE + vector * ENTRY, address.to_le_bytes());
            rig.put(TABLE + vector * ENTRY + 8, u64::from(u32::MAX).to_le_bytes());
            rig.put(TABLE + vector * ENTRY + 12, [0; 4]);
        }
    }
    rig.set_up_queue(0, 0x8000);
    rig.go();
    let activation = rig.activations.try_recv().expect("activated");
    activation.queues[0].as_ref().expect("enabled").interrupt.signal();
    activation.config_changed.signal();
}

/// Two probes on one bus.
fn two_on_a_bus() -> (PciBus, Layout, [Receiver<Activation>; 2], [Receiver<()>; 2]) {
    let (first, second) = (Rig::new(), Rig::new());
    let layout = Layout::new(1 << 30, 0, &[], (0, 0), 40).expect("fits");
    let ecam = crate::memory::create_ecam(&first.transport.vm).expect("KVM takes a read-only slot");
    let functions: Vec<Box<dyn PciFunction>> = vec![Box::new(first.transport), Box::new(second.transport)];
    (
        PciBus::new(ecam, layout.clone(), functions),
        layout,
        [first.activations, second.activations],
        [first.resets, second.resets],
    )
}

fn place(bus: &PciBus, device: u64, base: u64) {
    let config = crate::arch::layout::ECAM + device * 0x8000;
    bus.write(config + 0x10, &(base as u32).to_le_bytes());
    bus.write(config + 0x14, &((base >> 32) as u32).to_le_bytes());
    bus.write(config + 4, &2u16.to_le_bytes());
}

fn bring_up(bus: &PciBus, base: u64) {
    for step in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
        bus.write(base + 0x14, &[step]);
    }
    bus.write(base + 0x08, &1u32.to_le_bytes());
    bus.write(base + 0x0c, &1u32.to_le_bytes());
    bus.write(base + 0x14, &[ACKNOWLEDGE | DRIVER | FEATURES_OK]);
    bus.write(base + 0x16, &0u16.to_le_bytes());
    for (register, address) in [(0x20, 0x8000u64), (0x28, 0x9000), (0x30, 0xa000)] {
        bus.write(base + register, &address.to_le_bytes());
    }
    bus.write(base + 0x1c, &1u16.to_le_bytes());
    bus.write(base + 0x14, &[ALL]);
}

#[test]
fn a_bar_that_moves_under_traffic_takes_its_notifications_along() {
    let (bus, layout, [activations, _], _resets) = two_on_a_bus();
    place(&bus, 0, BAR);
    bring_up(&bus, BAR);
    let activation = activations.try_recv().expect("activated");
    let kick = &activation.queues[0].as_ref().expect("enabled").kick;
    let places = [BAR + BAR_SIZE, layout.mmio64.start, crate::arch::layout::MMIO32.start, BAR];
    for window in places.windows(2) {
        place(&bus, 0, window[0]);
        bus.write(window[0] + NOTIFY, &[0; 2]);
        assert_eq!(kick.read().expect("heard at the new place"), 1);
        place(&bus, 0, window[1]);
        bus.write(window[0] + NOTIFY, &[0; 2]);
        assert!(kick.read().is_err(), "and at the old one no more");
    }
}

#[test]
fn two_bars_over_one_another_are_one_devices_until_one_moves_away() {
    let (bus, _, [first, second], _resets) = two_on_a_bus();
    place(&bus, 0, BAR);
    place(&bus, 1, BAR);
    bring_up(&bus, BAR);
    assert!(
        first.try_recv().is_ok() && second.try_recv().is_err(),
        "the one that was there first answers"
    );
    // Side by side: an access that crosses from one to the other belongs to neither.
    place(&bus, 1, BAR + BAR_SIZE);
    let mut data = [0; 8];
    bus.read(BAR + BAR_SIZE - 4, &mut data);
    assert_eq!(data, [0xff; 8]);
    bring_up(&bus, BAR + BAR_SIZE);
    assert!(second.try_recv().is_ok());
    bus.stop();
}

#[test]
fn odd_configuration_writes_change_no_more_than_they_may() {
    let (bus, ..) = two_on_a_bus();
    let base = crate::arch::layout::ECAM;
    let all = |bus: &PciBus| {
        let mut bytes = vec![0; 0x1000];
        for (index, chunk) in bytes.chunks_mut(4).enumerate() {
            bus.read(base + 4 * index as u64, chunk);
        }
        bytes
    };
    let before = all(&bus);
    for offset in (0..0x110).chain(0xff0..0x1000) {
        for length in 1..=8 {
            bus.write(base + offset, &[0; 8][..length]);
            bus.write(base + offset, &[0xff; 8][..length]);
        }
    }
    let after = all(&bus);
    // Identity, class, subsystem, the capabilities' list: what names the device and says where things lie.
    for fixed in [0..4, 8..12, 0x2c..0x30, 0x34..0x38, 0x40..0x42, 0x44..0x100] {
        assert_eq!(before[fixed.clone()], after[fixed.clone()], "{fixed:x?}");
    }
    assert!(after[0x100..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_reset_in_mid_flight_of_a_disk_ends_all_its_writes() {
    let vm = Arc::new(crate::kvm::open().expect("the host has KVM").create_vm().expect("and makes VMs"));
    vm.create_irq_chip().expect("with interrupts");
    let memory = memory();
    let file = tempfile::tempfile().expect("temporary files are to be had");
    file.write_all_at(&[0xd1; 1 << 16], 0).expect("and written");
    let disk = Block::new("d", vec![(file, 0, 1 << 16)], true).expect("well formed");
    let interrupts = Arc::new(Interrupts::new(vm.clone()));
    let mut transport = Transport::new(
        Box::new(disk),
        vm,
        interrupts,
        memory.clone(),
        BAR,
        crate::threads::Threads::plain(),
    )
    .expect("eventfds are to be had");
    let mut driver = Driver::new(&memory, 0, 256);
    let [table, available, used] = driver.addresses();
    for round in 0..20 {
        for step in [ACKNOWLEDGE, ACKNOWLEDGE | super::DRIVER] {
            transport.write(0x14, &[step]);
        }
        for half in 0..2u32 {
            transport.write(0x08, &half.to_le_bytes());
            transport.write(0x0c, &((F_ALL >> (32 * half)) as u32).to_le_bytes());
        }
        transport.write(0x14, &[ACKNOWLEDGE | super::DRIVER | FEATURES_OK]);
        for (register, address) in [(0x20, table), (0x28, available), (0x30, used)] {
            transport.write(register, &address.to_le_bytes());
        }
        transport.write(0x1c, &1u16.to_le_bytes());
        driver.restart();
        for index in 0..85u16 {
            let data = BUFFERS + u64::from(index) * 0x10000;
            driver.write(data, &[0; 16]);
            driver.chain(3 * index, &[(data, 16, false), (data + 512, 1 << 15, true), (data + 16, 1, true)]);
            driver.offer(3 * index);
        }
        transport.write(0x14, &[ALL]);
        transport.write(NOTIFY, &[0; 2]);
        std::thread::sleep(Duration::from_micros(50 * round));
        transport.write(0x14, &[0]);
        let before = driver.read(0, 8 << 20);
        std::thread::sleep(Duration::from_millis(1));
        assert!(before == driver.read(0, 8 << 20), "written to after the reset, round {round}");
    }
}
