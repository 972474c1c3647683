//! A driver out of a fuzzer's bytes: what it may not write stays as it is, and time passes only where it has said so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{BAR_SIZE, ENABLE, FREE_RUNNING, LOCK, LOCKED, Next, PRELOAD_BITS, TIMED_OUT, Timer, Watchdog};
use crate::fuzz::input::Input;
use crate::pci::PciFunction;

/// What a driver does in one input, at most.
const MOST: usize = 256;
/// Longer than two stages can be.
const LONG: Duration = Duration::from_secs(2 * 1050);

/// A watchdog.
pub fn watchdog(data: &[u8]) {
    let mut input = Input::new(data);
    let timer = Arc::new(Timer::default());
    let mut watchdog = Watchdog::new(0xc000_0000, timer.clone());
    let identity = watchdog.config().bytes()[..4].to_vec();
    let mut locked = None;
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        let code = input.byte();
        let (offset, length) = (input.byte(), 1usize << (code >> 2 & 3));
        match code & 3 {
            0 => {
                watchdog.config_mut().write(usize::from(offset), input.bytes(length));
                watchdog.config_written();
            }
            1 => watchdog.write(u64::from(offset % 20), input.bytes(length)),
            2 => {
                let mut whole = [0x5a; 8];
                watchdog.read(u64::from(offset), &mut whole[..length]);
                for (index, byte) in whole[..length].iter().enumerate() {
                    let place = u64::from(offset) + index as u64;
                    let mut single = [0x5a];
                    watchdog.read(place, &mut single);
                    assert_eq!(single, [*byte], "byte {index} at {offset:#x}");
                    assert!(place < u64::from(BAR_SIZE) || *byte == 0, "{byte} at {place:#x}");
                }
            }
            _ => {
                // Both stages pass unfed.
                let fired = (1..=2).any(|stage| timer.lock().next(Instant::now() + stage * LONG) == Next::Fire);
                let lock = watchdog.config().bytes()[LOCK];
                assert!(
                    !fired || lock & (ENABLE | FREE_RUNNING) == ENABLE,
                    "it ended a machine, being {lock:#x}"
                );
                if fired {
                    return;
                }
            }
        }
        let lock = watchdog.config().bytes()[LOCK];
        assert_eq!(lock & !(LOCKED | ENABLE | FREE_RUNNING), 0);
        if lock & LOCKED != 0 {
            assert_eq!(*locked.get_or_insert(lock), lock, "a locked one was changed");
        }
        assert!(locked.is_none() || lock & LOCKED != 0, "a locked one was unlocked");
        assert!(watchdog.preloads.iter().all(|preload| *preload <= PRELOAD_BITS));
        let state = *timer.lock();
        assert!(
            state.deadline.is_none() || lock & (ENABLE | FREE_RUNNING) == ENABLE,
            "it counts, being {lock:#x}"
        );
        let mut reload = [0; 4];
        watchdog.read(0xc, &mut reload);
        assert_eq!(u32::from_le_bytes(reload) & !TIMED_OUT, 0);
        assert_eq!(watchdog.config().bytes()[..4], identity);
    }
}
