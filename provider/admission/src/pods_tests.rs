use serde_json::json;

use super::*;
use crate::policy::{POLICY, TAINT};

/// A pod of a profile that waits for a place, created in that second.
fn waiting(profile: &str, second: u8) -> Value {
    json!({
        "metadata": {"uid": "u", "creationTimestamp": format!("2026-11-22T00:00:{second:02}Z"),
            "labels": {POLICY: "virtualNodeOnly", PROFILE: profile}},
        "spec": {"nodeSelector": {"type": "virtual-kubelet"}}, "status": {"phase": "Pending"},
    })
}

fn bound(profile: &str, node: &str) -> Value {
    let mut pod = waiting(profile, 0);
    pod["spec"]["nodeName"] = node.into();
    pod["spec"]["tolerations"] = json!([{"key": TAINT, "operator": "Exists"}]);
    pod
}

fn key(name: &str) -> Key {
    ("n".into(), name.into())
}

fn apply(pods: &mut Pods, name: &str, pod: &Value) {
    pods.apply(key(name), pod, |node| node == "kvm-1", |_| Vec::new());
}

/// All these pods, and that there are no more.
fn known(all: &[(&str, Value)]) -> Pods {
    let mut pods = Pods::default();
    all.iter().for_each(|(name, pod)| apply(&mut pods, name, pod));
    pods.complete();
    pods
}

/// The names of the pods that are let in now.
fn let_in(pods: &mut Pods, max: Option<u32>) -> Vec<String> {
    std::iter::from_fn(|| pods.next(|_| max)).map(|((_, name), _)| name).collect()
}

#[test]
fn of_a_profiles_pods_the_oldest_are_let_in_until_it_has_its_max() {
    let all = [("c", waiting("p", 1)), ("a", waiting("p", 3)), ("b", waiting("p", 2))];
    assert_eq!(let_in(&mut known(&all), Some(2)), ["c", "b"]);
    assert_eq!(let_in(&mut known(&all), Some(0)), [] as [&str; 0]);
    assert_eq!(let_in(&mut known(&all), None), ["c", "b", "a"]);
}

#[test]
fn a_place_is_taken_from_the_decision_on_and_free_when_its_pod_is_over_or_elsewhere() {
    let mut pods = known(&[("a", waiting("p", 1)), ("b", waiting("p", 2)), ("c", waiting("p", 3))]);
    assert_eq!(let_in(&mut pods, Some(1)), ["a"]);
    assert_eq!(let_in(&mut pods, Some(1)), [] as [&str; 0], "the API server has not said it yet");
    apply(&mut pods, "a", &bound("p", "kvm-1"));
    assert_eq!(let_in(&mut pods, Some(1)), [] as [&str; 0]);
    let mut over = bound("p", "kvm-1");
    over["status"]["phase"] = "Succeeded".into();
    apply(&mut pods, "a", &over);
    assert_eq!(let_in(&mut pods, Some(1)), ["b"]);
    apply(&mut pods, "b", &bound("p", "real-1"));
    assert_eq!(let_in(&mut pods, Some(1)), ["c"]);
    pods.remove(&key("c"));
    assert_eq!(let_in(&mut pods, Some(1)), [] as [&str; 0], "nobody is left");
}

#[test]
fn an_older_version_of_a_pod_that_was_let_in_frees_no_place() {
    let mut pods = known(&[("b", waiting("p", 2))]);
    assert_eq!(let_in(&mut pods, Some(1)), ["b"]);
    apply(&mut pods, "b", &waiting("p", 2));
    apply(&mut pods, "a", &waiting("p", 1));
    assert_eq!(let_in(&mut pods, Some(1)), [] as [&str; 0]);
    assert_eq!(pods.told().unwrap()["p"].waiting, 1);
}

#[test]
fn a_change_that_the_api_server_refused_is_decided_again_from_the_pods_newest_version() {
    let mut pods = known(&[("a", waiting("p", 1))]);
    assert_eq!(let_in(&mut pods, Some(1)), ["a"]);
    pods.refused(&key("a"));
    assert_eq!(let_in(&mut pods, Some(1)), [] as [&str; 0], "that version is not tried twice");
    apply(&mut pods, "a", &waiting("p", 1));
    assert_eq!(let_in(&mut pods, Some(1)), ["a"]);
    apply(&mut pods, "a", &waiting("p", 1));
    pods.refused(&key("a"));
    assert_eq!(let_in(&mut pods, Some(1)), ["a"], "a newer one came before the answer");
}

#[test]
fn one_profile_that_is_full_holds_up_no_other_and_pods_of_none_are_not_bounded() {
    let mut pods = known(&[("a", waiting("full", 1)), ("b", waiting("free", 2))]);
    assert_eq!(pods.next(|name| (name == "full").then_some(0)).unwrap().0, key("b"));
    let mut of_label = waiting("p", 1);
    of_label["metadata"]["labels"] = json!({POLICY: "normalNodePrefer"});
    of_label["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]);
    assert_eq!(let_in(&mut known(&[("x", of_label)]), Some(0)), ["x"]);
}

#[test]
fn nothing_is_decided_or_told_before_all_pods_are_known() {
    let mut pods = Pods::default();
    apply(&mut pods, "a", &waiting("p", 1));
    assert!(pods.next(|_| None).is_none() && pods.told().is_none());
    pods.complete();
    assert!(pods.next(|_| None).is_some());
    pods.begin();
    assert!(pods.told().is_none());
}

#[test]
fn a_profile_is_told_its_pods_and_one_that_came_later_by_whom_it_was_passed_over() {
    let mut both = bound("a", "kvm-1");
    both["metadata"]["annotations"] = json!({PASSED_OVER: "b,c"});
    let pods = known(&[
        ("1", both.clone()),
        ("2", both),
        ("3", waiting("a", 1)),
        ("4", bound("b", "real-1")),
    ]);
    let told = pods.told().unwrap();
    let a = &told["a"];
    assert_eq!((a.pods, a.on_virtual_nodes, a.waiting, a.passed_over.len()), (3, 2, 1, 0));
    let by_a = PassedOver { by: "a".into(), pods: 2 };
    assert_eq!((told["b"].pods, &told["b"].passed_over), (1, &vec![by_a.clone()]));
    assert_eq!((told["c"].pods, &told["c"].passed_over), (0, &vec![by_a]));
}
