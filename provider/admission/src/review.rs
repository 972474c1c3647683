//! AdmissionReview of `admission.k8s.io/v1` (k8s.io/api/admission/v1): what is read of a request, and the answer to it. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::decide::Decision;

/// The version that is understood.
const VERSION: &str = "admission.k8s.io/v1";

/// What is asked.
#[derive(Debug, Clone, Deserialize)]
pub struct Request {
    /// The answer carries it too.
    pub uid: String,
    /// What kind of object it is about.
    pub resource: Resource,
    /// The object's namespace.
    #[serde(default)]
    pub namespace: String,
    /// What is done to it.
    #[serde(default)]
    pub operation: String,
    /// The object, JSON.
    #[serde(default)]
    pub object: Value,
    /// What it was before, if there was something.
    #[serde(default, rename = "oldObject")]
    pub old_object: Value,
}

/// `GroupVersionResource`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Resource {
    /// Empty for the core group.
    pub group: String,
    /// As `v1`.
    pub version: String,
    /// As `pods`.
    pub resource: String,
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { group, version, resource } = self;
        let slash = if group.is_empty() { "" } else { "/" };
        write!(f, "{resource} of {group}{slash}{version}")
    }
}

/// Why a body is no review that can be answered.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// It is not JSON, or a field is of another type.
    #[error("the body is no AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    /// It is of another kind or version.
    #[error("the body is {kind:?} of {version:?}, and an AdmissionReview of {VERSION} is understood here")]
    Version {
        /// Its kind.
        kind: String,
        /// Its apiVersion.
        version: String,
    },
    /// It asks nothing.
    #[error("the AdmissionReview has no request")]
    NoRequest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

/// Reads a request's body.
pub fn read(body: &[u8]) -> Result<Request, Malformed> {
    let review: Review = serde_json::from_slice(body)?;
    if review.api_version != VERSION || review.kind != "AdmissionReview" {
        return Err(Malformed::Version {
            kind: review.kind,
            version: review.api_version,
        });
    }
    review.request.ok_or(Malformed::NoRequest)
}

/// Why a request is none that this webhook decides; the object is left as it is, with this as a warning.
pub fn not_ours(request: &Request) -> Option<String> {
    let Request {
        resource,
        operation,
        object,
        ..
    } = request;
    if resource.resource != "pods" || !resource.group.is_empty() || operation != "CREATE" {
        return Some(format!(
            "kvmlet: its webhook was asked about {operation} of {resource}, and knows only CREATE of pods"
        ));
    }
    (!object["spec"].is_object()).then(|| "kvmlet: the pod that its webhook was asked about has no spec".to_owned())
}

/// The answer: the pod is let through, with what was decided.
pub fn answer(uid: &str, decision: &Decision) -> Value {
    let mut response = json!({"uid": uid, "allowed": true});
    if !decision.patch.is_empty() {
        response["patchType"] = "JSONPatch".into();
        response["patch"] = STANDARD.encode(Value::from(decision.patch.clone()).to_string()).into();
    }
    if !decision.warnings.is_empty() {
        response["warnings"] = decision.warnings.clone().into();
    }
    json!({"apiVersion": VERSION, "kind": "AdmissionReview", "response": response})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(request: Value) -> Vec<u8> {
        json!({"apiVersion": VERSION, "kind": "AdmissionReview", "request": request})
            .to_string()
            .into()
    }

    fn asked(resource: &str, operation: &str, object: Value) -> Request {
        let resource = json!({"group": "", "version": "v1", "resource": resource});
        let request = json!({"uid": "u", "resource": resource, "operation": operation, "namespace": "n", "object": object});
        read(&review(request)).unwrap()
    }

    #[test]
    fn a_body_that_is_no_review_is_refused_with_what_is_wrong_with_it() {
        let said = |body: &[u8]| read(body).unwrap_err().to_string();
        assert!(said(b"").contains("EOF"));
        assert!(said(b"{}").contains(r#"the body is "" of """#));
        let old = json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}).to_string();
        assert!(said(old.as_bytes()).contains("v1beta1"));
        let empty = json!({"apiVersion": VERSION, "kind": "AdmissionReview"}).to_string();
        assert_eq!(said(empty.as_bytes()), "the AdmissionReview has no request");
        assert!(said(&review(json!({"uid": 1}))).contains("invalid type: integer"));
        assert!(said(&review(json!({"uid": "u"}))).contains("missing field `resource`"));
        let deep = format!(r#"{{"request": {{"object": {}"#, "[".repeat(100_000));
        assert!(said(deep.as_bytes()).contains("recursion limit"));
    }

    #[test]
    fn what_is_no_new_pod_is_left_as_it_is_with_a_warning() {
        let spec = json!({"spec": {}});
        assert_eq!(not_ours(&asked("pods", "CREATE", spec.clone())), None);
        let other = not_ours(&asked("services", "CREATE", spec.clone())).unwrap();
        assert!(other.contains("CREATE of services of v1"), "{other}");
        assert!(not_ours(&asked("pods", "UPDATE", spec)).is_some());
        assert!(not_ours(&asked("pods", "CREATE", Value::Null)).unwrap().contains("no spec"));
    }

    #[test]
    fn an_answer_has_the_requests_uid_and_patch_and_warnings_only_where_there_are_some() {
        let plain = answer("u", &Decision::default());
        assert_eq!(plain["response"], json!({"uid": "u", "allowed": true}));
        let patch = vec![json!({"op": "add", "path": "/spec/x", "value": 1})];
        let decision = Decision {
            patch: patch.clone(),
            warnings: vec!["w".into()],
        };
        let response = &answer("u", &decision)["response"];
        let decoded = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
        assert_eq!(serde_json::from_slice::<Vec<Value>>(&decoded).unwrap(), patch);
        assert_eq!(
            (&response["patchType"], &response["warnings"]),
            (&json!("JSONPatch"), &json!(["w"]))
        );
    }
}
