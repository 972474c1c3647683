//! What the reservation is, by what the API server has of the pod and of the kubelet's Node. Pure.

use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};

use super::{
    View,
    pod::{CONTAINER, is_ours},
};
use crate::{
    config::{Config, SharedHost},
    desired::Amounts,
};

/// What there is of the reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// The kubelet has registered no such Node.
    NoNode,
    /// There is no pod.
    Missing,
    /// There is one of that name that is none of ours.
    Foreign,
    /// It waits for the scheduler, which says why.
    Waiting(String),
    /// It is on another Node than it should be.
    Elsewhere(String),
    /// The kubelet has not started it yet.
    Starting,
    /// The kubelet runs it: it holds what it requests.
    Held,
    /// It was told to end, and has so many seconds from then.
    Ending(i64),
    /// It has ended, for this reason.
    Over(String),
}

/// Whether a Node takes no pods.
pub(super) fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

/// What there is.
pub(super) fn state(config: &Config, shared: &SharedHost, pod: Option<&Pod>, other: Option<&Node>) -> State {
    let Some(pod) = pod else {
        return if other.is_some() { State::Missing } else { State::NoNode };
    };
    if !is_ours(pod, config) {
        return State::Foreign;
    }
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if let ("Failed" | "Succeeded", Some(status)) = (phase, status) {
        return State::Over(ended(status));
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return State::Ending(pod.metadata.deletion_grace_period_seconds.unwrap_or_default());
    }
    match pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
        None | Some("") => State::Waiting(status.map(unscheduled).unwrap_or_default()),
        Some(name) if name != shared.node_name => State::Elsewhere(name.into()),
        Some(_) if other.is_none() => State::NoNode,
        Some(_) if phase == "Running" => State::Held,
        Some(_) => State::Starting,
    }
}

fn ended(status: &PodStatus) -> String {
    let words = [status.reason.as_deref(), status.message.as_deref()];
    let words: Vec<_> = words.into_iter().flatten().collect();
    if words.is_empty() {
        "it has ended".into()
    } else {
        words.join(": ")
    }
}

fn unscheduled(status: &PodStatus) -> String {
    let conditions = status.conditions.iter().flatten();
    let mut scheduled = conditions.filter(|one| one.type_ == "PodScheduled");
    scheduled.find_map(|one| one.message.clone()).unwrap_or_default()
}

/// What the reservation pod requests, by its specification.
pub(super) fn requested(pod: &Pod) -> Amounts {
    let mut containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ours = containers.find(|container| container.name == CONTAINER);
    let requests = ours.and_then(|container| container.resources.as_ref()?.requests.as_ref());
    requests.map(Amounts::of).unwrap_or_default()
}

/// What a pod that runs holds: what it requests, no more than the kubelet has allocated to it (a resize may wait), and no more than the Node has to
/// give by now. What is allocated is in the status by itself (InPlacePodVerticalScalingAllocatedStatus), or with what is in force.
fn held(pod: &Pod, other: &Node) -> Amounts {
    let mut statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ours = statuses.find(|status| status.name == CONTAINER);
    let in_force = ours.and_then(|status| status.resources.as_ref()?.requests.as_ref());
    let allocated = ours
        .and_then(|status| status.allocated_resources.as_ref())
        .or(in_force)
        .map(Amounts::of);
    let has = other.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let requested = requested(pod);
    // Of a disk a kubelet says nothing there.
    let allocated = allocated.map_or(requested, |allocated| allocated.or(requested));
    let has = has.map(Amounts::of).unwrap_or_default();
    requested.min(allocated).min(has)
}

/// What the daemon knows and tells of it. `failure` is what kept it from the last step.
pub(super) fn view(config: &Config, shared: &SharedHost, pod: Option<&Pod>, other: Option<&Node>, failure: Option<&str>) -> View {
    let state = state(config, shared, pod, other);
    let held = match (&state, pod, other) {
        (State::Held, Some(pod), Some(other)) => held(pod, other),
        _ => Amounts::default(),
    };
    let cordoned = other.map(is_cordoned);
    let (reason, message) = told(config, shared, &state, held, cordoned == Some(true));
    let message = match failure {
        Some(failure) => format!("{message}; {failure}"),
        None => message,
    };
    View {
        held,
        node: shared.node_name.clone(),
        cordoned,
        is_held: state == State::Held,
        reason,
        message,
    }
}

fn told(config: &Config, shared: &SharedHost, state: &State, held: Amounts, is_cordoned: bool) -> (&'static str, String) {
    let node = &shared.node_name;
    let pod = format!("pod {}/{}", shared.namespace, config.reservation_name());
    match state {
        State::NoNode => (
            "NodeMissing",
            format!("Node {node} (shared.nodeName) is not there: is that what this host's kubelet is called?"),
        ),
        State::Missing if is_cordoned => ("NodeCordoned", format!("{pod} is made when Node {node} takes pods again")),
        State::Missing => ("ReservationMissing", format!("{pod} is not there, and is about to be made")),
        State::Foreign => (
            "ReservationForeign",
            format!("{pod} is not the reservation of this node: delete it, or set another shared.namespace"),
        ),
        State::Waiting(why) if why.is_empty() => ("ReservationWaiting", format!("{pod} waits for the scheduler")),
        State::Waiting(why) => ("ReservationWaiting", format!("{pod} finds no room on Node {node}: {why}")),
        State::Elsewhere(other) => ("ReservationElsewhere", format!("{pod} is on Node {other} and not on {node}")),
        State::Starting => (
            "ReservationStarting",
            format!("{pod} is about to be started by the kubelet of Node {node}"),
        ),
        State::Held => {
            let Amounts { cpu, memory, storage } = held;
            (
                "ReservationHeld",
                format!("{pod} holds cpu {cpu}, memory {memory}, ephemeral-storage {storage} of Node {node}"),
            )
        }
        State::Ending(_) => (
            "ReservationEnding",
            format!("{pod} was told to end: no pods are taken, and those that run have until it has ended"),
        ),
        State::Over(why) => ("ReservationOver", format!("{pod} has ended: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::shared::pod;

    fn config() -> Config {
        let text = "apiVersion: kvmlet.io/v1alpha1\nkind: KvmletConfiguration\nnodeName: v\nnodeIP: 10.0.0.1\nkubeconfig: /k\nport: 10260\n\
            logDir: /l\ntls: {certFile: /c, keyFile: /y, clientCAFile: /a}\nshared:\n  nodeName: worker\n  kubeconfig: /s\n  \
            reservation: {cpu: 2, memory: 4Gi, ephemeralStorage: 20Gi}\n";
        Config::parse(Path::new("c"), text).unwrap()
    }

    fn worker(cpu: &str) -> Node {
        let allocatable = json!({"cpu": cpu, "memory": "16Gi", "ephemeral-storage": "50Gi", "pods": "110"});
        serde_json::from_value(json!({"metadata": {"name": "worker"}, "status": {"allocatable": allocatable}})).unwrap()
    }

    /// The reservation pod with some fields set.
    fn reservation(fields: &[(&str, Value)]) -> Pod {
        let config = config();
        let mut value = serde_json::to_value(pod::pod(&config, config.shared.as_ref().unwrap(), "u", &worker("8"))).unwrap();
        for (path, field) in fields {
            let (parent, name) = path.rsplit_once('/').unwrap();
            if value.pointer(parent).is_none() {
                value[parent.trim_start_matches('/')] = json!({});
            }
            value.pointer_mut(parent).unwrap()[name] = field.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn see(pod: Option<&Pod>, other: Option<&Node>) -> View {
        let config = config();
        view(&config, config.shared.as_ref().unwrap(), pod, other, None)
    }

    fn running(more: &[(&str, Value)]) -> Pod {
        let on = [("/spec/nodeName", json!("worker")), ("/status/phase", json!("Running"))];
        reservation(&[&on[..], more].concat())
    }

    #[test]
    fn the_node_offers_what_the_reservation_has_and_never_more() {
        let held = |pod: &Pod, cpu: &str| see(Some(pod), Some(&worker(cpu))).held;
        let whole = held(&running(&[]), "8");
        assert_eq!(
            (whole.cpu.milli_value(), whole.memory.value() >> 30, whole.storage.value() >> 30),
            (2000, 4, 20)
        );
        let status = |field: &str, value: Value| {
            let status = json!([{"name": CONTAINER, "image": "i", "imageID": "i", "ready": true, "restartCount": 0, field: value}]);
            running(&[("/status/containerStatuses", status)])
        };
        let allocated = |cpu: &str| status("allocatedResources", json!({"cpu": cpu, "memory": "4Gi"}));
        let smaller = held(&allocated("1"), "8");
        assert_eq!((smaller.cpu.milli_value(), smaller.storage.value() >> 30), (1000, 20));
        assert_eq!(
            held(&allocated("3"), "8").cpu.milli_value(),
            2000,
            "made smaller, which is not in force yet"
        );
        let in_force = status("resources", json!({"requests": {"cpu": "500m"}}));
        assert_eq!(held(&in_force, "8").cpu.milli_value(), 500, "made larger, likewise");
        assert_eq!(held(&running(&[]), "1500m").cpu.milli_value(), 1500, "the Node has become smaller");
    }

    #[test]
    fn without_a_reservation_that_runs_there_the_node_offers_nothing_and_says_why() {
        let message = |text: &str| json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text}]);
        let time = json!("2026-01-01T00:00:00Z");
        let cases = [
            (None, "ReservationMissing", "is about to be made"),
            (Some(Pod::default()), "ReservationForeign", "is not the reservation of this node"),
            (Some(reservation(&[])), "ReservationWaiting", "waits for the scheduler"),
            (
                Some(reservation(&[("/status/conditions", message("0/3 nodes are available"))])),
                "ReservationWaiting",
                "finds no room on Node worker: 0/3 nodes",
            ),
            (
                Some(reservation(&[("/spec/nodeName", json!("worker"))])),
                "ReservationStarting",
                "worker",
            ),
            (
                Some(running(&[("/spec/nodeName", json!("other"))])),
                "ReservationElsewhere",
                "on Node other",
            ),
            (
                Some(running(&[("/metadata/deletionTimestamp", time)])),
                "ReservationEnding",
                "told to end",
            ),
            (
                Some(running(&[("/status/phase", json!("Failed")), ("/status/reason", json!("Evicted"))])),
                "ReservationOver",
                "has ended: Evicted",
            ),
        ];
        for (pod, reason, words) in cases {
            let seen = see(pod.as_ref(), Some(&worker("8")));
            assert_eq!((seen.held, seen.is_held, seen.reason), (Amounts::default(), false, reason));
            assert!(seen.message.contains(words), "no {words:?} in {}", seen.message);
        }
        for pod in [None, Some(running(&[]))] {
            let seen = see(pod.as_ref(), None);
            assert_eq!((seen.held, seen.reason, seen.cordoned), (Amounts::default(), "NodeMissing", None));
        }
    }

    #[test]
    fn a_cordoned_node_keeps_what_it_has_reserved_and_what_failed_is_told() {
        let mut other = worker("8");
        other.spec.get_or_insert_default().unschedulable = Some(true);
        let seen = see(Some(&running(&[])), Some(&other));
        assert_eq!((seen.cordoned, seen.is_held, seen.held.cpu.milli_value()), (Some(true), true, 2000));
        assert_eq!(see(None, Some(&other)).reason, "NodeCordoned");
        let config = config();
        let seen = view(
            &config,
            config.shared.as_ref().unwrap(),
            None,
            Some(&worker("8")),
            Some("create it: forbidden"),
        );
        assert!(seen.message.ends_with("; create it: forbidden"), "{}", seen.message);
    }
}
