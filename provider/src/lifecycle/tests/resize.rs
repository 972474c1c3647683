//! In-place resizes, step by step, without a machine.

use k8s_openapi::api::core::v1::PodCondition;

use super::*;
use crate::{
    resize::judge::NotNow,
    state::{Allocation, Work},
};

impl Life {
    /// One container of so much of a processor, with more of its fields, that runs.
    fn of_cpu(cpu: &str, more: Value) -> Self {
        let mut container =
            json!({"name": "a", "image": "i", "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}, "limits": {"cpu": cpu}}});
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut life = Self::new(json!({"restartPolicy": "Always", "containers": [container]}));
        life.boot();
        life.started(0);
        life
    }

    /// The same with another amount; not given yet.
    fn ask(&mut self, cpu: &str) -> Vec<Allocation> {
        let of = |amount: u64| Allocation {
            requests: [amount, 64 << 20, 0],
            limits: [amount, 0, 0],
        };
        vec![of(cpu.parse().unwrap())]
    }

    /// As the task does it: what is asked for is given, and the pod wants it.
    fn give(&mut self, cpu: &str) -> Vec<Action> {
        let asked = self.ask(cpu);
        self.desired.give(&asked);
        self.on(Event::Judged(Ok(asked)))
    }

    fn told(&self, kind: &str) -> Option<PodCondition> {
        self.status().conditions.into_iter().flatten().find(|c| c.type_ == kind)
    }

    fn cpu_in_force(&self) -> String {
        self.container("a").resources.unwrap().limits.unwrap()["cpu"].0.clone()
    }

    fn cpu_allocated(&self) -> String {
        self.container("a").allocated_resources.unwrap()["cpu"].0.clone()
    }
}

#[test]
fn what_is_given_is_allocated_at_once_and_in_force_once_the_guest_has_it() {
    let mut life = Life::of_cpu("500m", json!({}));
    assert_eq!((life.cpu_allocated(), life.cpu_in_force()), ("500m".into(), "500m".into()));
    assert_eq!(life.give("2000"), [Action::Resize]);
    assert_eq!((life.cpu_allocated(), life.cpu_in_force()), ("2".into(), "500m".into()));
    let progress = life.told("PodResizeInProgress").unwrap();
    assert_eq!((progress.status.as_str(), progress.observed_generation), ("True", Some(1)));
    assert_eq!(life.on(Event::Tick), [], "one at a time");
    let given = life.ask("2000");
    assert_eq!(life.on(Event::Resized(Ok(given))), []);
    assert_eq!((life.cpu_in_force(), life.told("PodResizeInProgress")), ("2".into(), None));
}

#[test]
fn a_resize_that_fails_says_why_and_is_tried_again() {
    let mut life = Life::of_cpu("500m", json!({}));
    life.give("1000");
    assert_eq!(life.on(Event::Resized(Err("no room".into()))), []);
    let progress = life.told("PodResizeInProgress").unwrap();
    assert_eq!(
        (progress.reason.as_deref(), progress.message.as_deref()),
        (Some("Error"), Some("no room"))
    );
    let again = next_tick(&life.state, &life.desired, life.now).unwrap();
    life.now = again;
    assert_eq!(life.on(Event::Tick), [Action::Resize]);
    let given = life.ask("1000");
    life.on(Event::Resized(Ok(given)));
    assert_eq!(life.told("PodResizeInProgress"), None);
}

#[test]
fn one_more_wish_during_a_resize_is_brought_into_force_after_it() {
    let mut life = Life::of_cpu("500m", json!({}));
    life.give("1000");
    assert_eq!(life.give("2000"), []);
    let first = life.ask("1000");
    assert_eq!(life.on(Event::Resized(Ok(first))), [Action::Resize]);
    assert!(life.told("PodResizeInProgress").is_some());
    let second = life.ask("2000");
    life.on(Event::Resized(Ok(second)));
    assert_eq!((life.cpu_in_force(), life.told("PodResizeInProgress")), ("2".into(), None));
}

#[test]
fn what_cannot_be_given_is_pending_with_its_reason_and_changes_nothing() {
    let mut life = Life::of_cpu("500m", json!({}));
    assert_eq!(life.on(Event::Judged(Err(NotNow::Infeasible("too much".into())))), []);
    let told = life.told("PodResizePending").unwrap();
    assert_eq!(
        (told.reason.as_deref(), told.message.as_deref()),
        (Some("Infeasible"), Some("too much"))
    );
    assert_eq!((life.cpu_allocated(), life.cpu_in_force()), ("500m".into(), "500m".into()));
    let soon = life.now + SignedDuration::from_secs(5);
    life.on(Event::Judged(Err(NotNow::Deferred("too much".into()))));
    assert_eq!(life.told("PodResizePending").unwrap().reason.as_deref(), Some("Deferred"));
    assert_eq!(next_tick(&life.state, &life.desired, life.now), Some(soon));
    assert_eq!(life.give("600"), [Action::Resize]);
    assert_eq!(life.told("PodResizePending"), None);
}

#[test]
fn a_container_that_restarts_for_other_amounts_ends_and_runs_with_them_even_if_it_ends_well() {
    let policy = json!({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}], "restartPolicy": "OnFailure"});
    let mut life = Life::of_cpu("500m", policy);
    let actions = life.give("1000");
    assert!(
        matches!(actions[..], [Action::Signal { kill: false, .. }, Action::Resize]),
        "{actions:?}"
    );
    let again = life.exit(0, 0);
    assert!(
        matches!(again[..], [Action::StartContainer { restarts: 1, .. }]),
        "a resize restarts it although its policy is OnFailure: {again:?}"
    );
}

#[test]
fn a_machine_that_is_made_anew_is_made_for_what_is_allocated() {
    let mut life = Life::of_cpu("500m", json!({}));
    life.give("1000");
    life.on(Event::MachineDied("gone".into()));
    life.now += SignedDuration::from_secs(10);
    assert!(life.on(Event::Tick).contains(&Action::StartMachine));
    assert_eq!((life.cpu_in_force(), life.told("PodResizeInProgress")), ("1".into(), None));
    assert!(!life.on(Event::MachineStarted(Ok(Room::default()))).contains(&Action::Resize));
}

#[test]
fn a_resize_that_a_daemon_left_undone_is_done_by_the_next_one() {
    let mut life = Life::of_cpu("500m", json!({}));
    life.give("1000");
    life.state = serde_json::from_slice(&serde_json::to_vec(&life.state).unwrap()).unwrap();
    assert!(!life.state.busy.contains(&Work::Resize));
    assert_eq!(life.on(Event::Tick), [Action::Resize]);
}

#[test]
fn a_pod_as_a_whole_is_given_other_amounts_that_are_in_force_once_the_guest_has_them() {
    let own = |cpu: &str| json!({"limits": {"cpu": cpu, "memory": "96Mi"}, "requests": {"cpu": cpu, "memory": "96Mi"}});
    let mut life = Life::new(json!({"containers": [{"name": "a", "image": "i"}], "resources": own("1")}));
    life.boot();
    life.started(0);
    let changed = Life::new(json!({"containers": [{"name": "a", "image": "i"}], "resources": own("2")})).desired;
    life.desired = changed;
    life.desired.keep(&life.state.allocated);
    let asked = life.desired.asked.take().expect("it asks for more than it has");
    assert_eq!((asked.len(), asked[1].limits[0]), (2, 2000));
    let cpus = |life: &Life| {
        let status = life.status();
        let limits = status.resources.unwrap().limits.unwrap();
        (status.allocated_resources.unwrap()["cpu"].0.clone(), limits["cpu"].0.clone())
    };
    assert_eq!(cpus(&life), ("1".into(), "1".into()), "nothing is given yet");
    life.desired.give(&asked);
    assert_eq!(life.on(Event::Judged(Ok(asked.clone()))), [Action::Resize]);
    assert_eq!(cpus(&life), ("2".into(), "1".into()));
    assert!(life.told("PodResizeInProgress").is_some());
    life.on(Event::Resized(Ok(asked)));
    assert_eq!(cpus(&life), ("2".into(), "2".into()));
    assert_eq!(life.told("PodResizeInProgress"), None);
    life.desired.keep(&life.state.allocated.clone());
    assert_eq!(life.desired.asked, None);
}
