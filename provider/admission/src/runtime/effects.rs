//! What is written to the cluster: nodes' taints and cordons, checks that are asked for, evictions, events, the switch's status and finalizer.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, Node, ObjectReference, Pod, Taint},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use super::{
    CORDONED, CheckSpec, FINALIZER, KvmletRuntime, PreflightCheck, RuntimeStatus, TAINT, api,
    decide::{Due, Mode, Seen, Why},
    drain::{has_to_leave, keeps_node},
    object,
    summary::{Left, failures},
};
use crate::refused::{is_outrun, unless_gone};

/// How often a write is tried that another writer of the same object came before.
const ATTEMPTS: usize = 5;
/// Where events of nodes are.
const EVENTS: &str = "default";
/// Longest message of an event, bytes.
const MOST: usize = 1024;

/// Something to tell a node's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    kind: &'static str,
    reason: &'static str,
    message: String,
}

/// What is told when a node is changed to be as is due.
pub(super) fn news(mode: Mode, node: &Seen, due: &Due, newest: &[&PreflightCheck]) -> Option<News> {
    let news = |kind, reason, message: String| Some(News { kind, reason, message });
    match (mode, due.taint) {
        (Mode::Enabled { .. }, Some(Why::Failed)) => {
            let wrong: Vec<_> = newest.iter().map(|check| failures(check)).filter(|text| !text.is_empty()).collect();
            let message = format!(
                "no pod is scheduled here until the host has passed: {}. When it is mended, ask again: create a PreflightCheck with nodeName {}",
                wrong.join("; "),
                node.name
            );
            news("Warning", "PreflightFailed", message)
        }
        (Mode::Enabled { .. }, None) if node.taint.is_some() => news(
            "Normal",
            "PreflightPassed",
            "the host has passed all checks: pods are scheduled here".into(),
        ),
        (Mode::Disabled, _) if due.cordon == Some(true) => {
            let message = "kvmlet is disabled (KvmletRuntime): the node is cordoned, its pods are evicted, and then there is no Node until kvmlet is enabled";
            news("Normal", "KvmletDisabled", message.into())
        }
        _ => None,
    }
}

/// The merge patch that makes a Node as is due; another writer in between has it refused.
fn patch(node: &Node, due: &Due) -> Value {
    let mut patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version}});
    let mut taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    taints.retain(|taint| taint.key != TAINT);
    if let Some(why) = due.taint {
        taints.push(Taint {
            key: TAINT.into(),
            value: Some(why.value().into()),
            effect: "NoSchedule".into(),
            ..Taint::default()
        });
    }
    patch["spec"]["taints"] = json!(taints);
    if let Some(cordon) = due.cordon {
        // Nothing in place of false: so kubectl leaves it, too.
        patch["spec"]["unschedulable"] = if cordon { true.into() } else { Value::Null };
        patch["metadata"]["annotations"][CORDONED] = if cordon { "true".into() } else { Value::Null };
    }
    patch
}

/// Writes.
#[derive(Clone)]
pub(super) struct Effects(pub(super) Client);

impl Effects {
    /// Makes a node as is due, from what it is by now; whether it was changed.
    pub(super) async fn change(&self, name: &str, due: &Due) -> kube::Result<bool> {
        let nodes: Api<Node> = Api::all(self.0.clone());
        let mut attempts = 1;
        loop {
            let Some(node) = nodes.get_opt(name).await? else { return Ok(false) };
            if Seen::of(&node).is_none_or(|seen| !due.is_change(&seen)) {
                return Ok(false);
            }
            let patch = patch(&node, due);
            info!(node = name, %patch, "changing a node");
            match nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(error) if is_outrun(&error) && attempts < ATTEMPTS => attempts += 1,
                other => return unless_gone(other).map(|node| node.is_some()),
            }
        }
    }

    /// Asks for a check; its name.
    pub(super) async fn ask(&self, node: &Seen, spec: &CheckSpec) -> kube::Result<String> {
        let mut check = object::<PreflightCheck>("", json!(spec));
        check.metadata = ObjectMeta {
            generate_name: Some(format!("{}-", node.name)),
            // It goes with its node.
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: node.name.clone(),
                uid: node.uid.clone(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        };
        let made = api::<PreflightCheck>(self.0.clone()).create(&PostParams::default(), &check).await?;
        info!(node = node.name, check = made.name_any(), reason = ?spec.reason, "asking for a check");
        Ok(made.name_any())
    }

    /// Removes a check.
    pub(super) async fn forget(&self, name: &str) -> kube::Result<()> {
        let checks: Api<PreflightCheck> = Api::all(self.0.clone());
        unless_gone(checks.delete(name, &DeleteParams::default()).await).map(drop)
    }

    /// Evicts the pods that have to leave a node; what is left.
    pub(super) async fn evict(&self, node: &str) -> kube::Result<Left> {
        let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pods = Api::<Pod>::all(self.0.clone()).list(&here).await?;
        let mut left = Left {
            pods: 0,
            is_kept: pods.iter().any(keeps_node),
        };
        for pod in pods.iter().filter(|pod| has_to_leave(pod)) {
            left.pods += 1;
            if pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
            info!(pod = name, namespace, "evicting a pod");
            let its: Api<Pod> = Api::namespaced(self.0.clone(), &namespace);
            let this_one = EvictParams {
                delete_options: Some(DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: pod.uid(),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                }),
                ..EvictParams::default()
            };
            match unless_gone(its.evict(&name, &this_one).await) {
                // A PodDisruptionBudget wants it there for now, or another pod has its name by now.
                Err(kube::Error::Api(status)) if matches!(status.code, 409 | 429) => {
                    debug!(pod = name, namespace, "{}", status.message);
                }
                // Of this pod alone: it has two budgets (500), its namespace is going (403), a webhook is against it. It stays among those that are left.
                Err(kube::Error::Api(status)) => warn!(pod = name, namespace, "evict a pod: {}", status.message),
                other => _ = other?,
            }
        }
        Ok(left)
    }

    /// Deletes a Node that is drained, if it is the one that was seen.
    pub(super) async fn delete(&self, node: &Seen) -> kube::Result<()> {
        let this_one = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(node.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        info!(node = node.name, "deleting a Node that is drained");
        match Api::<Node>::all(self.0.clone()).delete(&node.name, &this_one).await {
            // Another one has its name by now.
            Err(error) if is_outrun(&error) => Ok(()),
            other => unless_gone(other).map(drop),
        }
    }

    /// Writes the switch's status.
    pub(super) async fn tell(&self, status: &RuntimeStatus) -> kube::Result<()> {
        let patch = Patch::Merge(json!({ "status": status }));
        let runtimes: Api<KvmletRuntime> = Api::all(self.0.clone());
        let done = runtimes.patch_status(super::NAME, &PatchParams::default(), &patch).await;
        unless_gone(done).map(drop)
    }

    /// Keeps the switch from going before nodes have nothing of it any more, or lets it go.
    pub(super) async fn hold(&self, runtime: &KvmletRuntime, holds: bool) -> kube::Result<()> {
        let mut all = runtime.finalizers().to_vec();
        all.retain(|one| one != FINALIZER);
        if holds {
            all.push(FINALIZER.into());
        }
        let patch = json!({"metadata": {"resourceVersion": runtime.metadata.resource_version, "finalizers": all}});
        let runtimes: Api<KvmletRuntime> = Api::all(self.0.clone());
        match runtimes.patch(super::NAME, &PatchParams::default(), &Patch::Merge(patch)).await {
            // Its next version comes by the watch.
            Err(error) if is_outrun(&error) => Ok(()),
            other => unless_gone(other).map(drop),
        }
    }

    /// Tells a node's owner.
    pub(super) async fn event(&self, node: &str, news: &News) -> kube::Result<()> {
        let now = Timestamp::now();
        let mut message = news.message.clone();
        message.truncate(message.floor_char_boundary(MOST));
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{node}.{:x}", now.as_nanosecond())),
                namespace: Some(EVENTS.into()),
                ..ObjectMeta::default()
            },
            // A node's events are found by its name in place of an identity, as the kubelet writes it.
            involved_object: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.into()),
                uid: Some(node.into()),
                ..ObjectReference::default()
            },
            type_: Some(news.kind.into()),
            reason: Some(news.reason.into()),
            message: Some(message),
            source: Some(EventSource {
                component: Some("kvmlet-webhook".into()),
                host: None,
            }),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Event::default()
        };
        let events: Api<Event> = Api::namespaced(self.0.clone(), EVENTS);
        events.create(&PostParams::default(), &event).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::decide::tests::{ON, check, node};

    fn object(taints: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "kvm-1", "resourceVersion": "7"}, "spec": {"taints": taints}})).unwrap()
    }

    #[test]
    fn a_taint_comes_beside_others_and_in_place_of_its_own() {
        let provider = json!({"key": "virtual-kubelet.io/provider", "value": "kvmlet", "effect": "NoSchedule"});
        let checking = json!({"key": TAINT, "value": "checking", "effect": "NoSchedule"});
        let due = |taint| Due { taint, ..Due::default() };
        let made = patch(&object(json!([provider, checking])), &due(Some(Why::Failed)));
        let failed = json!({"key": TAINT, "value": "failed", "effect": "NoSchedule"});
        assert_eq!(
            made,
            json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": [provider, failed]}})
        );
        let made = patch(&object(json!([provider, checking])), &due(None));
        assert_eq!(made["spec"]["taints"], json!([provider]));
    }

    #[test]
    fn a_cordon_says_whose_it_is_and_goes_with_that() {
        let due = |cordon| Due { cordon, ..Due::default() };
        let made = patch(&object(json!([])), &due(Some(true)));
        assert_eq!(
            (&made["spec"]["unschedulable"], &made["metadata"]["annotations"][CORDONED]),
            (&json!(true), &json!("true"))
        );
        let made = patch(&object(json!([])), &due(Some(false)));
        let spec = made["spec"].as_object().unwrap();
        assert!(spec.contains_key("unschedulable") && spec["unschedulable"].is_null());
        assert!(made["metadata"]["annotations"].as_object().unwrap()[CORDONED].is_null());
    }

    #[test]
    fn a_failure_is_told_with_what_to_do_and_its_end_too() {
        let on = ON;
        let (failed, due) = (check("a", 1, Some(false)), |taint| Due { taint, ..Due::default() });
        let told = news(on, &node(), &due(Some(Why::Failed)), &[&failed]).unwrap();
        assert_eq!((told.kind, told.reason), ("Warning", "PreflightFailed"));
        assert!(
            told.message.contains("tun: there is no /dev/net/tun") && told.message.contains("create a PreflightCheck with nodeName kvm-1")
        );
        let tainted = Seen {
            taint: Some("failed".into()),
            ..node()
        };
        assert_eq!(news(on, &tainted, &due(None), &[]).unwrap().reason, "PreflightPassed");
        assert_eq!(news(on, &node(), &due(None), &[]), None);
        assert_eq!(news(Mode::Free, &tainted, &due(None), &[]), None, "nobody has looked");
        assert_eq!(news(on, &node(), &due(Some(Why::Checking)), &[]), None);
    }
}
