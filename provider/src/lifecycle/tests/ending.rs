//! Deletion, machines that die, verdicts.

use k8s_openapi::api::core::v1::{PodCondition, PodStatus};

use super::*;
use crate::eviction::Eviction;

/// To the only container of a simple pod.
fn signal(kill: bool) -> Action {
    Action::Signal {
        id: "id1".into(),
        kill,
        container: 0,
    }
}

#[test]
fn a_deleted_pod_gets_its_signal_then_its_kill_then_its_end() {
    let mut life = Life::simple("Always", 1);
    life.boot();
    life.started(0);
    assert_eq!(life.delete(30), [signal(false)]);
    assert_eq!(life.pass(29), []);
    assert_eq!(life.pass(1), [signal(true)]);
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
    life.pulled(0, result);
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
    assert_eq!(life.pass(1), [signal(true)]);
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
    assert_eq!(life.pulled(0, Ok(facts())), [Action::StartMachine]);
    assert_eq!(life.delete(30), []);
    assert_eq!(life.on(Event::MachineStarted(Ok(Room::default()))), [Action::Release]);
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
    assert_eq!(
        life.on(Event::MachineStarted(Ok(Room::default()))),
        [start(0, "id3", 1, Some("id1"))]
    );
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
    life.state = PodState::new(&life.desired, Some(Verdict::new("OutOfcpu", "m")), life.now);
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
    assert_eq!(life.pass(1), [signal(false)]);
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
    let eviction = |message: &str| Event::Evicted(Eviction::of_limit(message.into()));
    assert_eq!(life.on(eviction("too much")), [signal(false)]);
    assert_eq!(life.pass(1), [signal(true)]);
    assert_eq!(life.exit(0, 137), [Action::Release]);
    assert_eq!(life.phase(), "Failed");
    let told = status(&life.desired, &life.state, &[], None, life.now);
    assert_eq!(
        (told.reason.as_deref(), told.message.as_deref()),
        (Some("Evicted"), Some("too much"))
    );
    // It was decided once.
    life.on(eviction("another"));
    assert_eq!(life.state.verdict.as_ref().map(|v| v.message.as_str()), Some("too much"));
    assert_eq!(disruption(&told), None, "it was the pod's own doing");
}

#[test]
fn a_pod_that_the_node_evicts_has_its_grace_and_is_told_that_it_was_disrupted() {
    let mut life = Life::simple("Always", 1);
    life.boot();
    life.started(0);
    let eviction = Eviction {
        reason: "Evicted",
        message: "The node was low".into(),
        grace: 5,
        told: true,
        disrupted: true,
    };
    assert_eq!(life.on(Event::Evicted(eviction)), [signal(false)]);
    assert_eq!(life.pass(4), []);
    assert_eq!(life.pass(1), [signal(true)]);
    life.exit(0, 137);
    let mut told = status(&life.desired, &life.state, &[], None, life.now);
    let expected = ("True", Some("TerminationByKubelet"), Some("The node was low"), Some(1));
    let since = disruption(&told).unwrap().last_transition_time.clone();
    for _ in 0..2 {
        let found = disruption(&told).unwrap();
        let said = (
            &*found.status,
            found.reason.as_deref(),
            found.message.as_deref(),
            found.observed_generation,
        );
        assert_eq!((said, &found.last_transition_time), (expected, &since));
        // The API server has it by now, and sends it back.
        let mut pod = (*life.desired.pod).clone();
        pod.status = Some(told.clone());
        life.desired = DesiredPod::read(Arc::new(pod)).0;
        life.pass(10);
        told = status(&life.desired, &life.state, &[], Some(&told), life.now);
    }
}

/// The condition that a pod was ended by somebody else, which is there once at most.
fn disruption(status: &PodStatus) -> Option<&PodCondition> {
    let all = status.conditions.as_ref().unwrap().iter();
    let found: Vec<_> = all.filter(|condition| condition.type_ == "DisruptionTarget").collect();
    assert!(found.len() < 2, "{found:?}");
    found.first().copied()
}
