//! Has the pods leave, and then the Node.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout_at},
};
use tracing::{info, warn};

use super::{
    cordon,
    plan::{Role, Why, refusal, role, told},
};
use crate::{
    context::Context,
    driver::{Handle, Update},
    events::Note,
    eviction::Eviction,
    kubelet::Pods,
    node::Farewell,
};

/// Between two looks at who is left.
const LOOK: Duration = Duration::from_secs(1);
/// When an eviction that was refused is tried again (kubectl drain's).
const AGAIN: Duration = Duration::from_secs(5);
/// For so long after the cordon the scheduler may still send pods that it had decided on.
const SETTLED: Duration = Duration::from_secs(2);

/// The pods have not left in their time; they run on.
#[derive(Debug, thiserror::Error)]
#[error("not drained in {seconds} s (drainTimeoutSeconds): {why}; these pods run on, and the Node stays cordoned")]
pub struct Stuck {
    /// How long was waited.
    pub seconds: u64,
    /// Who stays, and why.
    pub why: String,
}

/// What a node that leaves works with.
pub struct Leaver {
    /// What pods share.
    pub context: Arc<Context>,
    /// Their tasks.
    pub pods: Pods,
    /// Who keeps the Node.
    pub keeper: mpsc::Sender<Farewell>,
    /// What is done, for people.
    pub progress: watch::Sender<String>,
}

impl Leaver {
    /// Has all pods leave, and then the Node. What pods of DaemonSets have is ended only if the Node is gone: nobody would look after them then.
    ///
    /// # Errors
    /// When pods are left at the end of their time.
    pub async fn leave(&self) -> Result<(), Stuck> {
        let time = self.context.config.drain_timeout();
        let deadline = Instant::now() + time;
        self.note(Note::normal(
            "NodeDraining",
            None,
            "the node leaves: it is cordoned, and its pods are evicted".into(),
        ));
        if timeout_at(deadline, self.drain()).await.is_err() {
            let stuck = Stuck {
                seconds: time.as_secs(),
                why: self.progress.borrow().clone(),
            };
            self.note(Note::warning("NodeNotDrained", None, stuck.to_string()));
            return Err(stuck);
        }
        self.tell("no pods are left: deleting the Node".into());
        if timeout_at(deadline, self.say_farewell()).await.unwrap_or(false) {
            self.end_others(deadline).await;
        }
        Ok(())
    }

    fn note(&self, note: Note) {
        self.context.recorder.node(&self.context.config.node_name, note);
    }

    fn tell(&self, text: String) {
        self.progress.send_replace(text);
    }

    /// Comes to its end when no pod is left that has to leave.
    async fn drain(&self) {
        while let Err(error) = self.cordon().await {
            self.tell(format!("the Node cannot be cordoned: {error}"));
            sleep(LOOK).await;
        }
        let since = Instant::now();
        let mut asked = HashMap::new();
        loop {
            match self.look(&mut asked).await {
                Ok(left) if left.is_empty() && since.elapsed() >= SETTLED => return,
                Ok(left) if left.is_empty() => {}
                Ok(left) => self.tell(told(&left)),
                Err(error) => self.tell(format!("the node's pods cannot be listed: {error}")),
            }
            sleep(LOOK).await;
        }
    }

    async fn cordon(&self) -> kube::Result<()> {
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        let name = &self.context.config.node_name;
        let Some(node) = nodes.get_opt(name).await? else { return Ok(()) };
        let mut patch = json!({});
        cordon(&mut patch, &node);
        nodes.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
    }

    /// Evicts who has to leave; who is here yet, and why. `asked` has when an eviction was last refused, by UID.
    async fn look(&self, asked: &mut HashMap<String, (Instant, String)>) -> kube::Result<Vec<(String, Why)>> {
        let here = ListParams::default().fields(&format!("spec.nodeName={}", self.context.config.node_name));
        let listed = Api::<Pod>::all(self.context.client.clone()).list(&here).await?;
        let mut left = Vec::new();
        for pod in listed.iter().filter(|pod| role(pod) != Role::Stays) {
            if let Some(why) = self.ask(pod, asked).await {
                left.push((title(&pod.namespace().unwrap_or_default(), &pod.name_any()), why));
            }
        }
        // A pod may have left the API server before its machine is gone.
        let known: HashSet<_> = listed.iter().filter_map(Pod::uid).collect();
        for handle in self.living().into_iter().filter(|handle| !known.contains(&uid(handle))) {
            let view = handle.view.borrow();
            left.push((title(&view.desired.namespace, &view.desired.name), Why::Machine));
        }
        Ok(left)
    }

    /// Evicts a pod; why it is here yet, if it is.
    async fn ask(&self, pod: &Pod, asked: &mut HashMap<String, (Instant, String)>) -> Option<Why> {
        if pod.metadata.deletion_timestamp.is_some() {
            return Some(Why::Ends);
        }
        if role(pod) == Role::Alone {
            return Some(Why::Alone);
        }
        let (name, namespace, uid) = (pod.name_any(), pod.namespace().unwrap_or_default(), pod.uid().unwrap_or_default());
        if let Some((_, words)) = asked.get(&uid).filter(|(at, _)| at.elapsed() < AGAIN) {
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
        asked.insert(uid, (Instant::now(), words.clone()));
        Some(Why::Refused(words))
    }

    /// Has the Node deleted; whether it is gone.
    async fn say_farewell(&self) -> bool {
        loop {
            let (answer, answered) = oneshot::channel();
            let error = match self.keeper.send(answer).await {
                // A keeper that is gone ends the daemon by itself.
                Err(_) => return false,
                Ok(()) => match answered.await {
                    Err(_) => return false,
                    Ok(Ok(())) => {
                        info!("the Node is gone");
                        return true;
                    }
                    Ok(Err(error)) => error,
                },
            };
            match error {
                kube::Error::Api(status) if status.code == 404 => return true,
                kube::Error::Api(status) if status.code == 403 => {
                    let why = &status.message;
                    info!(
                        why,
                        "the Node stays, cordoned: this node may not delete it (manifests/examples/elastic.yaml)"
                    );
                    return false;
                }
                error => warn!(%error, "delete the Node"),
            }
            sleep(LOOK).await;
        }
    }

    /// Ends what is left, which is of DaemonSets.
    async fn end_others(&self, deadline: Instant) {
        let others = self.living();
        if others.is_empty() {
            return;
        }
        self.tell(format!("the Node is gone: ending {} pods of DaemonSets", others.len()));
        for handle in &others {
            let end = Eviction {
                reason: "Terminated",
                message: "Pod was terminated as its node has left the cluster.".into(),
                grace: handle.view.borrow().desired.grace,
                told: false,
                disrupted: true,
            };
            // A task that is gone has nothing left.
            let _ = handle.updates.send(Update::Evict(end)).await;
        }
        let gone = join_all(others.iter().map(|handle| handle.gone()));
        if timeout_at(deadline, gone).await.is_err() {
            warn!("pods of DaemonSets have not ended in their time");
        }
    }

    /// Pods of which something is on the host.
    fn living(&self) -> Vec<Arc<Handle>> {
        let pods = self.pods.lock().expect("no holder panics");
        pods.values()
            .filter(|handle| !handle.view.borrow().state.released)
            .cloned()
            .collect()
    }
}

fn uid(handle: &Handle) -> String {
    handle.view.borrow().desired.uid.clone()
}

fn title(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}
