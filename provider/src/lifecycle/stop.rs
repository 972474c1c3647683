//! How a container is ended: its preStop hook, its turn, the signal that asks it, the one that does not. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{Action, KILLED_AGAIN, later};
use crate::{
    desired::{DesiredContainer, DesiredPod},
    events::Note,
    state::{ContainerState, PodState, Slot, Stage, Stop},
};

/// Seconds that a container has after its signal, however late that comes (the kubelet's minimumGracePeriodInSeconds).
const LEAST_GRACE: u64 = 2;

/// Begins to end a container that runs; one that is being ended already goes on as it is.
pub(super) fn begin(
    c: &mut ContainerState,
    desired: &DesiredContainer,
    message: String,
    (kill_at, now): (Timestamp, Timestamp),
    actions: &mut Vec<Action>,
) {
    if c.stop.is_some() || !matches!(c.slot, Slot::Running { .. }) {
        return;
    }
    actions.push(Action::Tell(Note::normal("Killing", Some(desired.field_path()), message)));
    let stage = match (kill_at <= now, &desired.hooks.pre_stop) {
        // There is no time to be kind.
        (true, _) => Stage::Signalled,
        (false, Some(_)) => Stage::Hook,
        (false, None) => Stage::Turn,
    };
    c.stop = Some(Stop { kill_at, stage });
}

/// Begins to end all that run, ephemeral ones too, side by side (the kubelet's killContainersWithSyncResult).
pub(super) fn begin_all(state: &mut PodState, desired: &DesiredPod, when: (Timestamp, Timestamp), actions: &mut Vec<Action>) {
    for (c, d) in pairs(state, desired) {
        begin(c, d, format!("Stopping container {}", d.name), when, actions);
    }
}

/// None that is being ended has longer than this.
pub(super) fn hasten(state: &mut PodState, kill_at: Timestamp) {
    let stopping = state.containers.iter_mut().chain(&mut state.ephemeral);
    for stop in stopping.filter_map(|c| c.stop.as_mut()) {
        stop.kill_at = stop.kill_at.min(kill_at);
    }
}

/// Containers and ephemeral ones, in the order by which actions number them.
fn pairs<'a>(state: &'a mut PodState, desired: &'a DesiredPod) -> impl Iterator<Item = (&'a mut ContainerState, &'a DesiredContainer)> {
    let containers = state.containers.iter_mut().zip(&desired.containers);
    containers.chain(state.ephemeral.iter_mut().zip(&desired.ephemeral))
}

/// Goes on with the containers that are being ended.
pub(super) fn advance(state: &mut PodState, desired: &DesiredPod, now: Timestamp, actions: &mut Vec<Action>) {
    let waiting = waiting_for_others(state, desired);
    for (index, (c, d)) in pairs(state, desired).enumerate() {
        let Slot::Running { id, .. } = &c.slot else { continue };
        let Some(stop) = &mut c.stop else { continue };
        let over = stop.kill_at <= now;
        if stop.stage == Stage::Hook && over {
            stop.stage = Stage::Turn;
        }
        let signal = |kill| Action::Signal {
            id: id.clone(),
            kill,
            container: index,
        };
        match stop.stage {
            Stage::Hook => {}
            Stage::Turn if waiting.contains(&index) && !over => {}
            Stage::Turn => {
                actions.push(signal(false));
                stop.stage = Stage::Signalled;
                if d.hooks.pre_stop.is_some() || d.sidecar {
                    stop.kill_at = stop.kill_at.max(later(now, LEAST_GRACE));
                }
            }
            Stage::Signalled if over => {
                actions.push(signal(true));
                stop.kill_at = later(now, KILLED_AGAIN);
            }
            Stage::Signalled => {}
        }
    }
}

/// Sidecars that end after others: after all main containers, and after the sidecars that started behind them, where the whole pod ends
/// (the kubelet's terminationOrdering).
fn waiting_for_others(state: &PodState, desired: &DesiredPod) -> BTreeSet<usize> {
    let mut waiting = BTreeSet::new();
    // One that is ended alone is not waited with.
    let whole = state.deletion.is_some() || state.verdict.is_some() || super::is_over(state, desired);
    if !whole {
        return waiting;
    }
    let mut others = state.containers.iter().any(|c| !c.init && c.slot.is_alive());
    for (index, c) in state.containers.iter().enumerate().rev() {
        if desired.containers[index].sidecar {
            if others {
                waiting.insert(index);
            }
            others |= c.slot.is_alive();
        }
    }
    waiting
}
