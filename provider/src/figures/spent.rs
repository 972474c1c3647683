//! Processor time of the daemon itself that went into machines: their processes, sockets, control groups and disks. It is done on threads that may
//! block, a piece at a time, so that each piece is what its thread has run meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds.
static ON_MACHINES: AtomicU64 = AtomicU64::new(0);

/// Does a piece of such work, which must not wait for other threads' work of this kind.
pub(crate) fn on_machines<T>(work: impl FnOnce() -> T) -> T {
    let (done, spent) = timed(work);
    ON_MACHINES.fetch_add(spent, Ordering::Relaxed);
    done
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = of_this_thread();
    let done = work();
    (done, of_this_thread().saturating_sub(before))
}

/// All of it so far, nanoseconds.
pub(super) fn so_far() -> u64 {
    ON_MACHINES.load(Ordering::Relaxed)
}

/// What this thread has run, nanoseconds.
fn of_this_thread() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let [seconds, nanoseconds] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or_default());
    seconds * 1_000_000_000 + nanoseconds
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_waited_for_costs_nothing_and_what_is_done_counts() {
        let ((), waited) = timed(|| std::thread::sleep(Duration::from_millis(50)));
        let end = of_this_thread() + 20_000_000;
        let ((), worked) = timed(|| while of_this_thread() < end {});
        assert!(waited < worked, "{waited} ns of a wait, {worked} ns of work");
        on_machines(|| while of_this_thread() < end + 1_000_000 {});
        assert!(so_far() > 0);
    }
}
