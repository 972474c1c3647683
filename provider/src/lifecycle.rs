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

use jiff::{SignedDuration, Timestamp};
use kvmlet_protocol as protocol;

use crate::{
    desired::{Deletion, DesiredPod, RestartPolicy},
    events::Note,
    state::{ContainerState, DeletionState, Ended, ImageFacts, ImageState, Machine, PodState, Slot, Verdict, Work},
};

/// Longest wait between restarts and between pulls (the kubelet's MaxContainerBackOff).
const MAX_BACKOFF: u64 = 300;
/// First wait.
const FIRST_BACKOFF: u64 = 10;
/// A container that ran this long starts over with the first wait.
const BACKOFF_RESET: SignedDuration = SignedDuration::from_mins(10);
/// How long a failed pull is shown as ErrImagePull before it becomes ImagePullBackOff.
const PULL_ERROR_SHOWN: SignedDuration = SignedDuration::from_secs(2);

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
        /// What came of it.
        result: Result<ImageFacts, PullFailure>,
    },
    /// The network stands: the pod has its addresses.
    Addressed(Vec<String>),
    /// The machine is there and set up, or could not be made.
    MachineStarted(Result<(), Failure>),
    /// A start ended.
    Started {
        /// Which container.
        container: usize,
        /// What came of it.
        result: Result<Timestamp, StartFailure>,
    },
    /// The agent's list of containers.
    Containers(Vec<protocol::ContainerStatus>),
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
    apply(state, desired, event, now, &mut actions);
    decide(state, desired, now, new_id, &mut actions);
    actions
}

/// When [`step`] wants a [`Event::Tick`] at the latest.
pub fn next_tick(state: &PodState, desired: &DesiredPod) -> Option<Timestamp> {
    let mut times = Vec::new();
    if let Machine::None { not_before } = state.machine {
        times.extend(not_before);
    }
    for c in &state.containers {
        times.extend(c.kill_at);
        if let Slot::Waiting { not_before, .. } = &c.slot {
            times.extend(*not_before);
        }
        if let ImageState::Failed {
            at, not_before, reason, ..
        } = &c.image
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
    times.into_iter().min()
}

/// Whether all containers have ended for good: the phase is Succeeded or Failed.
pub fn is_over(state: &PodState, desired: &DesiredPod) -> bool {
    if state.verdict.is_some() {
        return state.containers.iter().all(|c| !c.slot.is_alive());
    }
    let ended_for_good = |c: &ContainerState| matches!(&c.slot, Slot::Ended(e) if !restarts(desired.restart, c.init, e.code));
    let init_failed = state
        .containers
        .iter()
        .any(|c| c.init && matches!(&c.slot, Slot::Ended(e) if e.code != 0) && ended_for_good(c));
    init_failed || state.containers.iter().filter(|c| !c.init).all(ended_for_good)
}

fn restarts(policy: RestartPolicy, init: bool, code: i32) -> bool {
    match policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure => code != 0,
        RestartPolicy::Always => !init || code != 0,
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

fn apply(state: &mut PodState, desired: &DesiredPod, event: Event, now: Timestamp, actions: &mut Vec<Action>) {
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
        }
        Event::ObjectGone => {
            state.deletion = Some(DeletionState {
                kill_at: now,
                object_gone: true,
            })
        }
        Event::Pulled { container, result } => {
            state.busy.remove(&Work::Pull(container));
            let c = &mut state.containers[container];
            let attempts = if let ImageState::Failed { attempts, .. } = c.image {
                attempts
            } else {
                0
            };
            c.image = match result {
                Ok(facts) => ImageState::Ready(facts),
                Err(failure) => {
                    let wait = (FIRST_BACKOFF << attempts.min(6)).min(MAX_BACKOFF);
                    let field = Some(desired.containers[container].field_path());
                    actions.push(Action::Tell(Note::warning("Failed", field, failure.message.clone())));
                    actions.push(Action::Tell(Note::warning(
                        "Failed",
                        Some(desired.containers[container].field_path()),
                        format!("Error: {}", failure.reason),
                    )));
                    ImageState::Failed {
                        reason: failure.reason.into(),
                        message: failure.message,
                        at: now,
                        not_before: later(now, wait),
                        attempts: attempts + 1,
                    }
                }
            };
        }
        Event::Addressed(ips) => state.ips = ips,
        Event::MachineStarted(result) => {
            state.busy.remove(&Work::Machine);
            match result {
                Ok(()) => {
                    state.machine = Machine::Ready;
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
        Event::Started { container, result } => started(state, desired, container, result, now, actions),
        Event::Containers(list) => {
            for status in list {
                observe(state, &status);
            }
        }
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
    result: Result<Timestamp, StartFailure>,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    state.busy.remove(&Work::Start(index));
    let container = &mut state.containers[index];
    let (id, seen) = match container.slot.clone() {
        Slot::Starting { id } => (id, false),
        // The agent's list was quicker than its answer.
        Slot::Running { id, .. } => (id, true),
        Slot::Waiting { .. } | Slot::Ended(_) => return,
    };
    let field = Some(desired.containers[index].field_path());
    match result {
        Ok(at) => {
            actions.push(Action::Tell(Note::normal("Started", field, "Container started".into())));
            if !seen {
                container.slot = Slot::Running { id, started: at };
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
            container.kill_at = None;
        }
        (protocol::ContainerState::Running { .. }, _) => {}
    }
}

/// A guest's nanoseconds; one that lies about its clock gets 1970.
pub fn timestamp(nanoseconds: u64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::UNIX_EPOCH)
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
    for c in state.containers.iter_mut().filter(|c| c.init) {
        if let Slot::Ended(ended) = &c.slot {
            c.last = Some(ended.clone());
            c.slot = Slot::waiting();
            c.restarts += 1;
        }
    }
}

fn lose_containers(state: &mut PodState, why: &str, now: Timestamp) {
    for c in &mut state.containers {
        c.kill_at = None;
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

fn decide(state: &mut PodState, desired: &DesiredPod, now: Timestamp, new_id: &mut dyn FnMut() -> String, actions: &mut Vec<Action>) {
    if state.verdict.is_none() && state.deletion.is_none() && !is_over(state, desired) && deadline(state, desired).is_some_and(|d| d <= now)
    {
        state.verdict = Some(Verdict {
            reason: "DeadlineExceeded".into(),
            message: "Pod was active on the node longer than the specified deadline".into(),
        });
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
        let at_once = state.deletion.as_ref().is_some_and(|d| d.object_gone);
        if matches!(state.machine, Machine::Ready) && !at_once {
            stop_containers(state, desired, now, actions);
            if state.containers.iter().any(|c| c.slot.is_alive()) {
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
    for (index, c) in state.containers.iter_mut().enumerate() {
        let Slot::Running { id, .. } = &c.slot else { continue };
        let first = c.kill_at.is_none();
        let own = c.kill_at.unwrap_or_else(|| later(now, desired.grace));
        let kill_at = limit.map_or(own, |l| if first { l } else { own.min(l) });
        if kill_at <= now {
            actions.push(Action::Signal {
                id: id.clone(),
                kill: true,
                container: index,
            });
            // Asked again if it does not help.
            c.kill_at = Some(later(now, 2));
        } else if first {
            let field = Some(desired.containers[index].field_path());
            actions.push(Action::Tell(Note::normal(
                "Killing",
                field,
                format!("Stopping container {}", c.name),
            )));
            actions.push(Action::Signal {
                id: id.clone(),
                kill: false,
                container: index,
            });
            c.kill_at = Some(kill_at);
        } else {
            c.kill_at = Some(kill_at);
        }
    }
}

/// Towards running: images, machine, init containers in order, then all others.
fn make_progress(
    state: &mut PodState,
    desired: &DesiredPod,
    now: Timestamp,
    new_id: &mut dyn FnMut() -> String,
    actions: &mut Vec<Action>,
) {
    for (index, c) in state.containers.iter_mut().enumerate() {
        let wanted = match &mut c.image {
            ImageState::Wanted => true,
            ImageState::Failed {
                reason,
                message,
                at,
                not_before,
                ..
            } => {
                let image = &desired.containers[index].image;
                if reason == "ErrImagePull" && at.saturating_add(PULL_ERROR_SHOWN).is_ok_and(|t| t <= now) {
                    *reason = "ImagePullBackOff".into();
                    *message = format!("Back-off pulling image {image:?}: ErrImagePull: {message}");
                    let field = Some(desired.containers[index].field_path());
                    actions.push(Action::Tell(Note::normal(
                        "BackOff",
                        field,
                        format!("Back-off pulling image {image:?}"),
                    )));
                }
                *not_before <= now
            }
            ImageState::Ready(_) => false,
        };
        if wanted && state.busy.insert(Work::Pull(index)) {
            actions.push(Action::Pull(index));
        }
    }
    match state.machine {
        Machine::None { not_before }
            if state.containers.iter().all(|c| matches!(c.image, ImageState::Ready(_)))
                && not_before.is_none_or(|t| t <= now)
                && state.busy.insert(Work::Machine) =>
        {
            state.machine = Machine::Starting;
            actions.push(Action::StartMachine);
        }
        Machine::Ready => start_containers(state, desired, now, new_id, actions),
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
    for index in 0..state.containers.len() {
        let init = state.containers[index].init;
        if !init
            && state
                .containers
                .iter()
                .any(|c| c.init && !matches!(&c.slot, Slot::Ended(e) if e.code == 0))
        {
            return;
        }
        consider_restart(&mut state.containers[index], desired, index, now, actions);
        let c = &mut state.containers[index];
        if let Slot::Waiting { not_before, .. } = &c.slot
            && not_before.is_none_or(|t| t <= now)
            && state.busy.insert(Work::Start(index))
        {
            let id = new_id();
            let replaces = c.last.as_ref().map(|e| e.id.clone()).filter(|id| !id.is_empty());
            c.slot = Slot::Starting { id: id.clone() };
            actions.push(Action::StartContainer {
                container: index,
                id,
                restarts: c.restarts,
                replaces,
            });
        }
        // One init container at a time.
        if init && !matches!(&state.containers[index].slot, Slot::Ended(e) if e.code == 0) {
            return;
        }
    }
}

/// An ended container that shall run again waits, at first for nothing, then 10 s doubling to 5 min (the kubelet's doBackOff).
fn consider_restart(c: &mut ContainerState, desired: &DesiredPod, index: usize, now: Timestamp, actions: &mut Vec<Action>) {
    let Slot::Ended(ended) = &c.slot else { return };
    if !restarts(desired.restart, c.init, ended.code) {
        return;
    }
    if ended.started != Timestamp::UNIX_EPOCH && ended.finished.duration_since(ended.started) >= BACKOFF_RESET {
        c.backoff = 0;
    }
    let not_before = later(ended.finished.min(now), c.backoff);
    let waits = not_before > now;
    c.last = Some(ended.clone());
    c.restarts += 1;
    c.slot = if waits {
        let message = format!(
            "back-off {} restarting failed container={} pod={}_{}({})",
            go_duration(c.backoff),
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
            not_before: Some(not_before),
        }
    } else {
        Slot::waiting()
    };
    c.backoff = if c.backoff == 0 {
        FIRST_BACKOFF
    } else {
        (c.backoff * 2).min(MAX_BACKOFF)
    };
}

/// Seconds as Go prints a duration: `10s`, `1m20s`, `5m0s`.
fn go_duration(seconds: u64) -> String {
    if seconds < 60 {
        format!("{seconds}s")
    } else {
        format!("{}m{}s", seconds / 60, seconds % 60)
    }
}
