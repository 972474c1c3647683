//! How long the phases of a machine's making take, and how many machines wait to be booted.

use std::time::{Duration, Instant};

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

/// When the present phase began, and how long those before it took.
pub struct Lap<'a> {
    context: &'a Context,
    begun: Instant,
    passed: Vec<(Phase, Duration)>,
}

impl<'a> Lap<'a> {
    /// The first has begun then.
    pub fn of(context: &'a Context, begun: Instant) -> Self {
        Self {
            context,
            begun,
            passed: Vec::with_capacity(Phase::ALL.len()),
        }
    }

    /// It is over, the next begins.
    pub fn passed(&mut self, phase: Phase) {
        let now = Instant::now();
        let took = now - std::mem::replace(&mut self.begun, now);
        self.context.meters.passed(phase, took);
        self.passed.push((phase, took));
    }

    /// Those that are over.
    pub fn phases(&self) -> &[(Phase, Duration)] {
        &self.passed
    }
}
