//! How long the phases of a machine's making take, and how many machines wait to be booted.

use std::time::Instant;

use prometheus::IntGauge;
use tokio::sync::SemaphorePermit;

use super::Phase;
use crate::context::Context;

/// The right to boot a guest, when it comes to that.
pub async fn turn(context: &Context) -> Result<SemaphorePermit<'_>, String> {
    if let Ok(at_once) = context.boots.try_acquire() {
        return Ok(at_once);
    }
    // A pod may be given up while it waits.
    let waiting = Waiting(context.meters.queue());
    waiting.0.inc();
    context.boots.acquire().await.map_err(|e| e.to_string())
}

/// One that waits, until it no longer does.
struct Waiting<'a>(&'a IntGauge);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// When the present phase began.
pub struct Lap<'a>(&'a Context, Instant);

impl<'a> Lap<'a> {
    /// The first has begun then.
    pub fn of(context: &'a Context, begun: Instant) -> Self {
        Self(context, begun)
    }

    /// It is over, the next begins.
    pub fn passed(&mut self, phase: Phase) {
        let now = Instant::now();
        self.0.meters.passed(phase, now - std::mem::replace(&mut self.1, now));
    }
}
