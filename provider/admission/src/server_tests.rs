use axum::{body::Body, http::Request};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::{
    policy::NAMESPACE_LABEL,
    profile::{BurstProfile, Profiles, follow},
};

/// Namespaces of which `labelled` sends its pods and `gone` cannot be read.
struct Known(bool);

impl Namespaces for Known {
    fn is_ready(&self) -> bool {
        self.0
    }

    fn labels<'a>(&'a self, namespace: &'a str, _: LookedFor<'a>) -> LabelsFuture<'a> {
        let (key, value) = NAMESPACE_LABEL;
        let labels = match namespace {
            "labelled" => Ok([(key.to_owned(), value.to_owned())].into()),
            "gone" => Err("not found".to_owned()),
            _ => Ok(Labels::new()),
        };
        Box::pin(async move { labels })
    }
}

/// There is one profile, which selects everything.
fn profiles() -> watch::Receiver<follow::Known> {
    let all: BurstProfile = serde_json::from_value(json!({"metadata": {"name": "all"}, "spec": {"effect": {"policy": "fair"}}})).unwrap();
    watch::channel(Some(Arc::new(Profiles::new([&all], "kvmlet-system")))).1
}

fn router_of(certificate: ServingCertificate, known: bool) -> Router {
    router(Arc::new(Known(known)), profiles(), certificate, |_| Vec::new())
}

async fn call(router: Router, request: Request<Body>) -> (StatusCode, String) {
    let response = router.oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn posted(body: impl Into<Body>) -> (StatusCode, String) {
    let request = Request::post("/mutate").body(body.into()).unwrap();
    call(router_of(ServingCertificate::none(), true), request).await
}

fn review(namespace: &str, object: &Value) -> String {
    let request = json!({"uid": "u", "resource": {"version": "v1", "resource": "pods"}, "operation": "CREATE",
        "namespace": namespace, "object": object});
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).to_string()
}

#[tokio::test]
async fn a_replica_that_is_to_end_answers_and_ends_each_connection() {
    let leaving = CancellationToken::new();
    let router = ends_connections(router_of(ServingCertificate::none(), true), leaving.clone());
    let connection = async || {
        let response = router
            .clone()
            .oneshot(Request::get("/healthz").body(Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.headers().get(CONNECTION).cloned()
    };
    assert_eq!(connection().await, None);
    leaving.cancel();
    assert_eq!(connection().await, Some(HeaderValue::from_static("close")));
}

#[tokio::test]
async fn a_review_of_a_labelled_namespace_is_answered_with_a_patch_and_another_without() {
    let pod = json!({"metadata": {}, "spec": {"containers": []}});
    let (status, body) = posted(review("labelled", &pod)).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["response"]["uid"]), (StatusCode::OK, &json!("u")));
    assert!(answer["response"]["patch"].is_string());
    let (_, body) = posted(review("kube-system", &pod)).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["response"], json!({"uid": "u", "allowed": true}));
}

#[tokio::test]
async fn a_pod_that_no_label_sends_is_answered_by_the_profiles_as_they_are_known() {
    let post = |namespace| {
        Request::post("/profile")
            .body(review(namespace, &json!({"spec": {}})).into())
            .unwrap()
    };
    let (status, body) = call(router_of(ServingCertificate::none(), true), post("plain")).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert!(status == StatusCode::OK && answer["response"]["patch"].is_string(), "{answer}");
    let unknown = router(Arc::new(Known(true)), watch::channel(None).1, ServingCertificate::none(), |_| {
        Vec::new()
    });
    let (status, body) = call(unknown, post("plain")).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, answer["response"]["patch"].is_null()), (StatusCode::OK, true));
}

#[tokio::test]
async fn a_daemon_set_that_goes_everywhere_is_answered_with_an_affinity_whatever_its_namespace() {
    let object = json!({"spec": {"template": {"spec": {"tolerations": [{"operator": "Exists"}]}}}});
    let request = json!({"uid": "u", "resource": {"group": "apps", "version": "v1", "resource": "daemonsets"}, "operation": "CREATE",
        "namespace": "kube-system", "object": object});
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).to_string();
    let post = |body: String| Request::post("/daemonsets").body(body.into()).unwrap();
    let (status, body) = call(router_of(ServingCertificate::none(), true), post(review)).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert!(status == StatusCode::OK && answer["response"]["patch"].is_string(), "{answer}");
    let (status, _) = call(router_of(ServingCertificate::none(), true), post("nonsense".into())).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_malformed_review_is_told_what_is_wrong_with_it() {
    let (status, body) = posted("nonsense").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.starts_with("the body is no AdmissionReview: "), "{body}");
}

#[tokio::test]
async fn a_pod_of_three_megabytes_is_answered_and_a_body_beyond_the_limit_is_refused() {
    let pod = |length: usize| json!({"metadata": {"annotations": {"a": "x".repeat(length)}}, "spec": {}});
    let (status, body) = posted(review("labelled", &pod(3 << 20))).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("\"patch\"") && body.len() < 1000, "{} bytes", body.len());
    let (status, body) = posted(review("labelled", &pod(LARGEST))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(body.contains("limit"), "{body}");
}

#[tokio::test]
async fn a_pod_whose_namespace_cannot_be_read_is_not_let_through_unseen() {
    let (status, body) = posted(review("gone", &json!({"spec": {}}))).await;
    assert_eq!(
        (status, body.as_str()),
        (StatusCode::INTERNAL_SERVER_ERROR, "read namespace gone: not found")
    );
}

#[tokio::test]
async fn it_is_ready_once_it_has_a_certificate_and_knows_namespaces_and_profiles() {
    let get = || Request::get("/readyz").body(Body::empty()).unwrap();
    let none = ServingCertificate::none();
    let (status, body) = call(router_of(none, true), get()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body, "there is no serving certificate yet");
    let pair = rcgen::generate_simple_self_signed(["n".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
    let some = ServingCertificate::new(vec![pair.cert.der().clone()], key).unwrap();
    assert_eq!(call(router_of(some.clone(), false), get()).await.1, "namespaces are not known yet");
    let unknown = router(Arc::new(Known(true)), watch::channel(None).1, some.clone(), |_| Vec::new());
    assert_eq!(call(unknown, get()).await.1, "profiles are not known yet");
    assert_eq!(call(router_of(some, true), get()).await.0, StatusCode::OK);
}
