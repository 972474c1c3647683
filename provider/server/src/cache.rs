//! Answers of the API server that are remembered for a while, a bounded number of them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Answers remembered at once.
pub(crate) const CAPACITY: usize = 1024;

/// Answers by what was asked, each until its time.
#[derive(Debug)]
pub(crate) struct Cache<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// Nothing is remembered yet.
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    fn answers(&self) -> MutexGuard<'_, HashMap<K, (V, Instant)>> {
        // Each statement under the lock leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let answers = self.answers();
        let (answer, until) = answers.get(key)?;
        (*until > Instant::now()).then(|| answer.clone())
    }

    /// Remembers it for so long.
    pub(crate) fn put(&self, key: K, answer: V, lifetime: Duration) {
        let now = Instant::now();
        let mut answers = self.answers();
        if answers.len() >= CAPACITY {
            answers.retain(|_, (_, until)| *until > now);
        }
        if answers.len() >= CAPACITY {
            answers.clear();
        }
        answers.insert(key, (answer, now + lifetime));
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.answers().len()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! What tests of those that remember answers share.

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    /// Counts how often the API server is asked.
    #[derive(Debug, Default)]
    pub(crate) struct Count(AtomicUsize);

    impl Count {
        pub(crate) fn one(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        pub(crate) fn get(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// Asks twice, so many seconds apart. Whether that fails is for other tests to see.
    pub(crate) async fn twice<T>(seconds: u64, ask: impl AsyncFn() -> T) {
        for _ in 0..2 {
            let _ = ask().await;
            tokio::time::advance(Duration::from_secs(seconds)).await;
        }
    }
}
