//! The pod as the API server has it, read into what this node acts on. Pure: refuses what cannot run here, with the kubelet's reasons.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};

use crate::{bandwidth, quantity::Quantity, supported, template};

/// A pod that this node can run.
#[derive(Debug, Clone)]
pub struct DesiredPod {
    /// Its unique identifier: everything is keyed by it.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The object, for what is read only now and then (downward API, DNS, status).
    pub pod: Arc<Pod>,
    /// Init containers, in order, then the others.
    pub containers: Vec<DesiredContainer>,
    /// restartPolicy.
    pub restart: RestartPolicy,
    /// Deletion asked for.
    pub deletion: Option<Deletion>,
    /// terminationGracePeriodSeconds.
    pub grace: u64,
    /// activeDeadlineSeconds.
    pub active_deadline: Option<u64>,
}

/// A container of a pod.
#[derive(Debug, Clone)]
pub struct DesiredContainer {
    /// Unique in the pod.
    pub name: String,
    /// Runs to its end before the next one.
    pub init: bool,
    /// As the pod names it.
    pub image: String,
    /// When to pull.
    pub pull: PullPolicy,
    /// Position in `spec.initContainers` or `spec.containers`.
    pub index: usize,
    /// Requests.
    pub requests: Amounts,
    /// Limits; zero means none.
    pub limits: Amounts,
}

/// Amounts of what a node gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Processors.
    pub cpu: Quantity,
    /// Bytes.
    pub memory: Quantity,
    /// Bytes.
    pub storage: Quantity,
}

/// restartPolicy of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Always.
    Always,
    /// After a failure.
    OnFailure,
    /// Never.
    Never,
}

/// imagePullPolicy of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Asked of the registry at each start.
    Always,
    /// Only when it is not here.
    IfNotPresent,
    /// Only when it is here.
    Never,
}

/// The API server was asked to delete the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// Seconds that its containers have, counted from when this node learns of it.
    pub grace: u64,
    /// metadata.deletionTimestamp: when the grace ends.
    pub at: Timestamp,
}

/// Why a pod cannot run here: phase Failed with this reason and message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// As the kubelet: `OutOfcpu`, `PodFeatureUnsupported`, …
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Amounts {
    /// The sum of each.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.plus(other.cpu),
            memory: self.memory.plus(other.memory),
            storage: self.storage.plus(other.storage),
        }
    }

    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.max(other.cpu),
            memory: self.memory.max(other.memory),
            storage: self.storage.max(other.storage),
        }
    }
}

impl DesiredPod {
    /// Reads a pod; a pod that cannot run here comes with the reason.
    pub fn read(pod: Arc<Pod>) -> (Self, Option<Refusal>) {
        let spec = pod.spec.clone().unwrap_or_default();
        let meta = &pod.metadata;
        let mut containers = Vec::new();
        for (init, list) in [
            (true, spec.init_containers.as_deref().unwrap_or_default()),
            (false, &spec.containers[..]),
        ] {
            containers.extend(list.iter().enumerate().map(|(index, c)| DesiredContainer::read(c, init, index)));
        }
        let grace = spec
            .termination_grace_period_seconds
            .and_then(|s| u64::try_from(s).ok())
            .unwrap_or(30);
        let deletion = meta.deletion_timestamp.as_ref().map(|at| Deletion {
            grace: meta
                .deletion_grace_period_seconds
                .and_then(|s| u64::try_from(s).ok())
                .unwrap_or(grace),
            at: at.0,
        });
        let desired = Self {
            uid: meta.uid.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            containers,
            restart: match spec.restart_policy.as_deref() {
                Some("Never") => RestartPolicy::Never,
                Some("OnFailure") => RestartPolicy::OnFailure,
                _ => RestartPolicy::Always,
            },
            deletion,
            grace,
            active_deadline: spec.active_deadline_seconds.and_then(|s| u64::try_from(s).ok()),
            pod,
        };
        let refusal = desired.refusal();
        (desired, refusal)
    }

    /// What the scheduler counts: the larger of the sum of containers and each init container, with the overhead.
    pub fn requests(&self) -> Amounts {
        self.total(|c| c.requests).plus(self.overhead())
    }

    /// `amount` over the pod: the sum of its containers, or an init container's if that is larger.
    pub fn total(&self, amount: impl Fn(&DesiredContainer) -> Amounts) -> Amounts {
        let sum = self
            .containers
            .iter()
            .filter(|c| !c.init)
            .map(&amount)
            .fold(Amounts::default(), Amounts::plus);
        self.containers.iter().filter(|c| c.init).map(&amount).fold(sum, Amounts::max)
    }

    /// The container's specification in the API object.
    pub fn spec_of(&self, container: &DesiredContainer) -> &Container {
        let spec = self.pod.spec.as_ref().expect("a pod without a specification is refused");
        if container.init {
            &spec.init_containers.as_ref().expect("it was read from there")[container.index]
        } else {
            &spec.containers[container.index]
        }
    }

    /// Volumes of the pod.
    pub fn volumes(&self) -> &[Volume] {
        self.pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default()
    }

    fn overhead(&self) -> Amounts {
        self.pod
            .spec
            .as_ref()
            .and_then(|s| s.overhead.as_ref())
            .map(amounts)
            .unwrap_or_default()
    }

    fn refusal(&self) -> Option<Refusal> {
        let Some(spec) = &self.pod.spec else {
            return Some(Refusal {
                reason: "PodFeatureUnsupported",
                message: "the pod has no spec".into(),
            });
        };
        if let Some(os) = spec.os.as_ref().filter(|os| os.name != "linux") {
            return Some(Refusal {
                reason: "PodOSNotSupported",
                message: format!(
                    "Failed to admit pod as the OS field doesn't match node OS: {} is not linux",
                    os.name
                ),
            });
        }
        if let Err(message) = bandwidth::limits(self.pod.metadata.annotations.as_ref()) {
            return Some(Refusal {
                reason: "InvalidBandwidth",
                message,
            });
        }
        if let Err(message) = template::wanted(self.pod.metadata.annotations.as_ref()) {
            return Some(Refusal {
                reason: "InvalidTemplate",
                message,
            });
        }
        let value = serde_json::to_value(spec).expect("a pod that was read from JSON can be written as JSON");
        let unsupported = supported::unsupported(&value);
        if unsupported.is_empty() {
            return None;
        }
        let fields: Vec<String> = unsupported
            .into_iter()
            .map(|u| match u.why {
                Some(why) => format!("{} ({why})", u.path),
                None => u.path,
            })
            .collect();
        Some(Refusal {
            reason: "PodFeatureUnsupported",
            message: format!("This node does not support: {}", fields.join(", ")),
        })
    }
}

impl DesiredContainer {
    fn read(container: &Container, init: bool, index: usize) -> Self {
        let image = container.image.clone().unwrap_or_default();
        let resources = container.resources.clone().unwrap_or_default();
        Self {
            name: container.name.clone(),
            init,
            pull: match container.image_pull_policy.as_deref() {
                Some("Never") => PullPolicy::Never,
                Some("IfNotPresent") => PullPolicy::IfNotPresent,
                _ => PullPolicy::Always,
            },
            image,
            index,
            requests: amounts(&resources.requests.unwrap_or_default()),
            limits: amounts(&resources.limits.unwrap_or_default()),
        }
    }

    /// As events name it: `spec.containers{web}`.
    pub fn field_path(&self) -> String {
        format!("spec.{}{{{}}}", if self.init { "initContainers" } else { "containers" }, self.name)
    }
}

fn amounts(map: &BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> Amounts {
    let get = |name| map.get(name).map(Quantity::of).unwrap_or_default();
    Amounts {
        cpu: get("cpu"),
        memory: get("memory"),
        storage: get("ephemeral-storage"),
    }
}
