//! Probes, hooks and sidecars, step by step, without a machine.

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

use super::*;
use crate::{events::Note, probe::spec::Kind};

impl Life {
    /// A step's notes.
    fn notes(&mut self, event: Event) -> Vec<Note> {
        let mut ids = || unreachable!("nothing starts in this step");
        let actions = step(&mut self.state, &self.desired, event, self.now, &mut ids);
        let note = |a| if let Action::Tell(note) = a { Some(note) } else { None };
        actions.into_iter().filter_map(note).collect()
    }

    pub(super) fn status(&self) -> PodStatus {
        status(&self.desired, &self.state, &[], None, self.now)
    }

    pub(super) fn container(&self, name: &str) -> ContainerStatus {
        let all = self.status();
        let lists = [all.container_statuses, all.init_container_statuses];
        lists.into_iter().flatten().flatten().find(|c| c.name == name).unwrap()
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let all = self.status().conditions.unwrap();
        let found = all.into_iter().find(|c| c.type_ == kind).unwrap();
        (found.status, found.message.unwrap_or_default())
    }

    fn id(&self, container: usize) -> String {
        self.state.containers[container].slot.id().expect("it runs").to_owned()
    }

    fn probed(&self, container: usize, kind: Kind, healthy: bool) -> Event {
        let id = self.id(container);
        Event::Probed { id, kind, healthy }
    }

    fn post_started(&self, container: usize, result: Result<(), String>) -> Event {
        let id = self.id(container);
        Event::PostStarted { id, result }
    }
}

fn signal(container: usize, id: &str, kill: bool) -> Action {
    Action::Signal {
        id: id.into(),
        kill,
        container,
    }
}

fn probe(more: Value) -> Value {
    let mut probe = json!({"tcpSocket": {"port": 1}});
    probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    probe
}

#[test]
fn a_container_with_probes_is_started_and_ready_when_they_say_so() {
    let mut life = Life::new(
        json!({"containers": [{"name": "a", "image": "x", "startupProbe": probe(json!({})), "readinessProbe": probe(json!({}))}]}),
    );
    life.boot();
    life.started(0);
    let seen = |life: &Life| (life.container("a").started, life.container("a").ready, life.condition("Ready").0);
    assert_eq!(seen(&life), (Some(false), false, "False".into()));
    life.on(life.probed(0, Kind::Startup, true));
    assert_eq!(seen(&life), (Some(true), false, "False".into()));
    life.on(life.probed(0, Kind::Readiness, true));
    assert_eq!(seen(&life), (Some(true), true, "True".into()));
    life.on(life.probed(0, Kind::Readiness, false));
    assert_eq!(seen(&life), (Some(true), false, "False".into()));
    assert_eq!(life.condition("ContainersReady").1, "containers with unready status: [a]");
    // A new instance is asked anew.
    life.on(life.probed(0, Kind::Readiness, true));
    life.exit(0, 1);
    life.started(0);
    assert_eq!(seen(&life), (Some(false), false, "False".into()));
}

#[test]
fn a_failed_liveness_probe_ends_the_container_within_the_probes_own_grace() {
    let mut life = Life::new(
        json!({"terminationGracePeriodSeconds": 30, "containers": [{"name": "a", "image": "x",
        "livenessProbe": probe(json!({"terminationGracePeriodSeconds": 5}))}]}),
    );
    life.boot();
    life.started(0);
    let failed = life.probed(0, Kind::Liveness, false);
    let notes = life.notes(failed.clone());
    assert_eq!(notes[0].reason, "Killing");
    assert_eq!(notes[0].message, "Container a failed liveness probe, will be restarted");
    // Said twice, done once; the probes of an instance that is gone say nothing.
    assert_eq!(life.on(failed), []);
    assert_eq!(
        life.on(Event::Probed {
            id: "old".into(),
            kind: Kind::Liveness,
            healthy: false
        }),
        []
    );
    assert_eq!(life.pass(4), []);
    assert_eq!(life.pass(1), [signal(0, "id1", true)]);
    assert_eq!(life.exit(0, 137), [start(0, "id2", 1, Some("id1"))]);
    assert_eq!(life.phase(), "Running");
}

#[test]
fn a_container_that_a_probe_has_failed_runs_again_though_it_ends_well() {
    for (policy, again) in [("OnFailure", true), ("Never", false)] {
        let mut life =
            Life::new(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "x", "livenessProbe": probe(json!({}))}]}));
        life.boot();
        life.started(0);
        let failed = life.probed(0, Kind::Liveness, false);
        life.on(failed);
        let then = life.exit(0, 0);
        assert_eq!(then.contains(&start(0, "id2", 1, Some("id1"))), again, "{policy}: {then:?}");
    }
}

#[test]
fn a_failed_startup_probe_ends_a_pod_that_never_restarts() {
    let mut life =
        Life::new(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "x", "startupProbe": probe(json!({}))}]}));
    life.boot();
    life.started(0);
    let notes = life.notes(life.probed(0, Kind::Startup, false));
    assert_eq!(notes[0].message, "Container a failed startup probe");
    assert_eq!(life.exit(0, 137), [Action::Release]);
    assert_eq!(life.phase(), "Failed");
}

#[test]
fn a_probe_does_not_end_what_is_being_deleted() {
    let mut life = Life::new(json!({"containers": [{"name": "a", "image": "x", "livenessProbe": probe(json!({}))}]}));
    life.boot();
    life.started(0);
    life.delete(30);
    assert_eq!(life.notes(life.probed(0, Kind::Liveness, false)), []);
}

fn with_hooks(hooks: Value) -> Life {
    Life::new(
        json!({"terminationGracePeriodSeconds": 30, "containers": [{"name": "a", "image": "x", "lifecycle": hooks},
        {"name": "b", "image": "x"}]}),
    )
}

#[test]
fn nobody_hears_of_a_container_whose_hook_is_not_done_and_the_next_one_waits() {
    let mut life = with_hooks(json!({"postStart": {"exec": {"command": ["x"]}}}));
    assert_eq!(life.boot(), [start(0, "id1", 0, None)]);
    assert_eq!(life.started(0), []);
    assert_eq!(life.reason(0), "ContainerCreating");
    assert_eq!(life.container("a").started, Some(false));
    assert_eq!(life.on(life.post_started(0, Ok(()))), [start(1, "id2", 0, None)]);
    life.started(1);
    assert_eq!((life.phase().as_str(), life.condition("Ready").0.as_str()), ("Running", "True"));
}

#[test]
fn a_container_whose_post_start_hook_fails_is_ended_and_started_again() {
    let mut life = with_hooks(json!({"postStart": {"exec": {"command": ["x"]}}}));
    life.boot();
    life.started(0);
    let failed = life.post_started(0, Err("words".into()));
    let mut twin = Life {
        desired: life.desired.clone(),
        state: life.state.clone(),
        now: life.now,
        ids: 1,
    };
    // The next container does not wait for its end.
    assert_eq!(life.on(failed.clone()), [signal(0, "id1", false), start(1, "id2", 0, None)]);
    let actions = step(&mut twin.state, &twin.desired, failed, twin.now, &mut || "id2".into());
    let told: Vec<_> = actions
        .iter()
        .filter_map(|a| {
            if let Action::Tell(n) = a {
                Some((n.reason, n.message.as_str()))
            } else {
                None
            }
        })
        .collect();
    assert_eq!(
        told,
        [("FailedPostStartHook", "PostStartHook failed"), ("Killing", "FailedPostStartHook")]
    );
    assert_eq!(life.reason(0), "PostStartHookError");
    life.started(1);
    assert_eq!(life.exit(0, 143), [start(0, "id3", 1, Some("id1"))]);
    life.started(0);
    assert_eq!(life.reason(0), "PostStartHookError");
    life.on(life.post_started(0, Ok(())));
    assert_eq!(life.reason(0), "");
}

#[test]
fn a_pre_stop_hook_comes_before_the_signal_and_leaves_two_seconds_at_least() {
    let mut life = with_hooks(json!({"preStop": {"exec": {"command": ["x"]}}}));
    life.boot();
    life.started(0);
    life.started(1);
    assert_eq!(life.delete(30), [signal(1, "id2", false)]);
    life.exit(1, 0);
    assert_eq!(life.pass(10), []);
    let done = |well| Event::PreStopped { id: "id1".into(), well };
    let mut twin = Life {
        desired: life.desired.clone(),
        state: life.state.clone(),
        now: life.now,
        ids: 2,
    };
    assert_eq!(twin.notes(done(false))[0].reason, "FailedPreStopHook");
    assert_eq!(life.on(done(true)), [signal(0, "id1", false)]);
    assert_eq!(life.pass(19), []);
    assert_eq!(life.pass(1), [signal(0, "id1", true)]);

    let mut life = with_hooks(json!({"preStop": {"exec": {"command": ["x"]}}}));
    life.boot();
    life.started(0);
    life.started(1);
    life.delete(3);
    life.exit(1, 0);
    // It hangs: its time is over, and the container is asked all the same.
    assert_eq!(life.pass(3), [signal(0, "id1", false)]);
    assert_eq!(life.on(done(true)), []);
    assert_eq!(life.pass(1), []);
    assert_eq!(life.pass(1), [signal(0, "id1", true)]);
    // A deletion without grace asks no hook.
    let mut life = with_hooks(json!({"preStop": {"exec": {"command": ["x"]}}}));
    life.boot();
    life.started(0);
    assert_eq!(life.delete(0), [signal(0, "id1", true)]);
}

/// Two sidecars, the first with a startup probe, around a plain init container; then a main container.
fn with_sidecars(policy: &str) -> Life {
    Life::new(json!({"restartPolicy": policy, "initContainers": [
        {"name": "s", "image": "x", "restartPolicy": "Always", "startupProbe": probe(json!({}))},
        {"name": "i", "image": "x"},
        {"name": "t", "image": "x", "restartPolicy": "Always"}], "containers": [{"name": "a", "image": "x"}]}))
}

/// To where all of them run.
fn up(life: &mut Life) {
    assert_eq!(life.boot(), [start(0, "id1", 0, None)]);
    assert_eq!(life.started(0), []);
    assert_eq!(life.on(life.probed(0, Kind::Startup, true)), [start(1, "id2", 0, None)]);
    life.started(1);
    assert_eq!(life.condition("Initialized").1, "containers with incomplete status: [i t]");
    assert_eq!(life.exit(1, 0), [start(2, "id3", 0, None)]);
    assert_eq!(life.phase(), "Pending");
    assert_eq!(life.started(2), [start(3, "id4", 0, None)]);
    life.started(3);
    assert_eq!(
        (life.phase().as_str(), life.condition("Initialized").0.as_str()),
        ("Running", "True")
    );
}

#[test]
fn sidecars_start_in_order_and_end_in_reverse_after_the_main_containers() {
    let mut life = with_sidecars("Never");
    up(&mut life);
    assert_eq!(life.condition("Ready").0, "True");
    // The work is done: its sidecars go, and what they exit with does not count.
    assert_eq!(life.exit(3, 0), [signal(2, "id3", false)]);
    assert_eq!(life.phase(), "Running");
    assert_eq!(life.exit(2, 143), [signal(0, "id1", false)]);
    assert_eq!(life.exit(0, 143), [Action::Release]);
    assert_eq!(life.phase(), "Succeeded");
}

#[test]
fn a_sidecar_waits_for_its_turn_no_longer_than_the_grace() {
    let mut life = with_sidecars("Always");
    up(&mut life);
    assert_eq!(life.delete(10), [signal(3, "id4", false)]);
    assert_eq!(life.pass(9), []);
    assert_eq!(
        life.pass(1),
        [signal(0, "id1", false), signal(2, "id3", false), signal(3, "id4", true)]
    );
    assert_eq!(life.pass(1), []);
    let killed = life.pass(1);
    assert!(
        killed.contains(&signal(0, "id1", true)) && killed.contains(&signal(2, "id3", true)),
        "{killed:?}"
    );
}

#[test]
fn a_sidecar_is_always_restarted_and_counts_for_readiness_only() {
    let mut life = with_sidecars("Never");
    up(&mut life);
    assert_eq!(life.exit(0, 0), [start(0, "id5", 1, Some("id1"))]);
    life.started(0);
    assert_eq!(
        (life.phase().as_str(), life.condition("Initialized").0.as_str()),
        ("Running", "True")
    );
    assert_eq!(life.condition("Ready").1, "containers with unready status: [s]");
    let notes = life.notes(life.probed(0, Kind::Startup, false));
    assert_eq!(notes[0].message, "Init container s failed startup probe");
}

#[test]
fn a_new_machine_runs_init_containers_and_sidecars_again() {
    let mut life = with_sidecars("Always");
    up(&mut life);
    life.on(Event::MachineDied("x".into()));
    assert_eq!(life.pass(2), [Action::StartMachine]);
    assert_eq!(
        life.on(Event::MachineStarted(Ok(Room::default()))),
        [start(0, "id5", 1, Some("id1"))]
    );
    life.started(0);
    assert_eq!(life.on(life.probed(0, Kind::Startup, true)), [start(1, "id6", 1, Some("id2"))]);
}

#[test]
fn a_containers_own_policy_and_rules_win_over_the_pods() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let mut life = Life::new(json!({"restartPolicy": "Never", "containers": [
        {"name": "a", "image": "x", "restartPolicy": "Never", "restartPolicyRules": rules}, {"name": "b", "image": "x", "restartPolicy": "OnFailure"}]}));
    life.boot();
    life.started(0);
    life.started(1);
    assert_eq!(life.exit(0, 42), [start(0, "id3", 1, Some("id1"))]);
    life.started(0);
    assert_eq!(life.exit(0, 41), []);
    assert_eq!(life.exit(1, 1), [start(1, "id4", 1, Some("id2"))]);
    life.started(1);
    assert_eq!(life.exit(1, 0), [Action::Release]);
    assert_eq!(life.phase(), "Failed");
}

proptest! {
    /// Whatever probes and hooks find in whatever order: no panic, and a deleted pod comes to its end.
    #[test]
    fn every_pod_with_probes_hooks_and_sidecars_comes_to_its_end(choices in proptest::collection::vec((0u8..9, 0usize..3, any::<bool>()), 0..80)) {
        let hooks = json!({"postStart": {"sleep": {"seconds": 1}}, "preStop": {"sleep": {"seconds": 1}}});
        let mut life = Life::new(json!({"initContainers": [{"name": "s", "image": "x", "restartPolicy": "Always", "startupProbe": probe(json!({}))}],
            "containers": [{"name": "a", "image": "x", "lifecycle": hooks, "livenessProbe": probe(json!({}))}, {"name": "b", "image": "x"}]}));
        let mut open: Vec<Action> = life.on(Event::Tick);
        for (choice, which, well) in choices {
            let id = life.state.containers[which].slot.id().unwrap_or_default().to_owned();
            let more = match choice {
                0 => life.pass(5),
                1 if life.state.containers[which].slot.is_alive() => life.exit(which, i32::from(!well)),
                2 => life.on(Event::Probed { id, kind: Kind::Startup, healthy: well }),
                3 => life.on(Event::Probed { id, kind: Kind::Liveness, healthy: well }),
                4 => life.on(Event::PostStarted { id, result: if well { Ok(()) } else { Err("x".into()) } }),
                5 => life.on(Event::PreStopped { id, well }),
                6 if well => life.on(Event::MachineDied("x".into())),
                _ if !open.is_empty() => { let action = open.remove(which % open.len()); answer(&mut life, action, true) }
                _ => life.pass(1),
            };
            open.extend(more);
            life.status();
        }
        open.extend(life.delete(5));
        for _ in 0..200 {
            if matches!(open.last(), Some(Action::Forget)) {
                return Ok(());
            }
            let more = if open.is_empty() { life.pass(3) } else { let action = open.remove(0); answer(&mut life, action, true) };
            open.extend(more);
        }
        prop_assert!(false, "it never ended: {:?}", life.state);
    }
}

#[test]
fn readiness_gates_are_read_from_the_newest_object_and_never_written_over() {
    let mut life = Life::simple("Always", 1);
    life.boot();
    life.started(0);
    let first = life.status();
    let gated = |condition: Value| {
        let pod = json!({"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "a", "image": "i"}],
            "readinessGates": [{"conditionType": "x/one"}, {"conditionType": "x/two"}]}, "status": {"conditions": [condition]}});
        DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0
    };
    life.desired = gated(json!({"type": "x/one", "status": "False"}));
    let before = status(&life.desired, &life.state, &[], Some(&first), life.now);
    let ready = before.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_deref()),
        ("False", Some("ReadinessGatesNotReady"))
    );
    assert_eq!(
        ready.message.as_deref(),
        Some(
            "the status of pod readiness gate \"x/one\" is not \"True\", but False, \
             corresponding condition of pod readiness gate \"x/two\" does not exist."
        )
    );
    life.desired = gated(json!({"type": "x/one", "status": "True"}));
    let after = status(&life.desired, &life.state, &[], Some(&before), life.now);
    let own = after.conditions.iter().flatten().find(|c| c.type_ == "x/one").unwrap();
    assert_eq!(own.status, "True");
}
