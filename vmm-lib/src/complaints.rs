//! Bounds what a guest can make us log.

use std::sync::atomic::{AtomicU32, Ordering};

/// Lines that one function's guest may cause in a machine's life.
const MOST: u32 = 16;

/// Counts the lines of one function.
#[derive(Default)]
pub(crate) struct Complaints(AtomicU32);

impl Complaints {
    /// Whether one more line may be logged; counts it.
    pub(crate) fn allow(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |said| (said < MOST).then_some(said + 1))
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_misbehaves_for_ever_is_logged_a_bounded_number_of_times() {
        let complaints = Complaints::default();
        assert_eq!((0..1000).filter(|_| complaints.allow()).count(), MOST as usize);
    }
}
