//! How much a pod matters beside others.

use k8s_openapi::api::core::v1::Pod;

/// Where the priorities begin of pods that the system needs (scheduling.SystemCriticalPriority).
pub const CRITICAL: i32 = 2_000_000_000;

/// A pod's priority; without one, zero.
pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

/// Whether the system needs this pod: it is admitted whatever the node is short of, and not evicted (kubelettypes.IsCriticalPod).
pub fn is_critical(pod: &Pod) -> bool {
    let annotation = |key: &str| pod.metadata.annotations.as_ref().and_then(|all| all.get(key));
    let is_static = annotation("kubernetes.io/config.source").is_some_and(|source| source != "api");
    is_static || annotation("kubernetes.io/config.mirror").is_some() || priority(pod) >= CRITICAL
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_critical_by_its_priority_or_because_no_api_server_gave_it() {
        let pod = |meta, priority: i32| {
            serde_json::from_value::<Pod>(json!({"metadata": meta, "spec": {"containers": [], "priority": priority}})).unwrap()
        };
        assert!(!is_critical(&pod(json!({}), 1_999_999_999)));
        assert!(is_critical(&pod(json!({}), 2_000_000_000)));
        let from = |source: &str| json!({"annotations": {"kubernetes.io/config.source": source}});
        assert!(is_critical(&pod(from("file"), 0)) && !is_critical(&pod(from("api"), 0)));
        assert!(is_critical(&pod(json!({"annotations": {"kubernetes.io/config.mirror": "x"}}), 0)));
    }
}
