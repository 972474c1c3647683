//! COM1, for a console before there are drivers: output goes to a file, input comes from one. Exists only when the specification asks for it.
//! Output that its file cannot take is lost: a processor that waited for it would be a guest that a host holds up.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use rustix::event::epoll::EventFlags;
use serde::{Deserialize, Serialize};
use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::lock::lock;
use crate::outlet::Outlet;
use crate::virtio::worker::{Poller, eventfd};

/// First port.
pub(crate) const BASE: u16 = 0x3f8;
/// Number of ports.
pub(crate) const SIZE: u8 = 8;
/// Pin of the IOAPIC.
pub(crate) const IRQ: u32 = 4;
/// Bytes that the guest has not read, at most; vm-superio's.
const FIFO: usize = 64;
/// Tokens of what the input waits for.
const OVER: u64 = 0;
const DRAINED: u64 = 1;
const INPUT: u64 = 2;

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The output as vm-superio writes it: what is not taken is lost, and never an error.
struct Output(Outlet);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = self.0.write(bytes, Instant::now());
        self.0.lose((bytes.len() - done) as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells the one who gives input that the guest has read all there was.
struct Drained(EventFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // A full counter is an event that is still to be read.
        let _ = self.0.write(1);
    }
}

/// The port's registers, and what the guest has not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortState {
    /// The divisor's halves, the lower one first.
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    /// At most [`FIFO`] bytes.
    received: Vec<u8>,
}

impl From<SerialState> for PortState {
    fn from(uart: SerialState) -> Self {
        Self {
            divisor: [uart.baud_divisor_low, uart.baud_divisor_high],
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line_control: uart.line_control,
            line_status: uart.line_status,
            modem_control: uart.modem_control,
            modem_status: uart.modem_status,
            scratch: uart.scratch,
            received: uart.in_buffer,
        }
    }
}

impl From<&PortState> for SerialState {
    fn from(port: &PortState) -> Self {
        let [baud_divisor_low, baud_divisor_high] = port.divisor;
        Self {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: port.interrupt_enable,
            interrupt_identification: port.interrupt_identification,
            line_control: port.line_control,
            line_status: port.line_status,
            modem_control: port.modem_control,
            modem_status: port.modem_status,
            scratch: port.scratch,
            in_buffer: port.received.clone(),
        }
    }
}

/// The port.
pub(crate) struct SerialPort {
    uart: Mutex<Serial<Line, Drained, Output>>,
    line: EventFd,
    input: Mutex<Option<File>>,
    over: EventFd,
    drained: EventFd,
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
    /// A snapshot's port is none.
    #[error("the snapshot's COM1 has {0} bytes that its guest has not read, and there is room for {FIFO}")]
    Received(usize),
}

impl SerialPort {
    /// A port that appends to `output`, and is fed from `input`, which does not block. It begins as it comes, or as a snapshot's was.
    pub(crate) fn new(vm: &VmFd, output: File, input: Option<File>, state: Option<&PortState>) -> Result<Self, SerialError> {
        let port = Self::begin(output, input, state)?;
        vm.register_irqfd(&port.line, IRQ).map_err(SerialError::Interrupt)?;
        Ok(port)
    }

    /// One whose interrupt nobody hears.
    fn begin(output: File, input: Option<File>, state: Option<&PortState>) -> Result<Self, SerialError> {
        let event = || EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(SerialError::EventFd);
        let clone = |event: &EventFd| event.try_clone().map_err(SerialError::EventFd);
        let (line, over, drained) = (event()?, event()?, event()?);
        let uart = state.map_or_else(SerialState::default, SerialState::from);
        let received = uart.in_buffer.len();
        let output = Output(Outlet::new("serial port", output));
        let uart = Serial::from_state(&uart, Line(clone(&line)?), Drained(clone(&drained)?), output);
        // All else that it does is to write to its line, which is new: nothing can be wrong with that.
        let uart = uart.map_err(|_| SerialError::Received(received))?;
        Ok(Self {
            uart: Mutex::new(uart),
            line,
            input: Mutex::new(input),
            over,
            drained,
        })
    }

    /// Its registers as they are.
    pub(crate) fn save(&self) -> PortState {
        self.uart().state().into()
    }

    /// Interrupts once: an interrupt that was under way when the snapshot was taken is lost, and one too many does no harm.
    pub(crate) fn resume(&self) {
        let _ = self.line.write(1);
    }

    /// Whether a port is one of these.
    pub(crate) fn register(port: u16) -> Option<u8> {
        port.checked_sub(BASE)
            .filter(|offset| *offset < u16::from(SIZE))
            .map(|offset| offset as u8)
    }

    /// A guest reads a register.
    pub(crate) fn read(&self, register: u8) -> u8 {
        self.uart().read(register)
    }

    /// A guest writes a register.
    pub(crate) fn write(&self, register: u8, value: u8) {
        // Only its interrupt can fail, and that only with a full counter, which is an interrupt that is still to be raised.
        let _ = self.uart().write(register, value);
    }

    /// The file of its input, once.
    pub(crate) fn take_input(&self) -> Option<File> {
        lock(&self.input).take()
    }

    /// Gives the guest what comes from `input` as it reads it, until either end is over.
    pub(crate) fn feed(&self, mut input: File) -> io::Result<()> {
        let poller = Poller::new()?;
        poller.add(eventfd(&self.over), OVER, EventFlags::IN)?;
        poller.add(eventfd(&self.drained), DRAINED, EventFlags::IN)?;
        let mut watched = false;
        let mut block = [0; FIFO];
        loop {
            let room = self.uart().fifo_capacity().min(FIFO);
            let (mut empty, mut wait) = (false, None);
            if room > 0 {
                match input.read(&mut block[..room]) {
                    Ok(0) => return Ok(()),
                    Ok(length) => {
                        // In its loopback mode the port has no input: as a cable that is cut, it loses what comes.
                        let _ = self.uart().enqueue_raw_bytes(&block[..length]);
                        wait = Some(Duration::ZERO);
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => empty = true,
                    Err(error) => return Err(error),
                }
            }
            match (empty, watched) {
                (true, false) => poller.add(&input, INPUT, EventFlags::IN)?,
                (false, true) => poller.remove(&input)?,
                _ => {}
            }
            watched = empty;
            let (mut over, mut drained) = (false, false);
            poller.wait(wait, |token, _| match token {
                OVER => over = true,
                DRAINED => drained = true,
                _ => {}
            })?;
            if over {
                return Ok(());
            }
            if drained {
                let _ = self.drained.read();
            }
        }
    }

    /// Ends [`SerialPort::feed`].
    pub(crate) fn stop(&self) {
        let _ = self.over.write(1);
    }

    fn uart(&self) -> MutexGuard<'_, Serial<Line, Drained, Output>> {
        lock(&self.uart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERRUPT_ENABLE: u8 = 1;
    const LINE_CONTROL: u8 = 3;
    const LINE_STATUS: u8 = 5;
    const SCRATCH: u8 = 7;

    fn port(state: Option<&PortState>) -> Result<SerialPort, SerialError> {
        SerialPort::begin(tempfile::tempfile().expect("a file can be made"), None, state)
    }

    #[test]
    fn a_port_goes_on_with_its_registers_and_with_what_its_guest_has_not_read() {
        let before = port(None).expect("eventfds can be had");
        for (register, value) in [(LINE_CONTROL, 0x1b), (INTERRUPT_ENABLE, 5), (SCRATCH, 0x5a)] {
            before.write(register, value);
        }
        before.uart().enqueue_raw_bytes(b"ab").expect("there is room");
        let state: PortState = postcard::from_bytes(&postcard::to_allocvec(&before.save()).expect("can be written")).expect("and read");
        let after = port(Some(&state)).expect("eventfds can be had");
        assert_eq!(after.save(), before.save());
        assert_eq!(
            [LINE_CONTROL, INTERRUPT_ENABLE, SCRATCH].map(|register| after.read(register)),
            [0x1b, 5, 0x5a]
        );
        assert_eq!(
            (
                after.read(LINE_STATUS) & 1,
                after.read(0),
                after.read(0),
                after.read(LINE_STATUS) & 1
            ),
            (1, b'a', b'b', 0)
        );
    }

    #[test]
    fn a_port_that_goes_on_interrupts_once() {
        let port = port(None).expect("eventfds can be had");
        port.resume();
        assert_eq!(port.line.read().expect("it was written"), 1);
    }

    #[test]
    fn a_state_with_more_than_a_port_can_hold_is_refused() {
        let state = |length| PortState {
            received: vec![0; length],
            ..SerialState::default().into()
        };
        assert!(port(Some(&state(FIFO))).is_ok());
        assert!(matches!(port(Some(&state(FIFO + 1))), Err(SerialError::Received(65))));
    }
}
