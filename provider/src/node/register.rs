//! How a node comes into the cluster: as the Node that is there, or as one that it makes, if the cluster lets it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use k8s_openapi::{
    api::core::v1::{Node, NodeSpec, Taint},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use super::NodeKeeper;
use crate::leave;

/// The label of a Node whose host is itself a guest, and runs machines all the same.
const NESTED: (&str, &str) = ("nested-virtualization", "enabled");

/// What the cluster says to a node that has no Node.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// It makes one, with this taint besides the provider's, if there is one.
    Open(Option<Taint>),
    /// It stays away.
    Closed,
}

/// Who knows what the cluster says.
#[derive(Clone)]
pub struct Gate {
    /// Asks the API server, so that it is what counts now.
    pub ask: Arc<dyn Fn() -> BoxFuture<'static, kube::Result<Entry>> + Send + Sync>,
    /// What was heard last, perhaps a little later.
    pub told: watch::Receiver<Entry>,
}

impl NodeKeeper {
    /// Registers the node, retrying for ever, and returns it as the API server has it; nothing if there is no Node and the gate is closed.
    pub async fn register(&self) -> Option<Node> {
        let mut wait = Duration::from_millis(200);
        loop {
            match self.try_register().await {
                Ok(node) => return node,
                Err(error) => {
                    warn!(%error, "register the node; trying again in {wait:?}");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(7));
                }
            }
        }
    }

    async fn try_register(&self) -> kube::Result<Option<Node>> {
        let api: Api<Node> = Api::all(self.client.clone());
        let name = &self.config.node_name;
        let node = match api.get_opt(name).await? {
            Some(mut node) => {
                if let Some(patch) = leave::uncordon(&node) {
                    info!("the node was about to leave, and takes pods again");
                    node = api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
                }
                let patch = Patch::Strategic(self.again(&node));
                match api.patch(name, &PatchParams::default(), &patch).await {
                    Ok(node) => node,
                    Err(error) => {
                        warn!(%error, "write the node's labels");
                        node
                    }
                }
            }
            None => match (self.gate.ask)().await? {
                Entry::Closed => return Ok(None),
                Entry::Open(taint) => {
                    info!(node = name, taint = taint.as_ref().map(|taint| &taint.key), "registering the node");
                    api.create(&PostParams::default(), &self.node(taint)).await?
                }
            },
        };
        let _ = api
            .patch_status(
                name,
                &PatchParams::default(),
                &Patch::Strategic(json!({"status": self.status(&node)})),
            )
            .await?;
        Ok(Some(node))
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels: BTreeMap<String, String> = [
            ("type", "virtual-kubelet"),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", "amd64"),
            ("kubernetes.io/hostname", &self.config.node_name),
            ("node.kubernetes.io/exclude-from-external-load-balancers", "true"),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
        if self.nesting.borrow().is_some() {
            let (key, value) = NESTED;
            labels.insert(key.into(), value.into());
        }
        labels.extend(self.config.labels.clone());
        labels
    }

    /// The patch of a Node that is there when the daemon starts: what it is called and labelled.
    fn again(&self, node: &Node) -> serde_json::Value {
        let mut patch = json!({"metadata": {"labels": self.labels()}});
        let known = node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref()).unwrap_or_default();
        match &self.config.provider_id {
            // The API server lets it be set once.
            Some(wanted) if known.is_empty() => patch["spec"]["providerID"] = json!(wanted),
            Some(wanted) if wanted != known => warn!(
                known,
                wanted, "the Node has another providerID, which cannot be changed: delete the Node"
            ),
            _ => {}
        }
        patch
    }

    /// The Node as it is made, with a taint besides the provider's.
    fn node(&self, taint: Option<Taint>) -> Node {
        let provider = Taint {
            key: "virtual-kubelet.io/provider".into(),
            value: Some("kvmlet".into()),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        Node {
            metadata: ObjectMeta {
                name: Some(self.config.node_name.clone()),
                labels: Some(self.labels()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: Some([provider].into_iter().chain(taint).collect()),
                // A Node that somebody deleted gets back the addresses that its pods have.
                pod_cidr: self.network.get().map(|n| n.pod_cidr().trunc().to_string()),
                pod_cidrs: self.network.get().map(|n| vec![n.pod_cidr().trunc().to_string()]),
                provider_id: self.config.provider_id.clone(),
                ..NodeSpec::default()
            }),
            status: None,
        }
    }
}

#[cfg(test)]
#[path = "register_tests.rs"]
mod tests;
