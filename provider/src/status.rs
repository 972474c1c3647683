//! What is reported of a pod: its state in the API's words. Pure; times of conditions come from the previous status where nothing changed.

mod messages;
mod mounts;

use std::borrow::Cow;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, ContainerUser,
        HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodReadinessGate, PodStatus, ResourceRequirements,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use kvmlet_protocol::Identity;

use crate::{
    desired::{DesiredContainer, DesiredPod},
    image_volumes,
    lifecycle::{RESTARTING_ALL, is_initialized, is_over},
    state::{ContainerState, Ended, ImageState, Machine, PodState, Slot},
};

/// The runtime in container identifiers: `kvmlet://…`.
const RUNTIME: &str = "kvmlet";

/// The pod's status.
pub fn status(desired: &DesiredPod, state: &PodState, host_ips: &[String], previous: Option<&PodStatus>, now: Timestamp) -> PodStatus {
    let old = previous.or(desired.pod.status.as_ref());
    let phase = phase(desired, state);
    // What is in force of what was given to the pod as a whole.
    let whole = desired.has_own_amounts().then(|| {
        let mut now = Cow::Borrowed(desired);
        if !state.is_in_force() {
            now.to_mut().give(&state.in_force);
        }
        now
    });
    let generation = desired.pod.metadata.generation;
    let initialized = is_initialized(state, desired);
    let statuses = |init: bool| -> Vec<ContainerStatus> {
        if state
            .verdict
            .as_ref()
            .is_some_and(|_| state.released && state.containers.iter().all(|c| c.image == ImageState::Wanted))
        {
            return Vec::new();
        }
        let pairs = desired.containers.iter().zip(&state.containers).enumerate();
        pairs
            .filter(|(_, (c, _))| c.init == init)
            .map(|(index, (d, c))| {
                let has_init = desired.containers.iter().any(|c| c.init);
                let status = container(d, c, initialized, has_init, image_volumes::missing(desired, state, d));
                let has_run = c.is_up() || matches!(c.slot, Slot::Ended(_));
                ContainerStatus {
                    resources: has_run.then(|| state.in_force(index)).flatten().map(|own| own.resources()),
                    volume_mounts: status.container_id.is_some().then(|| mounts::of(desired.spec_of(d))).flatten(),
                    ..status
                }
            })
            .collect()
    };
    let (inits, mains) = (statuses(true), statuses(false));
    // Sidecars count as main containers do.
    let sidecar = |name: &str| desired.containers.iter().any(|d| d.sidecar && d.name == name);
    let unready: Vec<&str> = inits
        .iter()
        .filter(|c| sidecar(&c.name))
        .chain(&mains)
        .filter(|c| !c.ready)
        .map(|c| c.name.as_str())
        .collect();
    let ready = !mains.is_empty() && unready.is_empty() && phase == "Running" && state.deletion.is_none();
    let unready = unready.join(" ");
    let over = matches!(phase, "Succeeded" | "Failed");
    let not_ready = || -> (Option<&str>, Option<String>) {
        match phase {
            "Succeeded" => (Some("PodCompleted"), None),
            "Failed" => (Some("PodFailed"), None),
            _ => (
                Some("ContainersNotReady"),
                Some(format!("containers with unready status: [{unready}]")),
            ),
        }
    };
    let mut conditions = Conditions {
        old,
        now,
        generation,
        list: Vec::new(),
    };
    conditions.set("PodReadyToStartContainers", state.machine == Machine::Ready, None, None);
    let init_names = inits
        .iter()
        .filter(|c| if sidecar(&c.name) { c.started != Some(true) } else { !c.ready })
        .map(|c| c.name.clone())
        .collect::<Vec<_>>()
        .join(" ");
    // One that begins anew in place stays initialized (GeneratePodInitializedCondition).
    let stays = desired.could_restart_all() && conditions.old("Initialized").is_some_and(|c| c.status == "True");
    if initialized || stays || phase == "Succeeded" {
        conditions.set("Initialized", true, (phase == "Succeeded").then_some("PodCompleted"), None);
    } else {
        let message = format!("containers with incomplete status: [{init_names}]");
        conditions.set("Initialized", false, Some("ContainersNotInitialized"), Some(message));
    }
    if ready {
        conditions.set("ContainersReady", true, None, None);
    } else {
        let (reason, message) = not_ready();
        conditions.set("ContainersReady", false, reason, message);
    }
    let gates = gates_met(&desired.pod);
    if ready && gates.is_ok() {
        conditions.set("Ready", true, None, None);
    } else if let (true, Err(message)) = (ready, gates) {
        conditions.set("Ready", false, Some("ReadinessGatesNotReady"), Some(message));
    } else {
        let (reason, message) = not_ready();
        conditions.set("Ready", false, reason, message);
    }
    if desired.could_restart_all() {
        let why = state.restarting.then(|| {
            (
                "RestartAllContainersStarted",
                "container exited with restart policy rule".to_owned(),
            )
        });
        let (reason, message) = why.unzip();
        conditions.set("AllContainersRestarting", state.restarting, reason, message);
    }
    if let Some(pending) = &state.resize.pending {
        let message = Some(pending.message.clone());
        conditions.set_at(pending.generation, "PodResizePending", Some(pending.reason()), message);
    }
    if let Some(progress) = &state.resize.progress {
        let reason = progress.error.is_some().then_some("Error");
        conditions.set_at(progress.generation, "PodResizeInProgress", reason, progress.error.clone());
    }
    if let Some(verdict) = state.verdict.as_ref().filter(|verdict| verdict.disrupted) {
        let message = Some(verdict.message.clone());
        conditions.set("DisruptionTarget", true, Some("TerminationByKubelet"), message);
    }
    conditions.keep_foreign(&desired.pod);
    // They are told with the machine that has them, as the kubelet tells a sandbox's, and not before.
    let ips = if state.machine == Machine::Starting {
        old.and_then(|o| o.pod_ips.clone()).unwrap_or_default()
    } else {
        state.ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()
    };
    let mut status = PodStatus {
        phase: Some(phase.into()),
        reason: state.verdict.as_ref().map(|v| v.reason.clone()),
        message: state.verdict.as_ref().map(|v| v.message.clone()),
        start_time: Some(Time(state.accepted)),
        host_ip: host_ips.first().cloned(),
        host_ips: Some(host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().map(|ip| ip.ip.clone()),
        pod_ips: Some(ips).filter(|l| !l.is_empty()),
        conditions: Some(conditions.list),
        init_container_statuses: Some(inits).filter(|l| !l.is_empty()),
        container_statuses: Some(mains).filter(|l| !l.is_empty()),
        ephemeral_container_statuses: Some(ephemeral(desired, state, initialized)).filter(|l| !l.is_empty()),
        qos_class: desired.pod.status.as_ref().and_then(|s| s.qos_class.clone()),
        allocated_resources: whole.is_some().then(|| desired.requests().to_api()),
        resources: whole.map(|now| ResourceRequirements {
            requests: Some(now.requests().to_api()),
            limits: Some(now.limits().to_api()).filter(|limits| !limits.is_empty()),
            ..ResourceRequirements::default()
        }),
        observed_generation: if over {
            old.and_then(|o| o.observed_generation).or(generation)
        } else {
            generation
        },
        ..PodStatus::default()
    };
    messages::share(&mut status);
    status
}

/// Ephemeral containers are never ready.
fn ephemeral(desired: &DesiredPod, state: &PodState, initialized: bool) -> Vec<ContainerStatus> {
    let has_init = desired.containers.iter().any(|c| c.init);
    let pairs = desired.ephemeral.iter().zip(&state.ephemeral);
    pairs
        .map(|(d, c)| ContainerStatus {
            ready: false,
            started: None,
            ..container(d, c, initialized, has_init, image_volumes::missing(desired, state, d))
        })
        .collect()
}

/// The phase (the kubelet's getPhase).
fn phase(desired: &DesiredPod, state: &PodState) -> &'static str {
    let wound_down = state.released && state.deletion.is_some();
    let alive = state.containers.iter().any(|c| c.slot.is_alive());
    if !alive && (state.verdict.is_some() || wound_down || is_over(state, desired)) {
        // How a sidecar ends does not count.
        let mut counted = desired.containers.iter().zip(&state.containers).filter(|(d, _)| !d.sidecar);
        let succeeded = |c: &ContainerState| matches!(&c.slot, Slot::Ended(e) if e.code == 0);
        let well = state.verdict.is_none() && counted.all(|(_, c)| succeeded(c));
        return if well { "Succeeded" } else { "Failed" };
    }
    let has_begun = |c: &ContainerState| c.is_up() || matches!(c.slot, Slot::Ended(_)) || c.last.is_some();
    let mut mains = state.containers.iter().filter(|c| !c.init);
    if mains.all(has_begun) { "Running" } else { "Pending" }
}

/// `missing` is what an image volume that it mounts lacks.
fn container(
    desired: &DesiredContainer,
    c: &ContainerState,
    initialized: bool,
    has_init: bool,
    missing: Option<(&str, &str)>,
) -> ContainerStatus {
    let started = c.is_up() && (desired.probes.startup.is_none() || c.health.started);
    // As with the kubelet, one that never ran has none (convertToAPIContainerStatuses): that an image is there needs no report of its own.
    let has_run = c.last.is_some() || matches!(c.slot, Slot::Running { .. } | Slot::Ended(_));
    let image_id = match &c.image {
        ImageState::Ready(facts) if has_run => facts.digest.clone(),
        _ => String::new(),
    };
    let id = match &c.slot {
        Slot::Running { id, .. } => Some(id.clone()),
        Slot::Ended(e) => Some(e.id.clone()),
        Slot::Starting { .. } | Slot::Waiting { .. } => c.last.as_ref().map(|e| e.id.clone()),
    };
    // Until it runs again the instance that counts is the one that ended.
    let ended_last = c.last.is_some() && matches!(c.slot, Slot::Waiting { .. } | Slot::Starting { .. });
    // But one that was taken away to begin anew with its pod has none, and has restarted (convertToAPIContainerStatuses).
    let anew = ended_last && c.last.as_ref().is_some_and(|e| e.reason == RESTARTING_ALL);
    ContainerStatus {
        name: c.name.clone(),
        image: c.image_name.clone(),
        image_id,
        container_id: id.filter(|id| !id.is_empty() && !anew).map(|id| format!("{RUNTIME}://{id}")),
        restart_count: i32::try_from(c.restarts.saturating_sub(u32::from(ended_last && !anew))).unwrap_or(i32::MAX),
        ready: if desired.is_probed() {
            started && (desired.probes.readiness.is_none() || c.health.ready)
        } else {
            matches!(&c.slot, Slot::Ended(e) if e.code == 0)
        },
        started: Some(started),
        stop_signal: desired.stop_signal.clone(),
        user: c.user.as_ref().filter(|_| has_run).map(user),
        allocated_resources: Some(desired.requests.to_api()).filter(|a| !a.is_empty()),
        state: Some(state_of(c, initialized, has_init, missing)),
        last_state: c.last.as_ref().map(terminated),
        ..ContainerStatus::default()
    }
}

fn user(user: &Identity) -> ContainerUser {
    ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: Some(user.groups.iter().copied().map(i64::from).collect()),
        }),
    }
}

fn state_of(c: &ContainerState, initialized: bool, has_init: bool, missing: Option<(&str, &str)>) -> ApiState {
    let waiting = |reason: &str, message: &str| ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.into()),
            message: Some(message.to_owned()).filter(|m| !m.is_empty()),
        }),
        ..ApiState::default()
    };
    if let (Slot::Waiting { reason: None, .. }, Some((reason, message))) = (&c.slot, missing) {
        return waiting(reason, message);
    }
    match (&c.slot, &c.image) {
        (Slot::Running { started, .. }, _) if c.is_up() && c.hook_error.is_empty() => ApiState {
            running: Some(ContainerStateRunning {
                started_at: Some(Time(*started)),
            }),
            ..ApiState::default()
        },
        (Slot::Ended(ended), _) => terminated(ended),
        (
            Slot::Waiting {
                reason: Some(reason),
                message,
                ..
            },
            _,
        ) => waiting(reason, message),
        (_, ImageState::Failed { reason, message, .. }) => waiting(reason, message),
        _ if !c.hook_error.is_empty() => waiting("PostStartHookError", &c.hook_error),
        _ if has_init && !initialized => waiting("PodInitializing", ""),
        _ => waiting("ContainerCreating", ""),
    }
}

fn terminated(ended: &Ended) -> ApiState {
    ApiState {
        terminated: Some(ContainerStateTerminated {
            exit_code: ended.code,
            signal: Some(ended.signal).filter(|s| *s != 0),
            reason: Some(ended.reason.clone()),
            message: Some(ended.message.clone()).filter(|m| !m.is_empty()),
            started_at: Some(Time(ended.started)),
            finished_at: Some(Time(ended.finished)),
            container_id: Some(&ended.id).filter(|id| !id.is_empty()).map(|id| format!("{RUNTIME}://{id}")),
        }),
        ..ApiState::default()
    }
}

fn gates_met(pod: &Pod) -> Result<(), String> {
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let unmet = |gate: &PodReadinessGate| {
        let kind = &gate.condition_type;
        match conditions.iter().find(|c| c.type_ == *kind) {
            Some(c) if c.status == "True" => None,
            Some(c) => Some(format!(
                "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                c.status
            )),
            None => Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
        }
    };
    let unmet: Vec<String> = gates.iter().filter_map(unmet).collect();
    if unmet.is_empty() { Ok(()) } else { Err(unmet.join(", ")) }
}

/// Conditions under construction.
struct Conditions<'a> {
    old: Option<&'a PodStatus>,
    now: Timestamp,
    generation: Option<i64>,
    list: Vec<PodCondition>,
}

/// Conditions that this node writes; all others belong to somebody else and stay.
const OWN: &[&str] = &[
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "AllContainersRestarting",
    RESIZE[0],
    RESIZE[1],
];

/// Those of them that are there while a resize is, and not at all otherwise.
pub const RESIZE: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

impl Conditions<'_> {
    fn old(&self, kind: &str) -> Option<&PodCondition> {
        self.old
            .and_then(|o| o.conditions.as_ref())
            .and_then(|l| l.iter().find(|c| c.type_ == kind))
    }

    fn set(&mut self, kind: &str, value: bool, reason: Option<&str>, message: Option<String>) {
        let value = if value { "True" } else { "False" };
        let since = self
            .old(kind)
            .filter(|c| c.status == value)
            .and_then(|c| c.last_transition_time.clone());
        self.list.push(PodCondition {
            type_: kind.into(),
            status: value.into(),
            reason: reason.map(str::to_owned),
            message,
            last_transition_time: Some(since.unwrap_or(Time(self.now))),
            observed_generation: self.generation,
            ..PodCondition::default()
        });
    }

    /// One that is true since this generation of the pod.
    fn set_at(&mut self, generation: i64, kind: &str, reason: Option<&str>, message: Option<String>) {
        self.set(kind, true, reason, message);
        if let Some(condition) = self.list.last_mut() {
            condition.observed_generation = Some(generation);
        }
    }

    /// As they were last seen: whose they are may have written them since this node reported.
    fn keep_foreign(&mut self, pod: &Pod) {
        let foreign = pod.status.as_ref().and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        let foreign: Vec<_> = foreign
            .filter(|c| !OWN.contains(&c.type_.as_str()) && self.list.iter().all(|own| own.type_ != c.type_))
            .cloned()
            .collect();
        self.list.extend(foreign);
    }
}
