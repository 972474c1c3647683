//! The one transport: modern virtio over PCI (virtio 1.2, 4.1). Life cycle, registers and notification of one device. Queue registers are
//! writable between FEATURES_OK and DRIVER_OK only, and checked as a whole when the driver is ready. There are no interrupt pins and no
//! VIRTIO_PCI_CAP_PCI_CFG window: a driver must map BAR 0 and use MSI-X.
//!
//! ```text
//! BAR 0   0x0000 common configuration    0x1000 notifications, 4 bytes a queue
//!         0x0100 ISR status, zero        0x2000 MSI-X table
//!         0x0200 device configuration    0x3000 MSI-X pending bits
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::common::{POSTED, Registers};
use super::device::{ActivateError, Activation, ActiveQueue, DeviceFault, Interrupt, Memory, VirtioDevice};
use super::queue::{self, QueueError};
use crate::complaints::Complaints;
use crate::irq::Interrupts;
use crate::pci::PciFunction;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::msix::{ENTRY, MESSAGE, Msix};
use crate::pci::state::{FunctionState, TransportState};
use crate::posted;
use crate::threads::Threads;

/// Size of BAR 0.
pub(crate) const BAR_SIZE: u64 = 0x4000;
const ISR: u64 = 0x100;
const DEVICE_CONFIG: u64 = 0x200;
const DEVICE_CONFIG_SIZE: u64 = 0x200;
const NOTIFY: u64 = 0x1000;
const NOTIFY_STEP: u64 = 4;
const TABLE: u64 = 0x2000;
const PENDING: u64 = 0x3000;
/// Most queues of a device: their vectors and one for configuration fit the table's page.
pub(crate) const MAX_QUEUES: usize = 254;

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const CAP_MSIX: u8 = 0x11;
const CAP_VENDOR: u8 = 0x09;
const F_VERSION_1: u64 = 1 << 32;
const F_EVENT_IDX: u64 = 1 << 29;

/// Device status (virtio 1.2, 2.1).
pub(crate) const ACKNOWLEDGE: u8 = 1;
pub(crate) const DRIVER: u8 = 2;
pub(crate) const DRIVER_OK: u8 = 4;
pub(crate) const FEATURES_OK: u8 = 8;
pub(crate) const NEEDS_RESET: u8 = 64;
pub(crate) const FAILED: u8 = 128;

/// Why a device did not start when its driver was ready.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}")]
    Queue(#[from] QueueError),
    #[error("{0}")]
    Device(#[from] ActivateError),
    #[error("make an eventfd")]
    EventFd(#[source] std::io::Error),
}

/// A device on the bus.
pub(crate) struct Transport {
    device: Box<dyn VirtioDevice>,
    vm: Arc<VmFd>,
    memory: Memory,
    config: ConfigSpace,
    msix: Msix,
    msix_control: usize,
    registers: Registers,
    status: Arc<AtomicU8>,
    kicks: Vec<EventFd>,
    placed: Option<u64>,
    active: bool,
    complaints: Arc<Complaints>,
    threads: Threads,
}

impl Transport {
    /// Puts `device` on the bus, its BAR at `bar`.
    pub(crate) fn new(
        device: Box<dyn VirtioDevice>,
        vm: Arc<VmFd>,
        interrupts: Arc<Interrupts>,
        memory: Memory,
        bar: u64,
        threads: Threads,
    ) -> std::io::Result<Self> {
        let queues = device.queue_sizes().len();
        assert!(
            queues <= MAX_QUEUES,
            "a device of ours has fewer queues than the table has room for"
        );
        let complaints = Arc::new(Complaints::default());
        let msix = Msix::new(interrupts, queues as u16 + 1, complaints.clone())?;
        let kick = |_| EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let kicks = (0..queues).map(kick).collect::<std::io::Result<_>>()?;
        let kind = device.device_type();
        let class = match kind {
            1 => [2, 0, 0],
            2 => [1, 0x80, 0],
            _ => [0xff, 0, 0],
        };
        let identity = Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + kind,
            revision: 1,
            class,
            subsystem: 0x1100,
        };
        let mut config = ConfigSpace::new(identity);
        config.set_bar(bar, BAR_SIZE);
        let msix_control = add_capabilities(&mut config, msix.count(), queues as u64);
        let registers = Registers::new(device.as_ref(), msix.count());
        let status = Arc::new(AtomicU8::new(0));
        Ok(Self {
            device,
            vm,
            memory,
            config,
            msix,
            msix_control,
            registers,
            status,
            kicks,
            placed: None,
            active: false,
            complaints,
            threads,
        })
    }

    /// The driver writes the device status.
    fn write_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset();
        }
        let old = self.status.load(Ordering::Acquire);
        let mut new = old | value & (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED);
        if new & FEATURES_OK & !old != 0 && !(new & DRIVER != 0 && self.registers.accepts(F_VERSION_1)) {
            new &= !FEATURES_OK;
        }
        let start = new & DRIVER_OK & !old != 0;
        if start && new & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        self.status.fetch_or(new, Ordering::AcqRel);
        if start && new & DRIVER_OK != 0 {
            self.start_or_complain(false);
        }
    }

    fn start_or_complain(&mut self, again: bool) {
        if let Err(error) = self.start(again) {
            if self.complaints.allow() {
                tracing::warn!(device = self.device.name(), %error, "a device could not start");
            }
            self.status.fetch_or(NEEDS_RESET, Ordering::AcqRel);
            if let Some(eventfd) = self.msix.eventfd(self.registers.config_vector) {
                Interrupt::new(eventfd).signal();
            }
        }
    }

    /// Starts the device, or starts it `again` where it stopped.
    fn start(&mut self, again: bool) -> Result<(), StartError> {
        let features = self.registers.features();
        let ready = queue::ready(&self.registers.queues, &self.memory, features & F_EVENT_IDX != 0)?;
        let mut queues = Vec::with_capacity(ready.len());
        for (index, queue) in ready.into_iter().enumerate() {
            let Some(mut queue) = queue else {
                queues.push(None);
                continue;
            };
            let kick = self.kicks[index].try_clone().map_err(StartError::EventFd)?;
            let interrupt = self.interrupt(self.registers.queues[index].vector)?;
            if again {
                queue::go_on(&mut queue, &self.memory);
                // Notifications either way that were under way are lost: one too many does no harm.
                let _ = kick.write(1);
                interrupt.signal();
            }
            queues.push(Some(ActiveQueue { queue, kick, interrupt }));
        }
        let config_changed = self.interrupt(self.registers.config_vector)?;
        let failed = failure(self.status.clone(), config_changed.clone(), self.complaints.clone());
        self.active = true;
        let activation = Activation {
            memory: self.memory.clone(),
            features,
            queues,
            config_changed,
            threads: self.threads.clone(),
            failed,
            again,
        };
        Ok(self.device.activate(activation)?)
    }

    fn interrupt(&self, vector: u16) -> Result<Interrupt, StartError> {
        let eventfd = match self.msix.eventfd(vector) {
            Some(eventfd) => eventfd,
            None => Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(StartError::EventFd)?),
        };
        Ok(Interrupt::new(eventfd))
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.active) {
            self.device.reset();
        }
        for kick in &self.kicks {
            // Nothing to read means nobody knocked.
            let _ = kick.read();
        }
        self.registers.reset();
        self.status.store(0, Ordering::Release);
    }

    /// Registers or removes the notification addresses of all queues; a guest that lays two BARs over one another loses notifications.
    fn set_ioeventfds(&self, base: u64, on: bool) {
        for (index, kick) in self.kicks.iter().enumerate() {
            let address = IoEventAddress::Mmio(base + NOTIFY + NOTIFY_STEP * index as u64);
            let done = if on {
                self.vm.register_ioevent(kick, &address, NoDatamatch)
            } else {
                self.vm.unregister_ioevent(kick, &address, NoDatamatch)
            };
            if let Err(error) = done
                && self.complaints.allow()
            {
                tracing::warn!(device = self.device.name(), queue = index, on, %error, "KVM refused a notification address");
            }
        }
    }

    /// Has KVM keep writes that mean nothing by themselves, or no longer: registers that the status acts on, and messages of vectors, which
    /// a driver changes while they are masked. Where KVM refuses, they are exits.
    fn set_posted(&self, base: u64, on: bool) {
        let message = |vector: u16| (TABLE + ENTRY * u64::from(vector), MESSAGE);
        for (offset, length) in POSTED.into_iter().chain((0..self.msix.count()).map(message)) {
            if let Err(error) = posted::post(&self.vm, base + offset, length, on)
                && self.complaints.allow()
            {
                tracing::warn!(device = self.device.name(), offset, on, %error, "KVM refused to keep writes");
            }
        }
    }

    fn read_device_config(&self, offset: u64, data: &mut [u8]) {
        match data.len() {
            1 | 2 | 4 | 8 => self.device.read_config(offset, data),
            _ => {
                for (index, byte) in data.iter_mut().enumerate() {
                    self.device.read_config(offset + index as u64, std::slice::from_mut(byte));
                }
            }
        }
    }
}

/// What a device calls when its guest broke the protocol.
fn failure(status: Arc<AtomicU8>, config_changed: Interrupt, complaints: Arc<Complaints>) -> Arc<dyn Fn(DeviceFault) + Send + Sync> {
    let said = AtomicBool::new(false);
    Arc::new(move |fault| {
        status.fetch_or(NEEDS_RESET, Ordering::AcqRel);
        config_changed.signal();
        if !said.swap(true, Ordering::AcqRel) && complaints.allow() {
            tracing::warn!(%fault, "a device stopped: its guest broke the protocol");
        }
    })
}

/// MSI-X and where the structures of virtio lie; returns the offset of MSI-X's message control.
fn add_capabilities(config: &mut ConfigSpace, vectors: u16, queues: u64) -> usize {
    let mut msix = (vectors - 1).to_le_bytes().to_vec();
    msix.extend((TABLE as u32).to_le_bytes());
    msix.extend((PENDING as u32).to_le_bytes());
    let control = config.add_capability(CAP_MSIX, &msix, &[0, 0xc0]) + 2;
    let common = (1, 0, super::common::SIZE as u64, None);
    let notify = (2, NOTIFY, NOTIFY_STEP * queues.max(1), Some(NOTIFY_STEP as u32));
    let (isr, device) = ((3, ISR, 1, None), (4, DEVICE_CONFIG, DEVICE_CONFIG_SIZE, None));
    for (kind, offset, length, multiplier) in [common, notify, isr, device] {
        let size = if multiplier.is_some() { 20 } else { 16 };
        let mut body = vec![size, kind, 0, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((length as u32).to_le_bytes());
        body.extend(multiplier.into_iter().flat_map(u32::to_le_bytes));
        config.add_capability(CAP_VENDOR, &body, &[]);
    }
    control
}

impl PciFunction for Transport {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_written(&mut self) {
        self.msix.set_control(self.config.word(self.msix_control));
    }

    fn place(&mut self, base: Option<u64>) {
        if self.placed == base {
            return;
        }
        if let Some(old) = self.placed.take() {
            self.set_ioeventfds(old, false);
            self.set_posted(old, false);
        }
        if let Some(new) = base {
            self.set_ioeventfds(new, true);
            self.set_posted(new, true);
        }
        self.placed = base;
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            0..ISR => self
                .registers
                .read(offset as usize, data, self.status.load(Ordering::Acquire), self.device.as_ref()),
            DEVICE_CONFIG..NOTIFY => self.read_device_config(offset - DEVICE_CONFIG, data),
            TABLE..PENDING => self.msix.read_table(offset - TABLE, data),
            PENDING.. => self.msix.read_pending(offset - PENDING, data),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match offset {
            super::common::STATUS => {
                if let [value] = data {
                    self.write_status(*value);
                }
            }
            0..ISR => self.registers.write(offset, data, self.status.load(Ordering::Acquire)),
            DEVICE_CONFIG..NOTIFY if matches!(data.len(), 1 | 2 | 4 | 8) => self.device.write_config(offset - DEVICE_CONFIG, data),
            NOTIFY..TABLE => {
                if let Some(kick) = self.kicks.get(((offset - NOTIFY) / NOTIFY_STEP) as usize) {
                    // A full counter is a notification that is still to be read.
                    let _ = kick.write(1);
                }
            }
            TABLE..PENDING => self.msix.write_table(offset - TABLE, data),
            _ => {}
        }
    }

    fn stop(&mut self) {
        self.reset();
    }

    fn name(&self) -> Option<&str> {
        Some(self.device.name())
    }

    fn is_detachable(&self) -> bool {
        self.device.is_detachable()
    }

    fn is_in_use(&self) -> bool {
        self.status.load(Ordering::Acquire) & (DRIVER | FAILED) == DRIVER
    }

    fn leave(&mut self) {
        self.reset();
        self.msix.release();
    }

    fn save(&mut self) -> Result<FunctionState, String> {
        if self.active {
            self.device.pause().map_err(|what| format!("{} ({what})", self.device.name()))?;
        }
        let transport = TransportState {
            vectors: self.msix.save(),
            status: self.status.load(Ordering::Acquire),
            registers: self.registers.save(),
            device: self.device.save(),
        };
        Ok(FunctionState {
            config: self.config.bytes().to_vec(),
            transport: Some(transport),
        })
    }

    fn restore(&mut self, state: &FunctionState) -> Result<(), String> {
        let transport = state.transport.as_ref().ok_or("it is another function")?;
        self.config.restore(&state.config)?;
        self.msix.restore(&transport.vectors)?;
        if transport.status & FAILED != 0 {
            // Its driver has given up: there may not even have been a device.
            self.status.store(transport.status & ACKNOWLEDGE, Ordering::Release);
            return Ok(());
        }
        self.registers.restore(&transport.registers)?;
        self.device.restore(&transport.device)?;
        self.active = transport.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK;
        if self.active && !self.registers.accepts(F_VERSION_1) {
            return Err("its driver uses features that it does not have".to_owned());
        }
        self.status.store(transport.status, Ordering::Release);
        Ok(())
    }

    fn resume(&mut self) {
        if self.active {
            self.start_or_complain(true);
            if let Some(eventfd) = self.msix.eventfd(self.registers.config_vector) {
                Interrupt::new(eventfd).signal();
            }
        }
    }
}

const _: () = assert!(ENTRY * (MAX_QUEUES as u64 + 1) <= PENDING - TABLE);

#[cfg(test)]
mod tests;
