//! The pod's life, step by step, without a machine.

mod any_order;
mod changed;
mod ending;
mod ephemeral;
mod health;
mod image_volumes;
mod progress;
mod resize;
mod restart_all;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kvmlet_protocol::{ContainerState as Seen, ContainerStatus, ExitStatus};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Action, Event, Failure, PullFailure, StartFailure, Up, is_over, next_tick, step};
use crate::{
    desired::{Deletion, DesiredPod},
    size::Room,
    state::{ImageFacts, ImageState, Machine, PodState, Slot, Verdict},
    status::status,
};

/// A pod under test, with a clock of its own.
struct Life {
    desired: DesiredPod,
    state: PodState,
    now: Timestamp,
    ids: u32,
}

fn facts() -> ImageFacts {
    ImageFacts {
        reference: "r".into(),
        digest: "r@sha256:1".into(),
        id: "sha256:2".into(),
        size: 1,
    }
}

fn failed_pull() -> PullFailure {
    PullFailure {
        reason: "ErrImagePull",
        message: "m".into(),
    }
}

impl Life {
    fn new(spec: Value) -> Self {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1}, "spec": spec});
        let (desired, refusal) = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap()));
        assert_eq!(refusal, None);
        let now = Timestamp::from_second(1_000_000).unwrap();
        let state = PodState::new(&desired, None, now);
        Self {
            desired,
            state,
            now,
            ids: 0,
        }
    }

    /// One with this restart policy and main containers `a`, `b`, …
    fn simple(policy: &str, containers: usize) -> Self {
        let list: Vec<Value> = (0..containers)
            .map(|i| json!({"name": char::from(b'a' + i as u8).to_string(), "image": "i"}))
            .collect();
        Self::new(json!({"restartPolicy": policy, "containers": list}))
    }

    /// A step; notes are left out.
    fn on(&mut self, event: Event) -> Vec<Action> {
        let ids = &mut self.ids;
        let mut new_id = || {
            *ids += 1;
            format!("id{ids}")
        };
        let actions = step(&mut self.state, &self.desired, event, self.now, &mut new_id);
        actions.into_iter().filter(|a| !matches!(a, Action::Tell(_))).collect()
    }

    fn pass(&mut self, seconds: i64) -> Vec<Action> {
        self.now += SignedDuration::from_secs(seconds);
        self.on(Event::Tick)
    }

    /// Through images and machine to where containers start.
    fn boot(&mut self) -> Vec<Action> {
        let pulls = self.on(Event::Tick);
        assert_eq!(pulls.len(), self.state.containers.len(), "{pulls:?}");
        let mut last = Vec::new();
        for container in 0..pulls.len() {
            last = self.pulled(container, Ok(facts()));
        }
        assert_eq!(last, [Action::StartMachine]);
        self.on(Event::MachineStarted(Ok(Room::default())))
    }

    /// The pull of a container's image as it is named now has ended.
    fn pulled(&mut self, container: usize, result: Result<ImageFacts, PullFailure>) -> Vec<Action> {
        let image = self.desired.at(container).image.clone();
        self.on(Event::Pulled { container, image, result })
    }

    fn started(&mut self, container: usize) -> Vec<Action> {
        let up = self.up();
        self.on(Event::Started { container, result: Ok(up) })
    }

    fn up(&self) -> Up {
        Up { at: self.now, user: None }
    }

    fn exit(&mut self, container: usize, code: i32) -> Vec<Action> {
        let slot = &self.state.containers[container].slot;
        let id = slot.id().expect("it runs").to_owned();
        let nanoseconds = |at: Timestamp| u64::try_from(at.as_nanosecond()).unwrap();
        let finished = nanoseconds(self.now);
        let started = match slot {
            Slot::Running { started, .. } => nanoseconds(*started),
            _ => finished,
        };
        let exit = ExitStatus {
            code,
            signal: 0,
            oom_killed: false,
            started,
            finished,
            message: String::new(),
        };
        self.on(Event::Containers(vec![ContainerStatus {
            id,
            state: Seen::Exited(exit),
        }]))
    }

    fn delete(&mut self, grace: u64) -> Vec<Action> {
        let at = self.now;
        self.on(Event::Delete(Deletion { grace, at }))
    }

    fn phase(&self) -> String {
        status(&self.desired, &self.state, &[], None, self.now).phase.unwrap()
    }

    fn reason(&self, container: usize) -> String {
        let all = status(&self.desired, &self.state, &[], None, self.now);
        let state = all.container_statuses.unwrap()[container].state.clone().unwrap();
        state
            .waiting
            .and_then(|w| w.reason)
            .or(state.terminated.and_then(|t| t.reason))
            .unwrap_or_default()
    }
}

fn start(container: usize, id: &str, restarts: u32, replaces: Option<&str>) -> Action {
    Action::StartContainer {
        container,
        id: id.into(),
        restarts,
        replaces: replaces.map(str::to_owned),
    }
}

/// What the world answers to an action.
fn answer(life: &mut Life, action: Action, well: bool) -> Vec<Action> {
    match action {
        Action::Pull(container) => {
            assert!(!matches!(life.state.containers[container].image, ImageState::Ready(_)));
            life.pulled(container, if well { Ok(facts()) } else { Err(failed_pull()) })
        }
        Action::PullVolume(volume) => {
            let result = if well { Ok(facts()) } else { Err(failed_pull()) };
            life.on(Event::VolumePulled { volume, result })
        }
        Action::StartMachine => {
            let bad = Failure {
                reason: "FailedCreatePodSandBox",
                message: "m".into(),
            };
            life.on(Event::MachineStarted(if well { Ok(Room::default()) } else { Err(bad) }))
        }
        Action::StartContainer { container, .. } => {
            let up = life.up();
            let bad = StartFailure::Config {
                reason: "CreateContainerError",
                message: "m".into(),
            };
            life.on(Event::Started {
                container,
                result: if well { Ok(up) } else { Err(bad) },
            })
        }
        Action::Resize => {
            let given = life.state.allocated.clone();
            life.on(Event::Resized(if well { Ok(given) } else { Err("no room".into()) }))
        }
        Action::Release => life.on(Event::Released(if well { Ok(()) } else { Err("busy".into()) })),
        Action::DeleteObject => life.on(Event::Deleted(true)),
        Action::Signal { .. } | Action::Tell(_) | Action::Forget => life.on(Event::Tick),
    }
}
