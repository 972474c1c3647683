//! The machine's devices on its bus, in PCI order: host bridge, disks, images in place, shares, networks, vsock, entropy, balloon. Knows what each
//! needs; does none of its work.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_ioctls::VmFd;

use crate::files::{FileError, Files};
use crate::irq::Interrupts;
use crate::memory::Layout;
use crate::pci::{DEVICES, HostBridge, PciFunction};
use crate::spec::{Disk, MAX_NETS, MAX_STORES, MachineSpec};
use crate::threads::Threads;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::{Block, BlockError};
use crate::virtio::device::{Memory, VirtioDevice};
use crate::virtio::fs::Fs;
use crate::virtio::net::Net;
use crate::virtio::pci::{BAR_SIZE, Transport};
use crate::virtio::pmem::Pmem;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Inlet, Vsock};

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

/// Makes all functions of the bus.
pub(crate) fn create(
    spec: &MachineSpec,
    files: &Files,
    vm: &Arc<VmFd>,
    interrupts: &Arc<Interrupts>,
    memory: &Memory,
    layout: &Layout,
    (threads, inlet): (&Threads, Option<Inlet>),
) -> Result<Vec<Box<dyn PciFunction>>, DeviceError> {
    let mut functions: Vec<Box<dyn PciFunction>> = vec![Box::new(HostBridge::new())];
    for (index, device) in virtio(spec, files, layout, inlet)?.into_iter().enumerate() {
        let name = device.name().to_owned();
        let bar = layout.mmio64.start + BAR_SIZE * index as u64;
        let transport = Transport::new(device, vm.clone(), interrupts.clone(), memory.clone(), bar, threads.clone());
        functions.push(Box::new(
            transport.map_err(|source| DeviceError::Transport { device: name, source })?,
        ));
    }
    Ok(functions)
}

fn virtio(spec: &MachineSpec, files: &Files, layout: &Layout, inlet: Option<Inlet>) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (index, disk) in spec.disks.iter().enumerate() {
        devices.push(Box::new(block(index, disk, files)?));
    }
    for (pmem, region) in spec.pmems.iter().zip(&layout.images) {
        devices.push(Box::new(Pmem::new(&pmem.name, region.clone())));
    }
    for (index, share) in spec.shares.iter().enumerate() {
        let socket = files.open_existing(&format!("shares[{index}].socket"), &share.socket, true)?;
        devices.push(Box::new(Fs::new(&share.tag, OwnedFd::from(socket).into())));
    }
    for (index, net) in spec.nets.iter().enumerate() {
        let tap = files.open_existing(&format!("nets[{index}].tap"), &net.tap, true)?;
        devices.push(Box::new(Net::new(tap, net.mac, net.mtu)));
    }
    if let Some(vsock) = &spec.vsock {
        devices.push(Box::new(Vsock::new(vsock.cid, files.listen("vsock.socket", &vsock.socket)?, inlet)));
    }
    if spec.rng {
        devices.push(Box::new(Rng::new()));
    }
    if spec.balloon {
        devices.push(Box::new(Balloon::default()));
    }
    Ok(devices)
}

fn block(index: usize, disk: &Disk, files: &Files) -> Result<Block, DeviceError> {
    let mut extents = Vec::new();
    for (number, extent) in disk.extents.iter().enumerate() {
        let field = format!("disks[{index}].extents[{number}].file");
        extents.push((
            files.open_existing(&field, &extent.file, !disk.read_only)?,
            extent.offset,
            extent.length,
        ));
    }
    Block::new(&disk.serial, extents, disk.read_only).map_err(|source| DeviceError::Disk {
        serial: disk.serial.clone(),
        source,
    })
}

// Bridge, disks with images and shares, networks, vsock, entropy and balloon have a device number each.
const _: () = assert!(1 + MAX_STORES + MAX_NETS + 3 <= DEVICES);
