//! Ephemeral containers, step by step, without a machine.

use super::*;
use crate::state::{ContainerState, Ended};

fn spec(ephemeral: &Value) -> Value {
    json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}], "ephemeralContainers": ephemeral})
}

impl Life {
    /// A pod whose one container runs.
    fn running(ephemeral: &Value) -> Self {
        let mut life = Self::new(spec(ephemeral));
        life.state.machine = Machine::Ready;
        life.state.containers[0].image = ImageState::Ready(facts());
        life.state.containers[0].slot = Slot::Running {
            id: "main".into(),
            started: life.now,
        };
        life
    }

    /// A pod whose one container runs, and an ephemeral one beside it.
    fn beside() -> Self {
        let mut life = Self::running(&json!([{"name": "e", "image": "j"}]));
        life.on(Event::Tick);
        life.state.ephemeral[0].slot = Slot::Running {
            id: "id1".into(),
            started: life.now,
        };
        life
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

#[test]
fn one_that_comes_later_is_pulled_and_started_once_and_counts_for_nothing() {
    let mut life = Life::running(&json!([]));
    assert_eq!(life.on(Event::Tick), []);
    life.desired = Life::new(spec(&json!([{"name": "e", "image": "j", "targetContainerName": "a"}]))).desired;
    assert_eq!(life.on(Event::Tick), [Action::Pull(1)]);
    assert_eq!(life.on(Event::Tick), [], "it is under way");
    assert_eq!(life.pulled(1, Ok(facts())), [start(1, "id1", 0, None)]);
    let started = Event::Started {
        container: 1,
        result: Ok(life.up()),
    };
    assert_eq!(life.on(started), []);
    assert!(matches!(&life.own().slot, Slot::Running { id, .. } if id == "id1"));
    let exit = ExitStatus {
        code: 7,
        signal: 0,
        oom_killed: false,
        started: 1,
        finished: 2,
        message: String::new(),
    };
    let ended = ContainerStatus {
        id: "id1".into(),
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
    let mut life = Life::running(&json!([{"name": "e", "image": "j", "securityContext": {"windowsOptions": {"hostProcess": true}}}]));
    assert_eq!(life.on(Event::Tick), []);
    assert_eq!(life.waiting(), Some("CreateContainerConfigError"));
    assert_eq!(life.on(Event::Tick), []);
    let status = status(&life.desired, &life.state, &[], None, life.now);
    let state = status.ephemeral_container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(
        state.waiting.unwrap().message.unwrap(),
        "This node does not support: spec.ephemeralContainers[0].securityContext.windowsOptions"
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
    assert_eq!(life.pulled(1, Err(failure)), []);
    life.now += SignedDuration::from_secs(5);
    assert_eq!(life.on(Event::Tick), []);
    assert!(matches!(&life.own().image, ImageState::Failed { reason, .. } if reason == "ImagePullBackOff"));
    life.now += SignedDuration::from_secs(6);
    assert_eq!(life.on(Event::Tick), [Action::Pull(1)]);
    assert_eq!(life.pulled(1, Ok(facts())), [start(1, "id1", 0, None)]);
    let failed = Event::Started {
        container: 1,
        result: Err(StartFailure::Config {
            reason: "CreateContainerConfigError",
            message: "target container \"a\" is not running".into(),
        }),
    };
    assert_eq!(life.on(failed), []);
    assert_eq!(life.waiting(), Some("CreateContainerConfigError"));
    life.now += SignedDuration::from_secs(6);
    assert_eq!(life.on(Event::Tick), [start(1, "id2", 0, None)]);
}

#[test]
fn a_deleted_pod_asks_it_to_end_and_waits_for_the_grace_before_it_kills() {
    let mut life = Life::beside();
    life.state.busy.clear();
    let signal = |id: &str, kill, container| Action::Signal {
        id: id.into(),
        kill,
        container,
    };
    let signals = |actions: Vec<Action>| actions.into_iter().filter(|a| !matches!(a, Action::Tell(_))).collect::<Vec<_>>();
    let deletion = Deletion { grace: 30, at: life.now };
    let asked = signals(life.on(Event::Delete(deletion)));
    assert_eq!(asked, [signal("main", false, 0), signal("id1", false, 1)]);
    let exited = |id: &str| {
        let exit = ExitStatus {
            code: 0,
            signal: 0,
            oom_killed: false,
            started: 1,
            finished: 2,
            message: String::new(),
        };
        Event::Containers(vec![ContainerStatus {
            id: id.into(),
            state: Seen::Exited(exit),
        }])
    };
    assert_eq!(life.on(exited("main")), [], "its end is waited for");
    life.now += SignedDuration::from_secs(30);
    assert_eq!(life.on(Event::Tick), [signal("id1", true, 1)]);
    assert_eq!(life.on(exited("id1")), [Action::Release]);
}

#[test]
fn a_pod_whose_containers_have_ended_asks_it_to_end() {
    let mut life = Life::beside();
    life.state.busy.clear();
    life.state.containers[0].slot = Slot::Ended(Ended {
        id: "main".into(),
        code: 0,
        signal: 0,
        reason: "Completed".into(),
        message: String::new(),
        started: life.now,
        finished: life.now,
    });
    let actions = life.on(Event::Tick);
    let asked = |a: &Action| matches!(a, Action::Signal { id, kill: false, container: 1 } if id == "id1");
    assert!(actions.iter().any(asked) && !actions.contains(&Action::Release), "{actions:?}");
}

#[test]
fn a_lost_machine_ends_it() {
    let mut life = Life::beside();
    life.on(Event::Released(Ok(())));
    assert!(matches!(&life.own().slot, Slot::Ended(ended) if ended.code == 137));
}
