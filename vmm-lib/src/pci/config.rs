//! The 256 bytes of configuration space of one function: which bits a guest may write, and where capabilities lie. Has no effects.

use std::ops::Range;

/// Size of a function without PCI Express capability.
pub(crate) const SIZE: usize = 256;
/// Command register.
const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const BAR0: usize = 0x10;
/// 64 bits, prefetchable.
const BAR_FLAGS: u32 = 0b1100;
const END_OF_BARS: usize = 0x28;
const ROM: usize = 0x30;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

/// Who a function is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) revision: u8,
    /// Class, subclass, interface.
    pub(crate) class: [u8; 3],
    pub(crate) subsystem: u16,
}

/// The registers of a function.
pub(crate) struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    next_capability: usize,
    last_pointer: usize,
    bar_size: u64,
}

impl ConfigSpace {
    /// A function without BAR and capability. Interrupt pins are off and the latency timer set, so that Linux need not write them.
    pub(crate) fn new(identity: Identity) -> Self {
        let mut config = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            next_capability: FIRST_CAPABILITY,
            last_pointer: CAPABILITIES,
            bar_size: 0,
        };
        config.set(0x00, &identity.vendor.to_le_bytes());
        config.set(0x02, &identity.device.to_le_bytes());
        config.set(COMMAND, &COMMAND_INTX_DISABLE.to_le_bytes());
        config.allow(COMMAND, &(COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE).to_le_bytes());
        config.set(0x08, &[identity.revision, identity.class[2], identity.class[1], identity.class[0]]);
        config.allow(0x0c, &[0xff, 0xff]);
        config.set(0x0d, &[64]);
        config.set(0x2c, &identity.vendor.to_le_bytes());
        config.set(0x2e, &identity.subsystem.to_le_bytes());
        config.allow(0x3c, &[0xff]);
        config
    }

    /// Gives the function BAR 0: 64 bits, prefetchable, `size` bytes (a power of two) at `address`.
    pub(crate) fn set_bar(&mut self, address: u64, size: u64) {
        let size_mask = !(size - 1);
        self.bar_size = size;
        self.set(BAR0, &(address | u64::from(BAR_FLAGS)).to_le_bytes());
        self.allow(BAR0, &size_mask.to_le_bytes());
    }

    /// Gives the function BAR 0: 32 bits, not prefetchable, `size` bytes (a power of two from 16 on) at `address`.
    pub(crate) fn set_bar32(&mut self, address: u32, size: u32) {
        self.bar_size = u64::from(size);
        self.set_register(BAR0, &address.to_le_bytes(), &(!(size - 1)).to_le_bytes());
    }

    /// A register of the function's own: what it is, and which of its bits a guest may write.
    pub(crate) fn set_register(&mut self, offset: usize, value: &[u8], writable: &[u8]) {
        self.set(offset, value);
        self.allow(offset, writable);
    }

    /// Appends a capability: `body` follows its identifier and pointer, `writable` its writable bits. Returns where it lies.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        self.set(0x06, &STATUS_CAPABILITIES.to_le_bytes());
        self.set(self.last_pointer, &[at as u8]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.last_pointer = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Registers that the function does not have and that a system nonetheless writes to find that out: other BARs, the expansion ROM's.
    pub(crate) fn absent(&self) -> [Range<usize>; 2] {
        let first = if self.bar_size == 0 { BAR0 } else { BAR0 + 8 };
        [first..END_OF_BARS, ROM..ROM + 4]
    }

    /// A guest's write; what lies outside or is read-only is ignored.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        let registers = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), new) in registers.zip(data) {
            *byte = *byte & !writable | new & writable;
        }
    }

    /// Takes over what a guest may write from the registers of a function like this one.
    pub(crate) fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        let fixed = |bytes: &[u8]| -> Vec<u8> { bytes.iter().zip(&self.writable).map(|(byte, writable)| byte & !writable).collect() };
        if saved.len() != SIZE || fixed(saved) != fixed(&self.bytes) {
            return Err("it is another function".to_owned());
        }
        self.bytes.copy_from_slice(saved);
        Ok(())
    }

    /// A guest's read; zero beyond the end.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + index).copied().unwrap_or(0);
        }
    }

    /// The 16-bit register at `offset`, which lies inside.
    pub(crate) fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// All registers.
    pub(crate) fn bytes(&self) -> &[u8; SIZE] {
        &self.bytes
    }

    /// What BAR 0 decodes, if it decodes and its address can be one.
    pub(crate) fn decoded(&self) -> Option<Range<u64>> {
        if self.bar_size == 0 || self.word(COMMAND) & COMMAND_MEMORY == 0 {
            return None;
        }
        let raw: [u8; 8] = self.bytes[BAR0..BAR0 + 8].try_into().expect("eight bytes are eight");
        let start = u64::from_le_bytes(raw) & !0xf;
        Some(start..start.checked_add(self.bar_size)?)
    }

    fn set(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    fn allow(&mut self, offset: usize, data: &[u8]) {
        self.writable[offset..offset + data.len()].copy_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [1, 0x80, 0],
            subsystem: 0x1100,
        };
        let mut config = ConfigSpace::new(identity);
        config.set_bar(0x1_4000_0000, 0x4000);
        config
    }

    fn long(config: &ConfigSpace, offset: usize) -> u32 {
        let mut data = [0; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_bar_tells_its_size_as_the_specification_says() {
        let mut config = config();
        config.write(0x10, &[0xff; 4]);
        config.write(0x14, &[0xff; 4]);
        assert_eq!(long(&config, 0x10), 0xffff_c00c);
        assert_eq!(long(&config, 0x14), 0xffff_ffff);
        config.write(0x18, &[0xff; 4]);
        config.write(0x30, &[0xff; 4]);
        assert_eq!((long(&config, 0x18), long(&config, 0x30)), (0, 0));
    }

    #[test]
    fn a_bar_decodes_only_when_told_so_and_never_beyond_the_address_space() {
        let mut config = config();
        assert_eq!(config.decoded(), None);
        config.write(0x04, &[0x06]);
        assert_eq!(config.decoded(), Some(0x1_4000_0000..0x1_4000_4000));
        config.write(0x10, &[0xff; 8]);
        assert_eq!(config.decoded(), None);
    }

    #[test]
    fn identity_cannot_be_written_and_writes_past_the_end_are_ignored() {
        let mut config = config();
        config.write(0, &[0; 8]);
        assert_eq!(long(&config, 0), 0x1042_1af4);
        config.write(SIZE - 2, &[0xff; 8]);
        config.write(SIZE + 50, &[0xff; 8]);
        let mut data = [9; 8];
        config.read(SIZE - 2, &mut data);
        assert_eq!(data, [0; 8]);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut config = config();
        let first = config.add_capability(0x11, &[1, 2, 3], &[0, 0xc0, 0]);
        let second = config.add_capability(9, &[4], &[0]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(config.bytes()[0x34], 0x40);
        assert_eq!(config.bytes()[0x40..0x45], [0x11, 0x48, 1, 2, 3]);
        assert_eq!(config.bytes()[0x48..0x4b], [9, 0, 4]);
        config.write(0x43, &[0xff]);
        assert_eq!(config.bytes()[0x43], 0xc2);
    }
}
