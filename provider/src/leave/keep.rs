//! Has the pods leave, and then the Node.

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, Preconditions},
};
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
    driver::{self, Handle},
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
        let (mut since, mut asked) = (Instant::now(), HashMap::new());
        loop {
            match self.step(&mut since, &mut asked).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => self.tell(format!("the API server does not answer as it should: {error}")),
            }
            sleep(LOOK).await;
        }
    }

    /// Evicts who has to leave; whether nobody is left who does. `since` is when the Node last took pods, `asked` when an eviction was last refused, by
    /// UID.
    async fn step(&self, since: &mut Instant, asked: &mut HashMap<String, (Instant, String)>) -> kube::Result<bool> {
        // A Node that somebody deletes meanwhile comes back as any other.
        if self.cordon().await? {
            *since = Instant::now();
        }
        let mut left = Vec::new();
        for handle in self.living() {
            let view = handle.view.borrow().clone();
            let pod = &view.desired.pod;
            if role(pod) != Role::Stays {
                left.push((
                    format!("{}/{}", view.desired.namespace, view.desired.name),
                    self.ask(pod, asked).await,
                ));
            }
        }
        if !left.is_empty() {
            self.tell(told(&left));
            return Ok(false);
        }
        Ok(since.elapsed() >= SETTLED && self.is_empty().await?)
    }

    /// Has the Node take no pods any more; whether it took some until now.
    async fn cordon(&self) -> kube::Result<bool> {
        let nodes: Api<Node> = Api::all(self.context.client.clone());
        let name = &self.context.config.node_name;
        let Some(node) = nodes.get_opt(name).await? else { return Ok(true) };
        let Some(patch) = cordon(&node) else { return Ok(false) };
        nodes.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        Ok(true)
    }

    /// Whether the API server knows of no pod either that has to leave.
    async fn is_empty(&self) -> kube::Result<bool> {
        let here = ListParams::default().fields(&format!("spec.nodeName={}", self.context.config.node_name));
        let listed = Api::<Pod>::all(self.context.client.clone()).list(&here).await?;
        Ok(listed.iter().all(|pod| role(pod) == Role::Stays))
    }

    /// Evicts a pod of which something is here; why there is.
    async fn ask(&self, pod: &Pod, asked: &mut HashMap<String, (Instant, String)>) -> Why {
        if pod.metadata.deletion_timestamp.is_some() {
            return Why::Ends;
        }
        if role(pod) == Role::Alone {
            return Why::Alone;
        }
        let (name, namespace, uid) = (pod.name_any(), pod.namespace().unwrap_or_default(), pod.uid().unwrap_or_default());
        if let Some((_, words)) = asked.get(&uid).filter(|(at, _)| at.elapsed() < AGAIN) {
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
        asked.insert(uid, (Instant::now(), words.clone()));
        Why::Refused(words)
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
        let others = self.living();
        if others.is_empty() {
            return;
        }
        self.tell(format!("the Node is gone: ending {} pods of DaemonSets", others.len()));
        let end = |grace| Eviction::by_node("Pod was terminated as its node has left the cluster.", grace);
        if timeout_at(deadline, driver::end(&others, u64::MAX, end)).await.is_err() {
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
