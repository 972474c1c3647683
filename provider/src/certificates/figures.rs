//! What is counted of certificates, for `/metrics`.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::plan::Kind;

/// What is known of the certificates that are had by request.
#[derive(Debug, Default)]
pub struct Figures {
    client: Mutex<Figure>,
    serving: Mutex<Figure>,
}

/// What is known of one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    /// Whether it is had by request at all.
    pub managed: bool,
    /// When it ends, if there is one.
    pub ends: Option<Timestamp>,
    /// Requests that have failed.
    pub failures: u64,
}

impl Figure {
    /// Seconds until it ends, negative afterwards; infinite if there is none, as the kubelet has it.
    pub fn left(&self, now: Timestamp) -> f64 {
        self.ends.map_or(f64::INFINITY, |ends| ends.duration_since(now).as_secs_f64())
    }
}

impl Figures {
    fn change(&self, kind: Kind, change: impl FnOnce(&mut Figure)) {
        change(&mut self.of(kind).lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn of(&self, kind: Kind) -> &Mutex<Figure> {
        match kind {
            Kind::Client => &self.client,
            Kind::Serving => &self.serving,
        }
    }

    /// A certificate is had by request.
    pub(crate) fn managed(&self, kind: Kind) {
        self.change(kind, |figure| figure.managed = true);
    }

    /// There is one, until then.
    pub(crate) fn holds(&self, kind: Kind, ends: Timestamp) {
        self.change(kind, |figure| figure.ends = Some(ends));
    }

    /// A request has failed.
    pub(crate) fn failed(&self, kind: Kind) {
        self.change(kind, |figure| figure.failures += 1);
    }

    /// As it is now.
    pub fn get(&self, kind: Kind) -> Figure {
        *self.of(kind).lock().unwrap_or_else(PoisonError::into_inner)
    }
}
