//! Feeds the machine's watchdog, where it has one: a guest whose kernel runs nobody any more, or whose agent no request could get through to, is
//! ended by its monitor in place of being waited for. Feeding is not stopped on purpose, not while the guest powers off either.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use crate::agent::Agent;
use crate::boot::say;
use crate::sys;

/// Opening it starts it.
const DEVICE: &str = "/dev/watchdog";
/// How often it is fed in the time that it gives.
const MEALS: u32 = 4;
/// Anything but `V`, which would announce that it may be left.
const MEAL: &[u8] = b"\0";

/// Starts feeding, if there is a watchdog. Off the way to the first request.
pub(crate) fn start(agent: Arc<Agent>) -> io::Result<()> {
    let feed = move || match OpenOptions::new().write(true).open(DEVICE) {
        Ok(watchdog) => {
            if let Err(e) = feed(watchdog, &agent) {
                // It ends the machine soon; this says why.
                say(&format!("feed the watchdog: {e}"));
            }
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound) => {}
        Err(e) => say(&format!("start the watchdog: {e}")),
    };
    let thread = std::thread::Builder::new().name("watchdog".into()).stack_size(64 << 10);
    thread.spawn(feed).map(drop)
}

fn feed(mut watchdog: File, agent: &Agent) -> io::Result<()> {
    let pause = pause(sys::watchdog_timeout(&watchdog)?);
    loop {
        std::thread::sleep(pause);
        // An agent that is stuck lets nobody past here, and the watchdog goes hungry.
        agent.is_free();
        watchdog.write_all(MEAL)?;
    }
}

fn pause(seconds: u32) -> Duration {
    (Duration::from_secs(seconds.into()) / MEALS).max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_fed_several_times_in_the_time_that_it_gives_and_never_all_the_time() {
        assert_eq!(pause(60), Duration::from_secs(15));
        for seconds in [0, 1, 2] {
            assert_eq!(pause(seconds), Duration::from_secs(1));
        }
    }
}
