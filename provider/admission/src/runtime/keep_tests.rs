use super::*;
use crate::runtime::{
    decide::tests::{check, runtime},
    testing::{FakeApi, keeper},
};

#[test]
fn certificates_live_as_the_switch_says_and_without_a_word_as_the_configuration_does() {
    let (tell, told) = watch::channel(None);
    let own = CertConfig::default();
    let certificates = Certificates { own, tell };
    certificates.known(None);
    assert_eq!(*told.borrow(), Some(own));
    let span = serde_json::json!({"duration": "1h", "renewBefore": "20m"});
    let mut on = runtime(true);
    on.spec.cert_config = serde_json::from_value(serde_json::json!({"ca": span, "server": span})).unwrap();
    certificates.known(Some(&on));
    assert_eq!(*told.borrow(), on.spec.cert_config);
    certificates.known(Some(&runtime(false)));
    assert_eq!(*told.borrow(), Some(own));
}

#[test]
fn kinds_that_are_not_installed_or_not_allowed_are_no_failure() {
    let refused = |code| {
        let status = kube::core::Status::failure("no", "No").with_code(code);
        watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()))
    };
    assert!(is_absent(&refused(404)) && is_absent(&refused(403)));
    assert!(!is_absent(&refused(500)));
}

#[tokio::test]
async fn a_pod_that_cannot_be_evicted_holds_up_neither_its_neighbours_nor_other_nodes() {
    for code in [400, 403, 500] {
        let api = FakeApi::new(&["kvm-1", "kvm-2"], &[("kvm-1", "bad"), ("kvm-1", "good"), ("kvm-2", "other")]);
        api.refuse("POST", "/pods/bad/eviction", code);
        let mut keeper = keeper(&api, false, &[]);
        keeper.look(Instant::now()).await.unwrap();
        assert!(api.has_asked("POST", "/pods/good/eviction") && api.has_asked("POST", "/pods/other/eviction"));
        assert_eq!((keeper.leaving["kvm-1"].0.pods, keeper.leaving["kvm-2"].0.pods), (2, 1), "{code}");
        assert_eq!(keeper.wake(), Some(AGAIN));
        assert_eq!(api.message(), "being disabled: 3 pods have yet to leave its nodes");
    }
}

#[tokio::test]
async fn a_node_that_may_not_be_changed_holds_up_no_other_and_is_tried_again() {
    let api = FakeApi::new(&["kvm-1", "kvm-2"], &[("kvm-1", "kvmlet-webhook"), ("kvm-2", "kvmlet-webhook")]);
    api.refuse("PATCH", "/nodes/kvm-1", 403);
    let mut keeper = keeper(&api, false, &[]);
    keeper.look(Instant::now()).await.unwrap();
    assert!(api.has_asked("PATCH", "/nodes/kvm-2"));
    assert_eq!(keeper.wake(), Some(AGAIN));
    let said = api.message();
    assert!(said.starts_with("being disabled. kvm-1 cannot be changed: "), "{said}");
    api.refuse("PATCH", "/nodes/kvm-1", 200);
    keeper.look(Instant::now()).await.unwrap();
    assert_eq!(keeper.wake(), Some(DRAINED));
}

#[tokio::test]
async fn a_pod_that_comes_to_a_drained_node_by_its_name_is_evicted_too() {
    let api = FakeApi::new(&["kvm-1"], &[("kvm-1", "kvmlet-webhook")]);
    let (mut keeper, begin) = (keeper(&api, false, &[]), Instant::now());
    keeper.look(begin).await.unwrap();
    api.put(&[("kvm-1", "late"), ("kvm-1", "kvmlet-webhook")]);
    keeper.look(begin + DRAINED / 2).await.unwrap();
    assert!(
        !api.has_asked("POST", "/pods/late/eviction"),
        "whatever happens elsewhere has pods listed again"
    );
    keeper.look(begin + DRAINED).await.unwrap();
    assert!(api.has_asked("POST", "/pods/late/eviction"));
    assert_eq!(api.message(), "being disabled: 1 pods have yet to leave its nodes");
}

#[tokio::test]
async fn old_checks_of_nodes_that_there_are_not_are_removed_and_others_stay() {
    let mut of_nobody = check("of-nobody", 1, Some(true));
    of_nobody.spec.node_name = "mistyped".into();
    let mut young = check("young", 1, None);
    young.spec.node_name = "about-to-come".into();
    young.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()));
    let api = FakeApi::new(&["kvm-1"], &[]);
    let mut keeper = keeper(&api, true, &[of_nobody, young, check("of-a-node", 1, Some(true))]);
    assert_eq!(keeper.wake(), Some(ORPHANS));
    keeper.look(Instant::now()).await.unwrap();
    assert!(api.has_asked("DELETE", "/preflightchecks/of-nobody"));
    assert!(!api.has_asked("DELETE", "/preflightchecks/young") && !api.has_asked("DELETE", "/preflightchecks/of-a-node"));
}

#[tokio::test]
async fn a_node_that_is_switched_off_goes_when_no_pod_is_left_but_not_while_it_has_the_webhook() {
    let api = FakeApi::new(&["empty", "busy", "webhooks"], &[("busy", "web"), ("webhooks", "kvmlet-webhook")]);
    let (mut keeper, begin) = (keeper(&api, false, &[]), Instant::now());
    keeper.look(begin).await.unwrap();
    keeper.look(begin + AGAIN / 2).await.unwrap();
    assert!(!api.has_asked("DELETE", "/nodes/empty"), "the scheduler may have decided on a pod");
    assert_eq!(keeper.wake(), Some(AGAIN));
    keeper.look(begin + AGAIN).await.unwrap();
    assert!(api.has_asked("DELETE", "/nodes/empty"));
    assert!(!api.has_asked("DELETE", "/nodes/busy") && !api.has_asked("DELETE", "/nodes/webhooks"));
    api.put(&[]);
    keeper.look(begin + 2 * AGAIN).await.unwrap();
    assert!(!api.has_asked("DELETE", "/nodes/busy"));
    keeper.look(begin + 3 * AGAIN).await.unwrap();
    assert!(api.has_asked("DELETE", "/nodes/busy"));
    keeper.look(begin + DRAINED).await.unwrap();
    keeper.look(begin + DRAINED + AGAIN).await.unwrap();
    assert!(api.has_asked("DELETE", "/nodes/webhooks"), "the webhook has gone elsewhere");
}

#[tokio::test]
async fn no_node_goes_while_kvmlet_is_on() {
    let api = FakeApi::new(&["kvm-1"], &[]);
    keeper(&api, true, &[]).look(Instant::now()).await.unwrap();
    assert!(!api.has_asked("DELETE", "/nodes/kvm-1"));
}
