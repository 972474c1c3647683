//! Processor time of the daemon itself that went into machines (their processes, sockets, control groups and disks, their taps and network namespaces)
//! and into images. The former is done on threads that may block, a piece at a time, so that each piece is what its thread has run meanwhile; the latter
//! each time that it goes on.

use std::{
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds.
static ON_MACHINES: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds.
static ON_IMAGES: AtomicU64 = AtomicU64::new(0);

/// Does a piece of such work. Within another piece it would count twice.
pub(crate) fn on_machines<T>(work: impl FnOnce() -> T) -> T {
    let (done, spent) = timed(work);
    ON_MACHINES.fetch_add(spent, Ordering::Relaxed);
    done
}

/// Does what has an image here, apart from what it leaves to other threads.
pub(crate) async fn on_images<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    std::future::poll_fn(|context| {
        let (done, spent) = timed(|| work.as_mut().poll(context));
        ON_IMAGES.fetch_add(spent, Ordering::Relaxed);
        done
    })
    .await
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = of_this_thread();
    let done = work();
    (done, of_this_thread().saturating_sub(before))
}

/// On machines so far, and of it on their network, nanoseconds.
pub(super) fn on_machines_so_far() -> [u64; 2] {
    let network = kvmlet_network::netns::spent();
    [ON_MACHINES.load(Ordering::Relaxed) + network, network]
}

/// On images so far, nanoseconds.
pub(super) fn on_images_so_far() -> u64 {
    ON_IMAGES.load(Ordering::Relaxed)
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
        assert!(on_machines_so_far()[0] > 0);
    }

    #[tokio::test]
    async fn of_an_image_every_part_of_the_way_counts() {
        let end = || of_this_thread() + 1_000_000;
        let work = async |end: u64| while of_this_thread() < end {};
        on_images(async {
            work(end()).await;
            tokio::task::yield_now().await;
            work(end()).await;
        })
        .await;
        assert!(on_images_so_far() >= 2_000_000);
    }
}
