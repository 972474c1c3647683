//! How long a pod takes to run, as the kubelet reckons it (pkg/kubelet/util/pod_startup_latency_tracker.go), and the way there, for its trace. Pure: it is
//! shown the pod after each of its steps.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    desired::DesiredPod,
    state::{Machine, PodState, Slot, Work},
};

/// How far a pod has got, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub enum Begun {
    /// Its phase became Running.
    Runs {
        /// Since this node took it.
        since_seen: f64,
    },
    /// All its containers run.
    AllStarted {
        /// Since it was created.
        since_created: f64,
        /// Of that, what was neither pulling images nor its init containers; not of a pod with volumes that are not made for it alone.
        own: Option<f64>,
    },
}

/// How a pod that was just taken came to have run with all its containers, by this host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// This node took it.
    pub accepted: Timestamp,
    /// From the first pull to the end of the last.
    pub images: Option<(Timestamp, Timestamp)>,
    /// The first attempt at its machine began, of those that this process saw.
    pub machine: Option<Timestamp>,
    /// Attempts at its machine that failed before one did not.
    pub failures: u32,
    /// From the first init container's start to the end of the last.
    pub init: Option<(Timestamp, Timestamp)>,
    /// Each container has run, if only for a moment.
    pub begun: Timestamp,
}

/// Something that goes on now and then.
#[derive(Debug, Default)]
struct Stretch {
    /// It has gone on since then.
    since: Option<Timestamp>,
    /// From its first beginning to its last end.
    whole: Option<(Timestamp, Timestamp)>,
    /// How long in all.
    sum: SignedDuration,
}

impl Stretch {
    fn look(&mut self, is: bool, now: Timestamp) {
        if let Some(since) = self.since.take() {
            self.sum += now.duration_since(since);
            self.whole = Some((self.whole.map_or(since, |(first, _)| first), now));
        }
        self.since = is.then_some(now);
    }
}

/// A pod that has begun in this process, until all its containers have run.
#[derive(Debug, Default)]
pub struct Startup {
    pulling: Stretch,
    making: Stretch,
    initialising: Stretch,
    failures: u32,
    runs: bool,
    /// Nothing more is reckoned.
    done: bool,
    /// Nothing more is said of its course.
    over: bool,
}

impl Startup {
    /// Nothing is reckoned of a pod that had begun before.
    pub fn over() -> Self {
        Self {
            done: true,
            over: true,
            ..Self::default()
        }
    }

    /// The pod after a step, and what is reported of it; what has come about with it.
    pub fn look(&mut self, desired: &DesiredPod, state: &PodState, status: &PodStatus, now: Timestamp) -> Vec<Begun> {
        let mut begun = Vec::new();
        if self.done && self.over {
            return begun;
        }
        self.follow(desired, state, now);
        if self.done {
            return begun;
        }
        match status.phase.as_deref() {
            Some("Running") => {}
            Some("Pending") => return begun,
            _ => {
                self.done = true;
                return begun;
            }
        }
        if !self.runs {
            self.runs = true;
            let since_seen = now.duration_since(state.accepted).as_secs_f64();
            begun.push(Begun::Runs { since_seen });
        }
        let mut containers = status.container_statuses.iter().flatten();
        if containers.all(|c| c.state.as_ref().is_some_and(|state| state.running.is_some())) {
            self.done = true;
            let created = desired
                .pod
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(state.accepted, |time| time.0);
            let since = now.duration_since(created);
            begun.push(Begun::AllStarted {
                since_created: since.as_secs_f64(),
                own: (!is_stateful(&desired.pod)).then(|| (since - self.pulling.sum - self.initialising.sum).as_secs_f64()),
            });
        }
        begun
    }

    /// Its course, once: after the step with which each of its containers has run.
    pub fn course(&mut self, state: &PodState, status: &PodStatus, now: Timestamp) -> Option<Course> {
        if self.over {
            return None;
        }
        let has_run = |c: &ContainerStatus| {
            let states = [&c.state, &c.last_state].into_iter().flatten();
            let ended = |started: &Option<Time>| started.as_ref().is_some_and(|at| at.0 > Timestamp::UNIX_EPOCH);
            states
                .into_iter()
                .any(|s| s.running.is_some() || s.terminated.as_ref().is_some_and(|t| ended(&t.started_at)))
        };
        let containers = status.container_statuses.as_deref().unwrap_or_default();
        let all = !containers.is_empty() && containers.iter().all(has_run);
        // Of a pod that ended before that there is none.
        self.over = all || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        all.then(|| Course {
            accepted: state.accepted,
            images: self.pulling.whole,
            machine: self.making.whole.map(|(first, _)| first),
            failures: self.failures,
            init: self.initialising.whole,
            begun: now,
        })
    }

    fn follow(&mut self, desired: &DesiredPod, state: &PodState, now: Timestamp) {
        let pulls = state.busy.iter().any(|work| matches!(work, Work::Pull(_) | Work::PullVolume(_)));
        let pairs = desired.containers.iter().zip(&state.containers);
        let initialises = pairs
            .into_iter()
            .any(|(d, c)| d.init && !d.sidecar && matches!(c.slot, Slot::Running { .. }));
        self.pulling.look(pulls, now);
        self.making.look(state.machine == Machine::Starting, now);
        self.initialising.look(initialises, now);
        self.failures = self.failures.max(state.machine_failures);
    }
}

/// Whether it has a volume that is more than files made for it.
fn is_stateful(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .into_iter()
        .any(|v| v.secret.is_none() && v.config_map.is_none() && v.downward_api.is_none() && v.empty_dir.is_none() && v.projected.is_none())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn pod(volumes: Value) -> DesiredPod {
        let pod = json!({"metadata": {"creationTimestamp": "1970-01-01T00:16:30Z"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}], "volumes": volumes}});
        DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0
    }

    fn status(phase: &str, running: &[bool]) -> PodStatus {
        let containers = running.iter().map(|runs| match runs {
            true => json!({"name": "c", "state": {"running": {"startedAt": "1970-01-01T00:20:00Z"}}}),
            false => json!({"name": "c", "state": {"waiting": {}}}),
        });
        serde_json::from_value(json!({"phase": phase, "containerStatuses": containers.collect::<Vec<_>>()})).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn life(volumes: Value) -> Vec<Begun> {
        let desired = pod(volumes);
        let mut state = PodState::new(&desired, None, at(1000));
        let mut startup = Startup::default();
        let pending = status("Pending", &[false, false]);
        state.busy.extend([Work::Pull(0), Work::Pull(1)]);
        assert_eq!(startup.look(&desired, &state, &pending, at(1000)), []);
        state.busy.remove(&Work::Pull(0));
        assert_eq!(startup.look(&desired, &state, &pending, at(1002)), []);
        state.busy.clear();
        assert_eq!(
            startup.look(&desired, &state, &pending, at(1005)),
            [],
            "five seconds of pulls, side by side"
        );
        state.containers[0].slot = Slot::Running {
            id: "1".into(),
            started: at(1006),
        };
        startup.look(&desired, &state, &pending, at(1006));
        state.containers[0].slot = Slot::waiting();
        startup.look(&desired, &state, &pending, at(1016));
        assert_eq!(
            startup.look(&desired, &state, &status("Running", &[true, false]), at(1017)),
            [Begun::Runs { since_seen: 17.0 }]
        );
        let last = startup.look(&desired, &state, &status("Running", &[true, true]), at(1020));
        assert_eq!(
            startup.look(&desired, &state, &status("Running", &[true, true]), at(1030)),
            [],
            "it is told once"
        );
        last
    }

    #[test]
    fn what_a_pod_waits_for_is_not_its_own_time() {
        let own = Some(15.0);
        assert_eq!(
            life(json!([{"name": "v", "emptyDir": {}}])),
            [Begun::AllStarted { since_created: 30.0, own }]
        );
        assert_eq!(
            life(json!([{"name": "v", "hostPath": {"path": "/"}}])),
            [Begun::AllStarted {
                since_created: 30.0,
                own: None
            }]
        );
    }

    #[test]
    fn the_course_of_a_start_is_what_was_reckoned_and_is_told_once() {
        let desired = pod(json!([]));
        let mut state = PodState::new(&desired, None, at(1000));
        let mut startup = Startup::default();
        let mut look = |state: &PodState, status: &PodStatus, second: i64| {
            startup.look(&desired, state, status, at(second));
            startup.course(state, status, at(second))
        };
        let pending = status("Pending", &[false, false]);
        state.busy.insert(Work::Pull(0));
        assert_eq!(look(&state, &pending, 1000), None);
        state.busy.clear();
        state.machine = Machine::Starting;
        look(&state, &pending, 1004);
        // An attempt fails, the next one does not.
        (state.machine, state.machine_failures) = (Machine::None { not_before: None }, 1);
        look(&state, &pending, 1005);
        state.machine = Machine::Starting;
        look(&state, &pending, 1007);
        (state.machine, state.machine_failures) = (Machine::Ready, 0);
        state.containers[0].slot = Slot::Running {
            id: "1".into(),
            started: at(1009),
        };
        look(&state, &pending, 1009);
        state.containers[0].slot = Slot::waiting();
        look(&state, &pending, 1012);
        assert_eq!(look(&state, &status("Running", &[true, false]), 1013), None, "one has not run");
        // The one that ran is over when the other runs.
        let ended = json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "state": {"terminated": {"exitCode": 0, "startedAt": "1970-01-01T00:20:00Z"}}},
            {"name": "b", "state": {"running": {"startedAt": "1970-01-01T00:20:00Z"}}}]});
        let ended: PodStatus = serde_json::from_value(ended).unwrap();
        let course = Course {
            accepted: at(1000),
            images: Some((at(1000), at(1004))),
            machine: Some(at(1004)),
            failures: 1,
            init: Some((at(1009), at(1012))),
            begun: at(1015),
        };
        assert_eq!(look(&state, &ended, 1015), Some(course));
        assert_eq!(look(&state, &ended, 1016), None);
    }

    #[test]
    fn a_container_that_could_not_be_started_has_not_run() {
        let desired = pod(json!([]));
        let state = PodState::new(&desired, None, at(1000));
        let never =
            json!({"name": "a", "state": {"terminated": {"exitCode": 128, "reason": "StartError", "startedAt": "1970-01-01T00:00:00Z"}}});
        let told = |phase: &str| {
            let status = serde_json::from_value(json!({"phase": phase, "containerStatuses": [never]})).unwrap();
            let mut startup = Startup::default();
            startup.look(&desired, &state, &status, at(1001));
            (startup.course(&state, &status, at(1001)), startup.over)
        };
        assert_eq!(told("Running"), (None, false), "it may yet");
        assert_eq!(told("Failed"), (None, true));
        assert!(
            Startup::over()
                .course(&state, &status("Running", &[true, true]), at(1001))
                .is_none()
        );
    }

    #[test]
    fn nothing_is_reckoned_of_a_pod_that_ran_before_or_never_does() {
        let desired = pod(json!([]));
        let state = PodState::new(&desired, None, at(1000));
        let runs = status("Running", &[true, true]);
        assert_eq!(Startup::over().look(&desired, &state, &runs, at(1001)), []);
        let mut failed = Startup::default();
        assert_eq!(failed.look(&desired, &state, &status("Failed", &[]), at(1001)), []);
        assert_eq!(failed.look(&desired, &state, &runs, at(1002)), []);
    }
}
