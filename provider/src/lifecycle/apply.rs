//! Takes an event into the state.

use jiff::Timestamp;
use kvmlet_protocol as protocol;

use super::{
    Action, Event, MAX_BACKOFF, StartFailure, Up, ephemeral,
    health::{post_started, pre_stopped, probed},
    is_over, later, pull, resize, stop, timestamp,
};
use crate::{
    desired::DesiredPod,
    events::Note,
    eviction::Eviction,
    state::{DeletionState, Ended, Machine, PodState, Slot, Verdict, Work},
};

pub(super) fn apply(state: &mut PodState, desired: &DesiredPod, event: Event, now: Timestamp, actions: &mut Vec<Action>) {
    match event {
        Event::Tick => {}
        Event::Delete(deletion) => {
            let kill_at = later(now, deletion.grace);
            let old = state.deletion.take();
            let kill_at = old.as_ref().map_or(kill_at, |d| d.kill_at.min(kill_at));
            state.deletion = Some(DeletionState {
                kill_at,
                object_gone: old.is_some_and(|d| d.object_gone),
            });
            stop::hasten(state, kill_at);
        }
        Event::ObjectGone => {
            state.deletion = Some(DeletionState {
                kill_at: now,
                object_gone: true,
            })
        }
        Event::Pulled { container, image, result } => {
            state.busy.remove(&Work::Pull(container));
            let (c, field) = (state.at_mut(container), desired.at(container).field_path());
            // Another image may be wanted by now.
            if c.image_name == image {
                pull::ended(&mut c.image, Some(field), result, now, actions);
            }
        }
        Event::VolumePulled { volume, result } => {
            state.busy.remove(&Work::PullVolume(volume));
            if let Some(image) = state.volume_images.get_mut(volume) {
                pull::ended(image, None, result, now, actions);
            }
        }
        Event::Addressed(ips) => state.ips = ips,
        Event::MachineStarted(result) => {
            state.busy.remove(&Work::Machine);
            match result {
                Ok(room) => {
                    state.machine = Machine::Ready;
                    state.room = Some(room);
                    state.machine_failures = 0;
                }
                Err(failure) => {
                    actions.push(Action::Tell(Note::warning(failure.reason, None, failure.message)));
                    state.machine_failures += 1;
                    let wait = (1u64 << state.machine_failures.min(9)).min(MAX_BACKOFF);
                    state.machine = Machine::None {
                        not_before: Some(later(now, wait)),
                    };
                }
            }
        }
        Event::Judged(verdict) => resize::judged(state, desired, verdict, now, actions),
        Event::Resized(result) => resize::resized(state, desired, result, now, actions),
        Event::Started { container, result } => started(state, desired, container, result, now, actions),
        Event::Containers(list) => {
            for status in &list {
                observe(state, status);
            }
            // A start that a daemon before this one has not come to, or that the guest has not heard of yet.
            for (index, c) in state.containers.iter_mut().enumerate() {
                let unknown = matches!(&c.slot, Slot::Starting { id } if !list.iter().any(|s| s.id == *id));
                if unknown && !state.busy.contains(&Work::Start(index)) {
                    c.start_again();
                }
            }
            ephemeral::compare(state, &list);
        }
        Event::Probed { id, kind, healthy } => probed(state, desired, &id, kind, healthy, now, actions),
        Event::PostStarted { id, result } => post_started(state, desired, &id, result, now, actions),
        Event::PreStopped { id, well } => pre_stopped(state, desired, &id, well, actions),
        Event::Evicted(eviction) => evicted(state, desired, eviction, now, actions),
        Event::MachineDied(why) => machine_died(state, desired, &why, now, actions),
        Event::Released(result) => {
            state.busy.remove(&Work::Machine);
            match result {
                Ok(()) => {
                    state.machine = Machine::None { not_before: None };
                    state.released = true;
                    lose_containers(state, "the machine was stopped", now);
                }
                Err(message) => {
                    actions.push(Action::Tell(Note::warning("FailedKillPod", None, message)));
                    state.machine = Machine::None {
                        not_before: Some(later(now, 2)),
                    };
                }
            }
        }
        Event::Deleted(done) => {
            state.busy.remove(&Work::Delete);
            if let (true, Some(deletion)) = (done, &mut state.deletion) {
                deletion.object_gone = true;
            }
        }
    }
}

fn started(
    state: &mut PodState,
    desired: &DesiredPod,
    index: usize,
    result: Result<Up, StartFailure>,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    state.busy.remove(&Work::Start(index));
    let container = state.at_mut(index);
    if let Ok(up) = &result {
        // Also of one that has ended at once.
        container.user.clone_from(&up.user);
    }
    let (id, seen) = match container.slot.clone() {
        Slot::Starting { id } => (id, false),
        // The agent's list was quicker than its answer.
        Slot::Running { id, .. } => (id, true),
        Slot::Waiting { .. } | Slot::Ended(_) => return,
    };
    let field = Some(desired.at(index).field_path());
    match result {
        Ok(up) => {
            actions.push(Action::Tell(Note::normal("Started", field, "Container started".into())));
            if !seen {
                container.slot = Slot::Running { id, started: up.at };
            }
        }
        Err(_) if seen => {}
        Err(StartFailure::Config { reason, message }) => {
            actions.push(Action::Tell(Note::warning("Failed", field, format!("Error: {message}"))));
            container.slot = Slot::Waiting {
                reason: Some(reason.into()),
                message,
                not_before: Some(later(now, 5)),
            };
        }
        Err(StartFailure::Process { code, message }) => {
            actions.push(Action::Tell(Note::warning("Failed", field, format!("Error: {message}"))));
            container.slot = Slot::Ended(Ended {
                id,
                code,
                signal: 0,
                reason: "StartError".into(),
                message,
                started: Timestamp::UNIX_EPOCH,
                finished: now,
            });
        }
    }
}

/// Takes the agent's word on one container.
fn observe(state: &mut PodState, status: &protocol::ContainerStatus) {
    let Some(container) = state.by_id(&status.id) else { return };
    match (&status.state, &container.slot) {
        (protocol::ContainerState::Running { started, .. }, Slot::Starting { id }) => {
            container.slot = Slot::Running {
                id: id.clone(),
                started: timestamp(*started),
            };
        }
        (protocol::ContainerState::Exited(exit), _) => {
            let reason = match exit {
                protocol::ExitStatus { oom_killed: true, .. } => "OOMKilled",
                protocol::ExitStatus { code: 0, .. } => "Completed",
                _ => "Error",
            };
            container.slot = Slot::Ended(Ended {
                id: status.id.clone(),
                code: exit.code,
                signal: exit.signal,
                reason: reason.into(),
                message: exit.message.clone(),
                started: timestamp(exit.started),
                finished: timestamp(exit.finished),
            });
            container.stop = None;
        }
        (protocol::ContainerState::Running { .. }, _) => {}
    }
}

fn machine_died(state: &mut PodState, desired: &DesiredPod, why: &str, now: Timestamp, actions: &mut Vec<Action>) {
    if !matches!(state.machine, Machine::Ready) {
        return;
    }
    lose_containers(state, why, now);
    state.busy.retain(|w| !matches!(w, Work::Start(_)));
    state.machine = Machine::None { not_before: None };
    if is_over(state, desired) || state.deletion.is_some() {
        return;
    }
    state.machine_failures += 1;
    let wait = (1u64 << state.machine_failures.min(9)).min(MAX_BACKOFF);
    state.machine = Machine::None {
        not_before: Some(later(now, wait)),
    };
    actions.push(Action::Tell(Note::warning(
        "SandboxChanged",
        None,
        format!("Pod sandbox changed, it will be killed and re-created: {why}"),
    )));
    // A new machine starts from the beginning, as a new sandbox does: init containers run again.
    state.passed = 0;
    for c in state.containers.iter_mut().filter(|c| c.init) {
        if let Slot::Ended(ended) = &c.slot {
            c.last = Some(ended.clone());
            c.slot = Slot::waiting();
            c.restarts += 1;
        }
    }
}

fn evicted(state: &mut PodState, desired: &DesiredPod, eviction: Eviction, now: Timestamp, actions: &mut Vec<Action>) {
    if state.verdict.is_some() || state.deletion.is_some() || is_over(state, desired) {
        return;
    }
    if eviction.told {
        actions.push(Action::Tell(Note::warning(eviction.reason, None, eviction.message.clone())));
    }
    state.verdict = Some(Verdict {
        reason: eviction.reason.into(),
        message: eviction.message,
        disrupted: eviction.disrupted,
    });
    let kill_at = later(now, eviction.grace);
    stop::begin_all(state, desired, (kill_at, now), actions);
    stop::hasten(state, kill_at);
}

fn lose_containers(state: &mut PodState, why: &str, now: Timestamp) {
    for c in state.containers.iter_mut().chain(&mut state.ephemeral) {
        c.stop = None;
        match &c.slot {
            Slot::Starting { .. } => c.slot = Slot::waiting(),
            Slot::Running { id, started } => {
                c.slot = Slot::Ended(Ended {
                    id: id.clone(),
                    code: 137,
                    signal: 0,
                    reason: "ContainerStatusUnknown".into(),
                    message: format!("The container could not be located when its machine ended: {why}"),
                    started: *started,
                    finished: now,
                });
            }
            Slot::Waiting { .. } | Slot::Ended(_) => {}
        }
    }
}
