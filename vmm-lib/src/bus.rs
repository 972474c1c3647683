//! Where an exit goes: ports and memory that are not RAM. What nobody answers reads as all ones, and a write to it is ignored.

use std::ops::Range;
use std::sync::Arc;

use crate::arch::power;
use crate::exit::MachineExit;
use crate::late_images::LateImages;
use crate::pci::PciBus;
use crate::posted::Posted;
use crate::serial::SerialPort;

/// All that a processor can reach besides RAM.
pub(crate) struct Bus {
    /// PCI, configuration space and BARs.
    pub(crate) pci: PciBus,
    /// Writes to it that cost no exit.
    pub(crate) posted: Posted,
    /// COM1.
    pub(crate) serial: Option<Arc<SerialPort>>,
    /// Where images lie, which a guest can read only.
    pub(crate) images: Vec<Range<u64>>,
    /// Those that come and go.
    pub(crate) late: Option<Arc<LateImages>>,
}

impl Bus {
    /// Carries out what processors have posted. Comes first whenever one has left the guest, for whatever reason.
    pub(crate) fn settle(&self) {
        self.posted.deliver(|address, data| self.pci.write(address, data));
    }

    /// Reads memory that is not RAM; may end the machine: a page of an image is read without an exit, unless the host cannot give it.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) -> Option<MachineExit> {
        if let Some(image) = self.image(address) {
            let reason = format!("{image} at {address:#x}, which its file has no longer");
            return Some(MachineExit::MemoryFault { reason });
        }
        self.pci.read(address, data);
        None
    }

    /// Writes to memory that is not RAM; may end the machine.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> Option<MachineExit> {
        if let Some(image) = self.image(address) {
            let reason = format!("the guest wrote to its read-only {image} at {address:#x}");
            return Some(MachineExit::Crashed { reason });
        }
        self.pci.write(address, data);
        None
    }

    /// Which image is at an address.
    fn image(&self, address: u64) -> Option<String> {
        let first = self.images.iter().position(|image| image.contains(&address));
        let late = self.late.as_ref().filter(|late| late.has(address));
        first
            .map(|number| format!("image {number}"))
            .or_else(|| late.map(|_| "attached image".to_owned()))
    }

    /// `in`, also repeated: every byte comes from the same register, as only byte-wide devices exist.
    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let (Some(serial), Some(register)) = (&self.serial, SerialPort::register(port)) {
            data.fill_with(|| serial.read(register));
        } else if let Some(value) = power::read(port) {
            data.fill(value);
        }
    }

    /// `out`, also repeated; may end the machine.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) -> Option<MachineExit> {
        if let (Some(serial), Some(register)) = (&self.serial, SerialPort::register(port)) {
            data.iter().for_each(|byte| serial.write(register, *byte));
            return None;
        }
        data.iter().find_map(|byte| power::write(port, *byte))
    }
}
