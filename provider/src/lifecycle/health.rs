//! Takes what probes and hooks have found into the state: who has started, who is ready, who has to end.

use jiff::Timestamp;

use super::{Action, later, stop};
use crate::{
    desired::{DesiredContainer, DesiredPod},
    events::Note,
    probe::spec::Kind,
    state::{ContainerState, PodState, Slot, Stage},
};

/// A probe's verdict on an instance that still runs.
pub(super) fn probed(
    state: &mut PodState,
    desired: &DesiredPod,
    id: &str,
    kind: Kind,
    healthy: bool,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    let ends = state.deletion.is_some();
    let Some((c, d)) = running(state, desired, id) else { return };
    match (kind, healthy) {
        (Kind::Startup, true) => c.health.started = true,
        (Kind::Readiness, ready) => c.health.ready = ready,
        (Kind::Liveness, true) => {}
        // Whoever ends the pod does not end its containers one by one.
        (Kind::Startup | Kind::Liveness, false) if ends => {}
        (Kind::Startup | Kind::Liveness, false) => {
            let grace = d.probes.of(kind).and_then(|probe| probe.grace).unwrap_or(desired.grace);
            let which = if kind == Kind::Startup { "startup" } else { "liveness" };
            let message = if d.sidecar {
                format!("Init container {} failed {which} probe", d.name)
            } else if desired.restarts(d, 1) {
                format!("Container {} failed {which} probe, will be restarted", d.name)
            } else {
                format!("Container {} failed {which} probe", d.name)
            };
            c.health.failed = true;
            stop::begin(c, d, message, (later(now, grace), now), actions);
        }
    }
}

/// A postStart hook that failed ends its container, which restarts by its policy.
pub(super) fn post_started(
    state: &mut PodState,
    desired: &DesiredPod,
    id: &str,
    result: Result<(), String>,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    let Some((c, d)) = running(state, desired, id) else { return };
    c.health.hook_pending = false;
    match result {
        Ok(()) => c.hook_error.clear(),
        Err(message) => {
            c.hook_error = message;
            let note = Note::warning("FailedPostStartHook", Some(d.field_path()), "PostStartHook failed".into());
            actions.push(Action::Tell(note));
            stop::begin(c, d, "FailedPostStartHook".into(), (later(now, desired.grace), now), actions);
        }
    }
}

/// A container whose preStop hook is over, well or not, is asked to end.
pub(super) fn pre_stopped(state: &mut PodState, desired: &DesiredPod, id: &str, well: bool, actions: &mut Vec<Action>) {
    let Some((c, d)) = running(state, desired, id) else { return };
    if let Some(stop) = c.stop.as_mut().filter(|s| s.stage == Stage::Hook) {
        stop.stage = Stage::Turn;
        if !well {
            let note = Note::warning("FailedPreStopHook", Some(d.field_path()), "PreStopHook failed".into());
            actions.push(Action::Tell(note));
        }
    }
}

fn running<'a>(state: &'a mut PodState, desired: &'a DesiredPod, id: &str) -> Option<(&'a mut ContainerState, &'a DesiredContainer)> {
    let pairs = state.containers.iter_mut().zip(&desired.containers);
    pairs
        .into_iter()
        .find(|(c, _)| matches!(&c.slot, Slot::Running { id: own, .. } if own == id))
}
