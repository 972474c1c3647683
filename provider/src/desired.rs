//! The pod as the API server has it, read into what this node acts on. Pure: refuses what cannot run here, with the kubelet's reasons.

mod amounts;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

pub use self::amounts::Amounts;
use crate::{
    bandwidth,
    probe::spec::{Hooks, Probes},
    state::Allocation,
    supported::{self, Unsupported},
    template,
};

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
    /// Ephemeral containers, in order: more may come, none goes. They are numbered behind the others, see [`DesiredPod::at`].
    pub ephemeral: Vec<DesiredContainer>,
    /// Their specifications, as other containers have them.
    ephemeral_specs: Vec<Container>,
    /// restartPolicy.
    pub restart: RestartPolicy,
    /// Deletion asked for.
    pub deletion: Option<Deletion>,
    /// terminationGracePeriodSeconds.
    pub grace: u64,
    /// activeDeadlineSeconds.
    pub active_deadline: Option<u64>,
    /// Requests of the pod as a whole (spec.resources, KEP-2837), which count in place of its containers'; zero where it says nothing.
    pub pod_requests: Amounts,
    /// Limits of the pod as a whole, the same way.
    pub pod_limits: Amounts,
    /// What it asks for, as [`Allocation::of_pod`] has it, where that is not what they were given (the `resize` subresource).
    pub asked: Option<Vec<Allocation>>,
}

/// A container of a pod.
#[derive(Debug, Clone)]
pub struct DesiredContainer {
    /// Unique in the pod.
    pub name: String,
    /// Begins before the main containers: runs to its end before the next one, unless it is a sidecar.
    pub init: bool,
    /// An init container that stays beside the others (restartPolicy Always).
    pub sidecar: bool,
    /// Its own restartPolicy and rules, where it has one.
    pub restart: Option<OwnRestart>,
    /// Its probes.
    pub probes: Probes,
    /// Its hooks.
    pub hooks: Hooks,
    /// The signal that asks it to end, where it says so itself.
    pub stop_signal: Option<String>,
    /// As the pod names it.
    pub image: String,
    /// When to pull.
    pub pull: PullPolicy,
    /// Position in `spec.initContainers`, `spec.containers` or `spec.ephemeralContainers`.
    pub index: usize,
    /// Of an ephemeral container: what it shall look at, and why it cannot be.
    pub ephemeral: Option<Ephemeral>,
    /// Requests.
    pub requests: Amounts,
    /// Limits; zero means none.
    pub limits: Amounts,
    /// Whether it restarts to get other amounts of processors, and of memory (resizePolicy `RestartContainer`).
    pub resize_restarts: [bool; 2],
}

/// What only an ephemeral container has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ephemeral {
    /// The container whose processes it shares (targetContainerName).
    pub target: Option<String>,
    /// What it sets that does not work here. The pod goes on without it.
    pub refused: Option<String>,
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

/// restartPolicy and restartPolicyRules of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnRestart {
    /// Where no rule matches.
    pub policy: RestartPolicy,
    /// In order: the first whose exit codes match wins over the policy.
    pub rules: Vec<ExitCodes>,
}

/// Exit codes of a rule, after which its container is restarted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitCodes {
    /// Those that are listed (`In`), or all others (`NotIn`).
    pub listed: bool,
    /// The list.
    pub values: Vec<i32>,
    /// All of the pod begins anew (RestartAllContainers), not this container alone.
    pub all: bool,
}

/// imagePullPolicy of a container, pullPolicy of an image volume.
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
        let (ephemeral, ephemeral_specs) = ephemeral(&spec);
        let whole = spec.resources.clone().unwrap_or_default();
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
            ephemeral,
            ephemeral_specs,
            restart: RestartPolicy::read(spec.restart_policy.as_deref()),
            deletion,
            grace,
            active_deadline: spec.active_deadline_seconds.and_then(|s| u64::try_from(s).ok()),
            pod_requests: Amounts::of(&whole.requests.unwrap_or_default()),
            pod_limits: Amounts::of(&whole.limits.unwrap_or_default()),
            asked: None,
            pod,
        };
        let refusal = desired.refusal();
        (desired, refusal)
    }

    /// Keeps to what the containers were given; what they ask for besides is noted.
    pub fn keep(&mut self, allocated: &[Allocation]) {
        let asked = self.asked.take().unwrap_or_else(|| Allocation::of_pod(self));
        self.give(allocated);
        self.asked = (asked != allocated).then_some(asked);
    }

    /// With these amounts for its containers, and for the pod as a whole where there is one more (as [`Allocation::of_pod`] has them).
    pub fn give(&mut self, amounts: &[Allocation]) {
        if let Some(whole) = amounts.get(self.containers.len()) {
            self.pod_requests = Amounts::read(whole.requests);
            self.pod_limits = Amounts::read(whole.limits);
        }
        for (c, own) in self.containers.iter_mut().zip(amounts) {
            c.requests = Amounts::read(own.requests);
            c.limits = Amounts::read(own.limits);
        }
    }

    /// Whether it says of itself as a whole what it requests, or is limited to.
    pub fn has_own_amounts(&self) -> bool {
        self.pod_requests != Amounts::default() || self.pod_limits != Amounts::default()
    }

    /// What the scheduler counts: what the pod says of itself, else the larger of the sum of containers and each init container; with the overhead (the
    /// scheduler's PodRequests).
    pub fn requests(&self) -> Amounts {
        self.pod_requests.or(self.total(|c| c.requests)).plus(self.overhead())
    }

    /// What all of it may use: what the pod says of itself, else the sum of limits (PodLimits, without the overhead).
    pub fn limits(&self) -> Amounts {
        self.pod_limits.or(self.total(|c| c.limits))
    }

    /// `amount` over the pod: the sum of its containers and sidecars, or an init container's with the sidecars before it if that is larger
    /// (the scheduler's AggregateContainerRequests).
    pub fn total(&self, amount: impl Fn(&DesiredContainer) -> Amounts) -> Amounts {
        let (mut sidecars, mut largest) = (Amounts::default(), Amounts::default());
        for c in self.containers.iter().filter(|c| c.init) {
            let with_this = sidecars.plus(amount(c));
            largest = largest.max(with_this);
            if c.sidecar {
                sidecars = with_this;
            }
        }
        let mains = self.containers.iter().filter(|c| !c.init).map(&amount);
        mains.fold(sidecars, Amounts::plus).max(largest)
    }

    /// Whether a container that ended with this code runs again (podutil.ContainerShouldRestart).
    pub fn restarts(&self, container: &DesiredContainer, code: i32) -> bool {
        let (policy, once) = match &container.restart {
            Some(own) if own.rule(code).is_some() => return true,
            Some(own) => (own.policy, false),
            None => (self.restart, container.init),
        };
        match policy {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Always => !once || code != 0,
        }
    }

    /// Whether all of the pod begins anew when a container ends with this code.
    pub fn restarts_all(&self, container: &DesiredContainer, code: i32) -> bool {
        container
            .restart
            .as_ref()
            .and_then(|own| own.rule(code))
            .is_some_and(|rule| rule.all)
    }

    /// Whether it may at all (podutil.AllContainersCouldRestart).
    pub fn could_restart_all(&self) -> bool {
        let mut rules = self.containers.iter().filter_map(|c| c.restart.as_ref()).flat_map(|own| &own.rules);
        rules.any(|rule| rule.all)
    }

    /// The container of this number: ephemeral ones are behind the others.
    pub fn at(&self, index: usize) -> &DesiredContainer {
        match index.checked_sub(self.containers.len()) {
            None => &self.containers[index],
            Some(behind) => &self.ephemeral[behind],
        }
    }

    /// The container's specification in the API object.
    pub fn spec_of(&self, container: &DesiredContainer) -> &Container {
        let spec = self.pod.spec.as_ref().expect("a pod without a specification is refused");
        if container.ephemeral.is_some() {
            &self.ephemeral_specs[container.index]
        } else if container.init {
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
            .map(Amounts::of)
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
        Some(Refusal {
            reason: "PodFeatureUnsupported",
            message: not_supported(&unsupported),
        })
    }
}

/// The ephemeral containers, and their specifications as other containers have them.
fn ephemeral(spec: &PodSpec) -> (Vec<DesiredContainer>, Vec<Container>) {
    let all = spec.ephemeral_containers.as_deref().unwrap_or_default();
    let read = all.iter().enumerate().map(|(index, container)| {
        let mut value = serde_json::to_value(container).expect("a container that was read from JSON can be written as JSON");
        // The one field that others do not have.
        value.as_object_mut().map(|fields| fields.remove("targetContainerName"));
        let unsupported = supported::container(&value, &format!("spec.ephemeralContainers[{index}]"));
        let own: Container = serde_json::from_value(value).expect("an ephemeral container has a container's fields");
        let desired = DesiredContainer {
            ephemeral: Some(Ephemeral {
                target: container.target_container_name.clone().filter(|name| !name.is_empty()),
                refused: (!unsupported.is_empty()).then(|| not_supported(&unsupported)),
            }),
            ..DesiredContainer::read(&own, false, index)
        };
        (desired, own)
    });
    read.unzip()
}

fn not_supported(fields: &[Unsupported]) -> String {
    let fields: Vec<String> = fields.iter().map(ToString::to_string).collect();
    format!("This node does not support: {}", fields.join(", "))
}

impl RestartPolicy {
    fn read(name: Option<&str>) -> Self {
        match name {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }
}

impl PullPolicy {
    /// As the API writes it; the API server has filled in a default.
    pub fn read(name: Option<&str>) -> Self {
        match name {
            Some("Never") => Self::Never,
            Some("IfNotPresent") => Self::IfNotPresent,
            _ => Self::Always,
        }
    }
}

impl OwnRestart {
    fn read(container: &Container) -> Option<Self> {
        let policy = container.restart_policy.as_deref()?;
        let rules = container.restart_policy_rules.iter().flatten();
        Some(Self {
            policy: RestartPolicy::read(Some(policy)),
            rules: rules
                .filter_map(|rule| Some((rule.exit_codes.as_ref()?, rule.action == "RestartAllContainers")))
                .map(|(codes, all)| ExitCodes {
                    listed: codes.operator == "In",
                    values: codes.values.clone().unwrap_or_default(),
                    all,
                })
                .collect(),
        })
    }
}

impl OwnRestart {
    /// The rule for this exit code (podutil.FindMatchingContainerRestartRule).
    fn rule(&self, code: i32) -> Option<&ExitCodes> {
        self.rules.iter().find(|rule| rule.values.contains(&code) == rule.listed)
    }
}

impl DesiredContainer {
    fn read(container: &Container, init: bool, index: usize) -> Self {
        let image = container.image.clone().unwrap_or_default();
        let resources = container.resources.clone().unwrap_or_default();
        let policies = container.resize_policy.as_deref().unwrap_or_default();
        let restarts = |resource| {
            policies
                .iter()
                .any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
        };
        Self {
            name: container.name.clone(),
            init,
            sidecar: init && container.restart_policy.as_deref() == Some("Always"),
            restart: OwnRestart::read(container),
            probes: Probes::read(container),
            hooks: Hooks::read(container),
            stop_signal: container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
            pull: PullPolicy::read(container.image_pull_policy.as_deref()),
            image,
            index,
            ephemeral: None,
            requests: Amounts::of(&resources.requests.unwrap_or_default()),
            limits: Amounts::of(&resources.limits.unwrap_or_default()),
            resize_restarts: [restarts("cpu"), restarts("memory")],
        }
    }

    /// Whether it is one that has probes: a main container or a sidecar.
    pub fn is_probed(&self) -> bool {
        !self.init || self.sidecar
    }

    /// As events name it: `spec.containers{web}`.
    pub fn field_path(&self) -> String {
        let list = match (&self.ephemeral, self.init) {
            (Some(_), _) => "ephemeralContainers",
            (None, true) => "initContainers",
            (None, false) => "containers",
        };
        format!("spec.{list}{{{}}}", self.name)
    }
}
