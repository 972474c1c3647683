//! How fast a device may work: token buckets for bytes and for operations, and the clock that fills them. Belongs to the device, not to what
//! its driver activates: a guest gets no new bucket by a reset. Refuses nothing and holds nothing back: it says how long to wait before the
//! next operation is taken, and is told afterwards what the operation took. What was too much is a debt, which is paid by waiting, so that
//! operations larger than the bucket go through, in order, at the rate.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lock::lock;
use crate::spec::{Bucket, Limits};

/// A token, in the parts that one token a second brings in a nanosecond.
const TOKEN: i128 = 1_000_000_000;
/// No wait is longer: the next one follows.
const LONGEST: Duration = Duration::from_secs(3600);

/// Where the time comes from; tests move theirs.
type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// The pace of one direction of a device.
pub(crate) struct Pace {
    buckets: Option<Mutex<Buckets>>,
    clock: Clock,
}

impl fmt::Debug for Pace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Pace").field("buckets", &self.buckets).finish_non_exhaustive()
    }
}

impl Pace {
    /// Buckets that are full now.
    pub(crate) fn new(limits: Limits) -> Self {
        Self::with_clock(limits, Arc::new(Instant::now))
    }

    /// The same, by another clock.
    pub(crate) fn with_clock(limits: Limits, clock: Clock) -> Self {
        let now = clock();
        let buckets = (limits != Limits::default()).then(|| Buckets {
            bytes: limits.bytes.map(|bucket| Tokens::new(bucket, now)),
            operations: limits.operations.map(|bucket| Tokens::new(bucket, now)),
        });
        Self {
            buckets: buckets.map(Mutex::new),
            clock,
        }
    }

    /// Whether there is ever anything to wait for.
    pub(crate) fn is_limited(&self) -> bool {
        self.buckets.is_some()
    }

    /// How long to wait before the next operation; `None`: it may be taken. Whole milliseconds: a wait that ends early would be waited again.
    pub(crate) fn wait(&self) -> Option<Duration> {
        let mut buckets = lock(self.buckets.as_ref()?);
        let now = (self.clock)();
        let wait = buckets.each().map(|tokens| tokens.wait(now)).max()?;
        (!wait.is_zero()).then(|| Duration::from_millis(wait.as_nanos().div_ceil(1_000_000) as u64).min(LONGEST))
    }

    /// One operation of so many bytes was carried out.
    pub(crate) fn spend(&self, bytes: u64) {
        let Some(buckets) = &self.buckets else { return };
        let mut buckets = lock(buckets);
        if let Some(tokens) = &mut buckets.bytes {
            tokens.take(bytes);
        }
        if let Some(tokens) = &mut buckets.operations {
            tokens.take(1);
        }
    }
}

#[derive(Debug)]
struct Buckets {
    bytes: Option<Tokens>,
    operations: Option<Tokens>,
}

impl Buckets {
    fn each(&mut self) -> impl Iterator<Item = &mut Tokens> {
        self.bytes.iter_mut().chain(&mut self.operations)
    }
}

/// The tokens of one bucket. Its numbers are 64 bits wide, times [`TOKEN`]: 128 bits hold any debt that one can make.
#[derive(Debug)]
struct Tokens {
    size: i128,
    refill: i128,
    /// What is left of those that come once.
    burst: u64,
    /// In parts of a token; below zero in debt.
    level: i128,
    filled: Instant,
}

impl Tokens {
    fn new(bucket: Bucket, now: Instant) -> Self {
        let size = i128::from(bucket.size) * TOKEN;
        Self {
            size,
            refill: i128::from(bucket.refill),
            burst: bucket.burst,
            level: size,
            filled: now,
        }
    }

    /// How long until there is a whole token.
    fn wait(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.filled).as_nanos() as i128;
        self.filled = self.filled.max(now);
        self.level = self.level.saturating_add(passed.saturating_mul(self.refill)).min(self.size);
        if self.burst > 0 || self.level >= TOKEN {
            return Duration::ZERO;
        }
        let missing = (TOKEN - self.level)
            .checked_div(self.refill)
            .map_or(i128::MAX, |whole| whole.saturating_add(1));
        u64::try_from(missing).map_or(LONGEST, Duration::from_nanos)
    }

    fn take(&mut self, tokens: u64) {
        let once = tokens.min(self.burst);
        self.burst -= once;
        self.level = self.level.saturating_sub(i128::from(tokens - once) * TOKEN);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A clock that stands still until it is moved.
    #[derive(Debug, Clone)]
    pub(crate) struct Hand(Arc<Mutex<Instant>>);

    impl Hand {
        pub(crate) fn new() -> Self {
            Self(Arc::new(Mutex::new(Instant::now())))
        }

        pub(crate) fn forward(&self, by: Duration) {
            *self.0.lock().unwrap() += by;
        }

        pub(crate) fn pace(&self, limits: Limits) -> Pace {
            let shown = Arc::clone(&self.0);
            Pace::with_clock(limits, Arc::new(move || *shown.lock().unwrap()))
        }
    }

    pub(crate) fn operations(size: u64, refill: u64, burst: u64) -> Limits {
        Limits {
            bytes: None,
            operations: Some(Bucket { size, refill, burst }),
        }
    }

    fn bytes(size: u64, refill: u64, burst: u64) -> Limits {
        Limits {
            bytes: Some(Bucket { size, refill, burst }),
            operations: None,
        }
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn without_buckets_nothing_waits() {
        let pace = Pace::new(Limits::default());
        pace.spend(u64::MAX);
        assert_eq!(pace.wait(), None);
    }

    #[test]
    fn a_bucket_is_emptied_at_once_and_fills_at_its_rate_up_to_its_size() {
        let hand = Hand::new();
        let pace = hand.pace(operations(3, 10, 0));
        for _ in 0..3 {
            assert_eq!(pace.wait(), None);
            pace.spend(1 << 40);
        }
        assert_eq!(pace.wait(), Some(ms(101)));
        hand.forward(ms(99));
        assert_eq!(pace.wait(), Some(ms(2)));
        hand.forward(ms(1));
        assert_eq!(pace.wait(), None);
        hand.forward(Duration::from_secs(1 << 40));
        for _ in 0..3 {
            assert_eq!(pace.wait(), None);
            pace.spend(0);
        }
        assert!(pace.wait().is_some());
    }

    #[test]
    fn more_than_the_bucket_holds_goes_and_is_paid_for_afterwards() {
        let hand = Hand::new();
        let pace = hand.pace(bytes(1000, 1000, 0));
        assert_eq!(pace.wait(), None);
        pace.spend(64_000);
        // 63,000 owed, and one token to go on.
        assert_eq!(pace.wait(), Some(ms(63_002)));
        hand.forward(ms(63_000));
        assert!(pace.wait().is_some());
        hand.forward(ms(1));
        assert_eq!(pace.wait(), None);
    }

    #[test]
    fn what_comes_once_is_taken_first_and_never_again() {
        let hand = Hand::new();
        let pace = hand.pace(bytes(10, 1000, 100));
        pace.spend(100);
        assert_eq!(pace.wait(), None);
        pace.spend(10);
        assert!(pace.wait().is_some());
        hand.forward(Duration::from_secs(60));
        pace.wait();
        pace.spend(10);
        assert!(pace.wait().is_some(), "the burst came back");
    }

    #[test]
    fn the_slower_of_both_buckets_counts() {
        let hand = Hand::new();
        let pace = hand.pace(Limits {
            bytes: Some(Bucket {
                size: 1,
                refill: 1000,
                burst: 0,
            }),
            ..operations(1, 1, 0)
        });
        pace.spend(500);
        assert_eq!(pace.wait(), Some(ms(1001)));
    }

    #[test]
    fn no_number_is_too_large_or_too_small() {
        let hand = Hand::new();
        for limits in [
            bytes(u64::MAX, u64::MAX, u64::MAX),
            bytes(1, 1, 0),
            bytes(1, 0, 0),
            bytes(u64::MAX, 1, 0),
        ] {
            let pace = hand.pace(limits);
            for _ in 0..4 {
                pace.spend(u64::MAX);
                hand.forward(Duration::from_secs(1 << 33));
                assert!(pace.wait().is_none_or(|wait| !wait.is_zero() && wait <= LONGEST));
            }
        }
    }

    #[test]
    fn over_a_long_time_the_rate_is_kept_exactly() {
        let hand = Hand::new();
        let pace = hand.pace(bytes(1500, 125_000, 0));
        let (mut sent, mut waited) = (0u64, Duration::ZERO);
        while waited < Duration::from_secs(100) {
            match pace.wait() {
                Some(wait) => {
                    hand.forward(wait);
                    waited += wait;
                }
                None => {
                    pace.spend(1514);
                    sent += 1514;
                }
            }
        }
        let fair = 125_000 * 100;
        assert!((fair - 3000..=fair + 3100).contains(&sent), "{sent} of {fair}");
    }
}
