//! Ephemeral containers, step by step, without a machine.

use std::sync::Arc;

use jiff::Timestamp;
use kvmlet_protocol::{ContainerState as Seen, ContainerStatus, ExitStatus};
use serde_json::{Value, json};

use super::{Action, Event, PullFailure, StartFailure, is_over, step};
use crate::{
    desired::{Deletion, DesiredPod},
    state::{ContainerState, ImageFacts, ImageState, Machine, PodState, Slot},
    status::status,
};

/// A pod whose one container runs.
struct Life {
    desired: DesiredPod,
    state: PodState,
    now: Timestamp,
}

fn desired(ephemeral: &Value) -> DesiredPod {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}], "ephemeralContainers": ephemeral});
    let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
    let (desired, refusal) = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap()));
    assert_eq!(refusal, None, "ephemeral containers never fail a pod");
    desired
}

fn facts() -> ImageFacts {
    ImageFacts {
        reference: "r".into(),
        digest: "r@sha256:1".into(),
        id: "sha256:2".into(),
        size: 1,
    }
}

impl Life {
    fn running(ephemeral: &Value) -> Self {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let desired = desired(ephemeral);
        let mut state = PodState::new(&desired, None, now);
        state.machine = Machine::Ready;
        state.containers[0].image = ImageState::Ready(facts());
        state.containers[0].slot = Slot::Running {
            id: "main".into(),
            started: now,
        };
        Self { desired, state, now }
    }

    /// Notes are left out.
    fn on(&mut self, event: Event) -> Vec<Action> {
        let mut new_id = || "new".to_owned();
        let actions = step(&mut self.state, &self.desired, event, self.now, &mut new_id);
        actions.into_iter().filter(|a| !matches!(a, Action::Tell(_))).collect()
    }

    fn own(&self) -> &ContainerState {
        &self.state.ephemeral[0]
    }

    fn waiting(&self) -> Option<&str> {
        match &self.own().slot {
            Slot::Waiting { reason, .. } => reason.as_deref(),
            _ => panic!("{:?} is not waiting", self.own().slot),
        }
    }
}

fn start() -> Action {
    Action::StartContainer {
        container: 1,
        id: "new".into(),
        restarts: 0,
        replaces: None,
    }
}

#[test]
fn one_that_comes_later_is_pulled_and_started_once_and_counts_for_nothing() {
    let mut life = Life::running(&json!([]));
    assert_eq!(life.on(Event::Tick), []);
    life.desired = desired(&json!([{"name": "e", "image": "j", "targetContainerName": "a"}]));
    assert_eq!(life.on(Event::Tick), [Action::Pull(1)]);
    assert_eq!(life.on(Event::Tick), [], "it is under way");
    let pulled = Event::Pulled {
        container: 1,
        result: Ok(facts()),
    };
    assert_eq!(life.on(pulled), [start()]);
    let started = Event::Started {
        container: 1,
        result: Ok(life.now),
    };
    assert_eq!(life.on(started), []);
    assert!(matches!(&life.own().slot, Slot::Running { id, .. } if id == "new"));
    let exit = ExitStatus {
        code: 7,
        signal: 0,
        oom_killed: false,
        started: 1,
        finished: 2,
        message: String::new(),
    };
    let ended = ContainerStatus {
        id: "new".into(),
        state: Seen::Exited(exit),
    };
    assert_eq!(life.on(Event::Containers(vec![ended])), [], "it is not started again");
    assert!(!is_over(&life.state, &life.desired));
    let status = status(&life.desired, &life.state, &[], None, life.now);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let own = &status.ephemeral_container_statuses.unwrap()[0];
    assert!(!own.ready);
    assert_eq!(own.state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code), Some(7));
    assert!(status.container_statuses.unwrap()[0].ready, "the pod is what it was");
}

#[test]
fn what_does_not_work_here_waits_with_the_reason() {
    let mut life = Life::running(&json!([{"name": "e", "image": "j", "securityContext": {"seLinuxOptions": {"level": "s0"}}}]));
    assert_eq!(life.on(Event::Tick), []);
    assert_eq!(life.waiting(), Some("CreateContainerConfigError"));
    assert_eq!(life.on(Event::Tick), []);
    let status = status(&life.desired, &life.state, &[], None, life.now);
    let state = status.ephemeral_container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(
        state.waiting.unwrap().message.unwrap(),
        "This node does not support: spec.ephemeralContainers[0].securityContext.seLinuxOptions"
    );
}

#[test]
fn failures_are_tried_again_and_hold_nothing_back() {
    let mut life = Life::running(&json!([{"name": "e", "image": "j"}]));
    life.on(Event::Tick);
    let failure = PullFailure {
        reason: "ErrImagePull",
        message: "none".into(),
    };
    let pulled = Event::Pulled {
        container: 1,
        result: Err(failure),
    };
    assert_eq!(life.on(pulled), []);
    life.now += jiff::SignedDuration::from_secs(5);
    assert_eq!(life.on(Event::Tick), []);
    assert!(matches!(&life.own().image, ImageState::Failed { reason, .. } if reason == "ImagePullBackOff"));
    life.now += jiff::SignedDuration::from_secs(6);
    assert_eq!(life.on(Event::Tick), [Action::Pull(1)]);
    let pulled = Event::Pulled {
        container: 1,
        result: Ok(facts()),
    };
    assert_eq!(life.on(pulled), [start()]);
    let failed = Event::Started {
        container: 1,
        result: Err(StartFailure::Config {
            reason: "CreateContainerConfigError",
            message: "target container \"a\" is not running".into(),
        }),
    };
    assert_eq!(life.on(failed), []);
    assert_eq!(life.waiting(), Some("CreateContainerConfigError"));
    life.now += jiff::SignedDuration::from_secs(6);
    assert_eq!(life.on(Event::Tick), [start()]);
}

#[test]
fn a_deleted_pod_does_not_wait_for_it_and_a_lost_machine_ends_it() {
    let mut life = Life::running(&json!([{"name": "e", "image": "j"}]));
    life.on(Event::Tick);
    life.state.busy.clear();
    life.state.ephemeral[0].slot = Slot::Running {
        id: "new".into(),
        started: life.now,
    };
    life.state.containers[0].slot = Slot::Ended(crate::state::Ended {
        id: "main".into(),
        code: 0,
        signal: 0,
        reason: "Completed".into(),
        message: String::new(),
        started: life.now,
        finished: life.now,
    });
    let deletion = Deletion { grace: 30, at: life.now };
    assert_eq!(life.on(Event::Delete(deletion)), [Action::Release]);
    life.on(Event::Released(Ok(())));
    assert!(matches!(&life.own().slot, Slot::Ended(ended) if ended.code == 137));
}
