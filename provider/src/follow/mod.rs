//! Volumes of files follow what they are made of while their pod runs: config maps, secrets, the pod's own fields, tokens that are renewed. One
//! task a pod waits for its watches, its object and its clock; what is to be done is decided by [`plan`], and the agent swaps a volume's content as
//! a whole. What was delivered is written down, without any content, so that a daemon that comes later knows what changed in between.
//!
//! As the kubelet's volume manager remounts, but at once. An object that is gone leaves the content as it is (an optional one takes its files
//! with it), and what cannot be delivered is told once and tried again for ever.

mod plan;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use futures_util::future::select_all;
use jiff::Timestamp;
use kvmlet_protocol::Request;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, info, warn};

use self::plan::Failure;
use crate::{
    act::{Act, chain},
    agent::{Agent, AgentError},
    desired::DesiredPod,
    downward::Facts,
    events::{Note, Recorder},
    lifecycle::is_over,
    objects::{Object, PodObjects, Reference, Seen, refer},
    state::{Machine, PodState},
    store::Store,
    token::{Issue, Token, Wish},
    volumes::{self, Delivered, Material},
};

/// What a machine's guest has.
#[derive(Debug, Default)]
pub struct Holding {
    /// What was delivered, as it is recorded.
    pub delivered: Delivered,
    /// The tokens that this daemon has asked for.
    pub tokens: BTreeMap<Wish, Token>,
}

/// The task of one pod, while its machine is ready.
#[derive(Default)]
pub struct Follower(Option<(watch::Sender<Known>, AbortOnDropHandle<()>)>);

/// What the task knows of its pod.
#[derive(Debug, Clone)]
struct Known {
    desired: Arc<DesiredPod>,
    ips: Vec<String>,
}

impl Follower {
    /// Begins the task, tells it how the pod is now, or ends it.
    pub fn keep(&mut self, act: &Act, desired: &Arc<DesiredPod>, state: &PodState) {
        let runs = matches!(state.machine, Machine::Ready) && !is_over(state, desired);
        if !runs || !desired.volumes().iter().any(volumes::is_of_files) {
            self.0 = None;
            return;
        }
        let now = Known {
            desired: desired.clone(),
            ips: state.ips.clone(),
        };
        match &self.0 {
            Some((known, _)) => {
                known.send_if_modified(|known| {
                    let same = Arc::ptr_eq(&known.desired, &now.desired) && known.ips == now.ips;
                    *known = now;
                    !same
                });
            }
            None => {
                let Ok(socket) = act.socket() else { return };
                let (sender, known) = watch::channel(now);
                let work = Work::new(act, socket, desired).run(known);
                self.0 = Some((sender, AbortOnDropHandle::new(tokio::spawn(work.in_current_span()))));
            }
        }
    }
}

struct Work {
    /// The way to the guest's agent.
    socket: PathBuf,
    objects: Arc<PodObjects>,
    store: Store,
    recorder: Recorder,
    /// What the node says of itself.
    facts: Facts,
    holding: Arc<Mutex<Holding>>,
    watched: Vec<(Reference, watch::Receiver<Seen>)>,
    /// Requests for tokens that failed.
    failures: BTreeMap<Wish, Failure>,
    /// The agent did not take a volume.
    put: Option<Failure>,
    /// What was last told of a volume.
    told: BTreeMap<String, String>,
}

impl Work {
    fn new(act: &Act, socket: PathBuf, desired: &DesiredPod) -> Self {
        Self {
            socket,
            objects: act.objects.clone(),
            store: act.context.store.clone(),
            recorder: act.context.recorder.clone(),
            facts: act.context.facts(Vec::new()),
            holding: act.holding.clone(),
            watched: watched(&act.objects, desired),
            failures: BTreeMap::new(),
            put: None,
            told: BTreeMap::new(),
        }
    }

    async fn run(mut self, mut known: watch::Receiver<Known>) {
        loop {
            let now = known.borrow_and_update().clone();
            let objects = self.seen();
            let next = self.deliver(&now, &objects).await;
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep(at.duration_since(Timestamp::now()).try_into().unwrap_or_default()).await,
                    None => std::future::pending().await,
                }
            };
            let seen = self.watched.iter_mut().map(|(_, seen)| {
                Box::pin(async {
                    if seen.changed().await.is_err() {
                        // Nobody watches any more, and nothing will come.
                        std::future::pending::<()>().await;
                    }
                })
            });
            let mut seen: Vec<_> = seen.collect();
            let objects = async {
                if seen.is_empty() {
                    std::future::pending::<()>().await;
                }
                select_all(&mut seen).await;
            };
            tokio::select! {
                () = objects => {}
                () = sleep => {}
                changed = known.changed() => if changed.is_err() { return },
            }
        }
    }

    /// What the watches know.
    fn seen(&mut self) -> BTreeMap<Reference, Option<Arc<Object>>> {
        let seen = self.watched.iter_mut().filter_map(|(reference, seen)| {
            let object = match &*seen.borrow_and_update() {
                Seen::Nothing | Seen::Refused => return None,
                Seen::Absent => None,
                Seen::There(object) => Some(object.clone()),
            };
            Some((reference.clone(), object))
        });
        seen.collect()
    }

    /// Brings the guest up to date; says when to look again.
    async fn deliver(&mut self, known: &Known, objects: &BTreeMap<Reference, Option<Arc<Object>>>) -> Option<Timestamp> {
        let (pod, now) = (&known.desired, Timestamp::now());
        let facts = Facts {
            pod_ips: known.ips.clone(),
            ..self.facts.clone()
        };
        let mut delivered = self.holding.lock().expect("no holder panics").delivered.clone();
        let mut tokens = self.holding.lock().expect("no holder panics").tokens.clone();
        let changed = plan::changed(pod, &facts, objects, &issues(&delivered, &tokens), &delivered);
        for wish in plan::wanted(pod, &changed, &issues(&delivered, &tokens), &tokens, &self.failures, now) {
            match self.objects.token(&pod.pod, &wish).await {
                Ok(token) => {
                    self.failures.remove(&wish);
                    tokens.insert(wish, token);
                }
                Err(error) => self.token_failed(pod, wish, &chain(&error), now),
            }
        }
        self.holding.lock().expect("no holder panics").tokens.clone_from(&tokens);
        let issues = issues(&delivered, &tokens);
        let before = delivered.clone();
        let material = Material {
            objects: objects.clone(),
            tokens,
        };
        let (changed, mut put) = (plan::changed(pod, &facts, objects, &issues, &delivered), None);
        self.told.retain(|told, _| changed.iter().any(|(volume, _)| volume.name == *told));
        for (volume, inputs) in changed {
            // A token that could not be had has been told.
            if volumes::wishes(volume).iter().any(|wish| !material.tokens.contains_key(wish)) {
                continue;
            }
            let content = match volumes::content(pod, volume, &facts, &material) {
                Ok(content) => content,
                Err(message) => {
                    self.tell(pod, &volume.name, message);
                    continue;
                }
            };
            match self.put(&volume.name, content).await {
                Ok(()) => {
                    info!(volume = volume.name, "the volume has followed its source");
                    self.told.remove(&volume.name);
                    delivered.volumes.insert(volume.name.clone(), inputs);
                }
                Err(error) => {
                    put = Some(Failure::again(self.put, now));
                    match error {
                        AgentError::Failed(failure) => self.tell(pod, &volume.name, failure.message),
                        error => debug!(error = chain(&error), volume = volume.name, "deliver a volume; trying again"),
                    }
                }
            }
        }
        self.put = put;
        delivered.set_tokens(&issues);
        if delivered != before {
            self.record(pod, delivered);
        }
        plan::next(pod, &issues, &self.failures, self.put)
    }

    async fn put(&self, volume: &str, content: kvmlet_protocol::VolumeContent) -> Result<(), AgentError> {
        let request = Request::PutVolume {
            volume: volume.into(),
            content,
        };
        Agent::connect(&self.socket).await?.command(&request).await
    }

    /// Written after the act: a crash in between has it done again, which changes nothing.
    fn record(&self, pod: &DesiredPod, delivered: Delivered) {
        if let Err(error) = self.store.save_delivered(&pod.uid, &delivered) {
            warn!(
                error = &error as &dyn std::error::Error,
                "write what was delivered to the pod's volumes"
            );
        }
        self.holding.lock().expect("no holder panics").delivered = delivered;
    }

    /// The old token stays; told once, until one is had again.
    fn token_failed(&mut self, pod: &DesiredPod, wish: Wish, why: &str, now: Timestamp) {
        let failure = Failure::again(self.failures.get(&wish).copied(), now);
        warn!(why, failures = failure.count, "a token was not had; the old one stays");
        if failure.count == 1 {
            for volume in pod.volumes().iter().filter(|volume| volumes::wishes(volume).contains(&wish)) {
                self.event(pod, &volume.name, &format!("failed to fetch token: {why}"));
            }
        }
        self.failures.insert(wish, failure);
    }

    fn tell(&mut self, pod: &DesiredPod, volume: &str, message: String) {
        if self.told.get(volume) != Some(&message) {
            self.event(pod, volume, &message);
            self.told.insert(volume.into(), message);
        }
    }

    fn event(&self, pod: &DesiredPod, volume: &str, message: &str) {
        let note = Note::warning("FailedMount", None, volumes::failed(volume, message));
        self.recorder.pod(&pod.pod, note);
    }
}

/// The watches of what the pod's volumes are made of.
fn watched(objects: &PodObjects, desired: &DesiredPod) -> Vec<(Reference, watch::Receiver<Seen>)> {
    let references = desired.volumes().iter().flat_map(|v| refer::of_volume(&desired.namespace, v));
    let references: BTreeSet<Reference> = references.collect();
    let watched = references.into_iter().filter_map(|reference| {
        let seen = objects.watched(&reference)?;
        Some((reference, seen))
    });
    watched.collect()
}

/// When each token was had: those of this daemon, and of the ones before it by the record.
fn issues(delivered: &Delivered, tokens: &BTreeMap<Wish, Token>) -> BTreeMap<Wish, Issue> {
    let mut issues = delivered.tokens();
    issues.extend(volumes::issues(tokens));
    issues
}
