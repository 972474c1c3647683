//! What becomes of a DaemonSet's pods that this node cannot run.

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

/// A DaemonSet makes its pod anew, as soon as one has failed, and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Serialize))]
#[serde(rename_all = "camelCase")]
pub enum DaemonSets {
    /// Like any other pod: it fails and says why.
    #[default]
    Refuse,
    /// It stays as it came, Pending, with an event that says why.
    Ignore,
}

impl DaemonSets {
    /// Whether a pod that cannot run here is left as it is.
    pub fn leave(self, pod: &Pod) -> bool {
        let owners = pod.metadata.owner_references.iter().flatten();
        let is_of_one = owners
            .into_iter()
            .any(|owner| owner.kind == "DaemonSet" && owner.controller == Some(true));
        self == Self::Ignore && is_of_one
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_pods_of_daemon_sets_are_left_and_only_where_the_node_says_so() {
        let of = |kind: &str| -> Pod {
            let owner = json!({"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "u", "controller": true});
            serde_json::from_value(json!({"metadata": {"name": "p", "ownerReferences": [owner]}})).unwrap()
        };
        assert!(DaemonSets::Ignore.leave(&of("DaemonSet")));
        assert!(!DaemonSets::Ignore.leave(&of("ReplicaSet")));
        assert!(!DaemonSets::Ignore.leave(&Pod::default()));
        assert!(!DaemonSets::Refuse.leave(&of("DaemonSet")));
    }
}
