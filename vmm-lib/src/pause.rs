//! Brings a machine's processors to a stand between two instructions and lets them go on. A processor stands once it has finished what its last
//! exit began, outside of the guest; it reads its registers on its own thread when it is asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::arch::processor::ProcessorState;
use crate::lock::lock;

/// What processors shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Wish {
    #[default]
    Run,
    Stand,
    Tell,
}

#[derive(Default)]
struct Inner {
    wish: Wish,
    standing: usize,
    /// The machine ends.
    over: bool,
    told: Vec<Option<Result<ProcessorState, String>>>,
}

/// Where processors and whoever wants them to stand meet.
#[derive(Default)]
pub(crate) struct Pause {
    /// Whether the wish is another than to run: looked at at each exit.
    wanted: AtomicBool,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Pause {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Whether processors shall stand.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// A processor stands, until it shall run again or the machine ends.
    pub(crate) fn stand(&self, index: usize, tell: impl FnOnce() -> Result<ProcessorState, String>) {
        let mut tell = Some(tell);
        let mut inner = self.lock();
        inner.standing += 1;
        self.changed.notify_all();
        while inner.wish != Wish::Run && !inner.over {
            if inner.wish == Wish::Tell
                && let Some(tell) = tell.take()
            {
                drop(inner);
                let told = tell();
                inner = self.lock();
                if let Some(place) = inner.told.get_mut(index) {
                    *place = Some(told);
                }
                self.changed.notify_all();
                continue;
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.standing -= 1;
        self.changed.notify_all();
    }

    /// Wants processors to stand; they are to be kicked out of the guest then.
    pub(crate) fn want(&self) {
        let mut inner = self.lock();
        inner.wish = Wish::Stand;
        self.wanted.store(true, Ordering::SeqCst);
    }

    /// Waits until all of them do; `false` when the machine ends instead.
    pub(crate) fn wait(&self, processors: usize) -> bool {
        let mut inner = self.lock();
        while inner.standing < processors && !inner.over {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        !inner.over
    }

    /// Has all that stand read their registers; `None` when the machine ends instead.
    pub(crate) fn tell(&self, processors: usize) -> Option<Vec<Result<ProcessorState, String>>> {
        let mut inner = self.lock();
        inner.told = (0..processors).map(|_| None).collect();
        inner.wish = Wish::Tell;
        self.changed.notify_all();
        while inner.told.iter().any(Option::is_none) && !inner.over {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut inner.told).into_iter().collect()
    }

    /// Lets them run, and waits until none stands any more.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.wish = Wish::Run;
        self.wanted.store(false, Ordering::SeqCst);
        self.changed.notify_all();
        while inner.standing > 0 {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The machine ends: nobody stands or waits any more.
    pub(crate) fn give_up(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }
}
