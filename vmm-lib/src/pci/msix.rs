//! MSI-X of one function: its table, its pending bits, and what they mean for irqfds. A vector that may not fire has no irqfd: signals then
//! stay in the eventfd's counter (that is the pending bit) and are raised by KVM once the irqfd is back.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::complaints::Complaints;
use crate::irq::{Interrupts, Message};
use crate::pci::state::VectorState;

/// Bytes of an entry.
pub(crate) const ENTRY: u64 = 16;
/// Those of its message, at its beginning; what follows masks it.
pub(crate) const MESSAGE: u32 = 12;
const CONTROL_MASKED: u32 = 1;
/// Bits of the capability's message control.
const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

fn is_whole(offset: u64, length: usize) -> bool {
    matches!(length, 4 | 8) && offset.is_multiple_of(length as u64)
}

/// One vector.
struct Vector {
    message: Message,
    masked: bool,
    gsi: u32,
    eventfd: Arc<EventFd>,
    attached: bool,
}

/// The vectors of a function.
pub(crate) struct Msix {
    interrupts: Arc<Interrupts>,
    vectors: Vec<Vector>,
    enabled: bool,
    masked: bool,
    complaints: Arc<Complaints>,
}

impl Msix {
    /// `count` vectors, masked, with an eventfd each.
    pub(crate) fn new(interrupts: Arc<Interrupts>, count: u16, complaints: Arc<Complaints>) -> std::io::Result<Self> {
        let vector = |_| {
            let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
            Ok(Vector {
                message: Message::default(),
                masked: true,
                gsi: interrupts.allocate(),
                eventfd,
                attached: false,
            })
        };
        let vectors = (0..count).map(vector).collect::<std::io::Result<_>>()?;
        Ok(Self {
            interrupts,
            vectors,
            enabled: false,
            masked: false,
            complaints,
        })
    }

    /// Number of vectors.
    pub(crate) fn count(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// The eventfd of a vector, if there is such a vector.
    pub(crate) fn eventfd(&self, vector: u16) -> Option<Arc<EventFd>> {
        self.vectors.get(usize::from(vector)).map(|vector| vector.eventfd.clone())
    }

    /// The guest wrote the capability's message control.
    pub(crate) fn set_control(&mut self, control: u16) {
        (self.enabled, self.masked) = (control & ENABLE != 0, control & MASK_ALL != 0);
        for index in 0..self.vectors.len() {
            self.update(index);
        }
    }

    /// Nothing of it is left in KVM.
    pub(crate) fn release(&mut self) {
        self.enabled = false;
        for index in 0..self.vectors.len() {
            self.update(index);
        }
        for vector in self.vectors.drain(..) {
            self.interrupts.release(vector.gsi);
        }
    }

    /// Reads the table, 4 or 8 bytes on their boundary; anything else reads as zero.
    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !is_whole(offset, data.len()) {
            return;
        }
        for (index, chunk) in data.chunks_exact_mut(4).enumerate() {
            let offset = offset + 4 * index as u64;
            if let Some(vector) = self.vectors.get((offset / ENTRY) as usize) {
                let value = match offset % ENTRY {
                    0 => vector.message.address as u32,
                    4 => (vector.message.address >> 32) as u32,
                    8 => vector.message.data,
                    _ => u32::from(vector.masked),
                };
                chunk.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    /// Writes the table, 4 or 8 bytes on their boundary; anything else is ignored.
    pub(crate) fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !is_whole(offset, data.len()) {
            return;
        }
        for (index, chunk) in data.chunks_exact(4).enumerate() {
            let offset = offset + 4 * index as u64;
            let value = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            let index = (offset / ENTRY) as usize;
            let Some(vector) = self.vectors.get_mut(index) else { return };
            let address = vector.message.address;
            match offset % ENTRY {
                0 => vector.message.address = address & !0xffff_ffff | u64::from(value & !3),
                4 => vector.message.address = address & 0xffff_ffff | u64::from(value) << 32,
                8 => vector.message.data = value,
                _ => vector.masked = value & CONTROL_MASKED != 0,
            }
            self.update(index);
        }
    }

    /// The table.
    pub(crate) fn save(&self) -> Vec<VectorState> {
        let state = |vector: &Vector| VectorState {
            address: vector.message.address,
            data: vector.message.data,
            masked: vector.masked,
        };
        self.vectors.iter().map(state).collect()
    }

    /// Takes over a table of as many entries.
    pub(crate) fn restore(&mut self, table: &[VectorState]) -> Result<(), String> {
        if table.len() != self.vectors.len() {
            return Err(format!("it has {} vectors, not {}", self.vectors.len(), table.len()));
        }
        for (index, state) in table.iter().enumerate() {
            let vector = &mut self.vectors[index];
            let (address, data) = (state.address & !3, state.data);
            (vector.message, vector.masked) = (Message { address, data }, state.masked);
            self.update(index);
        }
        Ok(())
    }

    /// Reads the pending bits.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let first = (offset as usize + index) * 8;
            let bits = self.vectors.iter().skip(first).take(8).enumerate();
            *byte = bits.fold(0, |sum, (bit, vector)| sum | u8::from(vector.is_pending()) << bit);
        }
    }

    /// Makes KVM agree with what the guest has set.
    fn update(&mut self, index: usize) {
        let live = self.enabled && !self.masked;
        let Some(vector) = self.vectors.get_mut(index) else { return };
        let wanted = live && !vector.masked;
        let done = match (wanted, vector.attached) {
            (true, false) => self
                .interrupts
                .route(vector.gsi, vector.message)
                .and_then(|()| self.interrupts.attach(vector.gsi, &vector.eventfd))
                .map(|()| vector.attached = true),
            (true, true) => self.interrupts.route(vector.gsi, vector.message),
            (false, true) => {
                vector.attached = false;
                self.interrupts.detach(vector.gsi, &vector.eventfd)
            }
            (false, false) => Ok(()),
        };
        if let Err(error) = done
            && self.complaints.allow()
        {
            tracing::warn!(vector = index, %error, "KVM refused an interrupt as the guest set it up");
        }
    }
}

impl Vector {
    fn is_pending(&self) -> bool {
        let mut ready = libc::pollfd {
            fd: self.eventfd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `ready` is one pollfd, alive during the call, which does not wait.
        !self.attached && unsafe { libc::poll(&raw mut ready, 1, 0) } > 0
    }
}
