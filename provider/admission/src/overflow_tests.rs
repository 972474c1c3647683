use super::*;
use crate::policy::TAINT;

fn fits(_: &Value) -> Vec<String> {
    Vec::new()
}

fn is_virtual(node: &str) -> bool {
    node == "kvm-1"
}

/// A pod of a policy of which the scheduler has said something.
fn pod(policy: &str, reason: &str) -> Value {
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": reason});
    json!({"metadata": {"uid": "u", "labels": {POLICY: policy}}, "spec": {}, "status": {"phase": "Pending", "conditions": [condition]}})
}

fn waiting() -> Value {
    pod("normalNodePrefer", "Unschedulable")
}

/// All operations that are due, whenever.
fn operations(due: Due) -> Vec<Value> {
    match due {
        Due::Nothing => Vec::new(),
        Due::Now(all) | Due::Place(all) => all,
    }
}

/// What is added, without the guards.
fn added(pod: &Value) -> Vec<Value> {
    let all = operations(follow_up(pod, is_virtual, fits));
    assert!(all.is_empty() || all[0] == json!({"op": "test", "path": "/metadata/uid", "value": "u"}));
    all.into_iter().filter(|one| one["op"] != "test").collect()
}

#[test]
fn a_pod_that_found_no_room_on_ordinary_nodes_is_let_onto_virtual_ones() {
    let found = added(&waiting());
    assert_eq!((found.len(), &found[0]["path"]), (1, &json!("/spec/tolerations")));
    let mut with_others = waiting();
    with_others["spec"]["tolerations"] = json!([{"key": "other"}]);
    let all = operations(follow_up(&with_others, is_virtual, fits));
    assert_eq!(
        all[1],
        json!({"op": "test", "path": "/spec/tolerations", "value": [{"key": "other"}]})
    );
    assert_eq!(all[2]["path"], "/spec/tolerations/-");
}

#[test]
fn a_pod_that_the_scheduler_has_not_judged_is_gated_or_has_its_room_waits_for_ordinary_nodes() {
    let none = [] as [Value; 0];
    assert_eq!(added(&pod("normalNodePrefer", "SchedulingGated")), none);
    let mut fresh = waiting();
    fresh["status"] = json!({"phase": "Pending"});
    assert_eq!(added(&fresh), none);
    let mut nominated = waiting();
    nominated["status"]["nominatedNodeName"] = "real".into();
    assert_eq!(added(&nominated), none);
}

#[test]
fn a_pod_of_another_policy_that_tolerates_already_or_cannot_go_is_not_touched() {
    let none = [] as [Value; 0];
    assert_eq!(added(&pod("fair", "Unschedulable")), none);
    let mut done = waiting();
    done["spec"]["tolerations"] = json!([{"key": TAINT, "operator": "Exists"}]);
    assert_eq!(added(&done), none);
    assert_eq!(follow_up(&waiting(), is_virtual, |_| vec!["hostNetwork".into()]), Due::Nothing);
    let mut going = waiting();
    going["metadata"]["deletionTimestamp"] = "now".into();
    assert_eq!(added(&going), none);
}

#[test]
fn a_pod_on_a_virtual_node_is_the_first_to_be_removed_unless_it_says_its_own_cost() {
    let mut bound = pod("fair", "");
    bound["spec"]["nodeName"] = "kvm-1".into();
    assert_eq!(added(&bound)[0]["value"], json!({COST: "-1000"}));
    bound["metadata"]["annotations"] = json!({"a": "b"});
    assert_eq!(
        added(&bound)[0]["path"],
        "/metadata/annotations/controller.kubernetes.io~1pod-deletion-cost"
    );
    bound["metadata"]["annotations"][COST] = "5".into();
    assert_eq!(added(&bound), [] as [Value; 0]);
    bound["metadata"]["annotations"] = Value::Null;
    bound["spec"]["nodeName"] = "real".into();
    assert_eq!(added(&bound), [] as [Value; 0]);
}

#[test]
fn a_pod_of_a_profile_that_goes_to_virtual_nodes_alone_waits_for_a_place_whatever_the_scheduler_says() {
    let mut fresh = pod("virtualNodeOnly", "");
    assert_eq!(follow_up(&fresh, is_virtual, fits), Due::Nothing, "no profile");
    fresh["metadata"]["labels"][PROFILE] = "p".into();
    assert!(matches!(follow_up(&fresh, is_virtual, fits), Due::Place(_)));
    fresh["spec"]["nodeName"] = "kvm-1".into();
    assert_eq!(follow_up(&fresh, is_virtual, fits), Due::Nothing, "no ReplicaSet has cheaper ones");
}

#[test]
fn a_profiles_pod_of_any_other_policy_waits_for_ordinary_nodes_first() {
    for policy in ["fair", "normalNodePrefer"] {
        let mut bounded = pod(policy, "");
        bounded["metadata"]["labels"][PROFILE] = "p".into();
        assert_eq!(follow_up(&bounded, is_virtual, fits), Due::Nothing, "{policy}");
        bounded["status"] = waiting()["status"].clone();
        assert!(matches!(follow_up(&bounded, is_virtual, fits), Due::Place(_)), "{policy}");
    }
}

/// What becomes of a change that the API server answers with this code.
async fn changed(code: u16) -> Result<Option<Key>, FollowError> {
    let service = tower::service_fn(move |_: hyper::Request<kube::client::Body>| async move {
        let status = json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "No", "code": code});
        let answer = hyper::Response::builder().status(code);
        Ok::<_, kube::Error>(
            answer
                .body(kube::client::Body::from(status.to_string().into_bytes()))
                .expect("an answer"),
        )
    });
    let client = Client::new(service, "default");
    change(
        &client,
        ("n".into(), "p".into()),
        operations(follow_up(&waiting(), is_virtual, fits)),
    )
    .await
}

#[tokio::test]
async fn a_pod_whose_change_is_refused_holds_up_no_other() {
    for code in [400, 403, 404, 409, 413, 422] {
        assert_eq!(changed(code).await.unwrap(), Some(("n".into(), "p".into())), "{code}");
    }
    for code in [401, 429, 500, 503] {
        assert!(changed(code).await.is_err(), "{code} is not of this pod");
    }
}
