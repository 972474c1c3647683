//! A host that has a kubelet, too. Two Nodes stand for one host then, and what it has must be counted once: a **reservation pod** on the kubelet's
//! Node requests what kvmlet's Node offers, and that one offers what the pod really has. Machines' control group is held to the same, and the
//! kubelet's Node is followed where it is cordoned and drained.
//!
//! ```text
//!  reservation pod ──┐                 ┌─▶ limits of all machines together (cgroup v2)
//!  kubelet's Node ───┼─▶ View ─────────┼─▶ capacity and condition Reserved of our Node, and its cordon (node.rs)
//!  what pods have ───┘  and the next   └─▶ what new pods may have (ledger.rs)
//!                       step: create, resize, end the pod; evict pods here
//! ```
//!
//! The pod is kvmlet's to make, with an identity of its own (`shared.kubeconfig`), and the scheduler's to place: so nothing is taken that
//! others were given. It belongs to our Node, and goes with it. Its end is slow on purpose (a preStop hook that sleeps): until its time is over the
//! scheduler counts what it requests, and the machines that have it may leave; once they have left it is ended at once. So who drains the kubelet's
//! Node waits for the machines.

pub mod keep;
mod mirror;
mod pod;
mod see;
mod slice;
mod step;

use std::time::Duration;

use tokio::{sync::watch, time::timeout};

pub(crate) use self::mirror::{forget, is_mirrored, mirror};
use crate::desired::Amounts;

/// How long a daemon that begins waits for what it may offer; after that it is nothing until it is known.
const KNOWN_TIME: Duration = Duration::from_secs(20);

/// What is known of the kubelet's Node and of the reservation there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// What the reservation pod has: all that this node may offer.
    pub held: Amounts,
    /// The kubelet's Node.
    pub node: String,
    /// Whether it is cordoned; nothing where that is not known.
    pub cordoned: Option<bool>,
    /// Whether the reservation is as it should be: condition Reserved.
    pub is_held: bool,
    /// Why, in CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What is known, by and by; nothing at first.
pub type Views = watch::Receiver<Option<View>>;

/// Waits until it is known what this node may offer, or until it has taken too long. On a host of kvmlet's own, not at all.
pub async fn known(mut views: Views) {
    // Of a sender that is gone nothing more comes.
    let _ = timeout(KNOWN_TIME, views.wait_for(Option::is_some)).await;
}
