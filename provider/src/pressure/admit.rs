//! Which pods a node takes that is short of something (eviction_manager.go, Admit). Pure.

use k8s_openapi::api::core::v1::{Pod, Toleration};

use super::{Condition, Conditions};
use crate::{desired::Refusal, priority::is_critical};

/// The taint that the node lifecycle controller gives a node that is short of memory.
const MEMORY_TAINT: (&str, &str) = ("node.kubernetes.io/memory-pressure", "NoSchedule");

/// Whether a new pod may come: always one that the system needs; where only memory is short also one that asks for some, or tolerates it.
///
/// # Errors
/// In the kubelet's words.
pub fn admit(pod: &Pod, conditions: &Conditions) -> Result<(), Refusal> {
    let only_memory = || conditions.iter().eq([&Condition::Memory]);
    if conditions.is_empty() || is_critical(pod) || only_memory() && (!is_best_effort(pod) || tolerates_memory_pressure(pod)) {
        return Ok(());
    }
    let names: Vec<_> = conditions.iter().map(|one| one.name()).collect();
    Err(Refusal {
        reason: "Evicted",
        message: format!("The node had condition: [{}]. ", names.join(" ")),
    })
}

/// The API server says which class a pod is of when it takes it.
fn is_best_effort(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) == Some("BestEffort")
}

fn tolerates_memory_pressure(pod: &Pod) -> bool {
    let all = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    all.iter().any(tolerates)
}

/// Toleration.ToleratesTaint, of a taint without a value.
fn tolerates(toleration: &Toleration) -> bool {
    let (key, effect) = MEMORY_TAINT;
    let empty_or = |text: Option<&str>, is: &str| text.is_none_or(|text| text.is_empty() || text == is);
    let names = empty_or(toleration.effect.as_deref(), effect) && empty_or(toleration.key.as_deref(), key);
    match toleration.operator.as_deref() {
        Some("Exists") => names,
        None | Some("" | "Equal") => names && toleration.value.as_deref().unwrap_or_default().is_empty(),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(class: &str, priority: i32, toleration: Value) -> Pod {
        serde_json::from_value(json!({"status": {"qosClass": class},
            "spec": {"containers": [], "priority": priority, "tolerations": [toleration]}}))
        .unwrap()
    }

    fn refused(pod: &Pod, conditions: &[Condition]) -> Option<String> {
        admit(pod, &conditions.iter().copied().collect())
            .err()
            .map(|refusal| refusal.message)
    }

    #[test]
    fn a_node_that_is_short_of_disk_or_processes_takes_what_the_system_needs_and_nothing_else() {
        let other = json!({"operator": "Exists"});
        assert_eq!(refused(&pod("BestEffort", 0, other.clone()), &[]), None);
        assert_eq!(refused(&pod("BestEffort", 2_000_000_000, other.clone()), &[Condition::Disk]), None);
        let words = |conditions: &[Condition]| refused(&pod("Guaranteed", 0, other.clone()), conditions);
        assert_eq!(
            words(&[Condition::Disk]).as_deref(),
            Some("The node had condition: [DiskPressure]. ")
        );
        assert_eq!(words(&[Condition::Pid]).as_deref(), Some("The node had condition: [PIDPressure]. "));
        assert_eq!(
            words(&[Condition::Memory, Condition::Disk]).as_deref(),
            Some("The node had condition: [DiskPressure MemoryPressure]. ")
        );
    }

    #[test]
    fn a_node_that_is_short_of_memory_refuses_only_who_asks_for_none_and_tolerates_nothing() {
        let other = json!({"key": "x", "operator": "Exists"});
        let words = "The node had condition: [MemoryPressure]. ";
        assert_eq!(
            refused(&pod("BestEffort", 0, other.clone()), &[Condition::Memory]).as_deref(),
            Some(words)
        );
        assert_eq!(refused(&pod("Burstable", 0, other), &[Condition::Memory]), None);
        for toleration in [
            json!({"operator": "Exists"}),
            json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}),
            json!({"key": "node.kubernetes.io/memory-pressure"}),
        ] {
            assert_eq!(refused(&pod("BestEffort", 0, toleration), &[Condition::Memory]), None);
        }
        for toleration in [
            json!({"key": "node.kubernetes.io/disk-pressure", "operator": "Exists"}),
            json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoExecute"}),
            json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Equal", "value": "x"}),
        ] {
            assert_eq!(
                refused(&pod("BestEffort", 0, toleration), &[Condition::Memory]).as_deref(),
                Some(words)
            );
        }
    }
}
