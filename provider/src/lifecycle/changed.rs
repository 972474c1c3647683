//! A container whose image is changed while its pod lives, as the kubelet's computePodActions and containerChanged have it: one that runs is ended and
//! runs again whatever its policy says, one that waits waits no longer, one that has ended for good stays as it is. Pure.
//!
//! The image that the instance was started with stays its own until it has ended: only then is the other one pulled. Where that cannot be had,
//! the container waits and says so, and the others go on.

use jiff::Timestamp;

use super::{Action, FIRST_BACKOFF, later, runs_again, stop};
use crate::{
    desired::{DesiredContainer, DesiredPod},
    state::{ContainerState, ImageState, Machine, PodState, Slot},
};

/// Takes up a record of a release that did not follow changes: what it has is what the pod named when it was written.
pub(super) fn complete(state: &mut PodState, desired: &DesiredPod) {
    let own = state.containers.iter_mut().zip(&desired.containers);
    for (c, d) in own.chain(state.ephemeral.iter_mut().zip(&desired.ephemeral)) {
        if c.image_name.is_empty() {
            c.image_name.clone_from(&d.image);
        }
    }
    if !matches!(state.machine, Machine::None { .. }) && state.machine_images.is_empty() {
        state.machine_images = state.needed_images(false);
    }
}

/// Looks for changed images, and does what is next to be done for each.
pub(super) fn follow(state: &mut PodState, desired: &DesiredPod, now: Timestamp, actions: &mut Vec<Action>) {
    for (c, d) in state.containers.iter_mut().zip(&desired.containers) {
        if c.image_name == d.image {
            continue;
        }
        match &c.slot {
            Slot::Running { .. } if is_due(c, d) => {
                c.health.changed = true;
                let message = if d.sidecar {
                    format!("Init container {} definition changed", d.name)
                } else {
                    format!("Container {} definition changed, will be restarted", d.name)
                };
                stop::begin(c, d, message, (later(now, desired.grace), now), actions);
            }
            Slot::Starting { .. } | Slot::Running { .. } => {}
            Slot::Ended(ended) => {
                if runs_again(desired, d, c, ended.code) {
                    // The kubelet knows the wait by the image too: the first restart with another one is at once.
                    c.backoff = 0;
                    take(c, d);
                }
            }
            Slot::Waiting { .. } => {
                if c.last.is_some() {
                    c.backoff = FIRST_BACKOFF;
                }
                c.slot = Slot::waiting();
                take(c, d);
            }
        }
    }
}

/// Whether a container that runs is to be ended for its image. An init container that runs to its end is left to that, a hook to its own, and a sidecar to
/// its startup probe; one that is ended already needs no other reason.
fn is_due(c: &ContainerState, d: &DesiredContainer) -> bool {
    let started = !d.sidecar || d.probes.startup.is_none() || c.health.started;
    (!d.init || d.sidecar) && started && c.is_up() && c.stop.is_none()
}

fn take(c: &mut ContainerState, d: &DesiredContainer) {
    c.image_name.clone_from(&d.image);
    c.image = ImageState::Wanted;
}
