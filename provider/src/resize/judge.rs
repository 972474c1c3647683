//! Whether a pod can be given what it asks for by now. Pure.

use crate::{
    desired::{Amounts, DesiredPod},
    size::{Given, Room, Size, not_enough},
};

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotNow {
    /// Not on this host, or not in this machine.
    Infeasible(String),
    /// Other pods have it.
    Deferred(String),
}

/// Judges a pod with the amounts that it asks for, of `size` then. `given` is what the node has and what the other pods were given; `room` what the
/// pod's machine can grow to, if it has one.
pub fn judge(pod: &DesiredPod, size: Size, given: &Given, room: Option<Room>) -> Result<(), NotNow> {
    let (wanted, limits) = (pod.requests(), pod.limits());
    let of = |all: Amounts| [all.cpu.milli_value(), all.memory.value()];
    let numbers = [of(wanted), of(given.used), of(given.allocatable), of(limits), of(given.capacity)];
    for (index, resource) in ["cpu", "memory"].into_iter().enumerate() {
        let [wanted, used, allocatable, limit, capacity] = numbers.map(|amounts| amounts[index]);
        // The kubelet's words (pkg/kubelet/lifecycle/predicate.go).
        if wanted > allocatable {
            return Err(NotNow::Infeasible(format!(
                "Node didn't have enough capacity: {resource}, requested: {wanted}, capacity: {allocatable}"
            )));
        }
        if limit > capacity {
            return Err(NotNow::Infeasible(format!(
                "the pod's {resource} limit of {limit} is larger than this host, which has {capacity}"
            )));
        }
        if wanted.saturating_add(used) > allocatable {
            return Err(NotNow::Deferred(not_enough(resource, wanted, used, allocatable)));
        }
    }
    let Some(room) = room else { return Ok(()) };
    if size.cpus > room.cpus {
        return Err(NotNow::Infeasible(format!(
            "the pod's machine would need {} processors and can have {}: it would have to be another machine",
            size.cpus, room.cpus
        )));
    }
    if size.memory > room.memory {
        return Err(NotNow::Infeasible(format!(
            "the pod's machine would need {} bytes of memory and can have {}: it would have to be another machine",
            size.memory, room.memory
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{config::PodDefaults, quantity::Quantity, size};

    fn amounts(cpu: u64, mebibytes: u64) -> Amounts {
        Amounts {
            cpu: Quantity::millis(cpu),
            memory: Quantity::bytes(mebibytes << 20),
            storage: Quantity::default(),
        }
    }

    fn asks(cpu: &str, memory: &str, used: Amounts, room: Option<Room>) -> Result<(), NotNow> {
        let of = json!({"cpu": cpu, "memory": memory});
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": {"limits": of, "requests": of}}]}});
        let pod = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0;
        let given = Given {
            used,
            allocatable: amounts(4000, 4096),
            capacity: amounts(4000, 5000),
        };
        judge(&pod, size::size(&pod, &PodDefaults::default()), &given, room)
    }

    #[test]
    fn more_than_the_node_has_is_infeasible_and_more_than_is_left_is_deferred() {
        let none = amounts(0, 0);
        assert_eq!(asks("2", "1Gi", none, None), Ok(()));
        let words = "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000";
        assert_eq!(asks("5", "1Gi", none, None), Err(NotNow::Infeasible(words.into())));
        let words = "Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000";
        assert_eq!(asks("2", "1Gi", amounts(3000, 0), None), Err(NotNow::Deferred(words.into())));
        assert!(matches!(asks("1", "5Gi", none, None), Err(NotNow::Infeasible(_))));
        assert!(matches!(asks("1", "2Gi", amounts(0, 3000), None), Err(NotNow::Deferred(_))));
    }

    #[test]
    fn more_than_the_machine_can_grow_to_is_infeasible() {
        let room = Room {
            cpus: 2,
            memory: 1 << 30,
            beside: 0,
        };
        let none = amounts(0, 0);
        assert_eq!(asks("2", "512Mi", none, Some(room)), Ok(()));
        assert!(matches!(asks("3", "512Mi", none, Some(room)), Err(NotNow::Infeasible(m)) if m.contains("3 processors")));
        assert!(matches!(asks("1", "1Gi", none, Some(room)), Err(NotNow::Infeasible(m)) if m.contains("bytes of memory")));
    }
}
