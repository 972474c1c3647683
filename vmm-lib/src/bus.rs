//! Where an exit goes: ports and memory that are not RAM. What nobody answers reads as all ones, and a write to it is ignored.

use crate::exit::MachineExit;
use crate::pci::PciBus;
use crate::power;
use crate::serial::SerialPort;

/// All that a processor can reach besides RAM.
pub(crate) struct Bus {
    /// PCI, configuration space and BARs.
    pub(crate) pci: PciBus,
    /// COM1.
    pub(crate) serial: Option<SerialPort>,
}

impl Bus {
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
