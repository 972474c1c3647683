//! A watchdog as a PCI function: Intel's 6300ESB (datasheet 300641, chapter 16), as Linux's `i6300esb` drives it. Its guest says how long it may
//! be left alone, in two stages, and feeds it; when both have passed unfed, the machine ends.
//!
//! The second stage begins when the end of the first is *noticed*: a machine whose process stood still, or whose host slept, has it before it,
//! all of it, to feed its watchdog again. There is no interrupt between the stages (this bus has no pins), no free-running mode (it does
//! nothing), and no memory of what came before: a machine that a watchdog ended does not go on.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::lock::lock;
use crate::pci::PciFunction;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::state::FunctionState;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;

/// Size of BAR 0, in the 32-bit window.
pub(crate) const BAR_SIZE: u32 = 16;
/// Configuration space: 16 bits, what the timers do; 8 bits, whether they run.
const CONFIG: usize = 0x60;
const LOCK: usize = 0x68;
/// Of CONFIG: the second stage's end does nothing; ticks are a thousand times as fast.
const NO_OUTPUT: u16 = 1 << 5;
const FAST: u16 = 1 << 2;
const CONFIG_BITS: u16 = NO_OUTPUT | FAST | 0b11;
/// Of LOCK: nothing of it can be changed any more; the timers run; they are no watchdog.
const LOCKED: u8 = 1;
const ENABLE: u8 = 1 << 1;
const FREE_RUNNING: u8 = 1 << 2;
/// Registers of the BAR: preloads of the stages, 32 bits each of which 20 count, and what feeds.
const FIRST: u64 = 0;
const SECOND: u64 = 4;
const RELOAD: u64 = 0xc;
const PRELOAD_BITS: u32 = 0xf_ffff;
/// Of RELOAD: what unlocks one write, in this order; feeds; tells and forgets that the second stage has ended.
const UNLOCK: [u32; 2] = [0x80, 0x86];
const FEED: u32 = 1 << 8;
const TIMED_OUT: u32 = 1 << 9;
/// Ticks are those of a PCI bus, hertz, divided by two to this, and to that if they are fast.
const CLOCK: u64 = 33_000_000;
const SLOW_SHIFT: u32 = 15;
const FAST_SHIFT: u32 = 5;

/// The time that is left, shared by the function and the thread that counts.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// When the stage at hand ends, while the timers run.
    deadline: Option<(Stage, Instant)>,
    /// How long the second one lasts.
    second: Duration,
    /// Whether its end does nothing.
    harmless: bool,
    /// It ended, and nothing was done.
    timed_out: bool,
    /// The machine is over.
    over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    First,
    Second,
}

/// What the one who counts does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Wait(Option<Duration>),
    Fire,
    Leave,
}

impl State {
    fn next(&mut self, now: Instant) -> Next {
        if self.over {
            return Next::Leave;
        }
        let Some((stage, end)) = self.deadline else {
            return Next::Wait(None);
        };
        if now < end {
            return Next::Wait(Some(end - now));
        }
        match stage {
            Stage::First => {
                self.deadline = Some((Stage::Second, now + self.second));
                Next::Wait(Some(self.second))
            }
            Stage::Second if self.harmless => {
                (self.deadline, self.timed_out) = (None, true);
                Next::Wait(None)
            }
            Stage::Second => Next::Fire,
        }
    }
}

impl Timer {
    /// Counts until the machine is over, or has to be: `true`.
    pub(crate) fn count(&self) -> bool {
        let mut state = self.lock();
        loop {
            let wait = match state.next(Instant::now()) {
                Next::Fire => return true,
                Next::Leave => return false,
                Next::Wait(wait) => wait,
            };
            state = match wait {
                Some(time) => self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// The machine is over.
    pub(crate) fn stop(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Begins with the first stage; the one who counts is woken where it would else be late.
    fn start(&self, first: Duration, second: Duration, harmless: bool) {
        let end = Instant::now() + first;
        let mut state = self.lock();
        let late = state.deadline.is_none_or(|(_, before)| end < before);
        (state.deadline, state.second, state.harmless) = (Some((Stage::First, end)), second, harmless);
        drop(state);
        if late {
            self.changed.notify_all();
        }
    }

    fn hold(&self) {
        self.lock().deadline = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// The function.
pub(crate) struct Watchdog {
    config: ConfigSpace,
    timer: Arc<Timer>,
    preloads: [u32; 2],
    /// How much of [`UNLOCK`] was written.
    unlocked: usize,
    /// What LOCK was before the last write to it.
    lock: u8,
}

impl Watchdog {
    /// A watchdog that does not count yet, its BAR at `bar`.
    pub(crate) fn new(bar: u32, timer: Arc<Timer>) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x25ab,
            revision: 0,
            class: [8, 0x80, 0],
            subsystem: 0x25ab,
        });
        config.set_bar32(bar, BAR_SIZE);
        config.set_register(CONFIG, &[0, 0], &CONFIG_BITS.to_le_bytes());
        config.set_register(LOCK, &[0], &[LOCKED | ENABLE | FREE_RUNNING]);
        Self {
            config,
            timer,
            preloads: [PRELOAD_BITS; 2],
            unlocked: 0,
            lock: 0,
        }
    }

    fn counts(&self) -> bool {
        self.lock & (ENABLE | FREE_RUNNING) == ENABLE
    }

    fn begin(&self) {
        if self.counts() {
            let config = self.config.word(CONFIG);
            let shift = if config & FAST == 0 { SLOW_SHIFT } else { FAST_SHIFT };
            let [first, second] = self.preloads.map(|preload| time(u64::from(preload.max(1)) << shift));
            self.timer.start(first, second, config & NO_OUTPUT != 0);
        }
    }

    /// A write to the BAR as a number; what is not a register's width or place has no effect but to lock again.
    fn write_register(&mut self, offset: u64, length: usize, value: u32) {
        if offset == RELOAD && matches!(length, 2 | 4) {
            // Both words of the key begin anew wherever they come.
            if value == UNLOCK[0] {
                self.unlocked = 1;
                return;
            }
            if value == UNLOCK[1] && self.unlocked == 1 {
                self.unlocked = 2;
                return;
            }
        }
        let open = std::mem::take(&mut self.unlocked) == UNLOCK.len();
        match (offset, length) {
            (FIRST, 4) if open => self.preloads[0] = value & PRELOAD_BITS,
            (SECOND, 4) if open => self.preloads[1] = value & PRELOAD_BITS,
            (RELOAD, 2 | 4) if open => {
                if value & TIMED_OUT != 0 {
                    self.timer.lock().timed_out = false;
                }
                if value & FEED != 0 {
                    self.begin();
                }
            }
            _ => {}
        }
    }
}

/// So many ticks of [`CLOCK`], of which no stage has more than 2^35: as nanoseconds before the division they would not fit.
fn time(ticks: u64) -> Duration {
    Duration::from_secs(ticks / CLOCK) + Duration::from_nanos((ticks % CLOCK * 1_000_000_000).div_ceil(CLOCK))
}

impl PciFunction for Watchdog {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn save(&mut self) -> Result<FunctionState, String> {
        Err("a watchdog".to_owned())
    }

    fn config_written(&mut self) {
        let before = self.lock;
        if before & LOCKED != 0 {
            self.config.set_register(LOCK, &[before], &[0]);
            return;
        }
        let counted = self.counts();
        self.lock = self.config.word(LOCK) as u8;
        match (counted, self.counts()) {
            (false, true) => self.begin(),
            (true, false) => self.timer.hold(),
            _ => {}
        }
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let timed_out = if self.timer.lock().timed_out { TIMED_OUT } else { 0 };
        let registers = [self.preloads[0], self.preloads[1], 0, timed_out];
        let bytes = registers.map(u32::to_le_bytes).concat();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let there = data.len().min(bytes.len() - start);
        data.fill(0);
        data[..there].copy_from_slice(&bytes[start..start + there]);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut value = [0; 4];
        if let Some(low) = value.get_mut(..data.len()) {
            low.copy_from_slice(data);
            self.write_register(offset, data.len(), u32::from_le_bytes(value));
        }
    }
}
