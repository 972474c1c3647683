//! What follows up on pods that may go to either kind of node, in the replica that leads.
//!
//! A pod that prefers ordinary nodes has no toleration. When the scheduler has said that it found no room, the toleration is added, which is the
//! one change of scheduling that the API allows then; so ordinary nodes are full before a pod comes to a virtual one. And whichever pod was put
//! on a virtual node gets a lower pod-deletion-cost, so that a ReplicaSet that shrinks removes it first.

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    decide::{Toleration, Unfit, tolerate, toleration},
    followed::followed,
    policy::{NODE_LABEL, POLICY, Policy},
};

/// What the ReplicaSet controller ranks pods by, among those that are equally ready (KEP-2255).
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Below the cost of a pod that says nothing, 0.
const LOW: &str = "-1000";
/// Pods that are changed at once.
const AT_ONCE: usize = 8;
/// The pause after a failure.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Operations of a JSON patch for a pod (JSON) of the label [`POLICY`]; none if nothing is to be done. Each is guarded by what was seen.
fn follow_up(pod: &Value, is_virtual: impl Fn(&str) -> bool, unfit: Unfit) -> Vec<Value> {
    let (spec, status, metadata) = (&pod["spec"], &pod["status"], &pod["metadata"]);
    let is_over = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    if is_over || !metadata["deletionTimestamp"].is_null() {
        return Vec::new();
    }
    let same = json!({"op": "test", "path": "/metadata/uid", "value": metadata["uid"]});
    if let Some(node) = spec["nodeName"].as_str().filter(|name| !name.is_empty()) {
        if !is_virtual(node) || !metadata["annotations"][COST].is_null() {
            return Vec::new();
        }
        let cost = if metadata["annotations"].is_object() {
            json!({"op": "add", "path": format!("/metadata/annotations/{}", COST.replace('/', "~1")), "value": LOW})
        } else {
            json!({"op": "add", "path": "/metadata/annotations", "value": {COST: LOW}})
        };
        return vec![same, cost];
    }
    let prefers = metadata["labels"][POLICY] == Policy::NormalNodePrefer.to_string();
    // One that others are evicted for has its room: it only waits for their end.
    let has_room = status["nominatedNodeName"].as_str().is_some_and(|name| !name.is_empty());
    if !prefers || has_room || !has_no_room(status) || toleration(spec) != Toleration::None || !unfit(spec).is_empty() {
        return Vec::new();
    }
    let tolerations = &spec["tolerations"];
    let unchanged = tolerations
        .is_array()
        .then(|| json!({"op": "test", "path": "/spec/tolerations", "value": tolerations}));
    [Some(same), unchanged, Some(tolerate(spec))].into_iter().flatten().collect()
}

/// Whether the scheduler has said that there is none.
fn has_no_room(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|one| one["type"] == "PodScheduled" && one["status"] == "False" && one["reason"] == "Unschedulable")
}

/// Follows pods while `leads` says so.
pub async fn keep(client: Client, mut leads: watch::Receiver<bool>, unfit: Unfit) {
    let label = format!("{}={}", NODE_LABEL.0, NODE_LABEL.1);
    let nodes = followed(Api::all(client.clone()), watcher::Config::default().labels(&label), "nodes");
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        tokio::select! {
            _ = leads.wait_for(|leads| !*leads) => {}
            // After a failure all pods are looked at again.
            Err(error) = follow(&client, &nodes, unfit) => {
                warn!(%error, "follow pods; looking at all of them again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("{0}")]
    Watch(Box<watcher::Error>),
    #[error("{0}")]
    Api(Box<kube::Error>),
    #[error("{0}")]
    Pod(#[from] serde_json::Error),
}

async fn follow(client: &Client, nodes: &Store<PartialObjectMeta<Node>>, unfit: Unfit) -> Result<(), FollowError> {
    // A store whose writer is gone has ended with this process's task: then nothing is virtual, which is told below as a failed watch.
    let _ = nodes.wait_until_ready().await;
    let config = watcher::Config::default().labels(POLICY);
    watcher::watcher(Api::<Pod>::all(client.clone()), config)
        .default_backoff()
        .applied_objects()
        .map_err(|error| FollowError::Watch(Box::new(error)))
        .try_for_each_concurrent(AT_ONCE, |pod| async move {
            let is_virtual = |name: &str| nodes.get(&ObjectRef::new(name)).is_some();
            let operations = follow_up(&serde_json::to_value(&pod)?, is_virtual, unfit);
            if operations.is_empty() {
                return Ok(());
            }
            let namespace = pod.namespace().unwrap_or_default();
            info!(pod = pod.name_any(), namespace, ?operations, "changing a pod");
            let patch: Patch<Value> = Patch::Json(serde_json::from_value(operations.into())?);
            match Api::<Pod>::namespaced(client.clone(), &namespace)
                .patch(&pod.name_any(), &PatchParams::default(), &patch)
                .await
            {
                // It is gone, or has changed: then its next version comes by the watch.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(()),
                Err(error) => Err(FollowError::Api(Box::new(error))),
                Ok(_) => Ok(()),
            }
        })
        .await
}

#[cfg(test)]
#[path = "overflow_tests.rs"]
mod tests;
