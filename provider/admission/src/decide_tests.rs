use super::*;
use crate::policy::{INJECT, NAMESPACE_LABEL};

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

/// A namespace that sends its pods by this policy.
fn by(policy: &str) -> Labels {
    labelled(&[NAMESPACE_LABEL, (POLICY, policy)])
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "p", "labels": {"app": "a"}}, "spec": spec})
}

/// What is added to a pod, as (path, value), in order.
fn added(pod: &Value, namespace: &Labels) -> Vec<(String, Value)> {
    let decision = decide(pod, namespace, fits);
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
    assert_eq!(decide(&pod(json!({})), &labelled(&[]), only_hosts), silent);
    let opted_out = json!({"metadata": {"labels": {INJECT: "false"}}, "spec": {"hostNetwork": true}});
    assert_eq!(decide(&opted_out, &labelled(&[NAMESPACE_LABEL]), only_hosts), silent);
    assert_eq!(
        decide(&pod(json!({"nodeName": "n"})), &labelled(&[NAMESPACE_LABEL]), only_hosts),
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
        let decision = decide(pod, namespace, only_hosts);
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
    let own = pod(json!({"topologySpreadConstraints": [{"maxSkew": 5}]}));
    assert!(added(&own, &by("fair")).iter().all(|(path, _)| !path.contains("Spread")));
}
