//! What this node knows of a pod: plain data, written to disk before each act and read back after a restart of the daemon.

mod image;

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;
use kvmlet_protocol::Identity;
use serde::{Deserialize, Serialize};

pub use self::image::{ImageFacts, ImageState};
use crate::{
    desired::{Amounts, DesiredContainer, DesiredPod},
    image_volumes,
    resize::Resize,
    size::Room,
};

/// A pod's state on this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodState {
    /// Version of this form.
    pub version: u32,
    /// When this node took the pod (status.startTime).
    pub accepted: Timestamp,
    /// Set when the pod is to end, or never to run: phase Failed with these words.
    pub verdict: Option<Verdict>,
    /// The pod's machine.
    pub machine: Machine,
    /// The images that the machine was made with, in the order of their devices; of use while there is one.
    #[serde(default)]
    pub machine_images: Vec<String>,
    /// The pod's addresses, once it has a network.
    pub ips: Vec<String>,
    /// Failed attempts at a machine in a row.
    pub machine_failures: u32,
    /// In the order of [`DesiredPod::containers`].
    pub containers: Vec<ContainerState>,
    /// Images of volumes, in the order of [`image_volumes::all`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_images: Vec<ImageState>,
    /// In the order of [`DesiredPod::ephemeral`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ephemeral: Vec<ContainerState>,
    /// What its containers were given when the pod was taken, in their order, and last the pod as a whole, where it says something of that itself:
    /// what its machine was made for.
    #[serde(default)]
    pub allocated: Vec<Allocation>,
    /// What of that the machine and the containers have by now; empty for all of it.
    #[serde(default)]
    pub in_force: Vec<Allocation>,
    /// What its machine can grow to; unknown of one that was made by a release that did not resize.
    #[serde(default)]
    pub room: Option<Room>,
    /// Where its resize stands.
    #[serde(default)]
    pub resize: Resize,
    /// Init containers that have done what the next one waits for, in this machine.
    #[serde(default)]
    pub passed: usize,
    /// All containers are being ended, to begin anew (RestartAllContainers).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restarting: bool,
    /// Deletion that has begun.
    pub deletion: Option<DeletionState>,
    /// Network, machine and disks are gone; only logs and this record are left.
    pub released: bool,
    /// What is under way in this process; empty after a restart.
    #[serde(skip)]
    pub busy: BTreeSet<Work>,
}

/// The version of [`PodState`] that is written.
pub const STATE_VERSION: u32 = 1;

/// Why a pod ended or never ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// status.reason.
    pub reason: String,
    /// status.message.
    pub message: String,
    /// Whether the pod has the condition DisruptionTarget: the node ended it, whatever it did itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disrupted: bool,
}

impl Verdict {
    /// One for what the pod is or does.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            message: message.into(),
            disrupted: false,
        }
    }
}

/// The pod's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Machine {
    /// None yet, or none any more; not before this time, when an attempt failed.
    None {
        /// Earliest next attempt.
        not_before: Option<Timestamp>,
    },
    /// Being made: after a restart of the daemon what is there is thrown away.
    Starting,
    /// The agent has answered and the pod's surroundings stand.
    Ready,
    /// Being ended.
    Stopping,
}

/// Deletion that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionState {
    /// When its containers are killed.
    pub kill_at: Timestamp,
    /// The object is gone from the API server: nothing is reported any more.
    pub object_gone: bool,
}

/// A container's state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerState {
    /// Its name.
    pub name: String,
    /// Whether it is an init container.
    pub init: bool,
    /// Its image; of an instance that starts or runs, the one it was started with.
    pub image: ImageState,
    /// That image as the pod named it; empty in a record of a release that did not follow changes.
    #[serde(default)]
    pub image_name: String,
    /// Where it stands.
    pub slot: Slot,
    /// The end before this one.
    pub last: Option<Ended>,
    /// Restarts, and the number of its log file.
    pub restarts: u32,
    /// Seconds to wait after the next crash; 0 before the first.
    pub backoff: u64,
    /// What is known of the instance that runs.
    #[serde(default)]
    pub health: Health,
    /// Its end has begun.
    #[serde(default)]
    pub stop: Option<Stop>,
    /// The identifier of a start that the daemon before this one asked for, perhaps unheard: the next start has it too, so that the guest, should it
    /// obey both, starts one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<String>,
    /// Who the first process of its last instance is; unknown of one that an agent of an older release started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Identity>,
    /// Why the last postStart hook failed; empty since one that did not.
    #[serde(default)]
    pub hook_error: String,
}

/// Requests and limits of a container: thousandths of processors, bytes of memory, bytes of disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Requests.
    pub requests: [u64; 3],
    /// Limits; 0 means none.
    pub limits: [u64; 3],
}

impl Allocation {
    /// What a container asks for.
    pub fn of(container: &DesiredContainer) -> Self {
        let numbers = |a: Amounts| [a.cpu.milli_value(), a.memory.value(), a.storage.value()];
        Self {
            requests: numbers(container.requests),
            limits: numbers(container.limits),
        }
    }

    /// What a pod asks for: each of its containers, and last the pod as a whole, where it says something of that itself (spec.resources).
    pub fn of_pod(pod: &DesiredPod) -> Vec<Self> {
        let numbers = |a: Amounts| [a.cpu.milli_value(), a.memory.value(), a.storage.value()];
        let whole = pod.has_own_amounts().then(|| Self {
            requests: numbers(pod.pod_requests),
            limits: numbers(pod.pod_limits),
        });
        pod.containers.iter().map(Self::of).chain(whole).collect()
    }

    /// As the API writes it.
    pub fn resources(&self) -> ResourceRequirements {
        let of = |numbers| Some(Amounts::read(numbers).to_api()).filter(|amounts| !amounts.is_empty());
        ResourceRequirements {
            requests: of(self.requests),
            limits: of(self.limits),
            ..ResourceRequirements::default()
        }
    }
}

/// What hooks and probes have found of an instance of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Its postStart hook is not done yet: until then nobody hears that it runs.
    pub hook_pending: bool,
    /// Its startup probe has succeeded.
    pub started: bool,
    /// Its readiness probe says so.
    pub ready: bool,
    /// A probe has failed it, or it has to restart for other resources: with whatever code it then ends, that was a failure.
    #[serde(default)]
    pub failed: bool,
    /// It ends because its image was changed, and runs again whatever its policy says.
    #[serde(default)]
    pub changed: bool,
}

/// A container's end that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// When it is killed.
    pub kill_at: Timestamp,
    /// How far it is.
    pub stage: Stage,
}

/// How far a container's end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Its preStop hook is done.
    Hook,
    /// It waits until containers that need it have ended.
    Turn,
    /// It was asked to end.
    Signalled,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Slot {
    /// It shall run.
    Waiting {
        /// Reason, when it is not the usual ContainerCreating or PodInitializing.
        reason: Option<String>,
        /// For people.
        message: String,
        /// Earliest start.
        not_before: Option<Timestamp>,
    },
    /// The agent has been, or is about to be, asked.
    Starting {
        /// Identifier it will have.
        id: String,
    },
    /// It runs.
    Running {
        /// Identifier.
        id: String,
        /// Since.
        started: Timestamp,
    },
    /// It has ended.
    Ended(Ended),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Identifier; empty for one that never was.
    pub id: String,
    /// Exit code.
    pub code: i32,
    /// Signal or 0.
    pub signal: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub reason: String,
    /// Termination message.
    pub message: String,
    /// When it started.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
}

/// Work of which at most one is under way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Pulling the image of the container of this index.
    Pull(usize),
    /// Pulling the image of the volume of this index.
    PullVolume(usize),
    /// Making or ending the machine.
    Machine,
    /// Bringing what was allocated into force.
    Resize,
    /// Starting the container of this index.
    Start(usize),
    /// Deleting the object.
    Delete,
}

impl PodState {
    /// A pod just taken.
    pub fn new(desired: &DesiredPod, verdict: Option<Verdict>, now: Timestamp) -> Self {
        Self {
            version: STATE_VERSION,
            accepted: now,
            // A pod that never runs has nothing to release.
            released: verdict.is_some(),
            verdict,
            machine: Machine::None { not_before: None },
            machine_images: Vec::new(),
            ips: Vec::new(),
            machine_failures: 0,
            containers: desired.containers.iter().map(ContainerState::new).collect(),
            volume_images: image_volumes::all(desired).map(|_| ImageState::Wanted).collect(),
            ephemeral: Vec::new(),
            allocated: Allocation::of_pod(desired),
            in_force: Vec::new(),
            room: None,
            resize: Resize::default(),
            passed: 0,
            restarting: false,
            deletion: None,
            busy: BTreeSet::new(),
        }
    }

    /// Whether it says, where `before` does not, what a crash of the host must not take: the machine goes with its host, but what containers did stays
    /// done, and what was decided stays so.
    pub fn has_more_that_lasts(&self, before: &Self) -> bool {
        let did = |c: &ContainerState| match &c.slot {
            // One that has not begun is begun anew.
            Slot::Waiting { .. } | Slot::Starting { .. } => None,
            begun => Some(begun.clone()),
        };
        let of = |state: &Self| -> Vec<_> {
            let all = state.containers.iter().chain(&state.ephemeral);
            all.map(|c| (c.restarts, did(c))).collect()
        };
        let decided = |state: &Self| (state.deletion.is_some(), state.passed, state.restarting);
        self.verdict != before.verdict || decided(self) != decided(before) || self.allocated != before.allocated || of(self) != of(before)
    }

    /// In a record of a release that knew nothing of a pod as a whole: what it has as that is what it asks for.
    pub fn complete(&mut self, desired: &DesiredPod) {
        let (all, each) = (Allocation::of_pod(desired), desired.containers.len());
        for amounts in [&mut self.allocated, &mut self.in_force] {
            if amounts.len() == each && each > 0 {
                amounts.extend_from_slice(&all[each..]);
            }
        }
    }

    /// What a container has by now of what it was given.
    pub fn in_force(&self, index: usize) -> Option<Allocation> {
        self.in_force.get(index).or(self.allocated.get(index)).copied()
    }

    /// Whether all that was given is in force.
    pub fn is_in_force(&self) -> bool {
        self.in_force.is_empty() || self.in_force == self.allocated
    }

    /// The container of an identifier, running or starting.
    pub fn by_id(&mut self, id: &str) -> Option<&mut ContainerState> {
        let mut all = self.containers.iter_mut().chain(&mut self.ephemeral);
        all.find(|c| c.slot.id() == Some(id))
    }

    /// The container of a name, whichever kind it is.
    pub fn by_name(&self, name: &str) -> Option<&ContainerState> {
        self.containers.iter().chain(&self.ephemeral).find(|c| c.name == name)
    }

    /// The container of this number, as [`DesiredPod::at`] counts.
    pub fn at(&self, index: usize) -> &ContainerState {
        match index.checked_sub(self.containers.len()) {
            None => &self.containers[index],
            Some(behind) => &self.ephemeral[behind],
        }
    }

    /// The same, to be changed.
    pub fn at_mut(&mut self, index: usize) -> &mut ContainerState {
        match index.checked_sub(self.containers.len()) {
            None => &mut self.containers[index],
            Some(behind) => &mut self.ephemeral[behind],
        }
    }
}

impl ContainerState {
    /// A container just seen.
    pub fn new(desired: &DesiredContainer) -> Self {
        Self {
            name: desired.name.clone(),
            init: desired.init,
            image: ImageState::Wanted,
            image_name: desired.image.clone(),
            slot: Slot::waiting(),
            last: None,
            restarts: 0,
            backoff: 0,
            health: Health::default(),
            stop: None,
            again: None,
            user: None,
            hook_error: String::new(),
        }
    }

    /// Forgets a start of which nothing is known, but for its identifier.
    pub fn start_again(&mut self) {
        if let Slot::Starting { id } = std::mem::replace(&mut self.slot, Slot::waiting()) {
            self.again = Some(id);
        }
    }

    /// Whether it runs and its postStart hook is done.
    pub fn is_up(&self) -> bool {
        matches!(self.slot, Slot::Running { .. }) && !self.health.hook_pending
    }
}

impl Slot {
    /// Waiting for nothing in particular.
    pub fn waiting() -> Self {
        Self::Waiting {
            reason: None,
            message: String::new(),
            not_before: None,
        }
    }

    /// Identifier of what starts or runs.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Starting { id } | Self::Running { id, .. } => Some(id),
            Self::Waiting { .. } | Self::Ended(_) => None,
        }
    }

    /// Whether it starts or runs.
    pub fn is_alive(&self) -> bool {
        self.id().is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_containers_did_outlasts_the_host_and_what_goes_with_the_machine_need_not() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let (desired, _) = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap()));
        let fresh = PodState::new(&desired, None, Timestamp::UNIX_EPOCH);
        let lasts = |change: fn(&mut PodState)| {
            let mut state = fresh.clone();
            change(&mut state);
            state.has_more_that_lasts(&fresh)
        };
        assert!(!lasts(|_| {}));
        assert!(!lasts(|state| state.ips = vec!["10.0.0.2".into()]));
        assert!(!lasts(|state| state.machine_failures = 1));
        assert!(!lasts(|state| state.containers[0].slot = Slot::Starting { id: "1".into() }));
        assert!(lasts(|state| state.containers[0].slot = Slot::Running {
            id: "1".into(),
            started: Timestamp::UNIX_EPOCH
        }));
        assert!(lasts(|state| state.containers[0].restarts = 1));
        assert!(lasts(|state| state.passed = 1));
        assert!(lasts(|state| state.restarting = true));
        assert!(lasts(|state| state.deletion = Some(DeletionState {
            kill_at: Timestamp::UNIX_EPOCH,
            object_gone: false
        })));
    }
}
