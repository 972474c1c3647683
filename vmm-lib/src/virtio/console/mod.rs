//! virtio-console (virtio 1.2, 5.3): one port, a terminal. No other ports (VIRTIO_CONSOLE_F_MULTIPORT) and no emergency write.
//!
//! **Output** goes to a file at the host's pace. Linux waits for the device with a lock held and its interrupts off, so the device must not keep
//! a guest waiting for a host that does not read: it waits for [`PATIENCE`] at most, then lets go of what is written until the host reads
//! again, and says in the output how much that was. A guest that writes more than the output's rate is made to wait, and loses nothing.
//!
//! **Input** is read when the guest has a buffer for it and not before: what a guest does not want stays where it is.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;

use super::{
    chain::{Chain, ChainError},
    device::{ActivateError, Activation, VirtioDevice},
    listener::Listener,
    ring::{RING_FEATURES, Ring},
    worker::{Poller, STOP, WorkError, Worker, broke, read_config, required},
};
use crate::lock::lock;
use crate::outlet::Outlet;
use crate::threads::ThreadKind;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;

/// How long a guest is kept waiting for a host that does not read.
pub(crate) const PATIENCE: Duration = Duration::from_millis(100);
/// How often a host that does not read is asked again meanwhile.
const AGAIN: Duration = Duration::from_millis(2);
const F_SIZE: u64 = 1;
/// Linux fills the first with a page each.
const QUEUE_SIZE: u16 = 16;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Bytes that are moved at once.
const BLOCK: usize = 4096;
/// Token of the input; the queues have their numbers.
const INPUT: u64 = 2;

/// The size of a console's screen, which its owner may change while the machine runs.
#[derive(Clone)]
pub struct Screen(Arc<ScreenState>);

struct ScreenState {
    /// Columns, and rows above them.
    size: AtomicU32,
    changed: Listener,
}

impl Screen {
    /// A screen of this size.
    pub(crate) fn new(columns: u16, rows: u16) -> Self {
        Self(Arc::new(ScreenState {
            size: AtomicU32::new(Self::packed(columns, rows)),
            changed: Listener::default(),
        }))
    }

    /// Changes the size, and tells the guest.
    pub fn resize(&self, columns: u16, rows: u16) {
        let new = Self::packed(columns, rows);
        if self.0.size.swap(new, Ordering::AcqRel) != new {
            self.0.changed.tell();
        }
    }

    fn packed(columns: u16, rows: u16) -> u32 {
        u32::from(rows) << 16 | u32::from(columns)
    }
}

/// The device.
pub(crate) struct Console {
    /// Held by the thread while there is one: what was lost and what may still be written outlive a reset.
    ends: Arc<Mutex<Ends>>,
    screen: Option<Screen>,
    worker: Option<Worker>,
}

/// The host's ends.
#[derive(Debug)]
pub(crate) struct Ends {
    output: Outlet,
    input: Option<File>,
}

impl Ends {
    /// Neither may block.
    pub(crate) fn new(output: File, input: Option<File>) -> Self {
        Self {
            output: Outlet::new("console", output),
            input,
        }
    }
}

impl Console {
    /// A console between a guest and these files, which do not block.
    pub(crate) fn new(output: File, input: Option<File>, screen: Option<Screen>) -> Self {
        Self {
            ends: Arc::new(Mutex::new(Ends::new(output, input))),
            screen,
            worker: None,
        }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u16 {
        3
    }

    fn name(&self) -> &str {
        "console"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn features(&self) -> u64 {
        RING_FEATURES | if self.screen.is_some() { F_SIZE } else { 0 }
    }

    /// Columns, rows; the number of ports and the emergency write register mean nothing here and are zero.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self.screen.as_ref().map_or(0, |screen| screen.0.size.load(Ordering::Acquire));
        read_config(&size.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let receive = activation.queues.get_mut(RECEIVE).and_then(Option::take);
        let transmit = required(&mut activation, TRANSMIT)?;
        let Activation {
            memory,
            features,
            config_changed,
            threads,
            failed,
            ..
        } = activation;
        let ends = Arc::clone(&self.ends);
        let work = move |poller: Poller| {
            let mut ends = lock(&ends);
            let receive = receive.map(|queue| Receiver::new(Ring::new(&memory, queue, features)));
            let transmit = Transmitter::new(Ring::new(&memory, transmit, features));
            serve(&poller, &mut ends, receive, transmit)
        };
        self.worker = Some(Worker::spawn(self.name(), (&threads, ThreadKind::Console), failed, work)?);
        if let Some(screen) = &self.screen {
            screen.0.changed.set(Some(config_changed));
        }
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(screen) = &self.screen {
            screen.0.changed.set(None);
        }
        self.worker = None;
    }
}

fn serve(poller: &Poller, ends: &mut Ends, mut receive: Option<Receiver<'_>>, mut transmit: Transmitter<'_>) -> Result<(), WorkError> {
    let watch = |ring: &Ring<'_>, token| poller.add_kick(ring.kick(), token).map_err(broke("watch a queue"));
    watch(&transmit.ring, TRANSMIT as u64)?;
    if let Some(receive) = &receive {
        watch(&receive.ring, RECEIVE as u64)?;
    }
    let mut watched = false;
    let mut wait = None;
    loop {
        let mut stop = false;
        poller
            .wait(wait, |token, _| stop |= token == STOP)
            .map_err(broke("wait for events"))?;
        if stop {
            return Ok(());
        }
        wait = transmit.turn(&mut ends.output, Instant::now())?;
        let Some(receive) = &mut receive else { continue };
        let Some(input) = &ends.input else { continue };
        let wish = receive.turn(input)?;
        // Input that nobody has a buffer for is not looked at: it would wake this thread for ever.
        match (wish, watched) {
            (Wish::Input, false) => poller.add(input, INPUT, EventFlags::IN).map_err(broke("watch the input"))?,
            (Wish::Nothing | Wish::Ended, true) => poller.remove(input).map_err(broke("leave the input"))?,
            _ => {}
        }
        watched = wish == Wish::Input;
        if wish == Wish::Ended {
            ends.input = None;
        }
    }
}

/// The guest's output.
pub(crate) struct Transmitter<'m> {
    ring: Ring<'m>,
    /// A chain that is written in part, and how far.
    current: Option<(Chain<'m>, usize)>,
    /// Since when the host has not read.
    waiting: Option<Instant>,
    block: Vec<u8>,
}

impl<'m> Transmitter<'m> {
    pub(crate) fn new(ring: Ring<'m>) -> Self {
        Self {
            ring,
            current: None,
            waiting: None,
            block: vec![0; BLOCK],
        }
    }

    /// Writes what is available, one queue's length at most before the stop event is looked at again. After how long to come again where
    /// something is left.
    pub(crate) fn turn(&mut self, output: &mut Outlet, now: Instant) -> Result<Option<Duration>, WorkError> {
        for _ in 0..QUEUE_SIZE {
            let (chain, at) = match self.current.take() {
                Some(current) => current,
                None => match self.ring.pop()? {
                    Some(chain) => (chain, 0),
                    None => break,
                },
            };
            let (done, pause) = self.write(&chain, at, output, now)?;
            if let Some(pause) = pause {
                self.current = Some((chain, done));
                self.ring.notify()?;
                return Ok(Some(pause));
            }
            self.ring.give_back(chain.head, 0)?;
        }
        self.ring.settle()?;
        Ok(None)
    }

    /// Writes one chain from `at` on; how far that went, and after how long to go on.
    fn write(
        &mut self,
        chain: &Chain<'_>,
        mut at: usize,
        output: &mut Outlet,
        now: Instant,
    ) -> Result<(usize, Option<Duration>), ChainError> {
        let all = chain.readable.len();
        // No more than a block a turn is taken from one that goes on: there may be gigabytes, and an event to stop.
        for _ in 0..QUEUE_SIZE {
            let part = &mut self.block[..BLOCK.min(all - at)];
            if part.is_empty() {
                return Ok((at, None));
            }
            chain.readable.read(at, part)?;
            let done = output.write(part, now);
            at += done;
            if done > 0 {
                self.waiting = None;
            } else if let Some(pause) = output.pause() {
                return Ok((at, Some(pause)));
            } else if now.saturating_duration_since(*self.waiting.get_or_insert(now)) < PATIENCE {
                return Ok((at, Some(AGAIN)));
            } else {
                output.lose((all - at) as u64);
                return Ok((all, None));
            }
        }
        Ok((at, (at < all).then_some(Duration::ZERO)))
    }
}

/// What a guest's input waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// A buffer of the guest's.
    Nothing,
    /// Something to put into a buffer that is there.
    Input,
    /// There will be no more.
    Ended,
}

/// The guest's input.
pub(crate) struct Receiver<'m> {
    ring: Ring<'m>,
    /// A buffer that waits for input.
    current: Option<Chain<'m>>,
    block: Vec<u8>,
}

impl<'m> Receiver<'m> {
    pub(crate) fn new(ring: Ring<'m>) -> Self {
        Self {
            ring,
            current: None,
            block: vec![0; BLOCK],
        }
    }

    /// Fills buffers, one queue's length at most.
    pub(crate) fn turn(&mut self, mut input: &File) -> Result<Wish, WorkError> {
        let mut wish = Wish::Nothing;
        for _ in 0..QUEUE_SIZE {
            let chain = match self.current.take() {
                Some(chain) => chain,
                None => match self.ring.pop()? {
                    Some(chain) => chain,
                    None => break,
                },
            };
            let room = chain.writable.len().min(BLOCK);
            if room == 0 {
                return Err(ChainError::TooShort.into());
            }
            wish = match input.read(&mut self.block[..room]) {
                Ok(length) if length > 0 => {
                    chain.writable.write(0, &self.block[..length])?;
                    self.ring.give_back(chain.head, length as u32)?;
                    continue;
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Wish::Input,
                Ok(_) => Wish::Ended,
                Err(error) => {
                    tracing::warn!(%error, "a console's input has ended");
                    Wish::Ended
                }
            };
            self.current = Some(chain);
            break;
        }
        self.ring.settle()?;
        Ok(wish)
    }
}
