//! The only writer of pods' statuses: the newest status of each pod, written when it differs from the last one that was taken, retried with
//! capped backoff without end. Statuses that were overtaken are never sent.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use crate::{status::RESIZE, write::Writer};

/// Statuses under way at once.
const PARALLEL: usize = 8;
/// How long a status waits of a pod that does not run yet, as the next one is soon there.
const PENDING: Duration = Duration::from_millis(200);
/// Longest wait between two attempts.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Hands statuses to the writer.
#[derive(Clone)]
pub struct Reporter(Arc<Shared>);

struct Shared {
    client: Client,
    pending: Mutex<HashMap<String, Entry>>,
    wake: Notify,
    permits: tokio::sync::Semaphore,
}

struct Entry {
    pod: Arc<Pod>,
    wanted: Arc<PodStatus>,
    generation: u64,
    /// There is another one.
    news: Arc<Notify>,
    under_way: bool,
    /// Counts the statuses that the API server has taken; `u64::MAX` once the pod is gone there.
    taken: watch::Sender<u64>,
}

impl Reporter {
    /// Starts the writer.
    pub fn start(client: Client) -> Self {
        let shared = Arc::new(Shared {
            client,
            pending: Mutex::default(),
            wake: Notify::new(),
            permits: tokio::sync::Semaphore::new(PARALLEL),
        });
        Self(shared)
    }

    /// Takes a pod's newest status. The receiver passes the returned number once the API server has it (or the pod is gone).
    pub fn report(&self, pod: Arc<Pod>, status: Arc<PodStatus>) -> (u64, watch::Receiver<u64>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut pending = self.0.pending.lock().expect("no holder panics");
        let entry = pending.entry(uid.clone()).or_insert_with(|| Entry {
            pod: pod.clone(),
            wanted: Arc::default(),
            generation: 0,
            news: Arc::default(),
            under_way: false,
            taken: watch::Sender::new(0),
        });
        entry.pod = pod;
        entry.wanted = status;
        entry.generation += 1;
        let answer = (entry.generation, entry.taken.subscribe());
        entry.news.notify_waiters();
        if !entry.under_way {
            entry.under_way = true;
            let shared = self.0.clone();
            tokio::spawn(async move { shared.write(uid).await });
        }
        answer
    }

    /// Forgets a pod that is gone.
    pub fn forget(&self, uid: &str) {
        self.0.pending.lock().expect("no holder panics").remove(uid);
        self.0.wake.notify_waiters();
    }
}

impl Shared {
    async fn write(self: Arc<Self>, uid: String) {
        let mut wait = Duration::from_millis(100);
        loop {
            self.settle(&uid).await;
            let Some((pod, status, generation)) = self.next(&uid) else { return };
            let permit = self.permits.acquire().await.expect("never closed");
            let meta = &pod.metadata;
            let pods = Writer::<Pod>::of(&self.client, meta.namespace.as_deref().unwrap_or_default());
            let patch = patch(&uid, &status);
            let result = pods.patch_status(meta.name.as_deref().unwrap_or_default(), patch).await;
            drop(permit);
            match result {
                Ok(()) => {
                    wait = Duration::from_millis(100);
                    if self.done(&uid, generation) {
                        return;
                    }
                }
                // Gone, or another pod by this name (the UID in the patch does not match).
                Err(kube::Error::Api(answer))
                    if answer.code == 404 || answer.code == 409 || (answer.code == 422 && answer.message.contains("uid")) =>
                {
                    debug!(uid, "the pod is gone from the API server: its status is not needed");
                    self.done(&uid, u64::MAX);
                    return;
                }
                Err(error) => {
                    warn!(%error, uid, "write a pod's status; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.wake.notified() => {}
                    }
                    wait = (wait * 2).min(MAX_WAIT);
                }
            }
        }
    }

    /// Waits until a status is worth writing: at once, but for one of a pod that is on its way.
    async fn settle(&self, uid: &str) {
        let on_its_way = || {
            let pending = self.pending.lock().expect("no holder panics");
            let entry = pending.get(uid).filter(|entry| is_on_its_way(&entry.wanted))?;
            // From now on it hears of the next one.
            Some(entry.news.clone().notified_owned())
        };
        let wait = async {
            while let Some(news) = on_its_way() {
                news.await;
            }
        };
        let _ = tokio::time::timeout(PENDING, wait).await;
    }

    fn next(&self, uid: &str) -> Option<(Arc<Pod>, Arc<PodStatus>, u64)> {
        let pending = self.pending.lock().expect("no holder panics");
        pending.get(uid).map(|e| (e.pod.clone(), e.wanted.clone(), e.generation))
    }

    /// Notes that `generation` was taken; true when nothing newer waits.
    fn done(&self, uid: &str, generation: u64) -> bool {
        let mut pending = self.pending.lock().expect("no holder panics");
        let Some(entry) = pending.get_mut(uid) else { return true };
        entry.taken.send_replace(generation);
        let last = generation >= entry.generation;
        entry.under_way = !last;
        last
    }
}

/// Whether nobody has to hear of a status at once: the pod is Pending, and nothing of it has failed.
fn is_on_its_way(status: &PodStatus) -> bool {
    let waits_well = |c: &ContainerStatus| {
        let reason = c.state.as_ref().and_then(|state| state.waiting.as_ref()?.reason.as_deref());
        matches!(reason, Some("ContainerCreating" | "PodInitializing"))
    };
    let mut containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    status.phase.as_deref() == Some("Pending") && containers.all(waits_well)
}

/// A strategic merge patch that also takes away what is not set any more.
fn patch(uid: &str, status: &PodStatus) -> Value {
    let mut status = serde_json::to_value(status).expect("a status becomes JSON");
    for key in ["reason", "message"] {
        if status.get(key).is_none() {
            status[key] = Value::Null;
        }
    }
    for key in ["containerStatuses", "initContainerStatuses"] {
        // Lists without a merge key are replaced as a whole.
        if status.get(key).is_none() {
            status[key] = Value::Null;
        }
    }
    // Addresses are merged by themselves: without this a pod with a new machine would have the old address too, which is refused for ever.
    for key in ["podIPs", "hostIPs"] {
        if let Some(addresses) = status[key].as_array_mut() {
            addresses.insert(0, json!({"$patch": "replace"}));
        }
    }
    // Conditions are merged by type: what one no longer says has to be taken out, and so has one that is not there any more.
    if let Some(conditions) = status["conditions"].as_array_mut() {
        let gone = RESIZE
            .iter()
            .filter(|kind| !conditions.iter().any(|c| c["type"] == **kind))
            .collect::<Vec<_>>();
        conditions.extend(gone.into_iter().map(|kind| json!({"type": kind, "$patch": "delete"})));
    }
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        for key in ["reason", "message"] {
            if condition.get(key).is_none() {
                condition[key] = Value::Null;
            }
        }
    }
    json!({"metadata": {"uid": uid}, "status": status})
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use hyper::{Request, Response};
    use kube::client::Body;
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    #[test]
    fn only_a_pending_pod_that_nothing_has_happened_to_is_on_its_way() {
        let of = |phase: &str, reason: &str| {
            let status = json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": reason}}});
            let status = json!({"phase": phase, "containerStatuses": [status]});
            is_on_its_way(&serde_json::from_value(status).unwrap())
        };
        assert!(of("Pending", "ContainerCreating") && of("Pending", "PodInitializing"));
        for (phase, reason) in [
            ("Running", "ContainerCreating"),
            ("Pending", "ErrImagePull"),
            ("Pending", "CreateContainerError"),
            ("Failed", ""),
        ] {
            assert!(!of(phase, reason), "{phase} {reason}");
        }
    }

    #[tokio::test]
    async fn of_statuses_that_come_while_one_is_written_only_the_newest_is_written() {
        let (ask, mut asked) = mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: Request<Body>| {
            let ask = ask.clone();
            async move {
                let body = request.into_body().collect().await?.to_bytes();
                let patch: Value = serde_json::from_slice(&body).expect("a patch");
                let (answer, answered) = oneshot::channel();
                ask.send((patch["status"]["phase"].clone(), answer)).expect("somebody looks");
                answered.await.expect("an answer");
                Ok::<_, kube::Error>(Response::new(Body::from(b"{}".to_vec())))
            }
        });
        let reporter = Reporter::start(Client::new(service, "default"));
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap());
        let report = |phase: &str| {
            let status = PodStatus {
                phase: Some(phase.into()),
                ..PodStatus::default()
            };
            reporter.report(pod.clone(), Arc::new(status))
        };
        report("Pending");
        let (phase, first) = asked.recv().await.unwrap();
        assert_eq!(phase, "Pending");
        report("Running");
        let (number, mut taken) = report("Succeeded");
        first.send(()).unwrap();
        let (phase, second) = asked.recv().await.unwrap();
        assert_eq!(phase, "Succeeded");
        second.send(()).unwrap();
        assert_eq!(*taken.wait_for(|taken| *taken >= number).await.unwrap(), number);
    }
}
