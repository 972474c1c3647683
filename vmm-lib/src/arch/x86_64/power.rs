//! The three ports of hardware-reduced power management, named by the FADT: sleep control, sleep status, reset. Only S5 exists.

use crate::exit::MachineExit;

/// ACPI's sleep control register.
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
/// ACPI's sleep status register: always zero, nothing wakes up here.
pub(crate) const SLEEP_STATUS: u16 = 0x601;
/// The reset register.
pub(crate) const RESET: u16 = 0x602;
/// What is to be written to it.
pub(crate) const RESET_VALUE: u8 = 1;
/// SLP_TYP of `_S5`.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

/// What a byte written to a port means.
pub(crate) fn write(port: u16, value: u8) -> Option<MachineExit> {
    match port {
        SLEEP_CONTROL if value == SLEEP_ENABLE | SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT => Some(MachineExit::PoweredOff),
        RESET if value == RESET_VALUE => Some(MachineExit::Reset),
        _ => None,
    }
}

/// What a port reads as, if it is one of ours.
pub(crate) fn read(port: u16) -> Option<u8> {
    (SLEEP_CONTROL..=RESET).contains(&port).then_some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_values_end_the_machine() {
        for value in 0..=u8::MAX {
            assert_eq!(write(SLEEP_CONTROL, value).is_some(), value == 0x34, "{value:#x}");
            assert_eq!(write(RESET, value).is_some(), value == 1, "{value:#x}");
            assert_eq!(write(SLEEP_STATUS, value), None);
        }
    }
}
