//! Takes verdicts and results of in-place resizes into the state (pkg/kubelet/allocation, pkg/kubelet/events/resize.go).

use jiff::Timestamp;

use super::{Action, later, stop};
use crate::{
    desired::DesiredPod,
    events::Note,
    resize::{Pending, Progress, judge::NotNow},
    state::{Allocation, Machine, PodState, Work},
};

/// Seconds until a resize that waits for room is looked at again, and one that failed is tried again.
const AGAIN: u64 = 5;

/// Gives the pod what it asked for, or notes why not. Containers that restart for other amounts begin to end.
pub(super) fn judged(
    state: &mut PodState,
    desired: &DesiredPod,
    verdict: Result<Vec<Allocation>, NotNow>,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    let generation = desired.pod.metadata.generation.unwrap_or_default();
    let given = match verdict {
        Err(why) => {
            let (message, again) = match why {
                NotNow::Infeasible(message) => (message, None),
                NotNow::Deferred(message) => (message, Some(later(now, AGAIN))),
            };
            let pending = Pending {
                message,
                again,
                generation,
            };
            let old = state.resize.pending.replace(pending.clone());
            let told = old.is_some_and(|old| old.generation == pending.generation && old.reason() == pending.reason());
            if !told {
                let reason = if pending.again.is_some() {
                    "ResizeDeferred"
                } else {
                    "ResizeInfeasible"
                };
                let message = format!("Pod resize {}: {}", pending.reason(), pending.message);
                actions.push(Action::Tell(Note::warning(reason, None, message)));
            }
            return;
        }
        Ok(given) => given,
    };
    let machine_is_there = !matches!(state.machine, Machine::None { .. });
    if state.in_force.is_empty() {
        state.in_force = state.allocated.clone();
    }
    let before = std::mem::replace(&mut state.allocated, given);
    state.resize.pending = None;
    if !machine_is_there {
        return;
    }
    state.resize.progress = Some(Progress {
        generation,
        error: None,
        not_before: None,
    });
    let message = format!("Pod resize started: {}", summary(desired, &state.allocated));
    actions.push(Action::Tell(Note::normal("ResizeStarted", None, message)));
    for (index, (c, d)) in state.containers.iter_mut().zip(&desired.containers).enumerate() {
        let (Some(old), Some(new)) = (before.get(index), state.allocated.get(index)) else {
            continue;
        };
        let changed = |of: usize| old.requests[of] != new.requests[of] || old.limits[of] != new.limits[of];
        if (0..2).any(|of| d.resize_restarts[of] && changed(of)) && c.slot.is_alive() {
            c.health.failed = true;
            let message = format!("Container {} resize requires restart", d.name);
            stop::begin(c, d, message, (later(now, desired.grace), now), actions);
        }
    }
}

/// What came of bringing it into force.
pub(super) fn resized(
    state: &mut PodState,
    desired: &DesiredPod,
    result: Result<Vec<Allocation>, String>,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    state.busy.remove(&Work::Resize);
    match result {
        Ok(in_force) => {
            state.in_force = in_force;
            if state.is_in_force() && state.resize.progress.take().is_some() {
                let message = format!("Pod resize completed: {}", summary(desired, &state.allocated));
                actions.push(Action::Tell(Note::normal("ResizeCompleted", None, message)));
            }
        }
        Err(why) => {
            let Some(progress) = &mut state.resize.progress else { return };
            if progress.error.as_ref() != Some(&why) {
                actions.push(Action::Tell(Note::warning("ResizeError", None, format!("Pod resize error: {why}"))));
            }
            progress.error = Some(why);
            progress.not_before = Some(later(now, AGAIN));
        }
    }
}

/// Begins to bring what was allocated into force, when it is not and nothing stands in its way.
pub(super) fn begin(state: &mut PodState, now: Timestamp, actions: &mut Vec<Action>) {
    let due = |progress: &Progress| progress.not_before.is_none_or(|at| at <= now);
    if !state.is_in_force() && state.resize.progress.as_ref().is_none_or(due) && state.busy.insert(Work::Resize) {
        actions.push(Action::Resize);
    }
}

/// Containers with what they have, for people: `{"containers":[{"name":"c","resources":{…}}],"generation":2}`.
fn summary(desired: &DesiredPod, allocated: &[Allocation]) -> String {
    let of = |init: bool| -> Vec<serde_json::Value> {
        let all = desired.containers.iter().zip(allocated).filter(|(d, _)| d.init == init);
        all.map(|(d, own)| serde_json::json!({"name": d.name, "resources": own.resources()}))
            .collect()
    };
    let generation = desired.pod.metadata.generation.unwrap_or_default();
    let mut summary = serde_json::json!({"containers": of(false), "generation": generation});
    let inits = of(true);
    if !inits.is_empty() {
        summary["initContainers"] = inits.into();
    }
    summary.to_string()
}
