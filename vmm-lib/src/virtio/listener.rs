//! Who hears that a device's configuration has changed: its driver, while there is one. Not what has changed; the driver reads that.

use std::sync::Mutex;

use super::device::Interrupt;
use crate::lock::lock;

/// Where a device's driver listens.
#[derive(Default)]
pub(crate) struct Listener(Mutex<Option<Interrupt>>);

impl Listener {
    /// A driver is ready, or gone.
    pub(crate) fn set(&self, interrupt: Option<Interrupt>) {
        *lock(&self.0) = interrupt;
    }

    /// Tells it. What has changed is to be readable by now.
    pub(crate) fn tell(&self) {
        if let Some(interrupt) = &*lock(&self.0) {
            interrupt.signal();
        }
    }
}
