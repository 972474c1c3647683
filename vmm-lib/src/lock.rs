//! How this library locks. A thread that panics ends its machine and says so; what it held is whole enough for the others to end by, so
//! nobody stops at a poisoned lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
