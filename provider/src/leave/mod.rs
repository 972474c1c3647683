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

/// The patch of a Node that takes pods after which it takes none. Who was cordoned by somebody else stays so afterwards; one that was only so because
/// the kubelet's Node is, is looked at anew then.
fn cordon(node: &Node) -> Option<Value> {
    let takes_pods = node.spec.as_ref().and_then(|spec| spec.unschedulable) != Some(true);
    let is_ours = takes_pods || shared::is_mirrored(node) && !is_cordoned(node);
    is_ours.then(|| json!({"spec": {"unschedulable": true}, "metadata": {"annotations": {CORDONED: "true"}}}))
}

/// The patch of a Node that a daemon has cordoned which wanted to leave, after which it takes pods again.
pub(crate) fn uncordon(node: &Node) -> Option<Value> {
    is_cordoned(node).then(|| {
        // Nothing in place of false: so kubectl leaves it, too.
        let mut patch = json!({"spec": {"unschedulable": null}, "metadata": {"annotations": {CORDONED: null}}});
        shared::forget(&mut patch);
        patch
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_somebody_else_has_cordoned_stays_so() {
        let node = |value| serde_json::from_value::<Node>(value).unwrap();
        let free = cordon(&node(json!({"metadata": {"name": "n"}}))).unwrap();
        assert_eq!(free["spec"]["unschedulable"], true);
        let again = uncordon(&node(free.clone())).unwrap();
        assert_eq!(
            (&again["spec"]["unschedulable"], &again["metadata"]["annotations"][CORDONED]),
            (&Value::Null, &Value::Null)
        );
        let others = node(json!({"spec": {"unschedulable": true}}));
        assert_eq!((cordon(&others), uncordon(&others)), (None, None));
        // Cordoned with the kubelet's Node only: whether that still is will be seen when it comes again.
        let mut with_other = json!({"metadata": {"annotations": {"kvmlet.io/cordoned-with": "worker"}}, "spec": {"unschedulable": true}});
        assert_eq!(cordon(&node(with_other.clone())).unwrap(), free);
        with_other["metadata"]["annotations"][CORDONED] = json!("true");
        let leaves = node(with_other);
        assert_eq!(cordon(&leaves), None);
        assert!(uncordon(&leaves).unwrap()["metadata"]["annotations"]["kvmlet.io/cordoned-with"].is_null());
    }
}
