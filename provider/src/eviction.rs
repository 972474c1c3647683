//! A pod is evicted when an emptyDir on disk holds more than its sizeLimit, or when its containers wrote more to disk and logs than their
//! ephemeral-storage limits allow together, or one of them alone more than its own, as by the kubelet's localStorageEviction
//! (pkg/kubelet/eviction): looked at every 10 s. Volumes and containers' layers are looked at only where the whole scratch disk could hold as
//! much; a volume with medium Memory is bounded by its tmpfs. A guest of an older node does not say what one container wrote apart from the others.

use std::{path::Path, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use kvmlet_protocol::{Request, Response, STORAGE_VERSION, StorageFigures};
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug};

use crate::{
    act::{Act, chain, log_directory},
    agent::{Agent, AgentError},
    desired::DesiredPod,
    figures,
    lifecycle::{Event, is_over},
    quantity::Quantity,
    state::{Machine, PodState},
};

/// How often it is looked (the kubelet's monitoringInterval).
const PERIOD: Duration = Duration::from_secs(10);

/// Seconds that containers have whose pod is evicted at once (the kubelet's immediateEvictionGracePeriodSeconds).
pub const GRACE: u64 = 1;

/// The node ends a pod: phase Failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// status.reason, and the event's, if there is one.
    pub reason: &'static str,
    /// status.message.
    pub message: String,
    /// Seconds that its containers have.
    pub grace: u64,
    /// Whether there is an event of it.
    pub told: bool,
    /// Whether the pod could do nothing for it: condition DisruptionTarget.
    pub disrupted: bool,
}

impl Eviction {
    /// Of a pod whose node ends, in as many seconds. There is no event, as of the kubelet's.
    pub fn by_node(message: &str, grace: u64) -> Self {
        Self {
            reason: "Terminated",
            message: message.into(),
            grace,
            told: false,
            disrupted: true,
        }
    }

    /// Of a pod that takes more than its own limits allow.
    pub fn of_limit(message: String) -> Self {
        Self {
            reason: "Evicted",
            message,
            grace: GRACE,
            told: true,
            disrupted: false,
        }
    }
}

/// An emptyDir on disk with a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limited {
    /// The volume's name.
    pub volume: String,
    /// Bytes.
    pub limit: u64,
    /// As the pod writes it.
    pub text: String,
}

/// The limited emptyDirs of a pod that are on disk.
pub fn limited(pod: &DesiredPod) -> Vec<Limited> {
    let on_disk = |empty: &EmptyDirVolumeSource| empty.medium.as_deref().unwrap_or_default().is_empty();
    let limited = pod.volumes().iter().filter_map(|volume| {
        let limit = volume.empty_dir.as_ref().filter(|empty| on_disk(empty))?.size_limit.as_ref()?;
        Some(Limited {
            volume: volume.name.clone(),
            limit: Quantity::of(limit).value(),
            text: limit.0.clone(),
        })
    });
    // Zero is no limit, as with the kubelet.
    limited.filter(|limited| limited.limit > 0).collect()
}

/// Why a pod is evicted whose volumes hold this much, in the kubelet's words.
fn exceeded(limits: &[Limited], usage: &[(String, u64)]) -> Option<String> {
    let over = limits.iter().find(|limited| {
        let mut usage = usage.iter();
        usage.any(|(volume, bytes)| *volume == limited.volume && *bytes > limited.limit)
    })?;
    Some(format!(
        "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
        over.volume, over.text
    ))
}

/// Why a pod is evicted whose containers wrote this much to disk and logs, in the kubelet's words.
fn exceeds_total(limit: Quantity, used: u64) -> Option<String> {
    let words = || format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
    (used > limit.value()).then(words)
}

/// Why a pod is evicted whose containers wrote this much each to disk and logs, in the kubelet's words.
fn exceeds_own(limits: &[(String, Quantity)], used: &[(String, u64)]) -> Option<String> {
    let over = limits.iter().find(|(name, limit)| {
        let mut used = used.iter();
        used.any(|(of, bytes)| of == name && *bytes > limit.value())
    });
    over.map(|(name, limit)| format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". "))
}

/// What is looked at of a pod.
struct Limits {
    volumes: Vec<Limited>,
    /// Of each container, none of init containers, as the kubelet.
    own: Vec<(String, Quantity)>,
    /// Of all containers together, where one of them has a limit (resourcehelper.PodLimits).
    total: Option<Quantity>,
}

impl Limits {
    fn of(pod: &DesiredPod) -> Option<Self> {
        let main = pod.containers.iter().filter(|container| !container.init);
        let own = main.map(|container| (container.name.clone(), container.limits.storage));
        let limits = Self {
            volumes: limited(pod),
            own: own.filter(|(_, limit)| *limit != Quantity::default()).collect(),
            total: Some(pod.total(|container| container.limits).storage).filter(|limit| *limit != Quantity::default()),
        };
        (!limits.volumes.is_empty() || limits.total.is_some()).then_some(limits)
    }

    /// Why the pod is to be evicted.
    async fn exceeded(&self, act: &Act, desired: &DesiredPod) -> Result<Option<(&'static str, String)>, AgentError> {
        let socket = act.socket().map_err(|_| AgentError::Refused)?;
        if !self.volumes.is_empty() {
            let usage = usage(&socket, &self.volumes).await?;
            if let Some(message) = exceeded(&self.volumes, &usage) {
                return Ok(Some(("emptydirfs.limit", message)));
            }
        }
        let Some(limit) = self.total else { return Ok(None) };
        // A guest of an older node does not say.
        let Some(disk) = figures::ask(&socket).await?.disk else {
            return Ok(None);
        };
        let logs = |name: &str| figures::size_of_files(&log_directory(&act.context, desired, name));
        let all = desired.containers.iter().map(|container| logs(&container.name));
        let used = all.fold(disk.used, u64::saturating_add);
        if let Some(message) = exceeds_total(limit, used) {
            return Ok(Some(("ephemeralpodfs.limit", message)));
        }
        // None can have written more than all.
        if !self.own.iter().any(|(_, limit)| used > limit.value()) {
            return Ok(None);
        }
        let Some(storage) = storage(&socket, Vec::new()).await? else {
            return Ok(None);
        };
        let written = storage.containers.into_iter().map(|one| {
            let used = one.layer.used.saturating_add(logs(&one.name));
            (one.name, used)
        });
        let message = exceeds_own(&self.own, &written.collect::<Vec<_>>());
        Ok(message.map(|message| ("ephemeralcontainerfs.limit", message)))
    }
}

/// The task that looks, while the pod's machine is ready.
#[derive(Default)]
pub struct Warden(Option<AbortOnDropHandle<()>>);

impl Warden {
    /// Begins to look, or ends it.
    pub fn keep(&mut self, act: &Act, desired: &Arc<DesiredPod>, state: &PodState) {
        let runs = matches!(state.machine, Machine::Ready) && state.verdict.is_none() && !is_over(state, desired);
        if !runs {
            self.0 = None;
        } else if self.0.is_none()
            && let Some(limits) = Limits::of(desired)
        {
            let work = watch(act.clone(), desired.clone(), limits);
            self.0 = Some(AbortOnDropHandle::new(tokio::spawn(work.in_current_span())));
        }
    }
}

async fn watch(act: Act, desired: Arc<DesiredPod>, limits: Limits) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match limits.exceeded(&act, &desired).await {
            Ok(Some((signal, message))) => {
                act.context.meters.evicted(signal);
                // The pod may be gone.
                let _ = act.events.send(Event::Evicted(Eviction::of_limit(message))).await;
                return;
            }
            Ok(None) => {}
            Err(error) => debug!(error = chain(&error), "ask what the pod holds"),
        }
    }
}

/// What these volumes and all containers' layers hold; nothing from a guest of an older node.
pub(crate) async fn storage(socket: &Path, volumes: Vec<String>) -> Result<Option<StorageFigures>, AgentError> {
    let mut agent = Agent::connect(socket).await?;
    if agent.welcome().version < STORAGE_VERSION {
        return Ok(None);
    }
    match agent.ask(&Request::Storage { volumes }).await? {
        Response::Storage(storage) => Ok(Some(*storage)),
        _ => Err(AgentError::Unexpected("what is where on its disk")),
    }
}

async fn usage(socket: &Path, limits: &[Limited]) -> Result<Vec<(String, u64)>, AgentError> {
    let request = Request::Usage {
        volumes: limits.iter().map(|limited| limited.volume.clone()).collect(),
        above: limits.iter().map(|limited| limited.limit).min().unwrap_or_default(),
    };
    match Agent::connect(socket).await?.ask(&request).await? {
        Response::Usage(usage) => Ok(usage),
        _ => Err(AgentError::Unexpected("what volumes hold")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_volumes_on_disk_with_a_limit_are_looked_at() {
        let pod = json!({"spec": {"containers": [{"name": "c"}], "volumes": [
            {"name": "free", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "zero", "emptyDir": {"sizeLimit": "0"}}, {"name": "disk", "emptyDir": {"sizeLimit": "5Mi"}}]}});
        let pod = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0;
        let disk = Limited {
            volume: "disk".into(),
            limit: 5 << 20,
            text: "5Mi".into(),
        };
        assert_eq!(limited(&pod), [disk]);
    }

    #[test]
    fn a_volume_may_hold_its_limit_and_no_byte_more() {
        let limits = [Limited {
            volume: "v".into(),
            limit: 10,
            text: "10".into(),
        }];
        let of = |bytes: u64| exceeded(&limits, &[("other".into(), 99), ("v".into(), bytes)]);
        assert_eq!(of(10), None);
        assert_eq!(of(11).as_deref(), Some("Usage of EmptyDir volume \"v\" exceeds the limit \"10\". "));
        assert_eq!(exceeded(&limits, &[]), None);
    }

    #[test]
    fn containers_may_write_what_their_limits_allow_together() {
        let pod = |containers| {
            DesiredPod::read(Arc::new(
                serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap(),
            ))
            .0
        };
        let limits = |limit: &str| json!({"limits": {"ephemeral-storage": limit}});
        let two = Limits::of(&pod(
            json!([{"name": "a", "resources": limits("6Mi")}, {"name": "b", "resources": limits("2Mi")}]),
        ))
        .unwrap();
        let own = |a, b| exceeds_own(&two.own, &[("a".to_owned(), a), ("b".to_owned(), b)]);
        assert_eq!(own(6 << 20, 2 << 20), None);
        let words = "Container b exceeded its local ephemeral storage limit \"2Mi\". ";
        assert_eq!(
            own(1, (2 << 20) + 1).as_deref(),
            Some(words),
            "all of them wrote less than they may together"
        );
        assert_eq!(exceeds_own(&[], &[("a".to_owned(), u64::MAX)]), None);
        let limit = two.total.unwrap();
        assert_eq!(exceeds_total(limit, 8 << 20), None);
        let words = "Pod ephemeral local storage usage exceeds the total limit of containers 8Mi. ";
        assert_eq!(exceeds_total(limit, (8 << 20) + 1).as_deref(), Some(words));
        assert!(Limits::of(&pod(json!([{"name": "a"}]))).is_none());
    }
}
