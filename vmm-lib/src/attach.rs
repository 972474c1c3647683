//! Devices that come and go while a machine runs: what may come, where it goes, and why it cannot. The monitor's half only: a function is put on
//! the bus or taken off it. Nobody tells the guest, which finds it by a rescan of its bus (Linux: `/sys/bus/pci/rescan`) and lets go of it
//! before it is taken away (`/sys/bus/pci/devices/0000:00:05.0/remove`); whoever attaches and detaches sees to that.
//!
//! Refuses files by path: all that a device needs is passed open. A machine whose devices have changed is in no snapshot.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::bus::Bus;
use crate::devices::{DeviceError, disk_device, net_device, share_device};
use crate::files::Files;
use crate::images::ImagesError;
use crate::irq::Interrupts;
use crate::memory::Layout;
use crate::pci::DEVICES;
use crate::spec::{Disk, Net, Pmem, Share};
use crate::threads::Threads;
use crate::validate::SpecErrors;
use crate::virtio::device::{Memory, VirtioDevice};
use crate::virtio::pci::{BAR_SIZE, Transport};
use crate::virtio::pmem;

/// A device to be attached. The files that it names are among those that are passed with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Attachment {
    /// A disk.
    Disk(Disk),
    /// A network interface.
    Net(Net),
    /// A shared directory.
    Share(Share),
    /// An image that is read in place, in the machine's room for these (`pmemRoom`).
    Pmem(Pmem),
}

/// A place on the machine's bus that has a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Occupied {
    /// Device number on PCI bus 0: 5 is `0000:00:05.0` in the guest.
    pub slot: u8,
    /// The device's name, unique in its machine: `block img0`.
    pub name: String,
    /// Whether the guest has a driver at work on it.
    pub in_use: bool,
    /// Whether it may be detached.
    pub detachable: bool,
}

/// Why a device was not attached. The machine goes on without it.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The machine does not run.
    #[error("the machine does not run")]
    NotRunning,
    /// The attachment is not valid.
    #[error("the device is not valid: {0}")]
    Invalid(SpecErrors),
    /// Another device has that name.
    #[error("the machine has a device of that name: {0}")]
    Taken(String),
    /// All places have devices.
    #[error("all {DEVICES} places of the machine's bus are taken")]
    Full,
    /// The machine has no room for images.
    #[error("the machine has no room for images that come while it runs: its specification has no pmemRoom")]
    NoRoom,
    /// The image could not be put into that room.
    #[error("map the image")]
    Image(#[from] ImagesError),
    /// The device could not be made.
    #[error("make the device")]
    Device(#[from] DeviceError),
    /// KVM refused to have it on the bus.
    #[error("put the device on the bus")]
    Kvm(#[source] kvm_ioctls::Error),
}

/// Why a device was not detached. It is where it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DetachError {
    /// The machine does not run.
    #[error("the machine does not run")]
    NotRunning,
    /// There is none.
    #[error("place {0} of the machine's bus has no device")]
    Empty(u8),
    /// The machine cannot be without it.
    #[error("place {slot} has what belongs to the machine: {name}")]
    Fixed {
        /// Where.
        slot: u8,
        /// What.
        name: String,
    },
    /// The guest has not let go of it.
    #[error("the guest still uses place {slot}, {name}: it has to let go of the device first")]
    InUse {
        /// Where.
        slot: u8,
        /// What.
        name: String,
    },
}

/// A wish of whoever has a handle on the machine, and where the answer goes. Without somebody who waits there, it is carried out all the same.
pub(crate) enum Change {
    Attach(Box<Attachment>, Vec<OwnedFd>, SyncSender<Result<u8, AttachError>>),
    Detach(u8, bool, SyncSender<Result<(), DetachError>>),
    List(SyncSender<Vec<Occupied>>),
}

/// What devices are put into.
pub(crate) struct Ground<'a> {
    pub(crate) vm: &'a Arc<VmFd>,
    pub(crate) bus: &'a Bus,
    pub(crate) memory: &'a Memory,
    pub(crate) layout: &'a Layout,
    pub(crate) interrupts: &'a Arc<Interrupts>,
    pub(crate) threads: &'a Threads,
}

impl Ground<'_> {
    /// Does what is wished, one at a time.
    pub(crate) fn change(&self, change: Change) {
        match change {
            Change::Attach(attachment, files, reply) => drop(reply.send(self.attach(&attachment, files))),
            Change::Detach(slot, force, reply) => drop(reply.send(self.bus.pci.detach(self.vm, slot, force))),
            Change::List(reply) => drop(reply.send(self.bus.pci.occupied())),
        }
    }

    fn attach(&self, attachment: &Attachment, files: Vec<OwnedFd>) -> Result<u8, AttachError> {
        attachment.validate(files.len()).map_err(AttachError::Invalid)?;
        let device = self.device(attachment, &Files::new(files))?;
        let taken: BTreeSet<_> = self.bus.pci.occupied().into_iter().map(|occupied| occupied.name).collect();
        let name = device.name().to_owned();
        if taken.contains(&name) {
            return Err(AttachError::Taken(name));
        }
        let slot = self.bus.pci.free().ok_or(AttachError::Full)?;
        let bar = self.layout.mmio64.start + BAR_SIZE * (u64::from(slot) - 1);
        let (vm, memory) = (self.vm.clone(), self.memory.clone());
        let transport = Transport::new(device, vm, self.interrupts.clone(), memory, bar, self.threads.clone());
        let transport = transport.map_err(|source| DeviceError::Transport { device: name, source })?;
        self.bus.pci.attach(self.vm, slot, Box::new(transport)).map_err(AttachError::Kvm)?;
        Ok(slot)
    }

    /// The device; an image is there with it, and goes with it.
    fn device(&self, attachment: &Attachment, files: &Files) -> Result<Box<dyn VirtioDevice>, AttachError> {
        Ok(match attachment {
            Attachment::Disk(disk) => Box::new(disk_device("disk", disk, files)?),
            Attachment::Net(net) => Box::new(net_device("net", net, files)?),
            Attachment::Share(share) => Box::new(share_device("share", share, files)?),
            Attachment::Pmem(pmem) => {
                let images = self.memory.late_images().ok_or(AttachError::NoRoom)?;
                Box::new(pmem::Pmem::late(&pmem.name, images.put(self.vm, pmem, files)?))
            }
        })
    }
}
