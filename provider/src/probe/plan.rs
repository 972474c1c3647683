//! Which probes are to be under way, from the pod's state alone. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::spec::{Kind, ProbeSpec};
use crate::{
    desired::DesiredPod,
    state::{ContainerState, Machine, PodState, Slot},
};

/// A probe that shall be under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    /// Which container.
    pub(super) container: usize,
    /// Its instance.
    pub(super) id: String,
    /// Since when it runs.
    pub(super) started: Timestamp,
    pub(super) kind: Kind,
    pub(super) spec: ProbeSpec,
    /// The pod's addresses.
    pub(super) ips: Vec<String>,
    /// What the state has of it already.
    pub(super) known: Option<bool>,
}

/// Probes of running containers: the startup probe alone until it has succeeded; no startup or liveness probe of what is being ended.
pub(super) fn plan(desired: &DesiredPod, state: &PodState) -> Vec<Planned> {
    let mut planned = Vec::new();
    if state.machine != Machine::Ready {
        return planned;
    }
    let ends = state.deletion.is_some() || state.verdict.is_some();
    for (index, (d, c)) in desired.containers.iter().zip(&state.containers).enumerate() {
        let Slot::Running { id, started } = &c.slot else { continue };
        if c.health.hook_pending {
            continue;
        }
        let has_started = d.probes.startup.is_none() || c.health.started;
        for kind in [Kind::Startup, Kind::Liveness, Kind::Readiness] {
            let Some(spec) = d.probes.of(kind).filter(|_| d.is_probed()) else {
                continue;
            };
            let due = match kind {
                Kind::Startup => !has_started && !ends && c.stop.is_none(),
                Kind::Liveness => has_started && !ends && c.stop.is_none(),
                Kind::Readiness => has_started,
            };
            if due {
                planned.push(Planned {
                    container: index,
                    id: id.clone(),
                    started: *started,
                    kind,
                    spec: spec.clone(),
                    ips: state.ips.clone(),
                    known: known(c, kind),
                });
            }
        }
    }
    planned
}

fn known(c: &ContainerState, kind: Kind) -> Option<bool> {
    match kind {
        Kind::Startup => None,
        Kind::Liveness => Some(true),
        Kind::Readiness => Some(c.health.ready),
    }
}

/// How long the first asking waits: for what is left of the initial delay; where the container ran before this daemon, for some part of a period,
/// so that the probes of all pods do not come at once.
pub(super) fn first(planned: &Planned, daemon: Timestamp, now: Timestamp) -> Duration {
    // The start is the guest's word.
    let ran: Duration = now.duration_since(planned.started.min(now)).try_into().unwrap_or_default();
    let delay = planned.spec.initial_delay.saturating_sub(ran);
    if planned.started < daemon && delay.is_zero() {
        let share = u32::from_str_radix(planned.id.get(..4).unwrap_or_default(), 16).unwrap_or_default();
        return planned.spec.period * share / 0x1_0000;
    }
    delay
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::{Stage, Stop, Verdict};
    use serde_json::json;

    fn pod() -> (DesiredPod, PodState) {
        let probe = json!({"tcpSocket": {"port": 1}, "initialDelaySeconds": 5});
        let pod = json!({"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "c", "startupProbe": probe, "livenessProbe": probe,
            "readinessProbe": probe}]}});
        let (desired, _) = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap()));
        let now = Timestamp::from_second(1_000_000).unwrap();
        let mut state = PodState::new(&desired, None, now);
        state.machine = Machine::Ready;
        state.containers[0].slot = Slot::Running {
            id: "8000".into(),
            started: now,
        };
        (desired, state)
    }

    fn kinds(desired: &DesiredPod, state: &PodState) -> Vec<Kind> {
        plan(desired, state).into_iter().map(|p| p.kind).collect()
    }

    #[test]
    fn the_startup_probe_comes_alone_and_the_others_after_it() {
        let (desired, mut state) = pod();
        assert_eq!(kinds(&desired, &state), [Kind::Startup]);
        state.containers[0].health.started = true;
        assert_eq!(kinds(&desired, &state), [Kind::Liveness, Kind::Readiness]);
    }

    #[test]
    fn what_is_being_ended_is_only_asked_whether_it_is_ready() {
        let (desired, mut state) = pod();
        state.containers[0].health.started = true;
        state.containers[0].stop = Some(Stop {
            kill_at: state.accepted,
            stage: Stage::Turn,
        });
        assert_eq!(kinds(&desired, &state), [Kind::Readiness]);
        state.containers[0].stop = None;
        state.verdict = Some(Verdict::new("", ""));
        assert_eq!(kinds(&desired, &state), [Kind::Readiness]);
        state.containers[0].slot = Slot::waiting();
        assert_eq!(kinds(&desired, &state), []);
    }

    #[test]
    fn the_first_probe_waits_for_its_delay_and_after_a_restart_of_the_daemon_for_a_part_of_the_period() {
        let (desired, state) = pod();
        let planned = &plan(&desired, &state)[0];
        let at = |s: i64| Timestamp::from_second(1_000_000 + s).unwrap();
        assert_eq!(first(planned, at(-100), at(2)), Duration::from_secs(3));
        assert_eq!(first(planned, at(-100), at(20)), Duration::ZERO);
        assert_eq!(first(planned, at(100), at(120)), Duration::from_secs(5));
        // A guest whose clock is ahead gains nothing.
        assert_eq!(first(planned, at(-100), at(-50)), Duration::from_secs(5));
    }
}
