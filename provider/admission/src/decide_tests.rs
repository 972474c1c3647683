use super::*;
use crate::{
    policy::{INJECT, NAMESPACE_LABEL},
    profile::BurstProfile,
};

fn fits(_: &Value) -> Vec<String> {
    Vec::new()
}

fn only_hosts(spec: &Value) -> Vec<String> {
    let shared = spec["hostNetwork"] == true;
    shared
        .then(|| "spec.hostNetwork: no host to share".to_owned())
        .into_iter()
        .collect()
}

fn labelled(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// What is decided where there are no profiles.
fn by_labels(pod: &Value, namespace: &Labels, unfit: Unfit) -> Decision {
    decide(pod, ("n", namespace), &Profiles::default(), unfit)
}

/// A namespace that sends its pods by this policy.
fn by(policy: &str) -> Labels {
    labelled(&[NAMESPACE_LABEL, (POLICY, policy)])
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "p", "labels": {"app": "a"}}, "spec": spec})
}

/// What is added to a pod, as (path, value), in order.
fn added(pod: &Value, namespace: &Labels) -> Vec<(String, Value)> {
    let decision = by_labels(pod, namespace, fits);
    assert!(decision.warnings.is_empty(), "{:?}", decision.warnings);
    let operation = |one: Value| {
        assert_eq!(one["op"], "add");
        (one["path"].as_str().unwrap().to_owned(), one["value"].clone())
    };
    decision.patch.into_iter().map(operation).collect()
}

fn ours() -> Value {
    json!({"key": "virtual-kubelet.io/provider", "operator": "Exists", "effect": "NoSchedule"})
}

#[test]
fn a_pod_of_a_labelled_namespace_gets_the_toleration_and_the_selector() {
    let found = added(&pod(json!({})), &labelled(&[NAMESPACE_LABEL]));
    let wanted = [
        ("/spec/tolerations".to_owned(), json!([ours()])),
        ("/spec/nodeSelector".to_owned(), json!({"type": "virtual-kubelet"})),
    ];
    assert_eq!(found, wanted);
    let has = json!({"tolerations": [{"key": "other"}], "nodeSelector": {"zone": "a"}});
    let wanted = [
        ("/spec/tolerations/-".to_owned(), ours()),
        ("/spec/nodeSelector/type".to_owned(), json!("virtual-kubelet")),
    ];
    assert_eq!(added(&pod(has), &labelled(&[NAMESPACE_LABEL])), wanted);
}

#[test]
fn a_pod_that_is_not_asked_for_or_has_its_node_is_left_alone_without_a_word() {
    let silent = Decision::default();
    assert_eq!(by_labels(&pod(json!({})), &labelled(&[]), only_hosts), silent);
    let opted_out = json!({"metadata": {"labels": {INJECT: "false"}}, "spec": {"hostNetwork": true}});
    assert_eq!(by_labels(&opted_out, &labelled(&[NAMESPACE_LABEL]), only_hosts), silent);
    assert_eq!(
        by_labels(&pod(json!({"nodeName": "n"})), &labelled(&[NAMESPACE_LABEL]), only_hosts),
        silent
    );
    assert_eq!(added(&pod(json!({"nodeName": ""})), &labelled(&[NAMESPACE_LABEL])).len(), 2);
}

#[test]
fn a_pod_that_tolerates_the_taint_already_keeps_its_own_toleration() {
    let selector = ["/spec/nodeSelector".to_owned()];
    for own in [
        json!({"key": TAINT, "operator": "Exists"}),
        json!({"key": TAINT, "value": "kvmlet", "effect": "NoSchedule"}),
        json!({"operator": "Exists"}),
    ] {
        let found = added(&pod(json!({"tolerations": [own]})), &labelled(&[NAMESPACE_LABEL]));
        let paths: Vec<_> = found.into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, selector, "{own}");
    }
    let later = json!({"key": TAINT, "operator": "Exists", "effect": "NoExecute"});
    assert_eq!(added(&pod(json!({"tolerations": [later]})), &labelled(&[NAMESPACE_LABEL])).len(), 2);
}

#[test]
fn a_pod_that_chose_other_nodes_is_left_alone() {
    for spec in [
        json!({"nodeSelector": {"type": "gpu"}}),
        json!({"tolerations": [{"key": TAINT, "value": "somebody", "effect": "NoSchedule"}]}),
    ] {
        for policy in ["virtualNodeOnly", "normalNodePrefer", "fair"] {
            assert_eq!(added(&pod(spec.clone()), &by(policy)), [], "{spec}");
        }
    }
}

#[test]
fn a_pods_own_affinity_to_the_nodes_label_stands_in_place_of_the_selector() {
    let expression = json!({"key": "type", "operator": "In", "values": ["virtual-kubelet", "gpu"]});
    let terms = json!([{"matchExpressions": [expression]}]);
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
    let found = added(&pod(json!({"affinity": affinity})), &labelled(&[NAMESPACE_LABEL]));
    assert_eq!(found, [("/spec/tolerations".to_owned(), json!([ours()]))]);
}

#[test]
fn a_pod_that_cannot_go_is_left_alone_with_the_reason() {
    let namespace = labelled(&[NAMESPACE_LABEL]);
    let said = |pod: &Value, namespace: &Labels| {
        let decision = by_labels(pod, namespace, only_hosts);
        assert_eq!(decision.patch, [] as [Value; 0]);
        decision.warnings.concat()
    };
    assert_eq!(
        said(&pod(json!({"hostNetwork": true})), &namespace),
        "kvmlet: this pod is left to ordinary nodes: spec.hostNetwork: no host to share"
    );
    let mut of_daemon_set = pod(json!({}));
    of_daemon_set["metadata"]["ownerReferences"] = json!([{"kind": "DaemonSet", "controller": true}]);
    assert_eq!(
        said(&of_daemon_set, &namespace),
        "kvmlet: this pod is left to ordinary nodes: it is a DaemonSet's, which chooses its node"
    );
    assert!(said(&pod(json!({})), &by("never")).contains(r#""never", which is none of"#));
}

#[test]
fn a_pod_that_prefers_ordinary_nodes_is_only_marked() {
    let wanted = [("/metadata/labels/kvmlet.io~1burst-policy".to_owned(), json!("normalNodePrefer"))];
    assert_eq!(added(&pod(json!({})), &by("normalNodePrefer")), wanted);
    let bare = json!({"metadata": {}, "spec": {}});
    let wanted = [("/metadata/labels".to_owned(), json!({"kvmlet.io/burst-policy": "normalNodePrefer"}))];
    assert_eq!(added(&bare, &by("normalNodePrefer")), wanted);
    let marked = json!({"metadata": {"labels": {POLICY: "normalNodePrefer"}}, "spec": {}});
    assert_eq!(added(&marked, &labelled(&[NAMESPACE_LABEL])), []);
}

#[test]
fn a_pod_that_asks_for_virtual_nodes_itself_goes_there_whatever_its_namespace_prefers() {
    let found = added(&pod(json!({"nodeSelector": {"type": "virtual-kubelet"}})), &by("normalNodePrefer"));
    assert_eq!(found, [("/spec/tolerations".to_owned(), json!([ours()]))]);
}

#[test]
fn fair_pods_may_go_everywhere_and_are_spread_over_hosts_with_pods_like_them() {
    let found = added(&pod(json!({})), &by("fair"));
    let paths: Vec<_> = found.iter().map(|(path, _)| path.as_str()).collect();
    let mark = "/metadata/labels/kvmlet.io~1burst-policy";
    assert_eq!(paths, ["/spec/tolerations", "/spec/topologySpreadConstraints", mark]);
    let constraint = &found[1].1[0];
    assert_eq!(constraint["labelSelector"], json!({"matchLabels": {"app": "a"}}));
    assert_eq!(constraint["whenUnsatisfiable"], "ScheduleAnyway", "no pod waits for it");

    let mut of_deployment = pod(json!({}));
    of_deployment["metadata"]["labels"]["pod-template-hash"] = "h".into();
    assert_eq!(
        added(&of_deployment, &by("fair"))[1].1[0]["labelSelector"]["matchLabels"],
        json!({"pod-template-hash": "h"})
    );
    for unique in [
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/job-completion-index",
    ] {
        let mut numbered = pod(json!({}));
        numbered["metadata"]["labels"][unique] = "0".into();
        let alike = &added(&numbered, &by("fair"))[1].1[0]["labelSelector"]["matchLabels"];
        assert_eq!(*alike, json!({"app": "a"}), "{unique}");
        let alone = json!({"metadata": {"labels": {unique: "0"}}, "spec": {}});
        assert!(
            added(&alone, &by("fair")).iter().all(|(path, _)| !path.contains("Spread")),
            "{unique}"
        );
    }
    let own = pod(json!({"topologySpreadConstraints": [{"maxSkew": 5}]}));
    assert!(added(&own, &by("fair")).iter().all(|(path, _)| !path.contains("Spread")));
}

/// Profiles by name and spec.
fn profiles(all: &[(&str, Value)]) -> Profiles {
    let object = |(name, spec): &(&str, Value)| -> BurstProfile {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    };
    let objects: Vec<_> = all.iter().map(object).collect();
    Profiles::new(&objects, "kvmlet-system")
}

/// What is added by these profiles, as (path, value), in order.
fn added_by(pod: &Value, namespace: &Labels, profiles: &Profiles) -> Vec<(String, Value)> {
    let decision = decide(pod, ("n", namespace), profiles, fits);
    assert!(decision.warnings.is_empty(), "{:?}", decision.warnings);
    let operation = |one: Value| (one["path"].as_str().unwrap().to_owned(), one["value"].clone());
    decision.patch.into_iter().map(operation).collect()
}

const PROFILE_PATH: &str = "/metadata/labels/kvmlet.io~1burst-profile";
const POLICY_PATH: &str = "/metadata/labels/kvmlet.io~1burst-policy";

#[test]
fn a_profile_sends_a_pod_without_any_label_and_gives_it_what_it_has_not_itself() {
    let effect =
        json!({"annotations": {"team": "ci", "x/y": "1"}, "labels": {"app": "other", "tier": "burst"}, "runtimeClassName": "kvmlet"});
    let all = profiles(&[("p", json!({"effect": effect}))]);
    let mut pod = pod(json!({}));
    pod["metadata"]["annotations"] = json!({"team": "own"});
    let wanted = [
        ("/spec/tolerations", json!([ours()])),
        ("/spec/nodeSelector", json!({"type": "virtual-kubelet"})),
        ("/spec/runtimeClassName", json!("kvmlet")),
        (POLICY_PATH, json!("virtualNodeOnly")),
        (PROFILE_PATH, json!("p")),
        ("/metadata/labels/tier", json!("burst")),
        ("/metadata/annotations/x~1y", json!("1")),
    ];
    assert_eq!(
        added_by(&pod, &labelled(&[]), &all),
        wanted.map(|(path, value)| (path.to_owned(), value))
    );
    pod["spec"]["runtimeClassName"] = "own".into();
    let found = added_by(&pod, &labelled(&[]), &all);
    assert!(found.iter().all(|(path, _)| !path.contains("runtimeClass")), "{found:?}");
}

#[test]
fn labels_of_the_pod_and_its_namespace_count_before_a_profiles_policy() {
    let all = profiles(&[("p", json!({"effect": {"policy": "normalNodePrefer"}}))]);
    let policy = |pod: &Value, namespace: &Labels| {
        let found = added_by(pod, namespace, &all);
        let mark = found.iter().find(|(path, _)| path == POLICY_PATH);
        mark.map(|(_, value)| value.as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(policy(&pod(json!({})), &labelled(&[])).unwrap(), "normalNodePrefer");
    assert_eq!(policy(&pod(json!({})), &labelled(&[(POLICY, "fair")])).unwrap(), "fair");
    let kept = labelled(&[(INJECT, "false")]);
    assert_eq!(added_by(&pod(json!({})), &kept, &all), [], "its namespace is left alone");
    let mut opted_out = pod(json!({}));
    opted_out["metadata"]["labels"][INJECT] = "false".into();
    assert_eq!(added_by(&opted_out, &labelled(&[NAMESPACE_LABEL]), &all), []);
}

#[test]
fn of_two_profiles_in_conflict_the_first_decides_and_the_pod_says_which_came_later() {
    let spec = |priority: i32, policy: &str| json!({"priority": priority, "effect": {"policy": policy}});
    let all = profiles(&[
        ("low", spec(0, "fair")),
        ("high", spec(1, "virtualNodeOnly")),
        ("other", spec(0, "fair")),
    ]);
    let found = added_by(&pod(json!({})), &labelled(&[]), &all);
    assert!(found.contains(&(PROFILE_PATH.to_owned(), json!("high"))), "{found:?}");
    let said = json!({"kvmlet.io/burst-profiles-passed-over": "low,other"});
    assert!(found.contains(&("/metadata/annotations".to_owned(), said)), "{found:?}");
    assert!(found.iter().all(|(path, _)| !path.contains("Spread")), "{found:?}");
}

#[test]
fn a_pod_of_a_profile_with_a_max_gets_its_toleration_later() {
    let max = |policy: &str| profiles(&[("p", json!({"effect": {"policy": policy, "max": 2}}))]);
    for policy in ["virtualNodeOnly", "normalNodePrefer"] {
        let found = added_by(&pod(json!({})), &labelled(&[]), &max(policy));
        assert!(found.iter().all(|(path, _)| !path.contains("tolerations")), "{found:?}");
        let selects = found.iter().any(|(path, _)| path == "/spec/nodeSelector");
        assert_eq!(selects, policy == "virtualNodeOnly");
        assert!(found.contains(&(POLICY_PATH.to_owned(), json!(policy))), "{found:?}");
    }
    let fair = added_by(&pod(json!({})), &by("fair"), &profiles(&[("p", json!({"effect": {"max": 2}}))]));
    assert!(
        fair.contains(&(POLICY_PATH.to_owned(), json!("normalNodePrefer"))),
        "a label says fair: {fair:?}"
    );
}

#[test]
fn what_an_earlier_decision_left_on_a_copied_pod_is_taken_away() {
    let mut copied = pod(json!({}));
    copied["metadata"]["labels"][PROFILE] = "gone".into();
    copied["metadata"]["annotations"] = json!({PASSED_OVER: "gone"});
    let mut none = copied.clone();
    none["spec"]["nodeName"] = "n".into();
    for pod in [&copied, &none] {
        let decision = decide(pod, ("n", &labelled(&[])), &Profiles::default(), fits);
        let removed = json!([{"op": "remove", "path": PROFILE_PATH}, {"op": "remove", "path": "/metadata/annotations/kvmlet.io~1burst-profiles-passed-over"}]);
        assert_eq!(Value::from(decision.patch), removed);
    }
}

#[test]
fn a_pod_that_a_profile_selects_and_that_cannot_go_or_chose_other_nodes_is_left_alone() {
    let all = profiles(&[("p", json!({"effect": {"policy": "fair", "labels": {"a": "b"}}}))]);
    let cannot = decide(&pod(json!({"hostNetwork": true})), ("n", &labelled(&[])), &all, only_hosts);
    assert!(cannot.patch.is_empty() && cannot.warnings.len() == 1, "{cannot:?}");
    assert_eq!(added_by(&pod(json!({"nodeSelector": {"type": "gpu"}})), &labelled(&[]), &all), []);
}
