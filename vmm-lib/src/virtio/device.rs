//! The seam between the PCI transport and the devices: what a device tells the transport, and what it gets once its driver is ready.

use std::ops::Deref;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::chain::Backing;
use crate::dirty::Ram;
use crate::hotplug::Hotplug;
use crate::images::Images;
use crate::late_images::LateImages;
use crate::threads::Threads;

/// Guest memory as all devices see it.
pub type Memory = Arc<GuestSpace>;

/// RAM, which this dereferences to: rings, and all that a device writes, lie there and nowhere else. Part of it may come and go: what is not
/// plugged is mapped, and no buffer may lie there. Beside it what a guest reads in place
/// and may have a device read: it hands pages of its image to its disk and its network as they are.
#[derive(Debug, Default)]
pub struct GuestSpace {
    ram: Ram,
    images: Images,
    backing: Backing,
    hotplug: Option<Arc<Hotplug>>,
}

impl GuestSpace {
    /// RAM, and images that are mapped without write access.
    pub fn new(ram: Ram, images: Images) -> Self {
        let backing = match ram.iter().any(|region| region.file_offset().is_some()) {
            true => Backing::File,
            false => Backing::Anonymous,
        };
        Self {
            ram,
            images,
            backing,
            hotplug: None,
        }
    }

    /// What RAM is behind the pages that nobody has written.
    pub(crate) fn backing(&self) -> Backing {
        self.backing
    }

    /// The same, a region of whose RAM comes and goes.
    pub(crate) fn with_hotplug(self, hotplug: Option<Arc<Hotplug>>) -> Self {
        Self { hotplug, ..self }
    }

    /// What comes and goes.
    pub(crate) fn hotplug(&self) -> Option<&Arc<Hotplug>> {
        self.hotplug.as_ref()
    }

    /// Whether the guest has all the memory of this range that comes and goes.
    pub(crate) fn is_plugged(&self, address: GuestAddress, length: usize) -> bool {
        self.hotplug.as_ref().is_none_or(|hotplug| hotplug.allows(address.0, length as u64))
    }

    /// Room for images that come while the machine runs.
    pub(crate) fn late_images(&self) -> Option<&Arc<LateImages>> {
        self.images.late()
    }

    /// Where a buffer lies that a device only reads; RAM where it lies nowhere.
    pub fn of_readable(&self, address: GuestAddress, length: usize) -> &Ram {
        let images = self.images.memory();
        if GuestMemory::check_range(images, address, length, Permissions::Read) {
            images
        } else {
            &self.ram
        }
    }
}

impl From<Ram> for GuestSpace {
    fn from(ram: Ram) -> Self {
        Self::new(ram, Images::default())
    }
}

impl Deref for GuestSpace {
    type Target = Ram;

    fn deref(&self) -> &Ram {
        &self.ram
    }
}

/// A virtio device, behind any transport (virtio 1.2, section 2). Called by vCPU threads only for configuration and life cycle;
/// a device does its work on threads of its own, named after it, started by [`VirtioDevice::activate`].
pub trait VirtioDevice: Send {
    /// Device identifier (virtio 1.2, section 5): 1 net, 2 block, 4 entropy, 19 socket, 24 memory, 26 file system, 27 pmem.
    fn device_type(&self) -> u16;

    /// Name for threads, messages and counters: `block img0`.
    fn name(&self) -> &str;

    /// The largest size of each queue, powers of two. Their number is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Whether a machine can be without it once it had it.
    fn is_detachable(&self) -> bool {
        false
    }

    /// Feature bits offered besides those of the transport (VERSION_1, RING_EVENT_IDX are the device's to offer too).
    fn features(&self) -> u64;

    /// Reads device configuration; bytes past its end read as zero. `data` is 1, 2, 4 or 8 bytes.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration; what is not writable is ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver has set DRIVER_OK: the queues are validated and frozen. Starts the device's threads. After an error the transport sets
    /// DEVICE_NEEDS_RESET and the machine goes on.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver resets the device: stops and joins its threads, closes what belongs to the session; the device can be activated again.
    fn reset(&mut self);

    /// Stops and joins its threads while the driver is at work, such that [`VirtioDevice::activate`] can go on `again`: each chain that it
    /// has taken is given back, in the order in which it was taken, or as if it had not been taken. The error names what stands against it.
    fn pause(&mut self) -> Result<(), &'static str> {
        self.reset();
        Ok(())
    }

    /// What it keeps besides rings and configuration.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes back what a device like this one has kept.
    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        if state.is_empty() {
            Ok(())
        } else {
            Err("its state is that of another device".to_owned())
        }
    }
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// Guest memory.
    pub memory: Memory,
    /// Features that both sides have agreed on.
    pub features: u64,
    /// One for each queue of the device, in order; `None` for one that the driver left disabled.
    pub queues: Vec<Option<ActiveQueue>>,
    /// Tells the driver of changed configuration.
    pub config_changed: Interrupt,
    /// Makes the device's threads.
    pub threads: Threads,
    /// Where a device reports that its guest broke the protocol: it sets DEVICE_NEEDS_RESET and logs once.
    pub failed: Arc<dyn Fn(DeviceFault) + Send + Sync>,
    /// The driver is at work already: the device was paused, or is that of a snapshot.
    pub again: bool,
}

/// A queue, ready: its rings lie in guest memory as a whole and do not overlap one another, its registers are frozen.
pub struct ActiveQueue {
    /// virtio-queue's state: size, addresses, indices.
    pub queue: virtio_queue::Queue,
    /// Written by the guest's notification (ioeventfd).
    pub kick: EventFd,
    /// Tells the driver of used buffers.
    pub interrupt: Interrupt,
}

/// An MSI-X vector as an irqfd: signalling it is one write, without an exit. Masked vectors are pending in the transport.
#[derive(Clone)]
pub struct Interrupt(Arc<EventFd>);

impl Interrupt {
    /// An interrupt behind this eventfd; a vector of NO_VECTOR gets one that nobody listens to.
    pub fn new(eventfd: Arc<EventFd>) -> Self {
        Self(eventfd)
    }

    /// Raises it. An eventfd's counter cannot overflow before the kernel has read it, so an error means a closed machine and is ignored.
    pub fn signal(&self) {
        let _ = self.0.write(1);
    }
}

/// Why a device could not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A queue that the device needs was left disabled.
    #[error("queue {0} is not enabled")]
    QueueDisabled(usize),
    /// It is a place without a device.
    #[error("there is no device")]
    Nothing,
    /// The host could not give a thread, an eventfd or an epoll.
    #[error("{what}")]
    Host {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// What a guest did wrong to a device, so that it stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{device}: {what}")]
pub struct DeviceFault {
    /// The device's name.
    pub device: String,
    /// What was wrong with what the guest gave.
    pub what: String,
}
