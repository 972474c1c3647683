//! In-place resize of pods (KEP-1287): other amounts for containers that run. What is asked for is judged first ([`judge`]: pure), then allocated
//! by the pod's life, then brought into force in the machine and its guest ([`act`]); each step is in the pod's record.
//!
//! ```text
//!  asked ── judge ─▶ pending: Infeasible, or Deferred until there is room
//!             └────▶ allocated ── act ─▶ in force (or an error, and again)
//! ```

pub mod act;
pub mod judge;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where a pod's resize stands; nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// What is asked for is not given (condition `PodResizePending`).
    pub pending: Option<Pending>,
    /// What is given is not in force yet (condition `PodResizeInProgress`).
    pub progress: Option<Progress>,
}

/// Why what is asked for is not given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// For people.
    pub message: String,
    /// When it is looked at again (`Deferred`); never as it is (`Infeasible`).
    pub again: Option<Timestamp>,
    /// The pod's generation that asked.
    pub generation: i64,
}

/// A resize under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The pod's generation that asked.
    pub generation: i64,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// Earliest next attempt.
    pub not_before: Option<Timestamp>,
}

impl Pending {
    /// As the condition's reason.
    pub fn reason(&self) -> &'static str {
        if self.again.is_some() { "Deferred" } else { "Infeasible" }
    }
}
