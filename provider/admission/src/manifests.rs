//! What tests say of the files of `manifests`.

use std::path::Path;

use serde_json::Value;

/// The objects of a file.
fn objects(file: &str) -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests").join(file);
    let text = std::fs::read_to_string(&file).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

fn object(file: &str, kind: &str) -> Value {
    let all = objects(file);
    all.into_iter().find(|one| one["kind"] == kind).unwrap()
}

#[test]
fn the_webhooks_pods_can_leave_a_node_also_where_there_is_one_alone() {
    let budget = &object("webhook/deployment.yaml", "PodDisruptionBudget")["spec"];
    assert_eq!((&budget["maxUnavailable"], &budget["minAvailable"]), (&1.into(), &Value::Null));
}

#[test]
fn who_keeps_routes_may_list_and_watch_nodes_and_no_more() {
    let rules = &object("network.yaml", "ClusterRole")["rules"];
    assert_eq!(
        *rules,
        serde_json::json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}])
    );
}

#[test]
fn the_webhook_of_daemon_sets_holds_up_nothing_and_leaves_no_namespace_out() {
    let configuration = object("webhook/webhook.yaml", "MutatingWebhookConfiguration");
    let all = configuration["webhooks"].as_array().unwrap();
    let of_sets = all.iter().find(|one| one["name"] == "daemonset.kvmlet.io").unwrap();
    assert_eq!(
        (&of_sets["failurePolicy"], &of_sets["timeoutSeconds"]),
        (&"Ignore".into(), &2.into())
    );
    assert!(of_sets["namespaceSelector"].is_null() && of_sets["objectSelector"].is_null());
    assert_eq!(of_sets["clientConfig"]["service"]["path"], "/daemonsets");
}
