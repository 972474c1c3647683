//! Images that are changed while their pod lives, step by step, without a machine.

use super::*;
use crate::{events::Note, state::Work};

/// The image of another name.
fn other() -> ImageFacts {
    ImageFacts {
        reference: "other".into(),
        digest: "other@sha256:3".into(),
        id: "sha256:4".into(),
        size: 1,
    }
}

impl Life {
    /// A pod of these containers, each of image `i`, that all run.
    fn all_running(spec: Value) -> Self {
        let mut life = Self::new(spec);
        life.boot();
        while let Some(next) = (0..life.state.containers.len()).find(|i| matches!(life.state.containers[*i].slot, Slot::Starting { .. })) {
            life.started(next);
        }
        life
    }

    /// The API server has another image for a container; what there is to do, with the events in words.
    fn change(&mut self, container: usize, image: &str) -> (Vec<Action>, Vec<String>) {
        self.desired.containers[container].image = image.into();
        let mut ids = || "new".to_owned();
        let all = step(&mut self.state, &self.desired, Event::Tick, self.now, &mut ids);
        let words = |a: &Action| {
            if let Action::Tell(Note { message, .. }) = a {
                Some(message.clone())
            } else {
                None
            }
        };
        let told = all.iter().filter_map(words).collect();
        (all.into_iter().filter(|a| !matches!(a, Action::Tell(_))).collect(), told)
    }
}

fn term(container: usize, id: &str) -> Action {
    Action::Signal {
        id: id.into(),
        kill: false,
        container,
    }
}

#[test]
fn a_container_whose_image_is_changed_ends_and_runs_again_of_the_other_one() {
    let mut life = Life::all_running(json!({"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}));
    let (actions, told) = life.change(0, "j");
    assert_eq!(actions, [term(0, "id1")]);
    assert_eq!(told, ["Container a definition changed, will be restarted"]);
    // Until it has ended it is what it was.
    let shown = life.container("a");
    assert_eq!((shown.image.as_str(), shown.image_id.as_str()), ("i", "r@sha256:1"));
    assert_eq!(life.on(Event::Tick), [], "once");
    assert_eq!(life.exit(0, 143), [Action::Pull(0)]);
    assert_eq!(life.phase(), "Running");
    assert_eq!(life.pulled(0, Ok(other())), [start(0, "id3", 1, Some("id1"))]);
    life.started(0);
    let shown = life.container("a");
    assert_eq!(
        (shown.image.as_str(), shown.image_id.as_str(), shown.restart_count),
        ("j", "other@sha256:3", 1)
    );
    assert_eq!(life.container("b").restart_count, 0, "the other one went on");
    // What the machine was made with is what it was.
    assert_eq!(life.state.device_images(), ["sha256:2"]);
    assert_eq!(life.state.needed_images(true), ["sha256:4", "sha256:2"]);
}

#[test]
fn a_changed_container_runs_again_whatever_its_policy_says() {
    let mut life = Life::all_running(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]}));
    assert_eq!(life.change(0, "j").0, [term(0, "id1")]);
    assert_eq!(life.exit(0, 0), [Action::Pull(0)]);
    assert_eq!(life.pulled(0, Ok(other())).len(), 1);
    life.started(0);
    // Its own end counts again.
    assert_eq!(life.exit(0, 0), [Action::Release]);
    assert_eq!(life.phase(), "Succeeded");
}

#[test]
fn one_that_has_ended_for_good_stays_as_it_is() {
    let mut life =
        Life::all_running(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}));
    life.exit(0, 0);
    assert_eq!(life.change(0, "j"), (vec![], vec![]));
    assert_eq!(life.container("a").image, "i");
}

#[test]
fn an_image_that_cannot_be_had_is_said_disturbs_no_other_and_is_mended_by_another_change() {
    let mut life = Life::all_running(json!({"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}));
    life.change(0, "none");
    life.exit(0, 143);
    let failure = PullFailure {
        reason: "ErrImagePull",
        message: "no such image".into(),
    };
    assert_eq!(life.pulled(0, Err(failure)), []);
    assert_eq!(life.reason(0), "ErrImagePull");
    life.pass(2);
    assert_eq!(
        (life.reason(0).as_str(), life.container("a").image.as_str()),
        ("ImagePullBackOff", "none")
    );
    // The other one restarts as ever.
    assert_eq!(life.exit(1, 1), [start(1, "id3", 1, Some("id2"))]);
    assert_eq!(life.change(0, "j").0, [Action::Pull(0)], "at once");
    assert_eq!(life.pulled(0, Ok(other())), [start(0, "id4", 1, Some("id1"))]);
}

#[test]
fn a_changed_image_ends_the_wait_after_crashes_and_the_next_one_is_the_first_again() {
    let mut life = Life::all_running(json!({"containers": [{"name": "a", "image": "i"}]}));
    for wait in [0, 10, 20] {
        life.exit(0, 1);
        life.pass(wait);
        life.started(0);
    }
    life.exit(0, 1);
    assert_eq!(life.reason(0), "CrashLoopBackOff");
    assert_eq!(life.change(0, "j").0, [Action::Pull(0)]);
    assert_eq!(life.pulled(0, Ok(other())).len(), 1);
    life.started(0);
    life.exit(0, 1);
    assert_eq!(life.pass(9), []);
    assert_eq!(life.pass(1).len(), 1);
    // Also where it is changed while it runs.
    life.started(0);
    life.change(0, "k");
    life.exit(0, 1);
    assert_eq!(life.pulled(0, Ok(other())).len(), 1);
    life.started(0);
    life.exit(0, 1);
    assert_eq!(life.pass(9), []);
    assert_eq!(life.pass(1).len(), 1);
}

#[test]
fn a_pull_of_an_image_that_is_no_longer_wanted_counts_for_nothing() {
    let mut life = Life::simple("Always", 1);
    assert_eq!(life.on(Event::Tick), [Action::Pull(0)]);
    assert_eq!(life.change(0, "j").0, [], "one pull at a time");
    let late = Event::Pulled {
        container: 0,
        image: "i".into(),
        result: Ok(facts()),
    };
    assert_eq!(life.on(late), [Action::Pull(0)]);
    assert_eq!(life.pulled(0, Ok(other())), [Action::StartMachine]);
    assert_eq!(life.state.machine_images, ["sha256:4"]);
}

#[test]
fn a_sidecar_restarts_in_the_kubelets_words_and_an_init_container_runs_to_its_end() {
    let sidecar = json!({"name": "s", "image": "i", "restartPolicy": "Always"});
    let mut life =
        Life::all_running(json!({"restartPolicy": "Never", "initContainers": [sidecar], "containers": [{"name": "a", "image": "i"}]}));
    let (actions, told) = life.change(0, "j");
    assert_eq!(
        (actions, told),
        (vec![term(0, "id1")], vec!["Init container s definition changed".to_owned()])
    );
    assert_eq!(life.exit(0, 0), [Action::Pull(0)]);
    assert_eq!(life.pulled(0, Ok(other())), [start(0, "id3", 1, Some("id1"))]);

    let mut life = Life::new(json!({"initContainers": [{"name": "i", "image": "i"}], "containers": [{"name": "a", "image": "i"}]}));
    life.boot();
    life.started(0);
    assert_eq!(life.change(0, "j"), (vec![], vec![]));
    assert_eq!(life.exit(0, 1), [Action::Pull(0)], "it failed, and runs again of the other image");
    life.pulled(0, Ok(other()));
    life.started(0);
    assert_eq!(life.exit(0, 0), [start(1, "id3", 0, None)]);
}

#[test]
fn a_hook_before_the_end_has_its_time_within_the_grace() {
    let container = json!({"name": "a", "image": "i", "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}});
    let mut life = Life::all_running(json!({"terminationGracePeriodSeconds": 20, "containers": [container]}));
    assert_eq!(life.change(0, "j").0, []);
    let hook = Event::PreStopped {
        id: "id1".into(),
        well: true,
    };
    assert_eq!(life.on(hook), [term(0, "id1")]);
    let kill = Action::Signal {
        id: "id1".into(),
        kill: true,
        container: 0,
    };
    assert_eq!(life.pass(20), [kill]);
}

#[test]
fn a_daemon_that_dies_in_between_goes_on_where_it_was() {
    let mut life = Life::all_running(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]}));
    life.change(0, "j");
    let again = |life: &mut Life| {
        let record = serde_json::to_vec(&life.state).unwrap();
        life.state = serde_json::from_slice(&record).unwrap();
        assert!(life.state.busy.is_empty());
    };
    again(&mut life);
    assert_eq!(life.exit(0, 143), [Action::Pull(0)]);
    again(&mut life);
    assert_eq!(life.on(Event::Tick), [Action::Pull(0)], "the pull that was under way");
    life.pulled(0, Ok(other()));
    // The machine too may go meanwhile.
    life.state.busy.remove(&Work::Start(0));
    life.on(Event::MachineDied("x".into()));
    assert_eq!(life.pass(2), [Action::StartMachine]);
    assert_eq!(life.state.device_images(), ["sha256:4"]);
}

#[test]
fn a_record_that_did_not_follow_images_begins_with_what_the_pod_names() {
    let mut life = Life::all_running(json!({"containers": [{"name": "a", "image": "i"}]}));
    let mut record = serde_json::to_value(&life.state).unwrap();
    record.as_object_mut().unwrap().remove("machine_images");
    record["containers"][0].as_object_mut().unwrap().remove("image_name");
    life.state = serde_json::from_value(record).unwrap();
    assert_eq!(life.on(Event::Tick), []);
    assert_eq!((life.container("a").image.as_str(), life.state.machine_images.len()), ("i", 1));
    assert_eq!(life.change(0, "j").0, [term(0, "id1")]);
}
