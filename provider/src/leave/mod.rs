//! A host that leaves the cluster, by SIGTERM where the configuration has `drainOnTermination`: its pods go first, as PodDisruptionBudgets allow, then
//! its Node, then the daemon. With the node's own identity: it may cordon its Node and evict its pods; to delete its Node it needs a right more.
//!
//! ```text
//!  SIGTERM ─▶ Node cordoned ─▶ pods evicted, those refused asked again ─▶ none left ─▶ Node deleted ─▶ what is left of DaemonSets ended ─▶ exit 0
//!                                        └─ time is over: who stays and why ─▶ all of them run on ─▶ exit 1
//! ```

pub(crate) mod evict;
pub mod keep;
pub mod plan;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::shared;

/// The annotation of a Node that its own daemon has cordoned, and the next one uncordons.
const CORDONED: &str = "kvmlet.io/leaving";

/// Whether the Node was cordoned by a daemon that wanted to leave.
pub(crate) fn is_cordoned(node: &Node) -> bool {
    node.annotations().contains_key(CORDONED)
}

/// Adds to a patch of the Node that it takes no pods. Who was cordoned by somebody else stays so afterwards; one that was only so because the
/// kubelet's Node is, is looked at anew then.
fn cordon(patch: &mut Value, node: &Node) {
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) != Some(true) || shared::is_mirrored(node) {
        patch["spec"]["unschedulable"] = json!(true);
        patch["metadata"]["annotations"][CORDONED] = json!("true");
    }
}

/// Adds to a patch of the Node that it takes pods again.
pub(crate) fn uncordon(patch: &mut Value) {
    // Nothing in place of false: so kubectl leaves it, too.
    patch["spec"]["unschedulable"] = Value::Null;
    patch["metadata"]["annotations"][CORDONED] = Value::Null;
    shared::forget(patch);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_somebody_else_has_cordoned_stays_so() {
        let node = |value| serde_json::from_value::<Node>(value).unwrap();
        let patch_of = |node: &Node| {
            let mut patch = json!({});
            cordon(&mut patch, node);
            patch
        };
        let free = patch_of(&node(json!({"metadata": {"name": "n"}})));
        assert_eq!(free["spec"]["unschedulable"], true);
        assert!(is_cordoned(&node(json!({"metadata": free["metadata"]}))));
        assert_eq!(patch_of(&node(json!({"spec": {"unschedulable": true}}))), json!({}));
        // Cordoned with the kubelet's Node only: whether that still is will be seen when it comes again.
        let with_other = json!({"metadata": {"annotations": {"kvmlet.io/cordoned-with": "worker"}}, "spec": {"unschedulable": true}});
        assert_eq!(patch_of(&node(with_other))["metadata"]["annotations"][CORDONED], "true");
        let mut patch = json!({});
        uncordon(&mut patch);
        assert!(patch["metadata"]["annotations"]["kvmlet.io/cordoned-with"].is_null());
    }
}
