//! The transport as a driver sees it, on a VM of the host's KVM that has no processor.

mod hostile;

use std::sync::mpsc::{Receiver, Sender, channel};

use vm_memory::GuestAddress;

use super::*;
use crate::dirty::Ram;
use crate::memory::Layout;
use crate::pci::PciBus;
use crate::threads::Threads;

const BAR: u64 = 0x1_4000_0000;
const F_OWN: u64 = 1;

/// Hands what it is activated with to the test.
struct Probe {
    activations: Sender<Activation>,
    resets: Sender<()>,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u16 {
        2
    }

    fn name(&self) -> &str {
        "probe"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_OWN
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(7);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.activations.send(activation).expect("the test lives");
        Ok(())
    }

    fn reset(&mut self) {
        self.resets.send(()).expect("the test lives");
    }
}

struct Rig {
    transport: Transport,
    activations: Receiver<Activation>,
    resets: Receiver<()>,
}

impl Rig {
    fn new() -> Self {
        let vm = Arc::new(crate::kvm::open().expect("the host has KVM").create_vm().expect("and makes VMs"));
        vm.create_irq_chip().expect("with interrupts");
        let memory = Arc::new(Ram::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("and 1 MiB").into());
        let ((send_activation, activations), (send_reset, resets)) = (channel(), channel());
        let probe = Box::new(Probe {
            activations: send_activation,
            resets: send_reset,
        });
        let interrupts = Arc::new(Interrupts::new(vm.clone()));
        let transport = Transport::new(probe, vm, interrupts, memory, BAR, Threads::plain()).expect("eventfds are to be had");
        Self {
            transport,
            activations,
            resets,
        }
    }

    fn get<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.transport.read(offset, &mut data);
        data
    }

    fn put<const N: usize>(&mut self, offset: u64, data: [u8; N]) {
        self.transport.write(offset, &data);
    }

    fn status(&mut self) -> u8 {
        self.get::<1>(0x14)[0]
    }

    /// Up to FEATURES_OK.
    fn negotiate(&mut self, features: u64) {
        self.put(0x14, [ACKNOWLEDGE]);
        self.put(0x14, [ACKNOWLEDGE | DRIVER]);
        for half in 0..2u32 {
            self.put(0x08, half.to_le_bytes());
            self.put(0x0c, ((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.put(0x14, [ACKNOWLEDGE | DRIVER | FEATURES_OK]);
    }

    fn set_up_queue(&mut self, index: u16, descriptors: u64) {
        self.put(0x16, index.to_le_bytes());
        self.put(0x18, 32u16.to_le_bytes());
        self.put(0x1a, (index + 1).to_le_bytes());
        self.put(0x20, (descriptors as u32).to_le_bytes());
        self.put(0x24, ((descriptors >> 32) as u32).to_le_bytes());
        self.put(0x28, (descriptors + 0x400).to_le_bytes());
        self.put(0x30, (descriptors + 0x800).to_le_bytes());
        self.put(0x1c, 1u16.to_le_bytes());
    }

    fn go(&mut self) {
        self.put(0x14, [ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK]);
    }
}

#[test]
fn a_well_behaved_driver_gets_its_queues_activated_as_it_set_them_up() {
    let mut rig = Rig::new();
    rig.negotiate(F_VERSION_1 | F_OWN);
    rig.set_up_queue(1, 0x8000);
    rig.go();
    assert_eq!(rig.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let activation = rig.activations.try_recv().expect("activated");
    assert_eq!(activation.features, F_VERSION_1 | F_OWN);
    assert!(activation.queues[0].is_none());
    let queue = activation.queues[1].as_ref().expect("enabled");
    assert_eq!(virtio_queue::QueueT::size(&queue.queue), 32);
    rig.put(NOTIFY + NOTIFY_STEP, 1u16.to_le_bytes());
    assert_eq!(queue.kick.read().expect("the notification arrived"), 1);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    for features in [F_OWN, F_VERSION_1 | 2, 0] {
        let mut rig = Rig::new();
        rig.negotiate(features);
        assert_eq!(rig.status(), ACKNOWLEDGE | DRIVER, "{features:#x}");
        rig.go();
        assert!(rig.activations.try_recv().is_err());
    }
}

#[test]
fn queue_registers_are_frozen_before_features_are_agreed_and_once_the_driver_is_ready() {
    let mut rig = Rig::new();
    rig.put(0x18, 8u16.to_le_bytes());
    assert_eq!(rig.get(0x18), 64u16.to_le_bytes());
    rig.negotiate(F_VERSION_1);
    rig.set_up_queue(0, 0x8000);
    rig.put(0x18, 64u16.to_le_bytes());
    assert_eq!(rig.get(0x18), 32u16.to_le_bytes(), "an enabled queue keeps its size");
    rig.go();
    rig.put(0x16, 1u16.to_le_bytes());
    rig.put(0x18, 8u16.to_le_bytes());
    rig.put(0x1c, 1u16.to_le_bytes());
    assert_eq!((rig.get(0x18), rig.get(0x1c)), (64u16.to_le_bytes(), 0u16.to_le_bytes()));
    rig.put(0x08, 0u32.to_le_bytes());
    rig.put(0x0c, u32::MAX.to_le_bytes());
    assert_eq!(rig.get(0x0c), 0u32.to_le_bytes(), "features too");
}

#[test]
fn a_ring_outside_memory_needs_a_reset_and_the_machine_goes_on() {
    let mut rig = Rig::new();
    rig.negotiate(F_VERSION_1);
    rig.set_up_queue(0, 1 << 40);
    rig.go();
    assert_eq!(rig.status() & NEEDS_RESET, NEEDS_RESET);
    assert!(rig.activations.try_recv().is_err());
    rig.put(0x14, [0]);
    assert_eq!(rig.status(), 0);
    rig.negotiate(F_VERSION_1);
    rig.set_up_queue(0, 0x8000);
    rig.go();
    assert!(rig.activations.try_recv().is_ok());
}

#[test]
fn a_reset_stops_the_device_once_and_forgets_everything_said() {
    let mut rig = Rig::new();
    rig.put(0x14, [0]);
    assert!(rig.resets.try_recv().is_err(), "an idle device is not reset");
    rig.negotiate(F_VERSION_1);
    rig.set_up_queue(0, 0x8000);
    rig.go();
    let activation = rig.activations.try_recv().expect("activated");
    (activation.failed)(DeviceFault {
        device: "probe".into(),
        what: "of the test".into(),
    });
    assert_eq!(rig.status() & NEEDS_RESET, NEEDS_RESET);
    rig.put(0x14, [0]);
    assert!(rig.resets.try_recv().is_ok() && rig.resets.try_recv().is_err());
    assert_eq!((rig.get(0x18), rig.get(0x1c)), (64u16.to_le_bytes(), 0u16.to_le_bytes()));
    assert_eq!(rig.get(0x20), [0; 8]);
}

#[test]
fn an_interrupt_of_a_masked_vector_is_pending_until_it_is_unmasked() {
    let mut rig = Rig::new();
    rig.negotiate(F_VERSION_1);
    rig.set_up_queue(0, 0x8000);
    rig.go();
    let activation = rig.activations.try_recv().expect("activated");
    activation.queues[0].as_ref().expect("enabled").interrupt.signal();
    assert_eq!(rig.get::<1>(PENDING), [0b10]);
    let control = rig.transport.msix_control;
    rig.transport.config_mut().write(control, &0x8000u16.to_le_bytes());
    rig.transport.config_written();
    rig.put(TABLE + 0x10, 0xfee0_0000u32.to_le_bytes());
    rig.put(TABLE + 0x18, 0x31u32.to_le_bytes());
    rig.put(TABLE + 0x1c, 0u32.to_le_bytes());
    assert_eq!(rig.get::<1>(PENDING), [0]);
    assert_eq!(rig.get::<4>(TABLE + 0x18), 0x31u32.to_le_bytes());
}

#[test]
fn a_guest_that_writes_anything_anywhere_breaks_nothing() {
    let mut rig = Rig::new();
    let mut state = 1u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 20
    };
    for _ in 0..20_000 {
        let (offset, length) = (random() % (BAR_SIZE - 8), [1, 2, 3, 4, 8][(random() % 5) as usize]);
        let offset = if random() % 2 == 0 { offset % 0x40 } else { offset };
        let data = random().to_le_bytes();
        rig.transport.write(offset, &data[..length]);
        rig.transport.read(offset, &mut [0; 8][..length]);
    }
}

#[test]
fn a_bar_that_moves_takes_its_registers_along_and_never_lies_outside_of_the_windows() {
    let rig = Rig::new();
    let layout = Layout::new(1 << 30, 0, &[], (0, 0), 40).expect("fits");
    let vm = rig.transport.vm.clone();
    let ecam = crate::memory::create_ecam(&vm).expect("KVM takes a read-only slot");
    let bus = PciBus::new(ecam, layout.clone(), vec![Box::new(rig.transport)]);
    let config = |register: u64, value: u32| bus.write(crate::arch::layout::ECAM + register, &value.to_le_bytes());
    let devices = |address: u64| {
        let mut data = [0; 2];
        bus.read(address + 0x12, &mut data);
        u16::from_le_bytes(data)
    };
    assert_eq!(devices(BAR), 0xffff, "not decoded yet");
    config(0x04, 2);
    assert_eq!(devices(BAR), 2);
    let moved = layout.mmio64.end - BAR_SIZE;
    config(0x10, moved as u32);
    config(0x14, (moved >> 32) as u32);
    assert_eq!((devices(BAR), devices(moved)), (0xffff, 2));
    for nowhere in [0, 0xfee0_0000, layout.mmio64.end, 1 << 50] {
        config(0x10, nowhere as u32);
        config(0x14, (nowhere >> 32) as u32);
        assert_eq!(devices(nowhere), 0xffff, "{nowhere:#x}");
    }
    config(0x10, BAR as u32);
    config(0x14, (BAR >> 32) as u32);
    assert_eq!(devices(BAR), 2);
    config(0x04, 0);
    assert_eq!(devices(BAR), 0xffff);
}
