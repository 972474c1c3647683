//! Has the pods leave, and then the Node.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
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
use crate::{
    context::Context,
    driver,
    events::Note,
    eviction::Eviction,
    kubelet::Pods,
    node::{Entry, Farewell},
};

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
    /// Whether a Node that is gone comes back.
    pub gate: watch::Receiver<Entry>,
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
        let mut since = Instant::now();
        let mut evictions = Evictions::new(self.context.clone(), self.pods.clone());
        loop {
            match self.step(&mut since, &mut evictions).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => self.tell(format!("the API server does not answer as it should: {error}")),
            }
            sleep(LOOK).await;
        }
    }

    /// Evicts who has to leave; whether nobody is left who does. `since` is when the Node last took pods.
    async fn step(&self, since: &mut Instant, evictions: &mut Evictions) -> kube::Result<bool> {
        // A Node that somebody deletes meanwhile comes back as any other.
        if self.cordon().await? {
            *since = Instant::now();
        }
        let left = evictions.pass().await;
        if !left.is_empty() {
            self.tell(told(&left));
            return Ok(false);
        }
        Ok(since.elapsed() >= SETTLED && evictions.is_clear().await?)
    }

    /// Has the Node take no pods any more; whether it took some until now.
    async fn cordon(&self) -> kube::Result<bool> {
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        let name = &self.context.config.node_name;
        let Some(node) = nodes.get_opt(name).await? else {
            return Ok(*self.gate.borrow() != Entry::Closed);
        };
        let Some(patch) = cordon(&node) else { return Ok(false) };
        nodes.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        Ok(true)
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
        let end = |grace| Eviction::by_node("Pod was terminated as its node has left the cluster.", grace);
        if timeout_at(deadline, driver::end(&others, u64::MAX, end)).await.is_err() {
            warn!("pods of DaemonSets have not ended in their time");
        }
    }
}
