//! The machine's devices on its bus, in PCI order: host bridge, disks, images in place, networks, vsock, entropy, balloon, memory that comes and
//! goes, console, what a comb has no place for, shares, watchdog. Knows what each needs; does none of its work. Where each stands is [`places`]'s.

mod places;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_ioctls::VmFd;

use crate::arch::layout::MMIO32;
use crate::files::{FileError, Files};
use crate::irq::Interrupts;
use crate::memory::Layout;
use crate::pci::{DEVICES, HostBridge, PciFunction};
use crate::spec::{self, Disk, DiskFormat, MAX_NETS, MAX_STORES, MachineSpec, Share};
use crate::threads::Threads;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::{self, Block, BlockError};
use crate::virtio::console::{Console, Screen};
use crate::virtio::device::{Memory, VirtioDevice};
use crate::virtio::fs::Fs;
use crate::virtio::mem::{self, Mem};
use crate::virtio::net::{self, Net};
use crate::virtio::pci::{BAR_SIZE, Transport};
use crate::virtio::placeholder::Placeholder;
use crate::virtio::pmem::{self, Pmem};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Inlet, Vsock};
use crate::watchdog::{Timer, Watchdog};

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// One of its files.
    #[error("open a device's file")]
    File(#[from] FileError),
    /// A disk.
    #[error("disk {serial}")]
    Disk {
        /// Which.
        serial: String,
        /// Why.
        #[source]
        source: BlockError,
    },
    /// The host gave no eventfd.
    #[error("put {device} on the bus")]
    Transport {
        /// Which.
        device: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What devices are given from outside, or share with the rest of the machine.
pub(crate) struct Shared {
    /// The vsock device's clients in this process.
    pub(crate) inlet: Option<Inlet>,
    /// The console's screen.
    pub(crate) screen: Option<Screen>,
    /// The watchdog's time.
    pub(crate) timer: Option<Arc<Timer>>,
}

/// Makes all functions of the bus.
pub(crate) fn create(
    spec: &MachineSpec,
    files: &Files,
    vm: &Arc<VmFd>,
    interrupts: &Arc<Interrupts>,
    memory: &Memory,
    layout: &Layout,
    (threads, shared): (&Threads, Shared),
) -> Result<Vec<Box<dyn PciFunction>>, DeviceError> {
    let mut functions: Vec<Box<dyn PciFunction>> = vec![Box::new(HostBridge::new())];
    for (index, device) in virtio(spec, files, memory, layout, (shared.inlet, shared.screen))?
        .into_iter()
        .enumerate()
    {
        let name = device.name().to_owned();
        let bar = layout.mmio64.start + BAR_SIZE * index as u64;
        let transport = Transport::new(device, vm.clone(), interrupts.clone(), memory.clone(), bar, threads.clone());
        functions.push(Box::new(
            transport.map_err(|source| DeviceError::Transport { device: name, source })?,
        ));
    }
    if let Some(timer) = shared.timer {
        functions.push(Box::new(Watchdog::new(MMIO32.start as u32, timer)));
    }
    Ok(functions)
}

fn virtio(
    spec: &MachineSpec,
    files: &Files,
    memory: &Memory,
    layout: &Layout,
    (inlet, screen): (Option<Inlet>, Option<Screen>),
) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    let (places, placed) = (spec.places(), spec.placed());
    let disk = |(index, disk)| disk_device(&format!("disks[{index}]"), disk, files);
    let pmem = |(pmem, region): (&spec::Pmem, &std::ops::Range<u64>)| Pmem::new(&pmem.name, region.clone());
    let net = |(index, net)| net_device(&format!("nets[{index}]"), net, files);
    let (mut disks, mut nets) = (spec.disks.iter().enumerate(), spec.nets.iter().enumerate());
    let mut pmems = spec.pmems.iter().zip(&layout.images);
    for one in disks.by_ref().take(placed.disks) {
        devices.push(Box::new(disk(one)?));
    }
    pad(&mut devices, places.pmems, block::placeholder);
    for one in pmems.by_ref().take(placed.pmems) {
        devices.push(Box::new(pmem(one)));
    }
    pad(&mut devices, places.nets, pmem::placeholder);
    for one in nets.by_ref().take(placed.nets) {
        devices.push(Box::new(net(one)?));
    }
    pad(&mut devices, places.others, net::placeholder);
    if let Some(vsock) = &spec.vsock {
        devices.push(Box::new(Vsock::new(vsock.cid, files.listen("vsock.socket", &vsock.socket)?, inlet)));
    }
    if spec.rng {
        devices.push(Box::new(Rng::new()));
    }
    if spec.balloon {
        devices.push(Box::new(Balloon::default()));
    }
    match memory.hotplug() {
        Some(hotplug) => devices.push(Box::new(Mem::new(hotplug.clone()))),
        None if spec.has_memory_place() => devices.push(Box::new(mem::placeholder())),
        None => {}
    }
    if let Some(console) = &spec.console {
        let output = files.open_unblocking("console.output", &console.output, true)?;
        let input = console.input.as_ref();
        let input = input
            .map(|input| files.open_unblocking("console.input", input, false))
            .transpose()?;
        devices.push(Box::new(Console::new(output, input, screen)));
    }
    for one in disks {
        devices.push(Box::new(disk(one)?));
    }
    for one in pmems {
        devices.push(Box::new(pmem(one)));
    }
    for one in nets {
        devices.push(Box::new(net(one)?));
    }
    for (index, share) in spec.shares.iter().enumerate() {
        devices.push(Box::new(share_device(&format!("shares[{index}]"), share, files)?));
    }
    Ok(devices)
}

/// Fills places up to the device number `next`.
fn pad(devices: &mut Vec<Box<dyn VirtioDevice>>, next: u8, placeholder: impl Fn() -> Placeholder) {
    while devices.len() + 1 < usize::from(next) {
        devices.push(Box::new(placeholder()));
    }
}

/// A disk; `path` is where its specification is.
pub(crate) fn disk_device(path: &str, disk: &Disk, files: &Files) -> Result<Block, DeviceError> {
    let broken = |source| DeviceError::Disk {
        serial: disk.serial.clone(),
        source,
    };
    if let (DiskFormat::Qcow2, [image]) = (disk.format, disk.extents.as_slice()) {
        let file = files.open_existing(&format!("{path}.extents[0].file"), &image.file, !disk.read_only)?;
        let block = Block::qcow2(&disk.serial, file, disk.read_only).map_err(broken)?;
        return Ok(block.limited(disk.limits));
    }
    let mut extents = Vec::new();
    for (number, extent) in disk.extents.iter().enumerate() {
        let field = format!("{path}.extents[{number}].file");
        extents.push((
            files.open_existing(&field, &extent.file, !disk.read_only)?,
            extent.offset,
            extent.length,
        ));
    }
    let block = Block::by(disk.engine, &disk.serial, extents, disk.read_only).map_err(broken)?;
    Ok(block.limited(disk.limits))
}

/// A network interface; `path` is where its specification is.
pub(crate) fn net_device(path: &str, net: &spec::Net, files: &Files) -> Result<Net, DeviceError> {
    let mut queues = vec![files.open_existing(&format!("{path}.tap"), &net.tap, true)?];
    for (index, queue) in net.more_queues.iter().enumerate() {
        queues.push(files.open_existing(&format!("{path}.moreQueues[{index}]"), queue, true)?);
    }
    Ok(Net::with_queues(queues, net.mac, net.mtu).limited(net.limits))
}

/// A shared directory; `path` is where its specification is.
pub(crate) fn share_device(path: &str, share: &Share, files: &Files) -> Result<Fs, DeviceError> {
    let socket = files.open_existing(&format!("{path}.socket"), &share.socket, true)?;
    Ok(Fs::new(&share.tag, OwnedFd::from(socket).into()))
}

// Bridge, disks and images, networks, vsock, entropy and balloon have a device number each; a specification is refused that has all of these,
// and memory that comes and goes, a console or a watchdog besides.
const _: () = assert!(1 + MAX_STORES + MAX_NETS + 3 <= DEVICES);
