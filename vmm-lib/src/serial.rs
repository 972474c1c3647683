//! COM1 for debugging: output goes to a file, there is no input. Exists only when the specification asks for it.

use std::fs::File;
use std::sync::{Mutex, PoisonError};

use kvm_ioctls::VmFd;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// First port.
pub(crate) const BASE: u16 = 0x3f8;
/// Number of ports.
pub(crate) const SIZE: u8 = 8;
/// Pin of the IOAPIC.
pub(crate) const IRQ: u32 = 4;

struct Line(EventFd);

impl Trigger for Line {
    type E = std::io::Error;

    fn trigger(&self) -> std::io::Result<()> {
        self.0.write(1)
    }
}

/// The port.
pub(crate) struct SerialPort(Mutex<State>);

struct State {
    uart: Serial<Line, NoEvents, File>,
    failed: bool,
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// No eventfd.
    #[error("make an eventfd for COM1")]
    EventFd(#[source] std::io::Error),
    /// No irqfd.
    #[error("give COM1 its interrupt")]
    Interrupt(#[source] kvm_ioctls::Error),
}

impl SerialPort {
    /// A port that appends to `output`.
    pub(crate) fn new(vm: &VmFd, output: File) -> Result<Self, SerialError> {
        let line = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(SerialError::EventFd)?;
        vm.register_irqfd(&line, IRQ).map_err(SerialError::Interrupt)?;
        Ok(Self(Mutex::new(State {
            uart: Serial::new(Line(line), output),
            failed: false,
        })))
    }

    /// Whether a port is one of these.
    pub(crate) fn register(port: u16) -> Option<u8> {
        port.checked_sub(BASE)
            .filter(|offset| *offset < u16::from(SIZE))
            .map(|offset| offset as u8)
    }

    /// A guest reads a register.
    pub(crate) fn read(&self, register: u8) -> u8 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).uart.read(register)
    }

    /// A guest writes a register.
    pub(crate) fn write(&self, register: u8, value: u8) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = state.uart.write(register, value)
            && !std::mem::replace(&mut state.failed, true)
        {
            tracing::warn!(?error, "the serial port's output is lost");
        }
    }
}
