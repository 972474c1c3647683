//! `BurstProfile` of `kvmlet.io/v1alpha1` as it is written. `manifests/webhook/burst-profile.yaml` is made from these types and what is said of them
//! here (`crd`), so what stands here is also what `kubectl explain` says.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};

use crate::{kinds::of_the_cluster, policy::Policy};

/// Which pods go to virtual nodes, and in which way. Of all profiles that select a pod the one with the highest priority decides, of the same
/// priority the first by name. Only pods that are created from then on; what a pod says itself is never changed. Pods of kube-system and of the webhook's
/// own namespace, and those that the label kvmlet.io/inject=false (of the pod or its namespace) keeps, are never selected.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BurstProfile {
    /// Name, generation and the rest.
    #[cfg_attr(test, schemars(skip))]
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: Spec,
    /// What the webhook has seen; it writes this itself.
    #[serde(default)]
    pub status: Option<Status>,
}

/// What a profile selects, and what it does.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Of several profiles that select a pod the one with the highest priority decides; of the same priority the first by name.
    #[serde(default)]
    pub priority: i32,
    /// Pods of which namespaces, by the namespaces' labels. Without one, of all.
    #[serde(default)]
    #[cfg_attr(test, schemars(schema_with = "super::crd::selector"))]
    pub namespace_selector: LabelSelector,
    /// Which of their pods, by the pods' labels. Without one, all.
    #[serde(default)]
    #[cfg_attr(test, schemars(schema_with = "super::crd::selector"))]
    pub pod_selector: LabelSelector,
    /// What becomes of them.
    pub effect: Effect,
}

/// What becomes of a pod. At least one field is set.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, schemars(transform = super::crd::effect_rules))]
pub struct Effect {
    /// In which way it goes: virtualNodeOnly (to virtual nodes alone; also without a policy), normalNodePrefer (to ordinary nodes while they have room)
    /// or fair (to both, spread). The label kvmlet.io/burst-policy of the pod or its namespace counts before this.
    #[serde(default)]
    #[cfg_attr(test, schemars(schema_with = "super::crd::policy"))]
    pub policy: Option<Policy>,
    /// Annotations that it gets, where it has none of that name. None of kvmlet.io.
    #[serde(default)]
    #[cfg_attr(test, schemars(schema_with = "super::crd::annotations"))]
    pub annotations: BTreeMap<String, String>,
    /// Labels that it gets, where it has none of that name. None of kvmlet.io.
    #[serde(default)]
    #[cfg_attr(test, schemars(schema_with = "super::crd::labels"))]
    pub labels: BTreeMap<String, String>,
    /// The RuntimeClass that it gets, unless it names one. Where there is no such class, the API server refuses the pod.
    #[serde(default)]
    #[cfg_attr(test, schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")))]
    pub runtime_class_name: Option<String>,
    /// How many pods of this profile may be on virtual nodes at once. Others wait, or with normalNodePrefer go on waiting for ordinary nodes, until one is
    /// over. A pod that tolerates virtual nodes itself counts, but does not wait.
    #[serde(default)]
    #[cfg_attr(test, schemars(range(max = 2_147_483_647)))]
    pub max: Option<u32>,
}

/// What was seen of a profile's pods; at most a few seconds old.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// The version of the profile (metadata.generation) that this is about.
    pub observed_generation: i64,
    /// Pods that it decided about, and that are not over.
    pub pods: u32,
    /// Those of them that are on virtual nodes.
    pub on_virtual_nodes: u32,
    /// Those of them that wait: for ordinary nodes, or for one of the profile's max places.
    pub waiting: u32,
    /// Pods that it selects, too, but that another profile decided about, because that comes first.
    pub passed_over: Vec<PassedOver>,
}

/// Pods of another profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PassedOver {
    /// That profile's name.
    pub by: String,
    /// How many.
    pub pods: u32,
}

of_the_cluster!(BurstProfile, "burstprofiles");
