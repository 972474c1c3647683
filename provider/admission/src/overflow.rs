//! What follows up on pods that may go to either kind of node, or that wait for a place, in the replica that leads.
//!
//! A pod that prefers ordinary nodes has no toleration. When the scheduler has said that it found no room, the toleration is added, which is the
//! one change of scheduling that the API allows then; so ordinary nodes are full before a pod comes to a virtual one. A pod of a profile with `max`
//! has none either, and gets it once its profile has a place: this replica alone gives places, so they are counted in one. And whichever pod was put
//! on a virtual node gets a lower pod-deletion-cost, so that a ReplicaSet that shrinks removes it first. What was seen is told in the
//! profiles' status, a write a profile every few seconds at most.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        reflector::{ObjectRef, Store},
        watcher::{self, Event},
    },
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::MissedTickBehavior};
use tracing::{info, warn};

use crate::{
    decide::{Toleration, Unfit, tolerate, toleration},
    followed::followed,
    pods::{Key, Pods},
    policy::{POLICY, PROFILE, Policy, virtual_nodes},
    profile::{BurstProfile, Profiles, Status, follow::Known},
    refused::{is_of_the_object, unless_gone},
};

/// What the ReplicaSet controller ranks pods by, among those that are equally ready (KEP-2255).
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Below the cost of a pod that says nothing, 0.
const LOW: &str = "-1000";
/// Pods that are changed at once.
const AT_ONCE: usize = 8;
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// How often profiles are told of their pods, at most.
const TOLD: Duration = Duration::from_secs(2);

/// What is to be done to a pod: operations of a JSON patch, each guarded by what was seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Due {
    /// It is as it should be.
    #[default]
    Nothing,
    /// This, at once.
    Now(Vec<Value>),
    /// This, which lets it onto virtual nodes, once its profile has a place.
    Place(Vec<Value>),
}

/// Whether a pod (JSON) has ended.
pub(crate) fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// What is to be done to a pod (JSON) of the label [`POLICY`].
pub(crate) fn follow_up(pod: &Value, is_virtual: impl Fn(&str) -> bool, unfit: Unfit) -> Due {
    let (spec, status, metadata) = (&pod["spec"], &pod["status"], &pod["metadata"]);
    if is_over(pod) || !metadata["deletionTimestamp"].is_null() {
        return Due::Nothing;
    }
    let same = json!({"op": "test", "path": "/metadata/uid", "value": metadata["uid"]});
    let (policy, profile) = (&metadata["labels"][POLICY], &metadata["labels"][PROFILE]);
    let only = *policy == Policy::VirtualNodeOnly.to_string();
    if let Some(node) = spec["nodeName"].as_str().filter(|name| !name.is_empty()) {
        if only || !is_virtual(node) || !metadata["annotations"][COST].is_null() {
            return Due::Nothing;
        }
        let cost = if metadata["annotations"].is_object() {
            json!({"op": "add", "path": format!("/metadata/annotations/{}", COST.replace('/', "~1")), "value": LOW})
        } else {
            json!({"op": "add", "path": "/metadata/annotations", "value": {COST: LOW}})
        };
        return Due::Now(vec![same, cost]);
    }
    // One of a profile that goes there alone waits for a place, not for the scheduler.
    let waits = if only {
        profile.is_string()
    } else {
        let may_wait = profile.is_string() || *policy == Policy::NormalNodePrefer.to_string();
        // One that others are evicted for has its room: it only waits for their end.
        let has_room = status["nominatedNodeName"].as_str().is_some_and(|name| !name.is_empty());
        may_wait && !has_room && has_no_room(status)
    };
    if !waits || toleration(spec) != Toleration::None || !unfit(spec).is_empty() {
        return Due::Nothing;
    }
    let tolerations = &spec["tolerations"];
    let unchanged = tolerations
        .is_array()
        .then(|| json!({"op": "test", "path": "/spec/tolerations", "value": tolerations}));
    Due::Place([Some(same), unchanged, Some(tolerate(spec))].into_iter().flatten().collect())
}

/// Whether the scheduler has said that there is none.
fn has_no_room(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|one| one["type"] == "PodScheduled" && one["status"] == "False" && one["reason"] == "Unschedulable")
}

/// Follows pods while `leads` says so.
pub async fn keep(client: Client, mut leads: watch::Receiver<bool>, profiles: watch::Receiver<Known>, unfit: Unfit) {
    let nodes = followed(
        Api::all(client.clone()),
        watcher::Config::default().labels(&virtual_nodes()),
        "nodes",
    );
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        tokio::select! {
            _ = leads.wait_for(|leads| !*leads) => {}
            // After a failure all pods are looked at again.
            Err(error) = follow(&client, &nodes, profiles.clone(), unfit) => {
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
    #[error("profiles are followed no more")]
    Profiles,
}

async fn follow(
    client: &Client,
    nodes: &Store<PartialObjectMeta<Node>>,
    mut profiles: watch::Receiver<Known>,
    unfit: Unfit,
) -> Result<(), FollowError> {
    // A store whose writer is gone has ended with this process's task: then nothing is virtual, which is told below as a failed watch.
    let _ = nodes.wait_until_ready().await;
    let is_known = profiles.wait_for(Known::is_some).await.map_err(|_| FollowError::Profiles)?;
    drop(is_known);
    let config = watcher::Config::default().labels(POLICY);
    let watch = watcher::watcher(Api::<Pod>::all(client.clone()), config).default_backoff();
    let mut events = pin!(watch.map_err(|error| FollowError::Watch(Box::new(error))));
    let mut every = tokio::time::interval(TOLD);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut pods, mut changing) = (Pods::default(), FuturesUnordered::new());
    let mut is_news = true;
    loop {
        let known: Arc<Profiles> = profiles.borrow_and_update().clone().unwrap_or_default();
        while changing.len() < AT_ONCE
            && let Some((pod, operations)) = pods.next(|name| known.max(name))
        {
            changing.push(change(client, pod, operations));
        }
        tokio::select! {
            Some(event) = events.next() => {
                let event = event?;
                if matches!(event, Event::Init) {
                    // All pods are listed next, with what is being written to them by now.
                    while changing.try_next().await?.is_some() {}
                }
                take(&mut pods, event, |name| nodes.get(&ObjectRef::new(name)).is_some(), unfit)?;
                is_news = true;
            }
            Some(done) = changing.next() => {
                if let Some(refused) = done? {
                    pods.refused(&refused);
                }
            }
            changed = profiles.changed() => {
                changed.map_err(|_| FollowError::Profiles)?;
                is_news = true;
            }
            _ = every.tick(), if is_news => is_news = !tell(client, &known, &pods).await,
        }
    }
}

fn take(pods: &mut Pods, event: Event<Pod>, is_virtual: impl Fn(&str) -> bool, unfit: Unfit) -> Result<(), FollowError> {
    let key = |pod: &Pod| (pod.namespace().unwrap_or_default(), pod.name_any());
    match event {
        Event::Init => pods.begin(),
        Event::InitDone => pods.complete(),
        Event::Delete(pod) => pods.remove(&key(&pod)),
        Event::Apply(pod) | Event::InitApply(pod) => pods.apply(key(&pod), &serde_json::to_value(&pod)?, is_virtual, unfit),
    }
    Ok(())
}

/// Changes a pod; says which one if the API server refused.
async fn change(client: &Client, key: Key, operations: Vec<Value>) -> Result<Option<Key>, FollowError> {
    let (namespace, name) = &key;
    info!(pod = name, namespace, ?operations, "changing a pod");
    let patch: Patch<Value> = Patch::Json(serde_json::from_value(operations.into())?);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match pods.patch(name, &PatchParams::default(), &patch).await {
        // It is gone, or has changed: then its next version comes by the watch.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(Some(key)),
        // Somebody is against it: a webhook, or a namespace that is being deleted. Others are not to wait for it; its next version is looked at.
        Err(kube::Error::Api(status)) if is_of_the_object(status.code) => {
            warn!(pod = name, namespace, "change a pod: {}", status.message);
            Ok(Some(key))
        }
        Err(error) => Err(FollowError::Api(Box::new(error))),
        Ok(_) => Ok(None),
    }
}

/// Writes the status of each profile of which there is something new to tell; whether all is told.
async fn tell(client: &Client, profiles: &Profiles, pods: &Pods) -> bool {
    let Some(mut told) = pods.told() else { return false };
    let all: Api<BurstProfile> = Api::all(client.clone());
    let mut is_done = true;
    for profile in profiles.iter() {
        let status = Status {
            observed_generation: profile.generation,
            ..told.remove(profile.name.as_str()).unwrap_or_default()
        };
        if profile.status.as_ref() == Some(&status) {
            continue;
        }
        let patch = Patch::Merge(json!({"status": status}));
        if let Err(error) = unless_gone(all.patch_status(&profile.name, &PatchParams::default(), &patch).await) {
            warn!(%error, profile = profile.name, "tell a profile of its pods");
            is_done = false;
        }
    }
    is_done
}

#[cfg(test)]
#[path = "overflow_tests.rs"]
mod tests;
