//! Towards running: images, machine, init containers, containers, restarts.

use k8s_openapi::api::core::v1::PodStatus;

use super::*;

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
fn addresses_are_told_with_the_machine_and_an_image_with_what_runs_of_it() {
    let mut life = Life::simple("Always", 1);
    let mut told: Option<PodStatus> = None;
    let mut tell = |life: &Life| {
        let next = status(&life.desired, &life.state, &[], told.as_ref(), life.now);
        let news = told.as_ref() != Some(&next);
        told = Some(next.clone());
        (news, next)
    };
    life.on(Event::Tick);
    assert!(tell(&life).0);
    life.pulled(0, Ok(facts()));
    life.on(Event::Addressed(vec!["10.0.0.2".into()]));
    assert!(!tell(&life).0, "nothing that is told before there is a machine");
    life.on(Event::MachineStarted(Ok(Room::default())));
    let (news, ready) = tell(&life);
    assert!(news);
    assert_eq!(ready.pod_ip.as_deref(), Some("10.0.0.2"));
    assert_eq!(ready.container_statuses.unwrap()[0].image_id, "");
    life.started(0);
    assert_eq!(tell(&life).1.container_statuses.unwrap()[0].image_id, facts().digest);
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
    life.pass(600);
    assert_eq!(life.exit(0, 1), [start(0, "id5", 4, Some("id4"))]);
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
fn a_failed_pull_is_shown_backs_off_and_is_tried_again_without_end() {
    let mut life = Life::simple("Always", 1);
    life.on(Event::Tick);
    let failure = || PullFailure {
        reason: "ErrImagePull",
        message: "no such image".into(),
    };
    for wait in [10, 20, 40, 80, 160, 300, 300] {
        assert_eq!(life.pulled(0, Err(failure())), []);
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
    life.pulled(0, Ok(facts()));
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
