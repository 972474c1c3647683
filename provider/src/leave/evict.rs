//! Evicts the pods of this node by the Eviction API, so that PodDisruptionBudgets hold, with the node's own identity.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

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

    /// Evicts who has to leave; who is here yet, and why.
    ///
    /// # Errors
    /// When the API server does not list the pods.
    pub(crate) async fn pass(&mut self) -> kube::Result<Vec<(String, Why)>> {
        let here = ListParams::default().fields(&format!("spec.nodeName={}", self.context.config.node_name));
        let listed = Api::<Pod>::all(self.context.client.clone()).list(&here).await?;
        let mut left = Vec::new();
        for pod in listed.iter().filter(|pod| role(pod) != Role::Stays) {
            if let Some(why) = self.ask(pod).await {
                left.push((title(&pod.namespace().unwrap_or_default(), &pod.name_any()), why));
            }
        }
        // A pod may have left the API server before its machine is gone.
        let known: HashSet<_> = listed.iter().filter_map(Pod::uid).collect();
        for handle in living(&self.pods).into_iter().filter(|handle| !known.contains(&uid(handle))) {
            let view = handle.view.borrow();
            left.push((title(&view.desired.namespace, &view.desired.name), Why::Machine));
        }
        Ok(left)
    }

    /// Evicts a pod; why it is here yet, if it is.
    async fn ask(&mut self, pod: &Pod) -> Option<Why> {
        if pod.metadata.deletion_timestamp.is_some() {
            return Some(Why::Ends);
        }
        if role(pod) == Role::Alone {
            return Some(Why::Alone);
        }
        let (name, namespace, uid) = (pod.name_any(), pod.namespace().unwrap_or_default(), pod.uid().unwrap_or_default());
        if let Some((_, words)) = self.asked.get(&uid).filter(|(at, _)| at.elapsed() < AGAIN) {
            return Some(Why::Refused(words.clone()));
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
                return Some(Why::Ends);
            }
            // Gone, or another pod of this name.
            Err(kube::Error::Api(status)) if status.code == 404 => return None,
            Err(kube::Error::Api(status)) => refusal(&status),
            Err(error) => error.to_string(),
        };
        self.asked.insert(uid, (Instant::now(), words.clone()));
        Some(Why::Refused(words))
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

fn uid(handle: &Handle) -> String {
    handle.view.borrow().desired.uid.clone()
}

fn title(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}
