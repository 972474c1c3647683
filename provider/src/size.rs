//! How large a pod's machine is, by its requests and limits. Pure; the rule is documented in docs/architecture.md.

use serde::{Deserialize, Serialize};
use vmm_lib::spec::HOTPLUG_STEP;

use crate::{
    config::PodDefaults,
    desired::{Amounts, DesiredContainer, DesiredPod, Refusal},
    quantity::Quantity,
    template,
};

/// What the guest's kernel and agent need beside the containers, bytes.
const GUEST_BASE: u64 = 64 << 20;
/// One `struct page` of 64 bytes for each 4 KiB.
const MEMORY_MAP_SHARE: u64 = 64;
/// What a scratch disk has besides what its pod may write: one byte for this many, and so many bytes.
const SCRATCH_SHARE: u64 = 32;
const SCRATCH_BASE: u64 = 64 << 20;
/// Machines are sized in steps of this, bytes.
const STEP: u64 = 2 << 20;

/// What a pod's machine can grow to while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Processors that it has, whether its guest uses them or not.
    pub cpus: u8,
    /// Guest memory that it has addresses for, bytes.
    pub memory: u64,
    /// What its control group allows its processes beside the guest's memory and what that costs, bytes.
    pub beside: u64,
}

/// What a node has, and what pods other than the one in question were given of it.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// Theirs.
    pub used: Amounts,
    /// What the node gives.
    pub allocatable: Amounts,
    /// What the host has.
    pub capacity: Amounts,
}

/// A machine's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Processors.
    pub cpus: u8,
    /// Guest memory, bytes.
    pub memory: u64,
    /// Scratch disk, bytes.
    pub scratch: u64,
}

/// The size: the containers' memory limits (a container without one counts with the default class, at least its request), the guest's own
/// memory and its page descriptors; processors enough for the CPU limits. Limits of the pod as a whole count in place of their sum.
pub fn size(pod: &DesiredPod, defaults: &PodDefaults) -> Size {
    let or_default = |c: &DesiredContainer| {
        let none = Quantity::default();
        Amounts {
            cpu: if c.limits.cpu == none { c.requests.cpu } else { c.limits.cpu },
            memory: if c.limits.memory == none {
                c.requests.memory.max(defaults.memory)
            } else {
                c.limits.memory
            },
            storage: if c.limits.storage == none {
                c.requests.storage
            } else {
                c.limits.storage
            },
        }
    };
    // What the pod says of itself bounds all of its containers; what it only requests is there at the least.
    let total = pod.pod_limits.or(pod.total(or_default).max(pod.pod_requests));
    let limited = pod
        .containers
        .iter()
        .filter(|c| !c.init || c.sidecar)
        .all(|c| c.limits.cpu != Quantity::default())
        || pod.pod_limits.cpu != Quantity::default();
    let cpu = if limited { total.cpu } else { total.cpu.max(defaults.cpu) };
    let containers = total.memory.value();
    let memory = containers.saturating_add(GUEST_BASE).saturating_add(containers / MEMORY_MAP_SHARE);
    let stated = pod.containers.iter().any(|c| c.limits.storage != Quantity::default());
    let scratch = if stated {
        total.storage
    } else {
        total.storage.max(defaults.ephemeral_storage)
    };
    Size {
        cpus: u8::try_from(cpu.value().clamp(1, u64::from(vmm_lib::spec::MAX_CPUS))).expect("clamped"),
        memory: memory
            .div_ceil(STEP)
            .saturating_mul(STEP)
            .clamp(128 << 20, vmm_lib::spec::MAX_MEMORY),
        // Room for the file system's own structures, and so much more that a pod can be seen to exceed its limit.
        scratch: scratch
            .value()
            .saturating_add(scratch.value() / SCRATCH_SHARE)
            .saturating_add(SCRATCH_BASE)
            .div_ceil(STEP)
            .saturating_mul(STEP)
            .clamp(64 << 20, 8 << 40),
    }
}

impl Size {
    /// What a machine of this size shall be able to grow to on a host of this capacity: processors cost little while they are offline, and
    /// addresses nothing. Not beyond what a copy of a template can have.
    pub fn room(self, capacity: Amounts) -> (u8, u64) {
        let comb = template::comb();
        let cpus = u8::try_from(capacity.cpu.value()).unwrap_or(u8::MAX).min(comb.cpus);
        let more = capacity.memory.value().saturating_sub(self.memory).min(comb.memory_bytes);
        let more = more.next_multiple_of(HOTPLUG_STEP).min(comb.memory_bytes);
        (cpus.max(self.cpus), more)
    }

    /// With room for the page descriptors of so many bytes of images that the guest reads in place.
    #[must_use]
    pub fn with_images(self, bytes: u64) -> Self {
        let more = (bytes / MEMORY_MAP_SHARE).div_ceil(STEP).saturating_mul(STEP);
        Self {
            memory: self.memory.saturating_add(more).min(vmm_lib::spec::MAX_MEMORY),
            ..self
        }
    }
}

/// What others have cannot be given, in the kubelet's words (pkg/kubelet/lifecycle/predicate.go).
pub fn not_enough(resource: &str, requested: u64, used: u64, capacity: u64) -> String {
    format!("Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}")
}

/// Whether the pod fits: `used` is what other pods request, `allocatable` what the node gives, `capacity` what the host has.
pub fn admit(pod: &DesiredPod, used: Amounts, pods: u32, allocatable: Amounts, capacity: Amounts, max_pods: u32) -> Result<(), Refusal> {
    if pods >= max_pods {
        let message = not_enough("pods", 1, pods.into(), max_pods.into());
        return Err(Refusal {
            reason: "OutOfpods",
            message,
        });
    }
    let wanted = pod.requests();
    let limits = pod.limits();
    let checks = [
        (
            "cpu",
            "OutOfcpu",
            wanted.cpu,
            used.cpu,
            allocatable.cpu,
            limits.cpu,
            capacity.cpu,
            true,
        ),
        (
            "memory",
            "OutOfmemory",
            wanted.memory,
            used.memory,
            allocatable.memory,
            limits.memory,
            capacity.memory,
            false,
        ),
        (
            "ephemeral-storage",
            "OutOfephemeral-storage",
            wanted.storage,
            used.storage,
            allocatable.storage,
            Quantity::default(),
            capacity.storage,
            false,
        ),
    ];
    for (resource, reason, wanted, used, allocatable, limit, capacity, millis) in checks {
        let number = |q: Quantity| if millis { q.milli_value() } else { q.value() };
        if wanted.plus(used) > allocatable {
            let message = not_enough(resource, number(wanted), number(used), number(allocatable));
            return Err(Refusal { reason, message });
        }
        if limit > capacity {
            let message =
                format!("the pod's {resource} limit of {limit} is larger than this host, which has {capacity}: its machine cannot be made");
            return Err(Refusal { reason, message });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn pod(containers: Value, init: Value) -> DesiredPod {
        let pod = json!({"spec": {"containers": containers, "initContainers": init}});
        DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0
    }

    fn limits(cpu: &str, memory: &str) -> Value {
        json!({"name": "c", "resources": {"limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": cpu, "memory": memory}}})
    }

    #[test]
    fn limits_add_up_and_a_larger_init_container_wins() {
        let two = pod(json!([limits("500m", "128Mi"), limits("1", "128Mi")]), json!([]));
        let got = size(&two, &PodDefaults::default());
        assert_eq!(got.cpus, 2);
        assert_eq!(got.memory, (256 + 64 + 4) << 20);
        let init = pod(json!([limits("1", "64Mi")]), json!([limits("4", "1Gi")]));
        let got = size(&init, &PodDefaults::default());
        assert_eq!((got.cpus, got.memory), (4, (1024 + 64 + 16) << 20));
    }

    #[test]
    fn a_pod_without_limits_gets_the_default_class() {
        let got = size(&pod(json!([{"name": "c"}]), json!([])), &PodDefaults::default());
        assert_eq!((got.cpus, got.memory), (1, (256 + 64 + 4) << 20));
    }

    #[test]
    fn what_a_pod_says_of_itself_counts_in_place_of_the_sum_of_its_containers() {
        let of = |resources: Value, containers: Value| {
            let pod = json!({"spec": {"containers": containers, "resources": resources}});
            DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0
        };
        let own = |pod: &DesiredPod| {
            let size = size(pod, &PodDefaults::default());
            (size.cpus, size.memory >> 20)
        };
        let both = json!({"limits": {"cpu": "2", "memory": "512Mi"}, "requests": {"cpu": "500m", "memory": "128Mi"}});
        let whole = of(both.clone(), json!([{"name": "a"}, {"name": "b"}]));
        assert_eq!(own(&whole), (2, 512 + 64 + 8), "without any of the containers'");
        assert_eq!(
            (whole.requests().cpu.milli_value(), whole.requests().memory.value()),
            (500, 128 << 20)
        );
        let more = of(both, json!([limits("2", "400Mi"), limits("2", "400Mi")]));
        assert_eq!(own(&more), (2, 512 + 64 + 8), "and in place of them");
        // One of the two, and requests alone.
        let memory = of(json!({"limits": {"memory": "256Mi"}}), json!([limits("3", "64Mi")]));
        assert_eq!(own(&memory), (3, 256 + 64 + 4));
        let requests = of(json!({"requests": {"cpu": "3", "memory": "1Gi"}}), json!([{"name": "a"}]));
        assert_eq!(own(&requests), (3, 1024 + 64 + 16));
    }

    #[test]
    fn a_machine_can_grow_to_its_host_and_no_further_than_a_copy_can() {
        let host = |cpus: u64, gibibytes: u64| Amounts {
            cpu: Quantity::millis(cpus * 1000),
            memory: Quantity::bytes(gibibytes << 30),
            storage: Quantity::default(),
        };
        let size = |cpus, memory| Size { cpus, memory, scratch: 0 };
        assert_eq!(size(1, 1 << 30).room(host(2, 4)), (2, 3 << 30));
        assert_eq!(
            size(1, (1 << 30) + (2 << 20)).room(host(2, 4)),
            (2, 3 << 30),
            "in steps of what Linux adds"
        );
        assert_eq!(size(16, 1 << 30).room(host(64, 512)), (16, 64 << 30));
        assert_eq!(size(2, 4 << 30).room(host(2, 4)), (2, 0));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_kubelets_words() {
        let host = Amounts {
            cpu: Quantity::millis(2000),
            memory: Quantity::bytes(4 << 30),
            storage: Quantity::bytes(10 << 30),
        };
        let none = Amounts::default();
        let admit = |p: &DesiredPod, used| super::admit(p, used, 0, host, host, 10).map_err(|r| (r.reason, r.message));
        assert!(admit(&pod(json!([limits("1", "1Gi")]), json!([])), none).is_ok());
        let (reason, message) = admit(&pod(json!([limits("3", "1Gi")]), json!([])), none).unwrap_err();
        assert_eq!(
            (reason, message.as_str()),
            (
                "OutOfcpu",
                "Node didn't have enough resource: cpu, requested: 3000, used: 0, capacity: 2000"
            )
        );
        assert_eq!(
            admit(&pod(json!([limits("1", "8Gi")]), json!([])), none).unwrap_err().0,
            "OutOfmemory"
        );
        let used = Amounts {
            cpu: Quantity::millis(1500),
            ..none
        };
        assert_eq!(admit(&pod(json!([limits("1", "1Gi")]), json!([])), used).unwrap_err().0, "OutOfcpu");
        let greedy = pod(
            json!([{"name": "c", "resources": {"limits": {"memory": "64Gi"}, "requests": {"memory": "1Mi"}}}]),
            json!([]),
        );
        assert_eq!(admit(&greedy, none).unwrap_err().0, "OutOfmemory");
        assert_eq!(super::admit(&greedy, none, 10, host, host, 10).unwrap_err().reason, "OutOfpods");
    }
}
