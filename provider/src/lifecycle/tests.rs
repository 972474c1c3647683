//! The pod's life, step by step, without a machine.

mod health;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kvmlet_protocol::{ContainerState as Seen, ContainerStatus, ExitStatus};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Action, Event, Failure, PullFailure, StartFailure, is_over, next_tick, step};
use crate::{
    desired::{Deletion, DesiredPod},
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
            last = self.on(Event::Pulled {
                container,
                result: Ok(facts()),
            });
        }
        assert_eq!(last, [Action::StartMachine]);
        self.on(Event::MachineStarted(Ok(())))
    }

    fn started(&mut self, container: usize) -> Vec<Action> {
        let now = self.now;
        self.on(Event::Started {
            container,
            result: Ok(now),
        })
    }

    fn exit(&mut self, container: usize, code: i32) -> Vec<Action> {
        let id = self.state.containers[container].slot.id().expect("it runs").to_owned();
        let nanoseconds = u64::try_from(self.now.as_nanosecond()).unwrap();
        let exit = ExitStatus {
            code,
            signal: 0,
            oom_killed: false,
            started: nanoseconds,
            finished: nanoseconds,
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

#[test]
fn a_pod_goes_through_images_machine_and_containers_to_running() {
    let mut life = Life::simple("Always", 2);
    assert_eq!(life.phase(), "Pending");
    assert_eq!(life.boot(), [start(0, "id1", 0, None), start(1, "id2", 0, None)]);
    life.started(0);
    assert_eq!(life.phase(), "Pending");
    life.started(1);
    assert_eq!(life.phase(), "Running");
}

#[test]
fn init_containers_run_one_after_the_other_before_the_rest() {
    let mut life = Life::new(
        json!({"initContainers": [{"name": "i", "image": "x"}, {"name": "j", "image": "x"}], "containers": [{"name": "a", "image": "x"}]}),
    );
    assert_eq!(life.boot(), [start(0, "id1", 0, None)]);
    assert_eq!(life.reason(0), "PodInitializing");
    assert_eq!(life.started(0), []);
    assert_eq!(life.exit(0, 0), [start(1, "id2", 0, None)]);
    life.started(1);
    assert_eq!(life.exit(1, 0), [start(2, "id3", 0, None)]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let mut life = Life::new(
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "x"}], "containers": [{"name": "a", "image": "x"}]}),
    );
    life.boot();
    life.started(0);
    assert_eq!(life.exit(0, 3), [Action::Release]);
    life.on(Event::Released(Ok(())));
    assert_eq!(life.phase(), "Failed");
}

#[test]
fn crashes_are_restarted_at_once_then_after_ten_seconds_doubling() {
    let mut life = Life::simple("Always", 1);
    life.boot();
    life.started(0);
    assert_eq!(life.exit(0, 1), [start(0, "id2", 1, Some("id1"))]);
    life.started(0);
    assert_eq!(life.exit(0, 1), []);
    assert_eq!((life.reason(0).as_str(), life.phase().as_str()), ("CrashLoopBackOff", "Running"));
    assert_eq!(
        status(&life.desired, &life.state, &[], None, life.now).container_statuses.unwrap()[0].restart_count,
        1
    );
    assert_eq!(life.pass(9), []);
    assert_eq!(life.pass(1), [start(0, "id3", 2, Some("id2"))]);
    life.started(0);
    life.exit(0, 0);
    assert_eq!(life.pass(19), []);
    assert_eq!(life.pass(1), [start(0, "id4", 3, Some("id3"))]);
    // Ten good minutes, and the first wait counts again.
    life.started(0);
    life.state.containers[0].slot = Slot::Running {
        id: "id4".into(),
        started: life.now,
    };
    let began = u64::try_from(life.now.as_nanosecond()).unwrap();
    life.pass(600);
    let ended = u64::try_from(life.now.as_nanosecond()).unwrap();
    let exit = ExitStatus {
        code: 1,
        signal: 0,
        oom_killed: false,
        started: began,
        finished: ended,
        message: String::new(),
    };
    let list = vec![ContainerStatus {
        id: "id4".into(),
        state: Seen::Exited(exit),
    }];
    assert_eq!(life.on(Event::Containers(list)), [start(0, "id5", 4, Some("id4"))]);
}

#[test]
fn on_failure_restarts_failures_alone_and_never_nothing() {
    let mut life = Life::simple("OnFailure", 2);
    life.boot();
    life.started(0);
    life.started(1);
    assert_eq!(life.exit(0, 0), []);
    assert_eq!(life.exit(1, 1).len(), 1);
    life.started(1);
    assert_eq!(life.exit(1, 0), [Action::Release]);
    life.on(Event::Released(Ok(())));
    assert_eq!(life.phase(), "Succeeded");
    let mut life = Life::simple("Never", 1);
    life.boot();
    life.started(0);
    assert_eq!(life.exit(0, 7), [Action::Release]);
    assert_eq!(life.phase(), "Failed");
}

#[test]
fn a_deleted_pod_gets_its_signal_then_its_kill_then_its_end() {
    let mut life = Life::simple("Always", 1);
    life.boot();
    life.started(0);
    assert_eq!(
        life.delete(30),
        [Action::Signal {
            id: "id1".into(),
            kill: false,
            container: 0
        }]
    );
    assert_eq!(life.pass(29), []);
    assert_eq!(
        life.pass(1),
        [Action::Signal {
            id: "id1".into(),
            kill: true,
            container: 0
        }]
    );
    assert_eq!(life.exit(0, 137), [Action::Release]);
    assert_eq!(life.on(Event::Released(Ok(()))), [Action::DeleteObject]);
    assert_eq!(life.phase(), "Failed");
    assert_eq!(life.on(Event::Deleted(true)), [Action::Forget]);
}

#[test]
fn a_guest_that_hears_no_kill_loses_its_machine() {
    let mut life = Life::simple("Always", 1);
    life.boot();
    life.started(0);
    life.delete(1);
    life.pass(1);
    assert!(life.pass(9).iter().all(|a| matches!(a, Action::Signal { kill: true, .. })));
    assert_eq!(life.pass(1), [Action::Release]);
}

#[test]
fn what_is_due_but_waits_for_something_else_asks_for_no_tick() {
    let mut life = Life::simple("Always", 1);
    life.on(Event::Tick);
    let result = Err(PullFailure {
        reason: "ErrImagePull",
        message: "m".into(),
    });
    life.on(Event::Pulled { container: 0, result });
    assert_eq!(life.pass(10), [Action::Pull(0)]);
    assert_eq!(next_tick(&life.state, &life.desired, life.now), None);
}

#[test]
fn a_second_deletion_can_only_shorten_the_grace() {
    let mut life = Life::simple("Always", 1);
    life.boot();
    life.started(0);
    life.delete(30);
    life.delete(5);
    life.delete(60);
    assert_eq!(life.pass(4), []);
    assert_eq!(
        life.pass(1),
        [Action::Signal {
            id: "id1".into(),
            kill: true,
            container: 0
        }]
    );
}

#[test]
fn a_pod_whose_object_is_gone_is_ended_without_grace() {
    let mut life = Life::simple("Always", 1);
    life.boot();
    life.started(0);
    assert_eq!(life.on(Event::ObjectGone), [Action::Release]);
    assert_eq!(life.on(Event::Released(Ok(()))), [Action::Forget]);
}

#[test]
fn a_deletion_waits_for_a_machine_that_is_being_made() {
    let mut life = Life::simple("Always", 1);
    life.on(Event::Tick);
    assert_eq!(
        life.on(Event::Pulled {
            container: 0,
            result: Ok(facts())
        }),
        [Action::StartMachine]
    );
    assert_eq!(life.delete(30), []);
    assert_eq!(life.on(Event::MachineStarted(Ok(()))), [Action::Release]);
}

#[test]
fn a_failed_pull_is_shown_backs_off_and_is_tried_again_without_end() {
    let mut life = Life::simple("Always", 1);
    life.on(Event::Tick);
    let failure = || PullFailure {
        reason: "ErrImagePull",
        message: "no such image".into(),
    };
    for wait in [10, 20, 40, 80, 160, 300, 300] {
        assert_eq!(
            life.on(Event::Pulled {
                container: 0,
                result: Err(failure())
            }),
            []
        );
        assert_eq!(life.reason(0), "ErrImagePull");
        assert_eq!(life.pass(2), []);
        assert_eq!(life.reason(0), "ImagePullBackOff");
        assert_eq!(life.pass(wait - 3), []);
        assert_eq!(life.pass(1), [Action::Pull(0)]);
    }
}

#[test]
fn a_machine_that_cannot_be_made_is_tried_again() {
    let mut life = Life::simple("Always", 1);
    life.on(Event::Tick);
    life.on(Event::Pulled {
        container: 0,
        result: Ok(facts()),
    });
    let failed = Failure {
        reason: "FailedMount",
        message: "configmap missing".into(),
    };
    assert_eq!(life.on(Event::MachineStarted(Err(failed))), []);
    assert_eq!(life.pass(2), [Action::StartMachine]);
}

#[test]
fn a_container_whose_configuration_is_missing_waits_and_is_tried_again_under_the_same_number() {
    let mut life = Life::simple("Always", 1);
    life.boot();
    let failure = StartFailure::Config {
        reason: "CreateContainerConfigError",
        message: "secret not found".into(),
    };
    assert_eq!(
        life.on(Event::Started {
            container: 0,
            result: Err(failure)
        }),
        []
    );
    assert_eq!(life.reason(0), "CreateContainerConfigError");
    assert_eq!(life.pass(5), [start(0, "id2", 0, None)]);
}

#[test]
fn a_command_that_is_not_there_counts_as_an_end() {
    let mut life = Life::simple("Never", 1);
    life.boot();
    let failure = StartFailure::Process {
        code: 128,
        message: "not found in $PATH".into(),
    };
    assert_eq!(
        life.on(Event::Started {
            container: 0,
            result: Err(failure)
        }),
        [Action::Release]
    );
    assert_eq!((life.reason(0).as_str(), life.phase().as_str()), ("StartError", "Failed"));
}

#[test]
fn a_dead_machine_is_made_anew_and_its_containers_restarted() {
    let mut life = Life::new(json!({"initContainers": [{"name": "i", "image": "x"}], "containers": [{"name": "a", "image": "x"}]}));
    life.boot();
    life.started(0);
    life.exit(0, 0);
    life.started(1);
    life.on(Event::MachineDied("the guest triple-faulted".into()));
    assert!(matches!(life.state.machine, Machine::None { not_before: Some(_) }));
    let last = &life.state.containers[1];
    assert!(
        matches!(&last.slot, Slot::Ended(e) if e.code == 137 && e.message.contains("triple-faulted")),
        "{last:?}"
    );
    assert_eq!(life.pass(2), [Action::StartMachine]);
    assert_eq!(life.on(Event::MachineStarted(Ok(()))), [start(0, "id3", 1, Some("id1"))]);
    life.started(0);
    assert_eq!(life.exit(0, 0), [start(1, "id4", 1, Some("id2"))]);
}

#[test]
fn a_dead_machine_fails_a_pod_that_never_restarts() {
    let mut life = Life::simple("Never", 1);
    life.boot();
    life.started(0);
    assert_eq!(life.on(Event::MachineDied("killed".into())), [Action::Release]);
    assert_eq!(life.phase(), "Failed");
}

#[test]
fn a_refused_pod_only_waits_for_its_deletion() {
    let mut life = Life::simple("Always", 1);
    life.state = PodState::new(
        &life.desired,
        Some(Verdict {
            reason: "OutOfcpu".into(),
            message: "m".into(),
        }),
        life.now,
    );
    assert_eq!(life.on(Event::Tick), []);
    assert_eq!(life.phase(), "Failed");
    assert_eq!(life.delete(30), [Action::DeleteObject]);
}

#[test]
fn the_active_deadline_ends_a_pod() {
    let mut life =
        Life::new(json!({"activeDeadlineSeconds": 20, "terminationGracePeriodSeconds": 1, "containers": [{"name": "a", "image": "x"}]}));
    life.boot();
    life.started(0);
    assert_eq!(life.pass(19), []);
    assert_eq!(
        life.pass(1),
        [Action::Signal {
            id: "id1".into(),
            kill: false,
            container: 0
        }]
    );
    assert_eq!(life.exit(0, 143), [Action::Release]);
    assert_eq!(life.phase(), "Failed");
    assert_eq!(
        status(&life.desired, &life.state, &[], None, life.now).reason.as_deref(),
        Some("DeadlineExceeded")
    );
}

#[test]
fn a_pod_that_takes_too_much_is_evicted_within_a_second_and_says_why() {
    let mut life = Life::simple("Always", 1);
    life.boot();
    life.started(0);
    let signal = |kill| Action::Signal {
        id: "id1".into(),
        kill,
        container: 0,
    };
    assert_eq!(life.on(Event::Evicted("too much".into())), [signal(false)]);
    assert_eq!(life.pass(1), [signal(true)]);
    assert_eq!(life.exit(0, 137), [Action::Release]);
    assert_eq!(life.phase(), "Failed");
    let told = status(&life.desired, &life.state, &[], None, life.now);
    assert_eq!(
        (told.reason.as_deref(), told.message.as_deref()),
        (Some("Evicted"), Some("too much"))
    );
    // It was decided once.
    life.on(Event::Evicted("another".into()));
    assert_eq!(life.state.verdict.as_ref().map(|v| v.message.as_str()), Some("too much"));
}

#[test]
fn a_start_that_a_dead_daemon_had_only_noted_is_done_again_and_one_it_had_made_is_not() {
    let mut life = Life::simple("Always", 2);
    assert_eq!(life.boot(), [start(0, "id1", 0, None), start(1, "id2", 0, None)]);
    // As after a restart of the daemon.
    life.state.busy.clear();
    let made = ContainerStatus {
        id: "id2".into(),
        state: Seen::Running { pid: 9, started: 1 },
    };
    assert_eq!(life.on(Event::Containers(vec![made])), [start(0, "id3", 0, None)]);
}

#[test]
fn what_is_late_or_doubled_does_no_harm() {
    let mut life = Life::simple("Always", 1);
    life.boot();
    life.started(0);
    assert_eq!(life.started(0), []);
    life.exit(0, 1);
    let stale = ContainerStatus {
        id: "id1".into(),
        state: Seen::Running { pid: 1, started: 0 },
    };
    assert_eq!(life.on(Event::Containers(vec![stale])), []);
    life.on(Event::MachineDied("gone".into()));
    assert_eq!(life.on(Event::MachineDied("gone twice".into())), []);
}

proptest! {
    /// Whatever happens in whatever order: no panic, a deleted pod comes to its end, and nothing starts after its deletion.
    #[test]
    fn every_pod_that_is_deleted_comes_to_its_end(choices in proptest::collection::vec((0u8..8, 0i64..40), 0..60), policy in 0usize..3) {
        let mut life = Life::simple(["Always", "OnFailure", "Never"][policy], 2);
        let mut open: Vec<Action> = life.on(Event::Tick);
        for (choice, seconds) in choices {
            let more = match choice {
                0 => life.pass(seconds),
                1 if life.state.containers[0].slot.is_alive() => life.exit(0, i32::from(seconds % 2 == 0)),
                2 => life.on(Event::MachineDied("x".into())),
                _ if !open.is_empty() => {
                    let action = open.remove(usize::try_from(seconds).unwrap() % open.len());
                    answer(&mut life, action, seconds % 3 != 0)
                }
                _ => life.pass(1),
            };
            open.extend(more);
        }
        open.extend(life.delete(5));
        for _ in 0..200 {
            if matches!(open.last(), Some(Action::Forget)) {
                return Ok(());
            }
            for container in 0..2 {
                if matches!(life.state.containers[container].slot, Slot::Running { .. }) {
                    open.extend(life.exit(container, 0));
                }
            }
            let more = if open.is_empty() { life.pass(5) } else { let action = open.remove(0); answer(&mut life, action, true) };
            for action in &more {
                prop_assert!(!matches!(action, Action::StartMachine | Action::StartContainer { .. } | Action::Pull(_)), "{action:?} after the deletion");
            }
            open.extend(more);
        }
        prop_assert!(false, "it never ended: {:?}, over: {}, next tick {:?}", life.state, is_over(&life.state, &life.desired), next_tick(&life.state, &life.desired, life.now));
    }
}

/// What the world answers to an action.
fn answer(life: &mut Life, action: Action, well: bool) -> Vec<Action> {
    let now = life.now;
    match action {
        Action::Pull(container) => {
            let bad = || PullFailure {
                reason: "ErrImagePull",
                message: "m".into(),
            };
            assert!(!matches!(life.state.containers[container].image, ImageState::Ready(_)));
            life.on(Event::Pulled {
                container,
                result: if well { Ok(facts()) } else { Err(bad()) },
            })
        }
        Action::StartMachine => {
            let bad = Failure {
                reason: "FailedCreatePodSandBox",
                message: "m".into(),
            };
            life.on(Event::MachineStarted(if well { Ok(()) } else { Err(bad) }))
        }
        Action::StartContainer { container, .. } => {
            let bad = StartFailure::Config {
                reason: "CreateContainerError",
                message: "m".into(),
            };
            life.on(Event::Started {
                container,
                result: if well { Ok(now) } else { Err(bad) },
            })
        }
        Action::Release => life.on(Event::Released(if well { Ok(()) } else { Err("busy".into()) })),
        Action::DeleteObject => life.on(Event::Deleted(true)),
        Action::Signal { .. } | Action::Tell(_) | Action::Forget => life.on(Event::Tick),
    }
}
