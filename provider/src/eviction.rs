//! A pod is evicted when an emptyDir on disk holds more than its sizeLimit, as by the kubelet's localStorageEviction (pkg/kubelet/eviction): looked
//! at every 10 s, in the guest, and only where the whole scratch disk could hold as much. One with medium Memory is bounded by its tmpfs.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use kvmlet_protocol::{Request, Response};
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug};

use crate::{
    act::{Act, chain},
    agent::{Agent, AgentError},
    desired::DesiredPod,
    lifecycle::{Event, is_over},
    quantity::Quantity,
    state::{Machine, PodState},
};

/// How often it is looked (the kubelet's monitoringInterval).
const PERIOD: Duration = Duration::from_secs(10);

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

/// The task that looks, while the pod's machine is ready.
#[derive(Default)]
pub struct Warden(Option<AbortOnDropHandle<()>>);

impl Warden {
    /// Begins to look, or ends it.
    pub fn keep(&mut self, act: &Act, desired: &Arc<DesiredPod>, state: &PodState) {
        let runs = matches!(state.machine, Machine::Ready) && state.verdict.is_none() && !is_over(state, desired);
        let limits = if runs { limited(desired) } else { Vec::new() };
        if limits.is_empty() {
            self.0 = None;
        } else if self.0.is_none() {
            let work = watch(act.clone(), limits);
            self.0 = Some(AbortOnDropHandle::new(tokio::spawn(work.in_current_span())));
        }
    }
}

async fn watch(act: Act, limits: Vec<Limited>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match usage(&act, &limits).await {
            Ok(usage) => {
                if let Some(message) = exceeded(&limits, &usage) {
                    // The pod may be gone.
                    let _ = act.events.send(Event::Evicted(message)).await;
                    return;
                }
            }
            Err(error) => debug!(error = chain(&error), "ask what volumes hold"),
        }
    }
}

async fn usage(act: &Act, limits: &[Limited]) -> Result<Vec<(String, u64)>, AgentError> {
    let socket = act.socket().map_err(|_| AgentError::Refused)?;
    let request = Request::Usage {
        volumes: limits.iter().map(|limited| limited.volume.clone()).collect(),
        above: limits.iter().map(|limited| limited.limit).min().unwrap_or_default(),
    };
    match Agent::connect(&socket).await?.ask(&request).await? {
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
}
