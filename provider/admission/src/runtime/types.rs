//! `KvmletRuntime` and `PreflightCheck` of `kvmlet.io/v1alpha1` as they are written. `manifests/webhook/runtime.yaml` and `preflight-check.yaml` are
//! made from these types and what is said of them here (`crd`), so what stands here is also what `kubectl explain` says.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};

use crate::{CertConfig, kinds::of_the_cluster};

/// Whether kvmlet's nodes take pods. There is one, named kvmlet. While it says enabled, a node whose newest PreflightCheck has not passed gets no pods:
/// it has the taint kvmlet.io/preflight. While it does not, nodes are cordoned and drained, and there are no Nodes. Without one nobody looks after that, and nodes take
/// pods as soon as they are ready; so it is when it is deleted, too.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KvmletRuntime {
    /// Name, generation and the rest.
    #[cfg_attr(test, schemars(skip))]
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: RuntimeSpec,
    /// What was seen; the webhook's leader writes this itself.
    #[serde(default)]
    pub status: Option<RuntimeStatus>,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RuntimeSpec {
    /// Nodes take pods once their hosts have passed. Otherwise they are cordoned, their pods are evicted but for those of DaemonSets and of the webhook itself,
    /// and then the Nodes are deleted, except where the webhook is. Daemons make them anew when this is true again.
    pub enabled: bool,
    /// Hosts whose processors are emulated by software (QEMU's TCG) may be nodes too: slow, for tests and demonstrations. A change has all hosts
    /// checked anew.
    #[serde(default)]
    pub use_emulation: bool,
    /// What the scratch disks of pods are whose machines start from now on: raw, a sparse file, or qcow2, an image that is small without holes of its
    /// file system. Pods that run keep theirs. A change has all hosts checked anew: each makes such a disk.
    #[serde(default)]
    #[cfg_attr(test, schemars(schema_with = "super::crd::image_format"))]
    pub image_format: ImageFormat,
    /// How long the webhook's certificates live, in place of what its configuration says.
    #[serde(default)]
    #[cfg_attr(test, schemars(schema_with = "super::crd::cert_config"))]
    pub cert_config: Option<CertConfig>,
}

/// What a scratch disk is in the host's file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The disk's bytes.
    #[default]
    Raw,
    /// An image of QEMU's format.
    Qcow2,
}

/// What was seen of all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeStatus {
    /// The version of the object (metadata.generation) that this is about.
    pub observed_generation: i64,
    /// It is enabled, there are nodes, and all of them have passed.
    pub ready: bool,
    /// The same for people, with what is wrong first.
    pub message: String,
    /// What nodes' newest checks say.
    pub preflight_check_summary: Summary,
}

/// What nodes' newest checks say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    /// Nodes of kvmlet.
    pub nodes: u32,
    /// Those whose newest check has passed.
    pub passed: u32,
    /// Each thing that was looked at, over all nodes that have answered.
    pub feature_statuses: Vec<FeatureStatus>,
}

/// One check, over all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct FeatureStatus {
    /// The check's name: kvm-device.
    pub name: String,
    /// It has passed wherever it was looked at.
    pub passed: bool,
    /// On how many nodes it has not.
    pub failed_nodes: u32,
    /// The first node on which it has not, and what to do there.
    pub message: String,
}

/// A request to check a node's host, and the answer. The node's daemon looks at its host, at last boots a machine (the canary), and writes the status.
/// The webhook makes these; anybody else may too, to have a host checked again: kubectl create.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PreflightCheck {
    /// Name, age and the rest.
    #[cfg_attr(test, schemars(skip))]
    pub metadata: ObjectMeta,
    /// What is asked.
    pub spec: CheckSpec,
    /// What the node has answered; none before it has.
    #[serde(default)]
    pub status: Option<CheckStatus>,
}

/// What is asked. It stays as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, schemars(transform = super::crd::stays))]
pub struct CheckSpec {
    /// The node whose host is checked.
    #[cfg_attr(test, schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")))]
    pub node_name: String,
    /// Whether a host whose processor is emulated by software passes. Without a word it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_emulation: Option<bool>,
    /// What the scratch disk is that the host has to make, and its canary to have. Without a word what the node's disks are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(schema_with = "super::crd::image_format"))]
    pub image_format: Option<ImageFormat>,
    /// Why the webhook asks; nothing if somebody else does. Enabled (kvmlet was, or the node has come), FeaturesChanged (what the KvmletRuntime says of
    /// hosts and their disks), Upgraded (the node has another version of kvmlet) or Unskipped (its label kvmlet.io/skip-schedule was removed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(schema_with = "super::crd::reason"))]
    pub reason: Option<Reason>,
    /// The version of kvmlet that the node had when the webhook asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(length(max = 253)))]
    pub version: Option<String>,
}

/// Why a check is asked for by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// kvmlet was enabled, or the node has come since.
    Enabled,
    /// What the KvmletRuntime says of hosts and their disks is another.
    FeaturesChanged,
    /// The node has another version of kvmlet.
    Upgraded,
    /// The label that keeps pods away is gone.
    Unskipped,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Enabled, Self::FeaturesChanged, Self::Upgraded, Self::Unskipped];
}

/// What a host is like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct CheckStatus {
    /// All checks have passed.
    pub passed: bool,
    /// When the last of them was made.
    #[cfg_attr(test, schemars(schema_with = "super::crd::time"))]
    pub observed_time: Option<Time>,
    /// The version of kvmlet that made them.
    pub version: String,
    /// Each check, in the order in which one mends a host.
    pub checks: Vec<CheckResult>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CheckResult {
    /// Its name, which stays from version to version: kvm-device.
    pub name: String,
    /// Whether the host is as a node needs it.
    pub passed: bool,
    /// What was found; if it has not passed, what to do.
    pub message: String,
}

of_the_cluster!(KvmletRuntime, "kvmletruntimes");
of_the_cluster!(PreflightCheck, "preflightchecks");

impl PreflightCheck {
    /// Whether the node has answered.
    pub fn is_answered(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.observed_time.is_some())
    }

    /// Whether it has answered that all is well.
    pub fn has_passed(&self) -> bool {
        self.is_answered() && self.status.as_ref().is_some_and(|status| status.passed)
    }

    /// The checks that have not passed.
    pub fn failed(&self) -> impl Iterator<Item = &CheckResult> {
        let all = self.status.iter().flat_map(|status| &status.checks);
        all.filter(|check| !check.passed)
    }
}
