//! A guest that writes registers out of a fuzzer's bytes: configuration space and BARs of two functions, on a bus of a virtual machine
//! without processors. What the guest reads in place is what the registers say, identities stay, a device is given sound queues only.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::VmFd;
use virtio_queue::QueueT;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use super::{DEVICE, HostBridge, PciBus, PciFunction};
use crate::arch::layout::{ECAM, ECAM_SIZE};
use crate::fuzz::input::Input;
use crate::irq::Interrupts;
use crate::memory::Layout;
use crate::threads::Threads;
use crate::virtio::device::{ActivateError, Activation, ActiveQueue, DeviceFault, VirtioDevice};
use crate::virtio::fuzz::guest::memory;
use crate::virtio::fuzz::model::is_memory;
use crate::virtio::pci::{BAR_SIZE, DRIVER_OK, FEATURES_OK, Transport};

const QUEUES: [u16; 2] = [64, 16];
const VERSION_1: u64 = 1 << 32;
const OFFERED: u64 = VERSION_1 | 1 << 29 | 1 << 28 | 0xff;
/// What a guest does in one input, at most.
const MAX_ACTS: usize = 64;
/// The selection of a queue, and its registers up to the structure's end.
const SELECTION: u64 = 0x16;

/// A virtual machine, the same for each input: an input takes back what it has told KVM.
fn vm() -> Arc<VmFd> {
    thread_local! {
        static VM: OnceCell<Arc<VmFd>> = const { OnceCell::new() };
    }
    let made = || {
        let vm = crate::kvm::open().expect("the host has KVM").create_vm().expect("and makes VMs");
        vm.create_irq_chip().expect("with interrupts");
        Arc::new(vm)
    };
    VM.with(|vm| vm.get_or_init(made).clone())
}

/// A device that does nothing but look at what it is given.
#[derive(Default)]
struct Stub {
    active: Vec<Option<ActiveQueue>>,
    running: Arc<AtomicBool>,
}

impl VirtioDevice for Stub {
    fn device_type(&self) -> u16 {
        4
    }

    fn name(&self) -> &str {
        "stub"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(!self.running.swap(true, Ordering::Relaxed), "activated twice");
        assert_eq!((activation.features & !OFFERED, activation.features & VERSION_1), (0, VERSION_1));
        assert_eq!(activation.queues.len(), QUEUES.len());
        let mut parts = Vec::new();
        for (queue, most) in activation.queues.iter().zip(QUEUES) {
            let Some(ActiveQueue { queue, .. }) = queue else { continue };
            let size = u64::from(queue.size());
            assert!(size.is_power_of_two() && size <= u64::from(most));
            parts.push((queue.desc_table(), 16 * size));
            parts.push((queue.avail_ring(), 6 + 2 * size));
            parts.push((queue.used_ring(), 6 + 8 * size));
        }
        parts.sort();
        assert!(parts.iter().all(|(start, length)| is_memory(*start, *length)), "{parts:x?}");
        assert!(parts.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{parts:x?}");
        for queue in activation.queues.iter().flatten() {
            queue.interrupt.signal();
        }
        if activation.queues[0].is_none() {
            (activation.failed)(DeviceFault {
                device: "stub".into(),
                what: "the first queue is missing".into(),
            });
        }
        self.active = activation.queues;
        Ok(())
    }

    fn reset(&mut self) {
        assert!(self.running.swap(false, Ordering::Relaxed), "reset without need");
        self.active.clear();
    }
}

/// The bus, with a bridge and two functions.
struct Rig {
    bus: PciBus,
    layout: Layout,
}

const FUNCTIONS: [u64; 3] = [0, 1, 2];
const IDENTITIES: [u32; 3] = [0x0008_1b36, 0x1044_1af4, 0x1044_1af4];

impl Rig {
    fn new() -> Self {
        let layout = Layout::new(1 << 30, 0, &[], (0, 0), 40).expect("fits");
        let (vm, memory) = (vm(), memory());
        let interrupts = Arc::new(Interrupts::new(vm.clone()));
        let mut functions: Vec<Box<dyn PciFunction>> = vec![Box::new(HostBridge::new())];
        for index in 0..2 {
            let (device, bar) = (Box::<Stub>::default(), layout.mmio64.start + index * BAR_SIZE);
            let made = Transport::new(device, vm.clone(), interrupts.clone(), memory.clone(), bar, Threads::plain());
            functions.push(Box::new(made.expect("eventfds are to be had")));
        }
        let ecam = MmapRegion::new(ECAM_SIZE as usize).expect("the host has 1 MiB");
        let bus = PciBus::new(ecam, layout.clone(), functions);
        Self { bus, layout }
    }

    fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut data = [0; N];
        self.bus.read(address, &mut data);
        data
    }

    fn bar(&self, function: u64) -> u64 {
        u64::from_le_bytes(self.get(ECAM + function * DEVICE + 0x10)) & !0xf
    }

    /// Device status, selected queue and its registers.
    fn registers(&self, function: u64) -> (u8, [u8; 34]) {
        let bar = self.bar(function);
        (self.get::<1>(bar.wrapping_add(0x14))[0], self.get(bar.wrapping_add(SELECTION)))
    }

    /// Whether the function's registers are where its BAR says, and no other's.
    fn is_reachable(&self, function: u64) -> bool {
        let windows = self.bus.windows.read().expect("nobody panics with it");
        let of = |window: &&super::Window| window.device as u64 == function;
        let Some(window) = windows.iter().find(of) else { return false };
        let alone = windows
            .iter()
            .all(|other| other.device == window.device || other.range.end <= window.range.start || window.range.end <= other.range.start);
        assert!(self.layout.is_device_window(&window.range) && window.range.start == self.bar(function));
        alone
    }

    /// What must hold at all times.
    fn check(&self) {
        for function in FUNCTIONS {
            let at = function * DEVICE;
            for register in (0..super::config::SIZE as u64).step_by(4) {
                let offset = (at + register) as usize;
                let in_place: u32 = self
                    .bus
                    .ecam
                    .as_volatile_slice()
                    .load(offset, Ordering::Acquire)
                    .expect("it lies in the page");
                assert_eq!(
                    in_place,
                    u32::from_le_bytes(self.get(ECAM + at + register)),
                    "register {register:#x}"
                );
            }
            assert_eq!(self.get(ECAM + at), IDENTITIES[function as usize].to_le_bytes());
            if function > 0 && self.is_reachable(function) {
                let (bar, (status, _)) = (self.bar(function), self.registers(function));
                assert_eq!(self.get(bar + 0x12), (QUEUES.len() as u16).to_le_bytes());
                assert!(status & DRIVER_OK == 0 || status & FEATURES_OK != 0, "status {status:#x}");
            }
        }
    }

    /// A write to BAR 0: while a driver is ready, queue registers are as they were.
    fn write_bar(&self, function: u64, offset: u64, data: &[u8]) {
        let (address, reachable) = (self.bar(function).wrapping_add(offset), self.is_reachable(function));
        let before = self.registers(function);
        self.bus.write(address, data);
        let after = self.registers(function);
        let frozen = before.0 & after.0 & DRIVER_OK != 0 && before.1[..2] == after.1[..2];
        assert!(!(frozen && reachable) || before.1 == after.1, "{offset:#x} changed a queue at work");
    }

    /// A driver's whole way up, with one of its values wrong now and then.
    fn start(&self, function: u64, input: &mut Input<'_>) {
        let (queue, size, wrong) = (input.byte(), u16::from(input.byte()), input.byte());
        let ring = if wrong & 1 == 0 { 0x1000 } else { input.quad() };
        let features = if wrong & 2 == 0 { VERSION_1 } else { input.quad() };
        self.write_bar(function, 0x14, &[3]);
        for half in 0..2u32 {
            self.write_bar(function, 0x08, &half.to_le_bytes());
            self.write_bar(function, 0x0c, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.write_bar(function, 0x14, &[0xb]);
        self.write_bar(function, 0x16, &u16::from(queue % 3).to_le_bytes());
        self.write_bar(function, 0x18, &size.to_le_bytes());
        self.write_bar(function, 0x1a, &u16::from(queue >> 4).to_le_bytes());
        for (register, offset) in [(0x20, 0), (0x28, 0x400), (0x30, 0x500 + u64::from(queue & 8))] {
            self.write_bar(function, register, &ring.wrapping_add(offset).to_le_bytes());
        }
        self.write_bar(function, 0x1c, &1u16.to_le_bytes());
        self.write_bar(function, 0x14, &[0xf]);
    }
}

/// Registers of a bus with two virtio functions.
pub fn pci(data: &[u8]) {
    let mut input = Input::new(data);
    let rig = Rig::new();
    rig.check();
    for _ in 0..MAX_ACTS {
        if input.is_empty() {
            break;
        }
        let code = input.byte();
        let (function, length) = (u64::from(code >> 3 & 3), [1usize, 2, 4, 8][usize::from(code >> 5 & 3)]);
        match code & 7 {
            0 => rig
                .bus
                .write(ECAM + function * DEVICE + u64::from(input.byte()), input.bytes(length)),
            1 => rig.bus.write(ECAM + u64::from(input.long() & 0xf_ffff), input.bytes(length)),
            2 => {
                // Anywhere, but most often where windows begin and end.
                let edges = [
                    0,
                    rig.layout.mmio64.start,
                    rig.layout.mmio64.end - BAR_SIZE,
                    0xc000_0000,
                    ECAM,
                    u64::MAX - 0x3fff,
                ];
                let kind = input.byte();
                let base = edges
                    .get(usize::from(kind))
                    .copied()
                    .unwrap_or(rig.layout.mmio64.start + (u64::from(kind) << 12));
                rig.bus.write(ECAM + function * DEVICE + 0x10, &base.to_le_bytes());
                rig.bus.write(ECAM + function * DEVICE + 4, &[2]);
            }
            3 => rig.write_bar(function, u64::from(input.byte() % 0x38), input.bytes(length)),
            4 => rig.write_bar(function, u64::from(input.short()), input.bytes(length)),
            5 => rig.write_bar(function, 0x2000 + u64::from(input.byte() % 0x30), input.bytes(length)),
            6 => rig.start(function, &mut input),
            _ => {
                let mut seen = [0; 8];
                rig.bus
                    .read(rig.bar(function).wrapping_add(u64::from(input.short())), &mut seen[..length]);
                rig.bus.read(input.quad(), &mut seen[..length]);
            }
        }
        rig.check();
    }
    for function in FUNCTIONS {
        rig.bus.write(ECAM + function * DEVICE + 4, &[0, 0]);
        rig.bus.write(ECAM + function * DEVICE + 0x40, &[0; 4]);
    }
    rig.bus.stop();
}
