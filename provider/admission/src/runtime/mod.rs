//! Whether nodes take pods: the switch of the whole cluster (`KvmletRuntime`), and the checks of nodes' hosts (`PreflightCheck`).
//!
//! Who is enabled has its hosts checked: `keep`, in the replica that leads, asks for a check of each node, the node's daemon answers, and until the newest
//! has passed the node has a taint, which a node may not set itself. `types` are the objects as they are written, `decide` says what is due on a node,
//! `summary` what is told of all of them, `drain` which pods have to leave; all of these are pure.

#[cfg(test)]
mod crd;
pub mod decide;
pub mod drain;
mod effects;
pub mod keep;
pub mod summary;
#[cfg(test)]
mod testing;
pub mod types;

use kube::{Resource, ResourceExt as _, api::ApiResource, core::DynamicObject};
use serde_json::Value;

pub use self::types::{
    CheckResult, CheckSpec, CheckStatus, FeatureStatus, ImageFormat, KvmletRuntime, PreflightCheck, Reason, RuntimeSpec, RuntimeStatus,
    Summary,
};

/// The name of the one [`KvmletRuntime`].
pub const NAME: &str = "kvmlet";
/// The taint of a node whose newest check has not passed, with the effect `NoSchedule`.
pub const TAINT: &str = "kvmlet.io/preflight";
/// The label of a node that gets no pods for now, whatever its value.
pub const SKIP: &str = "kvmlet.io/skip-schedule";
/// The annotation of a node that was cordoned because kvmlet is disabled, and not by somebody else.
pub const CORDONED: &str = "kvmlet.io/cordoned";
/// What holds a [`KvmletRuntime`] until nodes have nothing of it any more.
pub const FINALIZER: &str = "kvmlet.io/runtime";
/// The annotation of the [`KvmletRuntime`] with which `kvmlet disable` asks before it deletes pods, where its value is `true`.
pub const ASK: &str = "kvmlet.io/force-disable";

/// An object of such a kind that is about to be made.
pub fn object<K: Resource<DynamicType = ()>>(name: &str, spec: Value) -> DynamicObject {
    DynamicObject::new(name, &ApiResource::erase::<K>(&())).data(serde_json::json!({ "spec": spec }))
}

/// Where such objects are made.
pub fn api<K: Resource<DynamicType = ()>>(client: kube::Client) -> kube::Api<DynamicObject> {
    kube::Api::all_with(client, &ApiResource::erase::<K>(&()))
}

/// Those of `checks` that came last: one, or all that were made in the same second.
fn newest<'a>(checks: &[&'a PreflightCheck]) -> Vec<&'a PreflightCheck> {
    let last = checks.iter().map(|check| check.creation_timestamp()).max().flatten();
    let mut newest = checks.to_vec();
    newest.retain(|check| check.creation_timestamp() == last);
    newest
}
