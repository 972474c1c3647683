//! A split ring at work: chains out of the available ring, used elements in, notifications both ways suppressed where the rules let it.
//! Used elements of one batch appear to the driver at once, so that a packet in several buffers is never seen by half.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::{
    chain::{Chain, ChainError, Table},
    device::{ActiveQueue, GuestSpace, Interrupt},
};
use crate::dirty::Slice;

/// VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX and VIRTIO_F_VERSION_1: what every device here offers.
pub const RING_FEATURES: u64 = INDIRECT | EVENT_IDX | 1 << 32;
const INDIRECT: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

/// Where a ring lies in guest memory, looked up once.
struct Parts<'m> {
    table: Table<'m>,
    available: Slice<'m>,
    used: Slice<'m>,
}

impl<'m> Parts<'m> {
    fn of(queue: &Queue, memory: &'m GuestSpace) -> Option<Self> {
        let size = usize::from(queue.size());
        // Flags and index before the entries, the other side's event behind them.
        let ring = |address, entry: usize| memory.get_slice(GuestAddress(address), 6 + entry * size).ok();
        Some(Self {
            table: Table::new(memory, GuestAddress(queue.desc_table()), queue.size())?,
            available: ring(queue.avail_ring(), 2)?,
            used: ring(queue.used_ring(), 8)?,
        })
    }

    fn load<T: AtomicAccess>(slice: &Slice<'m>, offset: usize) -> Result<T, ChainError> {
        slice.load(offset, Ordering::Acquire).map_err(|_| ChainError::Ring)
    }
}

/// A ring and its driver's ear.
pub struct Ring<'m> {
    memory: &'m GuestSpace,
    /// `None`: it is not where it can be used.
    parts: Option<Parts<'m>>,
    queue: Queue,
    interrupt: Interrupt,
    kick: EventFd,
    may_indirect: bool,
    /// The driver's index when it was last looked at.
    seen: u16,
    next_used: u16,
    published: u16,
    signalled: u16,
}

impl<'m> Ring<'m> {
    /// A ring whose addresses the transport has checked.
    pub fn new(memory: &'m GuestSpace, active: ActiveQueue, features: u64) -> Self {
        let ActiveQueue {
            mut queue,
            kick,
            interrupt,
        } = active;
        queue.set_event_idx(features & EVENT_IDX != 0);
        let used = queue.next_used();
        Self {
            memory,
            parts: Parts::of(&queue, memory),
            seen: queue.next_avail(),
            queue,
            interrupt,
            kick,
            may_indirect: features & INDIRECT != 0,
            next_used: used,
            published: used,
            signalled: used,
        }
    }

    /// What the guest notifies.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Kicks itself: there is more to do than one turn of the device's loop takes.
    pub fn rekick(&self) {
        let _ = self.kick.write(1);
    }

    /// The next chain the driver has made available.
    pub fn pop(&mut self) -> Result<Option<Chain<'m>>, ChainError> {
        let (next, size) = (self.queue.next_avail(), self.queue.size());
        if self.seen == next {
            self.seen = self.index()?;
            if self.seen == next {
                return Ok(None);
            }
        }
        // Counted from the last one given back, more than all descriptors cannot be out.
        if self.seen.wrapping_sub(self.next_used) > size {
            return Err(ChainError::AvailableIndex);
        }
        let parts = self.parts()?;
        let head = Parts::load::<u16>(&parts.available, 4 + 2 * usize::from(next % size))?;
        let chain = Chain::walk(self.memory, &parts.table, size, u16::from_le(head), self.may_indirect)?;
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(chain))
    }

    fn parts(&self) -> Result<&Parts<'m>, ChainError> {
        self.parts.as_ref().ok_or(ChainError::Ring)
    }

    /// The driver's index: where its next chain will be.
    fn index(&self) -> Result<u16, ChainError> {
        Parts::load(&self.parts()?.available, 2).map(u16::from_le)
    }

    /// The next chain; where there is none, the driver has heard of all that was given back, and its next chain kicks.
    pub fn take(&mut self) -> Result<Option<Chain<'m>>, ChainError> {
        if let Some(chain) = self.pop()? {
            return Ok(Some(chain));
        }
        self.notify()?;
        if !self.arm()? {
            return Ok(None);
        }
        // One came in between.
        let chain = self.pop()?;
        if chain.is_none() {
            self.rekick();
        }
        Ok(chain)
    }

    /// How far the driver's index is ahead of what was taken.
    pub fn available(&self) -> Result<u16, ChainError> {
        Ok(self.index()?.wrapping_sub(self.queue.next_avail()))
    }

    /// Asks to be kicked at the next chain. `true`: there is one already, and the kick may not come.
    pub fn arm(&mut self) -> Result<bool, ChainError> {
        self.queue.enable_notification(&**self.memory).map_err(|_| ChainError::Ring)
    }

    /// Asks not to be kicked.
    pub fn disarm(&mut self) -> Result<(), ChainError> {
        self.queue.disable_notification(&**self.memory).map_err(|_| ChainError::Ring)
    }

    /// Gives a chain back with `written` bytes in its writable part; seen by the driver after [`Ring::publish`].
    pub fn give_back(&mut self, head: u16, written: u32) -> Result<(), ChainError> {
        let slot = usize::from(self.next_used % self.queue.size());
        let mut element = [0u8; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        let used = &self.parts()?.used;
        used.write_slice(&element, 4 + 8 * slot).map_err(|_| ChainError::Ring)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver what was given back.
    pub fn publish(&mut self) -> Result<(), ChainError> {
        if self.published != self.next_used {
            let used = &self.parts()?.used;
            used.store(self.next_used.to_le(), 2, Ordering::Release)
                .map_err(|_| ChainError::Ring)?;
            self.published = self.next_used;
            self.queue.set_next_used(self.next_used);
        }
        Ok(())
    }

    /// Publishes, then interrupts the driver if something is new and it wants to hear of it.
    pub fn notify(&mut self) -> Result<(), ChainError> {
        self.publish()?;
        let (old, new) = (self.signalled, self.published);
        if old == new {
            return Ok(());
        }
        // The driver writes its wish, then looks at the used index; here it is the other way round.
        fence(Ordering::SeqCst);
        let available = &self.parts()?.available;
        let wanted = if self.queue.event_idx_enabled() {
            let event = u16::from_le(Parts::load(available, 4 + 2 * usize::from(self.queue.size()))?);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u32::from(u16::from_le(Parts::load(available, 0)?)) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        self.signalled = new;
        if wanted {
            self.interrupt.signal();
        }
        Ok(())
    }

    /// Ends a turn: what was given back is heard of, and the next chain kicks, or is there already and kicks now.
    pub fn settle(&mut self) -> Result<(), ChainError> {
        self.notify()?;
        if self.arm()? {
            self.rekick();
        }
        Ok(())
    }
}
