//! The Node object and its lease: registered with the labels and the taint of virtual nodes, capacity as measured, conditions that say what
//! is wrong. A Node that somebody deletes is made again, unless the cluster has kvmlet switched off; one whose host leaves goes with it.

mod host;
mod images;
pub(crate) mod lease;
mod register;

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures, NodeRuntimeHandler,
        NodeRuntimeHandlerFeatures, NodeStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher::watch_object},
};
use kvmlet_network::PodNetworks;
use serde_json::json;
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tracing::{info, warn};

pub use self::{
    host::{Host, Stock},
    register::{Entry, Gate},
};
use crate::{
    config::Config,
    desired::Amounts,
    pressure::{Condition, Conditions},
    quantity::Quantity,
    shared::{self, Views},
    shutdown,
};

/// How often the lease is renewed (the kubelet's).
pub(crate) const RENEW: Duration = Duration::from_secs(10);
/// A status that did not change is still written this often.
pub(crate) const STATUS_AT_LEAST: Duration = Duration::from_secs(300);
/// The version that clients compare for skew: what this node behaves like.
pub(crate) const KUBELET_VERSION: &str = "v1.36.3";
/// What the API server and the scheduler count on here (status.declaredFeatures), sorted: that WebSockets of exec, attach and port-forward
/// are passed through to this node (KEP-4006), instead of being made SPDY on the way; that a pod as a whole is
/// resized in place (KEP-5419); that containers can restart all of their pod (KEP-5532).
const DECLARED_FEATURES: [&str; 3] = [
    "ExtendWebSocketsToKubelet",
    "InPlacePodLevelResourcesVerticalScaling",
    "RestartAllContainersOnContainerExits",
];
/// Those of RuntimeClasses that run here; the empty one is that of pods without a class.
const HANDLERS: [&str; 2] = ["", "kvmlet"];

/// Why the node cannot take pods, as checked now and then; empty when all is well.
pub type Troubles = Arc<Mutex<BTreeMap<&'static str, String>>>;

/// The node's upkeep.
pub struct NodeKeeper {
    /// The API server.
    pub client: Client,
    /// The configuration.
    pub config: Arc<Config>,
    /// What the host has.
    pub host: Host,
    /// What is wrong.
    pub troubles: Troubles,
    /// What the host is short of; news of it are written at once.
    pub pressure: watch::Receiver<Conditions>,
    /// Whether it shuts down; likewise.
    pub shutdown: watch::Receiver<bool>,
    /// The image store, for the list of images.
    pub images: Arc<kvmlet_image::ImageStore>,
    /// The pods' network, once it stands.
    pub network: Arc<OnceCell<PodNetworks>>,
    /// What it costs that the host is itself a guest; nothing if it is none.
    pub nesting: watch::Receiver<Option<String>>,
    /// What is held for it of a host that has a kubelet, too; nothing elsewhere.
    pub shared: Views,
    /// Whether a Node is made where there is none.
    pub gate: Gate,
    /// Who wants the Node gone for good.
    pub farewells: mpsc::Receiver<Farewell>,
}

/// Takes the answer of whoever is asked to delete the Node, and not to make it again.
pub type Farewell = oneshot::Sender<kube::Result<()>>;

impl NodeKeeper {
    /// Renews the lease and keeps the status until the process ends. A Node or lease that is gone is made again, the Node if the gate is open.
    pub async fn keep(mut self) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut last: Option<(serde_json::Value, tokio::time::Instant)> = None;
        let mut node: Option<Node> = None;
        let mut is_away = false;
        let mut seen = pin!(watch_object(nodes.clone(), &self.config.node_name).default_backoff());
        let mut every = tokio::time::interval(RENEW);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                // Whoever looks at the host may have nothing to look for.
                Ok(()) = self.pressure.changed() => {}
                Ok(()) = self.shutdown.changed() => {}
                Ok(()) = self.shared.changed() => {}
                Ok(()) = self.gate.told.changed() => {}
                Some(found) = seen.next() => {
                    match found {
                        Ok(Some(found)) => {
                            // What is to be said of one that is known is said when it is time.
                            if node.replace(found).is_some() {
                                continue;
                            }
                        }
                        Ok(None) => {
                            last = None;
                            node = self.register().await;
                            let was_away = std::mem::replace(&mut is_away, node.is_none());
                            if is_away && !was_away {
                                info!("kvmlet is disabled in this cluster: there is no Node until it is enabled");
                            }
                        }
                        Err(error) => {
                            warn!(%error, "watch the node");
                            continue;
                        }
                    }
                }
                Some(farewell) = self.farewells.recv() => {
                    let gone = match nodes.delete(&self.config.node_name, &DeleteParams::default()).await {
                        // Somebody else was quicker.
                        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
                        other => other.map(drop),
                    };
                    let stays = gone.is_err();
                    let _ = farewell.send(gone);
                    if stays {
                        continue;
                    }
                    // Who asked ends the process.
                    return std::future::pending().await;
                }
            }
            if is_away {
                node = self.register().await;
                is_away = node.is_none();
            }
            self.look();
            let Some(node) = &node else { continue };
            if let Err(error) = lease::renew(&self.client, &self.config.node_name, node).await {
                warn!(%error, "renew the node's lease");
            }
            self.mirror(&nodes, node).await;
            let status = self.status(node);
            // Heartbeat times alone are no change.
            let mut compared = serde_json::to_value(&status).expect("a status becomes JSON");
            for condition in compared["conditions"].as_array_mut().into_iter().flatten() {
                condition["lastHeartbeatTime"] = serde_json::Value::Null;
            }
            if last
                .as_ref()
                .is_some_and(|(old, at)| *old == compared && at.elapsed() < STATUS_AT_LEAST)
            {
                continue;
            }
            let patch = Patch::Strategic(json!({"status": status}));
            match nodes.patch_status(&self.config.node_name, &PatchParams::default(), &patch).await {
                Ok(_) => last = Some((compared, tokio::time::Instant::now())),
                Err(error) => warn!(%error, "write the node's status"),
            }
        }
    }

    /// Sees how much the host has by now.
    fn look(&self) {
        let held = self.shared.borrow().as_ref().map(|view| view.held);
        match self.host.look(&self.config, held) {
            Ok(None) => {}
            Ok(Some(news)) => info!(news, "the host has more or less than before"),
            Err(error) => warn!(%error, "look how much the host has"),
        }
    }

    /// Cordons the Node with the kubelet's, or undoes that.
    async fn mirror(&self, nodes: &Api<Node>, node: &Node) {
        let patch = self.shared.borrow().as_ref().and_then(|view| {
            let patch = shared::mirror(node, &view.node, view.cordoned?)?;
            info!(
                patch = patch.to_string(),
                other = view.node,
                "the kubelet's Node is cordoned or takes pods again, and ours with it"
            );
            Some(patch)
        });
        let Some(patch) = patch else { return };
        let params = PatchParams::default();
        if let Err(error) = nodes.patch(&self.config.node_name, &params, &Patch::Strategic(patch)).await {
            warn!(%error, "cordon or uncordon the Node with the kubelet's");
        }
    }

    fn status(&self, node: &Node) -> NodeStatus {
        let amounts = |a: Amounts, pods: u32| {
            BTreeMap::from([
                ("cpu".to_owned(), a.cpu.to_api()),
                ("memory".to_owned(), a.memory.to_api()),
                ("ephemeral-storage".to_owned(), a.storage.to_api()),
                ("pods".to_owned(), Quantity::bytes(u64::from(pods)).to_api()),
            ])
        };
        let max_pods = self.config.max_pods;
        let stock = *self.host.stock.borrow();
        let address = |kind: &str, address: String| NodeAddress {
            type_: kind.into(),
            address,
        };
        NodeStatus {
            capacity: Some(amounts(stock.capacity, max_pods)),
            allocatable: Some(amounts(stock.allocatable, max_pods)),
            addresses: Some(vec![
                address("InternalIP", self.config.node_ip.to_string()),
                address("Hostname", self.config.node_name.clone()),
            ]),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint {
                    port: i32::from(self.config.port),
                }),
            }),
            node_info: Some(self.host.info.clone()),
            conditions: Some(self.conditions(node)),
            images: Some(images::listed(self.images.list())),
            features: Some(NodeFeatures {
                supplemental_groups_policy: Some(true),
            }),
            runtime_handlers: Some(HANDLERS.map(handler).to_vec()),
            declared_features: Some(DECLARED_FEATURES.map(str::to_owned).to_vec()),
            ..NodeStatus::default()
        }
    }

    fn conditions(&self, node: &Node) -> Vec<NodeCondition> {
        let now = Time(Timestamp::now());
        let troubles = self.troubles.lock().expect("no holder panics").clone();
        let old = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let condition = |kind: &str, value: bool, reason: &str, message: String| {
            let status = if value { "True" } else { "False" };
            let since = old
                .iter()
                .find(|c| c.type_ == kind && c.status == status)
                .and_then(|c| c.last_transition_time.clone());
            NodeCondition {
                type_: kind.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_heartbeat_time: Some(now.clone()),
                last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
            }
        };
        let short = self.pressure.borrow().clone();
        let pressures = Condition::ALL.map(|kind| {
            let words = kind.words(short.contains(&kind));
            condition(kind.name(), short.contains(&kind), words.reason, words.message.into())
        });
        let nested = match self.nesting.borrow().clone() {
            Some(cost) => condition("Nested", true, "HostIsGuest", cost),
            None => condition("Nested", false, "HostIsNoGuest", "this host is no guest itself".into()),
        };
        let view = self.shared.borrow().clone();
        let reserved = view.map(|view| condition("Reserved", view.is_held, view.reason, view.message));
        let shuts_down = self.shutdown.borrow().then(|| shutdown::NOT_READY.to_owned());
        let troubles = troubles.iter().map(|(what, why)| format!("{what}: {why}"));
        let text: Vec<String> = shuts_down.into_iter().chain(troubles).collect();
        let ready = if text.is_empty() {
            condition("Ready", true, "KvmletReady", "kvmlet is posting ready status".into())
        } else {
            condition("Ready", false, "KvmletNotReady", text.join("; "))
        };
        pressures.into_iter().chain(reserved).chain([nested, ready]).collect()
    }
}

/// What pods of a handler can have; users of a guest are none of the host's.
fn handler(name: &str) -> NodeRuntimeHandler {
    NodeRuntimeHandler {
        name: Some(name.to_owned()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(true),
            user_namespaces: Some(true),
        }),
    }
}
