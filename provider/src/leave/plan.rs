//! Which pods leave, and what is said of those that have not. Pure.

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt as _, core::Status};

/// With the value `true` a pod may go although nobody makes it anew (the cluster autoscaler's).
const MAY_GO: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
/// What a mirror pod has: it is a kubelet's own.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What a pod is to a host that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Nobody waits for it: it is over, a mirror, or of a DaemonSet, which would have it here again at once.
    Stays,
    /// It is evicted: its controller makes it anew elsewhere, or its owner says that it may go.
    Moves,
    /// Evicted it would be lost. It is waited for, as it may end by itself.
    Alone,
}

/// Of a pod that is on this node.
pub fn role(pod: &Pod) -> Role {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let controller = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
    let is_over = matches!(phase, Some("Succeeded" | "Failed"));
    let is_of_daemon_set = controller.is_some_and(|owner| owner.kind == "DaemonSet");
    let annotation = |name: &str| pod.annotations().get(name).map(String::as_str);
    if is_over || is_of_daemon_set || annotation(MIRROR).is_some() {
        Role::Stays
    } else if controller.is_some() || annotation(MAY_GO) == Some("true") {
        Role::Moves
    } else {
        Role::Alone
    }
}

/// Why a pod is still here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It is ending.
    Ends,
    /// Its object is gone, its machine not yet.
    Machine,
    /// Its eviction was refused for now, in these words.
    Refused(String),
    /// It is [`Role::Alone`].
    Alone,
}

impl Why {
    fn words(&self) -> String {
        match self {
            Self::Ends => "is ending".into(),
            Self::Machine => "has a machine yet".into(),
            Self::Refused(words) => words.clone(),
            Self::Alone => format!("has no controller that would make it anew, and no annotation {MAY_GO}=true"),
        }
    }
}

/// What the API server said of an eviction that it refused: of a PodDisruptionBudget its own words are in the details.
pub fn refusal(status: &Status) -> String {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let more: Vec<_> = causes.map(|cause| cause.message.as_str()).filter(|text| !text.is_empty()).collect();
    [&[status.message.as_str()], &more[..]].concat().join(" ")
}

/// Pods by namespace and name, and why each is here, as one line.
pub fn told(left: &[(String, Why)]) -> String {
    let each: Vec<_> = left.iter().map(|(pod, why)| format!("{pod} {}", why.words())).collect();
    each.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(metadata: Value, phase: &str) -> Role {
        role(&serde_json::from_value(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap())
    }

    fn owned(kind: &str, controller: bool) -> Value {
        json!({"ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "u", "controller": controller}]})
    }

    #[test]
    fn pods_that_somebody_makes_anew_or_lets_go_are_moved() {
        assert_eq!(of(owned("ReplicaSet", true), "Running"), Role::Moves);
        assert_eq!(of(owned("StatefulSet", true), "Pending"), Role::Moves);
        assert_eq!(of(json!({"annotations": {MAY_GO: "true"}}), "Running"), Role::Moves);
    }

    #[test]
    fn a_pod_that_nobody_makes_anew_is_never_evicted() {
        assert_eq!(of(json!({"name": "bare"}), "Running"), Role::Alone);
        assert_eq!(of(owned("ReplicaSet", false), "Running"), Role::Alone);
        assert_eq!(of(json!({"annotations": {MAY_GO: "false"}}), "Running"), Role::Alone);
    }

    #[test]
    fn nobody_waits_for_what_is_over_and_what_belongs_to_the_host() {
        assert_eq!(of(json!({"name": "done"}), "Succeeded"), Role::Stays);
        assert_eq!(of(owned("Job", true), "Failed"), Role::Stays);
        assert_eq!(of(owned("DaemonSet", true), "Running"), Role::Stays);
        assert_eq!(of(json!({"annotations": {MIRROR: "hash"}}), "Running"), Role::Stays);
    }

    #[test]
    fn who_is_left_is_told_with_the_budgets_own_words() {
        let status: Status = serde_json::from_value(json!({"message": "Cannot evict pod.", "code": 429, "details": {"causes": [
            {"reason": "DisruptionBudget", "message": "The disruption budget web needs 3 healthy pods and has 3 currently", "field": ""}]}}))
        .unwrap();
        let left = [
            ("default/web-1".to_owned(), Why::Refused(refusal(&status))),
            ("default/web-2".to_owned(), Why::Ends),
        ];
        assert_eq!(
            told(&left),
            "default/web-1 Cannot evict pod. The disruption budget web needs 3 healthy pods and has 3 currently; default/web-2 is ending"
        );
    }
}
