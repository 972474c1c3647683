//! Says what to do next, from the state alone.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{
    Action, FIRST_BACKOFF, KILL_PATIENCE, MAX_BACKOFF, changed, deadline, ephemeral, has_passed, is_over, later, pull, resize, restart_all,
    runs_again, stop,
};
use crate::{
    config::Span,
    desired::DesiredPod,
    events::Note,
    image_volumes,
    state::{ContainerState, DeletionState, Ended, Health, ImageState, Machine, PodState, Slot, Verdict, Work},
};

/// A container that ran this long starts over with the first wait.
const BACKOFF_RESET: SignedDuration = SignedDuration::from_mins(10);

pub(super) fn decide(
    state: &mut PodState,
    desired: &DesiredPod,
    now: Timestamp,
    new_id: &mut dyn FnMut() -> String,
    actions: &mut Vec<Action>,
) {
    if state.verdict.is_none() && state.deletion.is_none() && !is_over(state, desired) && deadline(state, desired).is_some_and(|d| d <= now)
    {
        state.verdict = Some(Verdict::new(
            "DeadlineExceeded",
            "Pod was active on the node longer than the specified deadline",
        ));
        actions.push(Action::Tell(Note::normal(
            "DeadlineExceeded",
            None,
            "Pod was active on the node longer than the specified deadline".into(),
        )));
    }
    if state.deletion.is_some() || state.verdict.is_some() || is_over(state, desired) {
        wind_down(state, desired, now, actions);
    } else {
        make_progress(state, desired, now, new_id, actions);
    }
}

/// Towards nothing: containers, machine, network, then the object.
fn wind_down(state: &mut PodState, desired: &DesiredPod, now: Timestamp, actions: &mut Vec<Action>) {
    if !state.released {
        // A guest that hangs does not hear of it.
        let unheard = |d: &DeletionState| d.kill_at.saturating_add(KILL_PATIENCE).is_ok_and(|t| t <= now);
        let at_once = state.deletion.as_ref().is_some_and(|d| d.object_gone || unheard(d));
        if matches!(state.machine, Machine::Ready) && !at_once {
            stop_containers(state, desired, now, actions);
            if state.containers.iter().chain(&state.ephemeral).any(|c| c.slot.is_alive()) {
                return;
            }
        }
        let waits = matches!(state.machine, Machine::None { not_before: Some(t) } if t > now);
        // A machine that is being made is waited for: its end is certain and short.
        if !waits && state.busy.insert(Work::Machine) {
            state.machine = Machine::Stopping;
            actions.push(Action::Release);
        }
        return;
    }
    match &state.deletion {
        Some(DeletionState { object_gone: true, .. }) => actions.push(Action::Forget),
        Some(_) if state.busy.insert(Work::Delete) => actions.push(Action::DeleteObject),
        _ => {}
    }
}

fn stop_containers(state: &mut PodState, desired: &DesiredPod, now: Timestamp, actions: &mut Vec<Action>) {
    let limit = state.deletion.as_ref().map(|d| d.kill_at);
    let kill_at = limit.unwrap_or_else(|| later(now, desired.grace));
    stop::begin_all(state, desired, (kill_at, now), actions);
    stop::advance(state, desired, now, actions);
}

/// Towards running: images, machine, init containers in order, then all others.
fn make_progress(
    state: &mut PodState,
    desired: &DesiredPod,
    now: Timestamp,
    new_id: &mut dyn FnMut() -> String,
    actions: &mut Vec<Action>,
) {
    if restart_all::follow(state, desired, now, actions) {
        return;
    }
    changed::follow(state, desired, now, actions);
    for (index, (c, own)) in state.containers.iter_mut().zip(&desired.containers).enumerate() {
        if pull::is_due(&mut c.image, &own.image, Some(own.field_path()), now, actions) && state.busy.insert(Work::Pull(index)) {
            actions.push(Action::Pull(index));
        }
    }
    for (index, (image, own)) in state.volume_images.iter_mut().zip(image_volumes::all(desired)).enumerate() {
        if pull::is_due(image, own.reference, None, now, actions) && state.busy.insert(Work::PullVolume(index)) {
            actions.push(Action::PullVolume(index));
        }
    }
    match state.machine {
        Machine::None { not_before } if state.has_images() && not_before.is_none_or(|t| t <= now) && state.busy.insert(Work::Machine) => {
            state.machine_images = state.needed_images(false);
            state.machine = Machine::Starting;
            // It is made for what is allocated now.
            state.in_force = state.allocated.clone();
            state.room = None;
            state.resize.progress = None;
            actions.push(Action::StartMachine);
        }
        Machine::Ready => {
            stop::advance(state, desired, now, actions);
            resize::begin(state, now, actions);
            start_containers(state, desired, now, new_id, actions);
            ephemeral::start(state, desired, now, new_id, actions);
        }
        Machine::None { .. } | Machine::Starting | Machine::Stopping => {}
    }
}

fn start_containers(
    state: &mut PodState,
    desired: &DesiredPod,
    now: Timestamp,
    new_id: &mut dyn FnMut() -> String,
    actions: &mut Vec<Action>,
) {
    let inits = desired.containers.iter().filter(|c| c.init).count();
    while state.passed < inits && has_passed(&desired.containers[state.passed], &state.containers[state.passed]) {
        state.passed += 1;
    }
    for (index, d) in desired.containers.iter().enumerate() {
        // One init container after the other; of those behind the others only what stays beside them.
        if index.min(inits) > state.passed {
            return;
        }
        if index < state.passed && d.init && !d.sidecar {
            continue;
        }
        consider_restart(&mut state.containers[index], desired, index, now, actions);
        let c = &mut state.containers[index];
        if let Slot::Waiting { not_before, .. } = &c.slot
            && not_before.is_none_or(|t| t <= now)
            && matches!(c.image, ImageState::Ready(_))
            && state.busy.insert(Work::Start(index))
        {
            let id = c.again.take().unwrap_or_else(&mut *new_id);
            let replaces = c.last.as_ref().map(|e| e.id.clone()).filter(|id| !id.is_empty());
            c.slot = Slot::Starting { id: id.clone() };
            c.health = Health {
                hook_pending: d.hooks.post_start.is_some(),
                ..Health::default()
            };
            actions.push(Action::StartContainer {
                container: index,
                id,
                restarts: c.restarts,
                replaces,
            });
        }
        // The next one waits for a hook (the kubelet's SyncPod).
        if c.slot.is_alive() && c.health.hook_pending {
            return;
        }
    }
}

/// How long an ended container waits that shall run again, in seconds, and until when, if it has to: at first for nothing, then 10 s doubling to
/// 5 min; one that ran for ten minutes begins anew (the kubelet's doBackOff).
pub(super) fn wait(backoff: &mut u64, ended: &Ended, now: Timestamp) -> (u64, Option<Timestamp>) {
    if ended.started != Timestamp::UNIX_EPOCH && ended.finished.duration_since(ended.started) >= BACKOFF_RESET {
        *backoff = 0;
    }
    let seconds = *backoff;
    *backoff = (seconds * 2).clamp(FIRST_BACKOFF, MAX_BACKOFF);
    let until = later(ended.finished.min(now), seconds);
    (seconds, Some(until).filter(|until| *until > now))
}

/// An ended container that shall run again waits.
fn consider_restart(c: &mut ContainerState, desired: &DesiredPod, index: usize, now: Timestamp, actions: &mut Vec<Action>) {
    let Slot::Ended(ended) = &c.slot else { return };
    if !runs_again(desired, &desired.containers[index], c, ended.code) {
        return;
    }
    let (seconds, until) = wait(&mut c.backoff, ended, now);
    c.last = Some(ended.clone());
    c.restarts += 1;
    c.slot = if until.is_some() {
        let message = format!(
            "back-off {} restarting failed container={} pod={}_{}({})",
            Span(Duration::from_secs(seconds)),
            c.name,
            desired.name,
            desired.namespace,
            desired.uid
        );
        actions.push(Action::Tell(Note::warning(
            "BackOff",
            Some(desired.containers[index].field_path()),
            format!(
                "Back-off restarting failed container {} in pod {}_{}({})",
                c.name, desired.name, desired.namespace, desired.uid
            ),
        )));
        Slot::Waiting {
            reason: Some("CrashLoopBackOff".into()),
            message,
            not_before: until,
        }
    } else {
        Slot::waiting()
    };
}
