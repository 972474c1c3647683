//! COM1, for a console before there are drivers: output goes to a file, input comes from one. Exists only when the specification asks for it.
//! Output that its file cannot take is lost: a processor that waited for it would be a guest that a host holds up.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use rustix::event::epoll::EventFlags;
use vm_superio::serial::SerialEvents;
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

/// The port.
pub(crate) struct SerialPort {
    uart: Mutex<Serial<Line, Drained, Output>>,
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
}

impl SerialPort {
    /// A port that appends to `output`, and is fed from `input`, which does not block.
    pub(crate) fn new(vm: &VmFd, output: File, input: Option<File>) -> Result<Self, SerialError> {
        let event = || EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(SerialError::EventFd);
        let (line, over, drained) = (event()?, event()?, event()?);
        vm.register_irqfd(&line, IRQ).map_err(SerialError::Interrupt)?;
        let told = Drained(drained.try_clone().map_err(SerialError::EventFd)?);
        let output = Output(Outlet::new("serial port", output));
        Ok(Self {
            uart: Mutex::new(Serial::with_events(Line(line), told, output)),
            input: Mutex::new(input),
            over,
            drained,
        })
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
