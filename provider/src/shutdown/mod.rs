//! The host shuts down, and its pods are ended before: the lowest priorities first, each with the time it may have, as the kubelet's node
//! shutdown manager does (pkg/kubelet/nodeshutdown). systemd-logind tells of it, and waits as long as it was asked to beforehand.
//!
//! ```text
//!  logind ── PrepareForShutdown(true) ─▶ Node not ready, no new pods ─▶ plan: who goes with whom, for how long ─▶ pods end ─▶ lock given back
//!         ── PrepareForShutdown(false) ─▶ it was called off: a lock is taken anew
//! ```

pub mod keep;
pub mod logind;
pub mod plan;
#[cfg(test)]
mod tests;

use tokio::sync::watch;

use crate::desired::Refusal;

/// What the Node says when it is not ready for that.
pub const NOT_READY: &str = "node is shutting down";
/// What a pod is told that is ended for it.
const TERMINATED: &str = "Pod was terminated in response to imminent node shutdown.";

/// Shows whether the host shuts down.
#[derive(Debug, Default)]
pub struct Shutdown(watch::Sender<bool>);

impl Shutdown {
    /// Wakes whoever shows it.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }

    /// Whether a new pod may come.
    ///
    /// # Errors
    /// In the kubelet's words.
    pub fn admit(&self) -> Result<(), Refusal> {
        if !*self.0.borrow() {
            return Ok(());
        }
        Err(Refusal {
            reason: "NodeShutdown",
            message: "Pod was rejected as the node is shutting down.".into(),
        })
    }

    fn set(&self, shuts_down: bool) {
        self.0.send_replace(shuts_down);
    }
}
