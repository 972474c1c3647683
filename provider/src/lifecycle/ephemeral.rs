//! Ephemeral containers: they come while the pod runs, start as soon as its machine is ready, never start again, and count for nothing
//! of the pod: neither its phase nor whether it is ready. Where the whole pod ends, they are asked to end as the others are.

use jiff::Timestamp;
use kvmlet_protocol as protocol;

use super::{Action, pull};
use crate::{
    desired::DesiredPod,
    events::Note,
    state::{ContainerState, ImageState, PodState, Slot, Work},
};

/// Makes a state for each that has come since.
pub(super) fn take_new(state: &mut PodState, desired: &DesiredPod) {
    let new = desired.ephemeral.iter().skip(state.ephemeral.len()).map(ContainerState::new);
    state.ephemeral.extend(new);
}

/// A start that a daemon before this one has not come to, or that the guest has not heard of yet.
pub(super) fn compare(state: &mut PodState, list: &[protocol::ContainerStatus]) {
    let first = state.containers.len();
    for (index, c) in (first..).zip(&mut state.ephemeral) {
        let unknown = matches!(&c.slot, Slot::Starting { id } if !list.iter().any(|s| s.id == *id));
        if unknown && !state.busy.contains(&Work::Start(index)) {
            c.start_again();
        }
    }
}

/// Pulls and starts those that wait, each for itself.
pub(super) fn start(
    state: &mut PodState,
    desired: &DesiredPod,
    now: Timestamp,
    new_id: &mut dyn FnMut() -> String,
    actions: &mut Vec<Action>,
) {
    let first = state.containers.len();
    for (behind, own) in desired.ephemeral.iter().enumerate() {
        let (index, c) = (first + behind, &mut state.ephemeral[behind]);
        let Slot::Waiting { not_before, reason, .. } = &c.slot else {
            continue;
        };
        if let Some(refused) = own.ephemeral.as_ref().and_then(|e| e.refused.clone()) {
            if reason.is_none() {
                let field = Some(own.field_path());
                actions.push(Action::Tell(Note::warning("Failed", field, format!("Error: {refused}"))));
                c.slot = Slot::Waiting {
                    reason: Some("CreateContainerConfigError".into()),
                    message: refused,
                    not_before: None,
                };
            }
            continue;
        }
        match &mut c.image {
            ImageState::Ready(_) => {
                if not_before.is_none_or(|t| t <= now) && state.busy.insert(Work::Start(index)) {
                    let id = c.again.take().unwrap_or_else(&mut *new_id);
                    c.slot = Slot::Starting { id: id.clone() };
                    actions.push(Action::StartContainer {
                        container: index,
                        id,
                        restarts: 0,
                        replaces: None,
                    });
                }
            }
            image => {
                if pull::is_due(image, &own.image, Some(own.field_path()), now, actions) && state.busy.insert(Work::Pull(index)) {
                    actions.push(Action::Pull(index));
                }
            }
        }
    }
}
