//! Which pods have to leave a node before kvmlet is off.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

/// The label of the webhook's own pods: whoever switches on again has to be there.
const OWN: (&str, &str) = ("app.kubernetes.io/name", "kvmlet-webhook");

/// Whether a pod has to leave: not if it is over, on its way out of the API server's own accord (a mirror), of a DaemonSet, which would be there again at
/// once, or the webhook's.
pub fn has_to_leave(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let is_over = matches!(phase, Some("Succeeded" | "Failed"));
    let is_of_daemon_set = pod.owner_references().iter().any(|owner| owner.kind == "DaemonSet");
    let is_own = is_own(pod.labels());
    let is_mirror = pod.annotations().contains_key("kubernetes.io/config.mirror");
    !(is_over || is_of_daemon_set || is_own || is_mirror)
}

/// Whether a pod keeps its Node: the webhook's own, which would go with it.
pub fn keeps_node(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    is_own(pod.labels()) && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_own(labels: &BTreeMap<String, String>) -> bool {
    labels.get(OWN.0).is_some_and(|value| value == OWN.1)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn leaves(metadata: Value, phase: &str) -> bool {
        has_to_leave(&serde_json::from_value(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap())
    }

    #[test]
    fn pods_that_run_or_wait_leave_and_those_that_are_over_do_not() {
        assert!(leaves(json!({"name": "a"}), "Running"));
        assert!(leaves(json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"}), "Pending"));
        assert!(!leaves(json!({"name": "a"}), "Succeeded"));
        assert!(!leaves(json!({"name": "a"}), "Failed"));
    }

    #[test]
    fn only_the_webhooks_own_pods_keep_their_node_while_they_are_not_over() {
        let keeps = |name: &str, phase: &str| {
            let metadata = json!({"labels": {"app.kubernetes.io/name": name}});
            keeps_node(&serde_json::from_value(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap())
        };
        assert!(keeps("kvmlet-webhook", "Running") && keeps("kvmlet-webhook", "Pending"));
        assert!(!keeps("kvmlet-webhook", "Failed") && !keeps("web", "Running"));
    }

    #[test]
    fn pods_of_daemon_sets_mirrors_and_the_webhooks_own_stay() {
        let owner = |kind: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "u"}]);
        assert!(leaves(json!({"ownerReferences": owner("ReplicaSet")}), "Running"));
        assert!(!leaves(json!({"ownerReferences": owner("DaemonSet")}), "Running"));
        assert!(!leaves(json!({"labels": {"app.kubernetes.io/name": "kvmlet-webhook"}}), "Running"));
        assert!(leaves(json!({"labels": {"app.kubernetes.io/name": "web"}}), "Running"));
        assert!(!leaves(json!({"annotations": {"kubernetes.io/config.mirror": "h"}}), "Running"));
    }
}
