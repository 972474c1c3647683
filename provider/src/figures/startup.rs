//! How long a pod takes to run, as the kubelet reckons it (pkg/kubelet/util/pod_startup_latency_tracker.go). Pure: it is shown the pod after each of its
//! steps.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::{
    desired::DesiredPod,
    state::{PodState, Slot, Work},
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

/// A pod that has begun in this process, until all its containers have run.
#[derive(Debug, Default)]
pub struct Startup {
    last: Option<Timestamp>,
    pulls: bool,
    initialises: bool,
    pulling: SignedDuration,
    initialising: SignedDuration,
    runs: bool,
    done: bool,
}

impl Startup {
    /// Nothing is reckoned of a pod that had begun before.
    pub fn over() -> Self {
        Self {
            done: true,
            ..Self::default()
        }
    }

    /// The pod after a step, and what is reported of it; what has come about with it.
    pub fn look(&mut self, desired: &DesiredPod, state: &PodState, status: &PodStatus, now: Timestamp) -> Vec<Begun> {
        let mut begun = Vec::new();
        if self.done {
            return begun;
        }
        if let Some(last) = self.last.replace(now) {
            let passed = now.duration_since(last);
            for (is, sum) in [(self.pulls, &mut self.pulling), (self.initialises, &mut self.initialising)] {
                if is {
                    *sum += passed;
                }
            }
        }
        self.pulls = state.busy.iter().any(|work| matches!(work, Work::Pull(_) | Work::PullVolume(_)));
        let pairs = desired.containers.iter().zip(&state.containers);
        self.initialises = pairs
            .into_iter()
            .any(|(d, c)| d.init && !d.sidecar && matches!(c.slot, Slot::Running { .. }));
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
                own: (!is_stateful(&desired.pod)).then(|| (since - self.pulling - self.initialising).as_secs_f64()),
            });
        }
        begun
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
