//! Pods that start anew as a whole.

use super::*;

/// An init container, one that restarts all by exit code 42, one beside it that has a hook.
fn life() -> Life {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [7]}},
        {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [7, 42]}}]);
    let hook = json!({"preStop": {"exec": {"command": ["sleep", "9"]}}});
    Life::new(
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "i"}], "containers": [
        {"name": "a", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules}, {"name": "b", "image": "i", "lifecycle": hook}]}),
    )
}

fn running() -> Life {
    let mut life = life();
    life.boot();
    life.started(0);
    life.exit(0, 0);
    life.started(1);
    life.started(2);
    life.pass(60);
    life
}

fn condition(life: &Life, kind: &str) -> Option<String> {
    let all = status(&life.desired, &life.state, &[], None, life.now).conditions.unwrap();
    all.into_iter().find(|c| c.type_ == kind).map(|c| c.status)
}

#[test]
fn the_exit_that_a_rule_names_kills_the_others_and_starts_everything_anew() {
    let mut life = running();
    assert_eq!(condition(&life, "AllContainersRestarting").as_deref(), Some("False"));
    let killed = |id: &str| Action::Signal {
        id: id.into(),
        kill: true,
        container: 2,
    };
    assert_eq!(life.exit(1, 42), [killed("id3")], "at once, and without its hook");
    assert_eq!(condition(&life, "AllContainersRestarting").as_deref(), Some("True"));
    assert_eq!(life.pass(1), [], "nothing starts before all have ended");
    assert_eq!(life.pass(1), [killed("id3")], "one that is still there is killed again");
    assert_eq!(
        life.exit(2, 137),
        [start(0, "id4", 1, Some("id1"))],
        "from the first init container on"
    );
    let all = status(&life.desired, &life.state, &[], None, life.now);
    assert_eq!(all.phase.as_deref(), Some("Running"));
    for c in all.container_statuses.unwrap() {
        let last = c.last_state.unwrap().terminated.unwrap();
        assert_eq!(
            (c.restart_count, last.exit_code, last.reason.as_deref()),
            (1, 137, Some("RestartingAllContainers"))
        );
        let waiting = c.state.unwrap().waiting.unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("RestartingAllContainers"));
        assert_eq!(
            waiting.message.as_deref(),
            Some("The container is removed because RestartAllContainers in place")
        );
    }
    assert_eq!(condition(&life, "AllContainersRestarting").as_deref(), Some("False"));
    assert_eq!(
        condition(&life, "Initialized").as_deref(),
        Some("False"),
        "nothing is known of before"
    );
    life.started(0);
    assert_eq!(life.exit(0, 0), [start(1, "id5", 1, Some("id2")), start(2, "id6", 1, Some("id3"))]);
}

#[test]
fn the_first_rule_that_names_a_code_counts() {
    let mut life = running();
    assert_eq!(life.exit(1, 7), [start(1, "id4", 1, Some("id2"))], "this one alone");
    let mut life = running();
    assert_eq!(life.exit(1, 1), [], "it has ended for good");
    assert_eq!(life.exit(2, 0), [Action::Release]);
    assert_eq!(life.phase(), "Failed");
}

#[test]
fn a_container_that_does_it_again_waits_as_one_that_crashes() {
    let mut life = running();
    life.exit(1, 42);
    life.exit(2, 137);
    life.started(0);
    life.exit(0, 0);
    life.started(1);
    life.started(2);
    life.exit(1, 42);
    life.exit(2, 137);
    life.started(0);
    assert_eq!(life.exit(0, 0), [start(2, "id8", 2, Some("id6"))], "the others do not wait");
    assert_eq!(life.pass(10), [start(1, "id9", 2, Some("id5"))]);
    life.started(1);
    life.started(2);
    life.pass(700);
    life.exit(1, 42);
    life.exit(2, 137);
    life.started(0);
    let all = [start(1, "id11", 3, Some("id9")), start(2, "id12", 3, Some("id8"))];
    assert_eq!(life.exit(0, 0), all, "one that has run for ten minutes does not wait");
}

#[test]
fn a_pod_that_is_deleted_meanwhile_ends() {
    let mut life = running();
    life.exit(1, 42);
    life.delete(30);
    assert_eq!(life.exit(2, 137), [Action::Release]);
}

#[test]
fn who_was_initialized_stays_so() {
    let mut life = running();
    let before = status(&life.desired, &life.state, &[], None, life.now);
    life.exit(1, 42);
    life.exit(2, 137);
    let after = status(&life.desired, &life.state, &[], Some(&before), life.now);
    let initialized = after.conditions.unwrap().into_iter().find(|c| c.type_ == "Initialized").unwrap();
    assert_eq!(initialized.status, "True");
}

#[test]
fn an_init_container_that_fails_can_start_all_anew() {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "NotIn", "values": [0]}}]);
    let mut life = Life::new(
        json!({"restartPolicy": "Never", "containers": [{"name": "m", "image": "i"}], "initContainers": [{"name": "i", "image": "i"},
        {"name": "j", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules}]}),
    );
    life.boot();
    life.started(0);
    life.exit(0, 0);
    life.started(1);
    life.pass(1);
    assert_eq!(life.exit(1, 5), [start(0, "id3", 1, Some("id1"))]);
    assert_eq!(life.phase(), "Pending");
}
