//! Has the pods leave, and then the Node.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout_at},
};
use tracing::{info, warn};

use super::{
    cordon,
    evict::{Evictions, living},
    plan::told,
};
use crate::{context::Context, driver::Update, events::Note, eviction::Eviction, kubelet::Pods, node::Farewell};

/// Between two looks at who is left.
const LOOK: Duration = Duration::from_secs(1);
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
        let mut evictions = Evictions::new(self.context.clone(), self.pods.clone());
        loop {
            match evictions.pass().await {
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
        let others = living(&self.pods);
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
}
