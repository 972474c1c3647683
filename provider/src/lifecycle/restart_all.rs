//! A container's end that starts its whole pod anew (a rule of its restartPolicyRules with the action RestartAllContainers, KEP-5532): all others are killed
//! at once, without their hooks, then everything begins with the first init container, in the same machine and with the same volumes (the
//! kubelet's ContainersToReset). Pure.
//!
//! Where the kubelet knows no wait, a container that brings this about again and again waits as one that crashes does: nothing else would hold a pod back
//! that does nothing but that.

use jiff::Timestamp;

use super::{KILLED_AGAIN, decide::wait, later, stop};
use crate::{
    desired::{DesiredContainer, DesiredPod},
    lifecycle::Action,
    state::{ContainerState, Ended, Machine, PodState, Slot, Stage},
};

/// Reason of what is reported of containers meanwhile.
pub const REASON: &str = "RestartingAllContainers";
/// What is said of them.
const MESSAGE: &str = "The container is removed because RestartAllContainers in place";

/// Begins such a restart when a container has ended so, and goes on with it; whether it is still under way.
pub(super) fn follow(state: &mut PodState, desired: &DesiredPod, now: Timestamp, actions: &mut Vec<Action>) -> bool {
    if state.machine != Machine::Ready {
        // A new machine starts everything anew in any case.
        state.restarting = false;
        return false;
    }
    state.restarting |= has_source(state, desired);
    if !state.restarting {
        return false;
    }
    for (c, d) in state.containers.iter_mut().zip(&desired.containers) {
        stop::begin(c, d, "killing".into(), (now, now), actions);
        if let Some(stop) = &mut c.stop {
            // One that was being ended already has no longer either.
            let least = if stop.stage == Stage::Signalled {
                later(now, KILLED_AGAIN)
            } else {
                now
            };
            stop.kill_at = stop.kill_at.min(least);
            stop.stage = Stage::Signalled;
        }
    }
    stop::advance(state, desired, now, actions);
    if state.containers.iter().any(|c| c.slot.is_alive()) {
        return true;
    }
    let sources: Vec<bool> = state
        .containers
        .iter()
        .zip(&desired.containers)
        .map(|(c, d)| brings_about(desired, d, c))
        .collect();
    for (c, source) in state.containers.iter_mut().zip(sources) {
        reset(c, source, now);
    }
    state.restarting = false;
    state.passed = 0;
    false
}

fn has_source(state: &PodState, desired: &DesiredPod) -> bool {
    state
        .containers
        .iter()
        .zip(&desired.containers)
        .any(|(c, d)| brings_about(desired, d, c))
}

fn brings_about(desired: &DesiredPod, d: &DesiredContainer, c: &ContainerState) -> bool {
    // One that has not run did not exit.
    matches!(&c.slot, Slot::Ended(ended) if ended.started != Timestamp::UNIX_EPOCH && desired.restarts_all(d, ended.code))
}

fn reset(c: &mut ContainerState, source: bool, now: Timestamp) {
    match &c.slot {
        Slot::Ended(ended) => {
            let until = if source { wait(&mut c.backoff, ended, now).1 } else { None };
            c.last = Some(Ended {
                code: 137,
                signal: 0,
                reason: REASON.into(),
                message: MESSAGE.into(),
                ..ended.clone()
            });
            c.restarts += 1;
            c.slot = Slot::Waiting {
                reason: Some(REASON.into()),
                message: MESSAGE.into(),
                not_before: until,
            };
        }
        // It waits no longer than the others.
        Slot::Waiting { .. } => c.slot = Slot::waiting(),
        Slot::Starting { .. } | Slot::Running { .. } => {}
    }
}
