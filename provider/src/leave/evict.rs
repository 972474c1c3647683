//! Evicts the pods of this node by the Eviction API, so that PodDisruptionBudgets hold, with the node's own identity.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, EvictParams, ListParams, Preconditions},
};
use tokio::time::Instant;
use tracing::info;

use super::plan::{Role, Why, refusal, role};
use crate::{context::Context, driver::Handle, kubelet::Pods};

/// When an eviction that was refused is tried again (kubectl drain's).
const AGAIN: Duration = Duration::from_secs(5);

/// What is done over and over until nobody is left.
pub(crate) struct Evictions {
    context: Arc<Context>,
    pods: Pods,
    /// When an eviction was last refused, and in which words, by UID.
    asked: HashMap<String, (Instant, String)>,
}

impl Evictions {
    pub(crate) fn new(context: Arc<Context>, pods: Pods) -> Self {
        let asked = HashMap::new();
        Self { context, pods, asked }
    }

    /// Evicts who has to leave of the pods of which something is here; who they are, and why they are.
    pub(crate) async fn pass(&mut self) -> Vec<(String, Why)> {
        let mut left = Vec::new();
        for handle in living(&self.pods) {
            let view = handle.view.borrow().clone();
            let pod = &view.desired.pod;
            if role(pod) != Role::Stays {
                left.push((format!("{}/{}", view.desired.namespace, view.desired.name), self.ask(pod).await));
            }
        }
        left
    }

    /// Whether the API server knows of no pod either that has to leave.
    ///
    /// # Errors
    /// When it does not list the pods.
    pub(crate) async fn is_clear(&self) -> kube::Result<bool> {
        let here = ListParams::default().fields(&format!("spec.nodeName={}", self.context.config.node_name));
        let listed = Api::<Pod>::all(self.context.client.clone()).list(&here).await?;
        Ok(listed.iter().all(|pod| role(pod) == Role::Stays))
    }

    /// Evicts a pod; why there is something of it yet.
    async fn ask(&mut self, pod: &Pod) -> Why {
        if pod.metadata.deletion_timestamp.is_some() {
            return Why::Ends;
        }
        if role(pod) == Role::Alone {
            return Why::Alone;
        }
        let (name, namespace, uid) = (pod.name_any(), pod.namespace().unwrap_or_default(), pod.uid().unwrap_or_default());
        if let Some((_, words)) = self.asked.get(&uid).filter(|(at, _)| at.elapsed() < AGAIN) {
            return Why::Refused(words.clone());
        }
        let this_one = EvictParams {
            delete_options: Some(DeleteParams {
                preconditions: Some(Preconditions {
                    uid: Some(uid.clone()),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            }),
            ..EvictParams::default()
        };
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let words = match pods.evict(&name, &this_one).await {
            Ok(_) => {
                info!(name, namespace, "evicted");
                return Why::Ends;
            }
            Err(kube::Error::Api(status)) if status.code == 404 => return Why::Machine,
            Err(kube::Error::Api(status)) => refusal(&status),
            Err(error) => error.to_string(),
        };
        self.asked.insert(uid, (Instant::now(), words.clone()));
        Why::Refused(words)
    }
}

/// Pods of which something is on the host.
pub(crate) fn living(pods: &Pods) -> Vec<Arc<Handle>> {
    let pods = pods.lock().expect("no holder panics");
    pods.values()
        .filter(|handle| !handle.view.borrow().state.released)
        .cloned()
        .collect()
}
