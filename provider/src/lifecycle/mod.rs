//! A pod's life as a pure function: [`step`] takes a state, what happened and the time, and says what to do next. No I/O, no clock.
//!
//! ```text
//!             images pulled        agent answered, pod set up       init containers, then the others
//!  Wanted ───────────────▶ Starting ───────────────▶ Ready ──▶ Waiting ▶ Starting ▶ Running ▶ Ended ─┐
//!    ▲  failed: backoff       │ failed: backoff        │                ▲──── restartPolicy, backoff ─┘
//!    └────────────────────────┴── the machine died ────┘
//!  all ended for good, deleted, or a verdict: TERM, KILL after the grace ▶ Stopping ▶ released ▶ (deleted) object removed
//! ```
//!
//! Level-triggered: after any event the whole state is looked at again, so a lost or doubled event does no harm.

mod apply;
mod changed;
mod decide;
mod ephemeral;
mod health;
mod pull;
mod resize;
mod restart_all;
mod stop;
#[cfg(test)]
mod tests;

use jiff::{SignedDuration, Timestamp};
use kvmlet_protocol as protocol;

pub use self::restart_all::REASON as RESTARTING_ALL;
use crate::{
    desired::{Deletion, DesiredContainer, DesiredPod},
    events::Note,
    eviction::Eviction,
    probe::spec::Kind,
    resize::judge::NotNow,
    size::Room,
    state::{Allocation, ContainerState, ImageFacts, ImageState, Machine, PodState, Slot},
};

/// Seconds until a container that is still there is killed again.
const KILLED_AGAIN: u64 = 2;
/// Longest wait between restarts and between pulls (the kubelet's MaxContainerBackOff).
pub(crate) const MAX_BACKOFF: u64 = 300;
/// First wait.
const FIRST_BACKOFF: u64 = 10;
/// How long a failed pull is shown as ErrImagePull before it becomes ImagePullBackOff.
const PULL_ERROR_SHOWN: SignedDuration = SignedDuration::from_secs(2);
/// How long containers may take to be gone after SIGKILL before their machine is ended with them.
const KILL_PATIENCE: SignedDuration = SignedDuration::from_secs(10);

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Nothing but time.
    Tick,
    /// Deletion was asked for (again, with another grace).
    Delete(Deletion),
    /// The object is gone from the API server.
    ObjectGone,
    /// A pull ended.
    Pulled {
        /// Which container.
        container: usize,
        /// The image as the pod named it then.
        image: String,
        /// What came of it.
        result: Result<ImageFacts, PullFailure>,
    },
    /// A pull of a volume's image ended.
    VolumePulled {
        /// Which volume, as [`crate::image_volumes::all`] counts.
        volume: usize,
        /// What came of it.
        result: Result<ImageFacts, PullFailure>,
    },
    /// The network stands: the pod has its addresses.
    Addressed(Vec<String>),
    /// The machine is there and set up, with room to grow, or could not be made.
    MachineStarted(Result<Room, Failure>),
    /// The pod asks for other amounts and is given them, or is not.
    Judged(Result<Vec<Allocation>, NotNow>),
    /// What was allocated is in force, or could not be brought into force.
    Resized(Result<Vec<Allocation>, String>),
    /// A start ended.
    Started {
        /// Which container.
        container: usize,
        /// What came of it.
        result: Result<Up, StartFailure>,
    },
    /// The agent's list of containers.
    Containers(Vec<protocol::ContainerStatus>),
    /// A probe has come to another verdict.
    Probed {
        /// The container's instance.
        id: String,
        /// Which probe.
        kind: Kind,
        /// The verdict.
        healthy: bool,
    },
    /// A postStart hook is done, or failed with these words.
    PostStarted {
        /// The container's instance.
        id: String,
        /// What came of it.
        result: Result<(), String>,
    },
    /// A preStop hook is done, or failed.
    PreStopped {
        /// The container's instance.
        id: String,
        /// Whether it succeeded.
        well: bool,
    },
    /// The node ends the pod: phase Failed.
    Evicted(Eviction),
    /// The machine's process ended without having been asked to.
    MachineDied(String),
    /// Machine, network and disks are gone, or could not be released.
    Released(Result<(), String>),
    /// The object was deleted, or could not be.
    Deleted(bool),
}

/// Why an image could not be had.
#[derive(Debug, Clone)]
pub struct PullFailure {
    /// Waiting reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Why a machine could not be made.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Reason of the event: `FailedMount`, `FailedCreatePodSandBox`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// A container that has started.
#[derive(Debug, Clone)]
pub struct Up {
    /// When.
    pub at: Timestamp,
    /// Who its first process is; an older guest does not say.
    pub user: Option<protocol::Identity>,
}

/// Why a container did not start.
#[derive(Debug, Clone)]
pub enum StartFailure {
    /// Its configuration cannot be had (yet): stays waiting with this reason and message, tried again.
    Config {
        /// `CreateContainerConfigError`, `CreateContainerError`.
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// Its process could not be started: counts as an end with this code.
    Process {
        /// 126, 127 or 128.
        code: i32,
        /// For people.
        message: String,
    },
}

/// What to do; each has an event that tells how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Pull the image of a container; answered by [`Event::Pulled`].
    Pull(usize),
    /// Pull the image of a volume; answered by [`Event::VolumePulled`].
    PullVolume(usize),
    /// Make network, disks, machine; answered by [`Event::MachineStarted`].
    StartMachine,
    /// Start a container; answered by [`Event::Started`].
    StartContainer {
        /// Which.
        container: usize,
        /// Its identifier.
        id: String,
        /// Number of its log file.
        restarts: u32,
        /// An ended instance to forget.
        replaces: Option<String>,
    },
    /// Signal a container; its end comes by [`Event::Containers`].
    Signal {
        /// Identifier.
        id: String,
        /// Every process, with SIGKILL; else the image's stop signal to the first.
        kill: bool,
        /// Which.
        container: usize,
    },
    /// Give the machine and its containers what was allocated; answered by [`Event::Resized`].
    Resize,
    /// End the machine and give back all it had; answered by [`Event::Released`].
    Release,
    /// Delete the API object after its last status is written; answered by [`Event::Deleted`].
    DeleteObject,
    /// Tell the pod's owner.
    Tell(Note),
    /// Nothing of the pod is left: forget it, logs and record too.
    Forget,
}

/// Takes what happened into `state` and says what to do. `new_id` makes container identifiers.
pub fn step(state: &mut PodState, desired: &DesiredPod, event: Event, now: Timestamp, new_id: &mut dyn FnMut() -> String) -> Vec<Action> {
    let mut actions = Vec::new();
    ephemeral::take_new(state, desired);
    changed::complete(state, desired);
    apply::apply(state, desired, event, now, &mut actions);
    decide::decide(state, desired, now, new_id, &mut actions);
    actions
}

/// When [`step`] wants a [`Event::Tick`] at the latest.
///
/// `stepped` is the time of the last step: what was due by then has been looked at, and waits for something else.
pub fn next_tick(state: &PodState, desired: &DesiredPod, stepped: Timestamp) -> Option<Timestamp> {
    let mut times = Vec::new();
    if let Machine::None { not_before } = state.machine {
        times.extend(not_before);
    }
    for c in state.containers.iter().chain(&state.ephemeral) {
        times.extend(c.stop.map(|stop| stop.kill_at));
        if let Slot::Waiting { not_before, .. } = &c.slot {
            times.extend(*not_before);
        }
    }
    let of_containers = state.containers.iter().chain(&state.ephemeral).map(|c| &c.image);
    for image in of_containers.chain(&state.volume_images) {
        if let ImageState::Failed {
            at, not_before, reason, ..
        } = image
        {
            times.push(if reason == "ErrImagePull" {
                at.saturating_add(PULL_ERROR_SHOWN).unwrap_or(*not_before)
            } else {
                *not_before
            });
        }
    }
    if state.verdict.is_none() && !is_over(state, desired) {
        times.extend(deadline(state, desired));
    }
    times.extend(state.resize.progress.as_ref().and_then(|progress| progress.not_before));
    times.extend(state.resize.pending.as_ref().and_then(|pending| pending.again));
    if let Some(deletion) = state.deletion.as_ref().filter(|_| !state.released) {
        times.extend(deletion.kill_at.saturating_add(KILL_PATIENCE));
    }
    times.into_iter().filter(|time| *time > stepped).min()
}

/// Whether all containers have ended for good: the phase is Succeeded or Failed.
pub fn is_over(state: &PodState, desired: &DesiredPod) -> bool {
    if state.verdict.is_some() {
        return state.containers.iter().all(|c| !c.slot.is_alive());
    }
    if state.restarting {
        return false;
    }
    let pairs = || desired.containers.iter().zip(&state.containers);
    let ended_for_good =
        |(d, c): (&DesiredContainer, &ContainerState)| matches!(&c.slot, Slot::Ended(e) if !runs_again(desired, d, c, e.code));
    let failed = |c: &ContainerState| matches!(&c.slot, Slot::Ended(e) if e.code != 0);
    let init_failed = pairs().any(|(d, c)| d.init && failed(c) && ended_for_good((d, c)));
    init_failed || pairs().filter(|(d, _)| !d.init).all(ended_for_good)
}

/// Whether a container that ended with this code runs again. One that a probe has failed does, whatever it says itself, unless its policy
/// says never; one whose image was changed does in any case (the kubelet's computePodActions and shouldRestartOnFailure).
fn runs_again(desired: &DesiredPod, container: &DesiredContainer, c: &ContainerState, code: i32) -> bool {
    desired.restarts(container, code) || c.health.failed && desired.restarts(container, 1) || c.health.changed
}

/// Whether all init containers have done what the others wait for.
pub fn is_initialized(state: &PodState, desired: &DesiredPod) -> bool {
    let inits = desired.containers.iter().zip(&state.containers).filter(|(d, _)| d.init);
    state.passed >= inits.clone().count() || inits.into_iter().all(|(d, c)| has_passed(d, c))
}

/// Whether the next container may start after this init container: it has succeeded, or, where it stays beside the others, has started.
fn has_passed(desired: &DesiredContainer, c: &ContainerState) -> bool {
    if desired.sidecar {
        c.is_up() && (desired.probes.startup.is_none() || c.health.started)
    } else {
        matches!(&c.slot, Slot::Ended(e) if e.code == 0)
    }
}

fn deadline(state: &PodState, desired: &DesiredPod) -> Option<Timestamp> {
    let seconds = i64::try_from(desired.active_deadline?).ok()?;
    state.accepted.checked_add(SignedDuration::from_secs(seconds)).ok()
}

fn later(now: Timestamp, seconds: u64) -> Timestamp {
    now.saturating_add(SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX)))
        .unwrap_or(Timestamp::MAX)
}

/// A guest's nanoseconds; one that lies about its clock gets 1970.
pub fn timestamp(nanoseconds: u64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
}
