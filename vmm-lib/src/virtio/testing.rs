//! A driver for tests: guest memory with one page table of rings, written by hand so that it can break every rule.

use std::{
    fs::File,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    device::{ActivateError, Activation, ActiveQueue, DeviceFault, Interrupt, Memory, VirtioDevice},
    worker::eventfd,
};
use crate::dirty::{Marks, Ram};
use crate::threads::Threads;

pub(in crate::virtio) const NEXT: u16 = 1;
pub(in crate::virtio) const WRITE: u16 = 2;
pub(in crate::virtio) const INDIRECT: u16 = 4;
/// VERSION_1 and EVENT_IDX, which every device offers.
pub(in crate::virtio) const F_ALL: u64 = 1 << 32 | 1 << 29;
pub(in crate::virtio) const DEADLINE: Duration = Duration::from_secs(20);
/// Rings lie below, buffers above.
pub(in crate::virtio) const BUFFERS: u64 = 1 << 20;
pub(in crate::virtio) const MEMORY: u64 = 16 << 20;

/// Guest memory of [`MEMORY`] bytes.
pub(in crate::virtio) fn memory() -> Memory {
    Arc::new(Ram::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap().into())
}

/// The same as a private copy of a file that is as long, mapped as a clone's is.
pub(in crate::virtio) fn memory_of(file: &File) -> Memory {
    let region = crate::memory::map(0, MEMORY, Some((file, 0)), Marks::default()).unwrap();
    Arc::new(Ram::from_regions(vec![region]).unwrap().into())
}

/// The driver's side of a queue.
pub(in crate::virtio) struct Driver {
    pub(in crate::virtio) memory: Memory,
    pub(in crate::virtio) size: u16,
    table: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
    kick: EventFd,
    interrupt: Arc<EventFd>,
}

impl Driver {
    pub(in crate::virtio) fn new(memory: &Memory, index: u64, size: u16) -> Self {
        let base = index * 0x10000 + 0x1000;
        Self {
            memory: Arc::clone(memory),
            size,
            table: base,
            available: base + 0x4000,
            used: base + 0x8000,
            next_available: 0,
            next_used: 0,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            interrupt: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        }
    }

    /// What the device gets of it.
    pub(in crate::virtio) fn active(&self) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.table)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.available)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used)).unwrap();
        queue.set_ready(true);
        assert!(queue.is_valid(&**self.memory));
        ActiveQueue {
            queue,
            kick: self.kick.try_clone().unwrap(),
            interrupt: Interrupt::new(Arc::clone(&self.interrupt)),
        }
    }

    /// Of descriptor table, available ring and used ring.
    pub(in crate::virtio) fn addresses(&self) -> [u64; 3] {
        [self.table, self.available, self.used]
    }

    /// Rings as new.
    pub(in crate::virtio) fn restart(&mut self) {
        (self.next_available, self.next_used) = (0, 0);
        for ring in [self.available, self.used] {
            self.memory.write_obj(0u32, GuestAddress(ring)).unwrap();
        }
    }

    /// Where the device writes: the whole used ring.
    pub(in crate::virtio) fn used_ring(&self) -> std::ops::Range<u64> {
        self.used..self.used + 6 + 8 * u64::from(self.size)
    }

    /// Writes descriptor `index`: address, length, flags, next.
    pub(in crate::virtio) fn descriptor(&self, index: u16, (address, length, flags, next): (u64, u32, u16, u16)) {
        self.raw_descriptor(self.table, index, (address, length, flags, next));
    }

    /// Writes a descriptor of an indirect table.
    pub(in crate::virtio) fn raw_descriptor(&self, table: u64, index: u16, (address, length, flags, next): (u64, u32, u16, u16)) {
        let at = GuestAddress(table + 16 * u64::from(index));
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&length.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&raw, at).unwrap();
    }

    /// Writes a well-formed chain from descriptor `first` on: (address, length, writable).
    pub(in crate::virtio) fn chain(&self, first: u16, buffers: &[(u64, u32, bool)]) {
        for (i, (address, length, writable)) in buffers.iter().enumerate() {
            let index = first + i as u16;
            let more = if i + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(index, (*address, *length, more | if *writable { WRITE } else { 0 }, index + 1));
        }
    }

    /// Makes the chain at `head` available, without a kick.
    pub(in crate::virtio) fn offer(&mut self, head: u16) {
        let slot = self.available + 4 + 2 * u64::from(self.next_available % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.advance(1);
    }

    /// Moves the available index.
    pub(in crate::virtio) fn advance(&mut self, by: u16) {
        self.next_available = self.next_available.wrapping_add(by);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.memory
            .write_obj(self.next_available, GuestAddress(self.available + 2))
            .unwrap();
    }

    pub(in crate::virtio) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The next used element, if there is one.
    pub(in crate::virtio) fn take_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.used + 2)).unwrap();
        if index == self.next_used {
            return None;
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let slot = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let length: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        Some((head as u16, length))
    }

    /// The next used element, waited for by interrupt.
    pub(in crate::virtio) fn wait_used(&mut self) -> (u16, u32) {
        let end = Instant::now() + DEADLINE;
        loop {
            self.memory
                .write_obj(self.next_used, GuestAddress(self.available + 4 + 2 * u64::from(self.size)))
                .unwrap();
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            if let Some(used) = self.take_used() {
                return used;
            }
            assert!(self.interrupted(end), "no used buffer within the deadline");
        }
    }

    /// Waits for an interrupt until `end`.
    pub(in crate::virtio) fn interrupted(&self, end: Instant) -> bool {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).unwrap();
        let mut fds = [PollFd::from_borrowed_fd(eventfd(&self.interrupt), PollFlags::IN)];
        let ready = poll(&mut fds, Some(&left)).unwrap() == 1;
        let _ = self.interrupt.read();
        ready
    }

    /// How many interrupts there were since anybody asked.
    pub(in crate::virtio) fn interrupts(&self) -> u64 {
        self.interrupt.read().unwrap_or(0)
    }

    pub(in crate::virtio) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(in crate::virtio) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// Where a device's faults arrive.
pub(in crate::virtio) struct Faults(Mutex<mpsc::Receiver<DeviceFault>>);

impl Faults {
    pub(in crate::virtio) fn wait(&self) -> DeviceFault {
        self.0.lock().unwrap().recv_timeout(DEADLINE).expect("a fault within the deadline")
    }

    pub(in crate::virtio) fn none(&self) -> bool {
        self.0.lock().unwrap().try_recv().is_err()
    }
}

/// Activates `device` on the drivers' queues with every feature it offers that is also in `features`.
pub(in crate::virtio) fn activate(device: &mut dyn VirtioDevice, drivers: &[&Driver], features: u64) -> Faults {
    try_activate(device, drivers, features).unwrap()
}

/// The same of a device that may refuse.
pub(in crate::virtio) fn try_activate(device: &mut dyn VirtioDevice, drivers: &[&Driver], features: u64) -> Result<Faults, ActivateError> {
    let (send, receive) = mpsc::channel();
    let activation = Activation {
        memory: Arc::clone(&drivers[0].memory),
        features: device.features() & features,
        queues: drivers.iter().map(|driver| Some(driver.active())).collect(),
        config_changed: Interrupt::new(Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())),
        threads: Threads::plain(),
        failed: Arc::new(move |fault| {
            let _ = send.send(fault);
        }),
        again: false,
    };
    device.activate(activation)?;
    Ok(Faults(Mutex::new(receive)))
}
