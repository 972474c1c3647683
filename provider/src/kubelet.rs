//! The pods of this node: who has a task, who may have one, and what is left over. Keyed by UID, never by name. Adopts first, compares with
//! one complete list, then sweeps.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::mpsc::error::TrySendError;
use tracing::{info, warn};

use crate::{
    act,
    context::Context,
    desired::{DesiredPod, Refusal},
    driver::{self, Handle, Start, Update},
    events::Note,
    host_path, pressure,
    state::{PodState, Verdict},
    write,
};

/// The tasks, by UID; shared with the server.
pub type Pods = Arc<Mutex<HashMap<String, Arc<Handle>>>>;

/// The pods of this node.
pub struct Kubelet {
    /// What they share.
    pub context: Arc<Context>,
    /// Their tasks.
    pub pods: Pods,
}

impl Kubelet {
    /// Gives every recorded pod its task back. A record that cannot be read is removed with what hangs on it.
    pub async fn recover(&self) {
        let records = match self.context.store.load() {
            Ok(records) => records,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "read the pods' records");
                return;
            }
        };
        for (uid, record) in records {
            match record {
                Ok(record) => {
                    let (desired, _) = DesiredPod::read(record.pod);
                    self.begin(desired, Start::Recovered(record.state, record.revision));
                }
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        uid, "a pod's record cannot be used: what it had is removed"
                    );
                    if let Err(error) = act::destroy(&self.context, &uid).await {
                        warn!(error, uid, "remove what a lost pod had");
                    }
                    if let Err(error) = self.context.store.remove(&uid) {
                        warn!(error = &error as &dyn std::error::Error, uid, "remove a lost pod's directory");
                    }
                }
            }
        }
    }

    /// Follows the API server for ever. A watch that is down kills nothing: only a complete list takes pods away.
    pub async fn follow(&self) {
        let api: Api<Pod> = Api::all(self.context.client.clone());
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.context.config.node_name));
        // Who last wrote which field is much of an object, and of no interest here.
        let pods = watcher::watcher(api, config)
            .default_backoff()
            .modify(|pod| pod.metadata.managed_fields = None);
        let mut stream = std::pin::pin!(pods);
        let mut listed = HashSet::new();
        let (mut complete, mut swept) = (false, false);
        loop {
            // Between events: no pod's task begins meanwhile, so what has none is left over.
            if complete && !swept && self.context.network.initialized() {
                swept = true;
                self.sweep().await;
            }
            let event = tokio::select! {
                event = stream.next() => event,
                () = tokio::time::sleep(Duration::from_secs(1)), if !swept => continue,
            };
            let Some(event) = event else { return };
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(pod)) => {
                    listed.extend(pod.uid());
                    self.upsert(pod).await;
                }
                Ok(watcher::Event::InitDone) => {
                    self.compare(&listed).await;
                    complete = true;
                }
                Ok(watcher::Event::Apply(pod)) => self.upsert(pod).await,
                Ok(watcher::Event::Delete(pod)) => {
                    if let Some(uid) = pod.uid() {
                        self.tell(&uid, Update::Gone).await;
                    }
                }
                Err(error) => warn!(%error, "watch pods"),
            }
        }
    }

    /// Pods that the complete list does not have are gone.
    async fn compare(&self, listed: &HashSet<String>) {
        let known: Vec<String> = self.pods.lock().expect("no holder panics").keys().cloned().collect();
        for uid in known.into_iter().filter(|uid| !listed.contains(uid)) {
            info!(uid, "the pod was deleted while nobody watched");
            self.tell(&uid, Update::Gone).await;
        }
    }

    /// Networks and machines that belong to no pod with a task.
    async fn sweep(&self) {
        let live: HashSet<String> = self.pods.lock().expect("no holder panics").keys().cloned().collect();
        if let Some(network) = self.context.network.get() {
            act::sweep_networks(network, &live).await;
        }
    }

    async fn tell(&self, uid: &str, update: Update) {
        let handle = self.pods.lock().expect("no holder panics").get(uid).cloned();
        if let Some(handle) = handle {
            match handle.updates.try_send(update) {
                Ok(()) => {}
                Err(TrySendError::Full(update)) => {
                    let _ = handle.updates.send(update).await;
                }
                Err(TrySendError::Closed(_)) => {
                    self.pods.lock().expect("no holder panics").remove(uid);
                }
            }
        }
    }

    async fn upsert(&self, pod: Pod) {
        let Some(uid) = pod.uid() else { return };
        if self.pods.lock().expect("no holder panics").contains_key(&uid) {
            self.tell(&uid, Update::Object(Arc::new(pod))).await;
            return;
        }
        // Mirror pods of a kubelet and pods that ended before this node's state was lost are not run again.
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            self.let_go(&pod).await;
            return;
        }
        let (desired, refusal) = DesiredPod::read(Arc::new(pod));
        if let Some(refusal) = refusal.as_ref().filter(|_| self.context.config.daemon_sets.leave(&desired.pod)) {
            self.leave(&desired.pod, refusal).await;
            return;
        }
        let refusal = match refusal {
            None => pressure::admit::admit(&desired.pod, &self.context.pressure.now())
                .and_then(|()| self.context.shutdown.admit())
                .and_then(|()| host_path::admit(&desired, &self.context.config.volumes.host_path.allowed))
                .and_then(|()| self.context.ledger.admit(&desired))
                .err(),
            some => some,
        };
        if let Some(refusal) = &refusal {
            info!(
                name = desired.name,
                namespace = desired.namespace,
                reason = refusal.reason,
                "a pod is refused"
            );
            self.context
                .recorder
                .pod(&desired.pod, Note::warning(refusal.reason, None, refusal.message.clone()));
        }
        let verdict = refusal.map(|r| {
            // As the kubelet's rejectPod words it.
            let message = if r.reason.starts_with("OutOf") || ["Evicted", "NodeShutdown"].contains(&r.reason) {
                format!("Pod was rejected: {}", r.message)
            } else {
                r.message
            };
            Verdict::new(r.reason, message)
        });
        let state = PodState::new(&desired, verdict, Timestamp::now());
        self.begin(desired, Start::New(state));
    }

    fn begin(&self, desired: DesiredPod, start: Start) {
        let uid = desired.uid.clone();
        let handle = Arc::new(driver::start(self.context.clone(), desired, start));
        let mut view = handle.view.clone();
        self.pods.lock().expect("no holder panics").insert(uid.clone(), handle);
        let pods = self.pods.clone();
        tokio::spawn(async move {
            // Closed when the task has ended.
            while view.changed().await.is_ok() {}
            pods.lock().expect("no holder panics").remove(&uid);
        });
    }

    /// A pod that is neither run nor failed. Nothing here has to end when it is deleted.
    async fn leave(&self, pod: &Arc<Pod>, refusal: &Refusal) {
        if pod.metadata.deletion_timestamp.is_none() {
            let message = format!("left alone, as the node's daemonSets says: {}", refusal.message);
            self.context.recorder.pod(pod, Note::warning(refusal.reason, None, message));
        }
        self.let_go(pod).await;
    }

    /// Deletes the object of a pod of which nothing is here, if that was asked for. Without grace it has been deleted for good: this is the last news of
    /// it, and may come after its task has ended.
    async fn let_go(&self, pod: &Pod) {
        let meta = &pod.metadata;
        if meta.deletion_timestamp.is_none() || meta.deletion_grace_period_seconds == Some(0) {
            return;
        }
        if let Err(error) = write::delete(&self.context.client, pod).await {
            warn!(%error, "delete the object of a pod of which nothing is here");
        }
    }
}
