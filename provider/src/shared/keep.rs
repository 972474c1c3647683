//! Follows the kubelet's Node and the reservation pod, tells what is known of them, and takes the next step. Two watches of one object each; nothing
//! else is asked while nothing changes.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::{
    View, pod,
    see::{self, State},
    slice,
    step::{Facts, SHORT, Step, step},
};
use crate::{
    cgroup::{self, Together},
    config::{Config, SharedHost},
    context::Context,
    desired::Amounts,
    events::Note,
    kubelet::Pods,
    leave::{evict::Evictions, plan},
};

/// How often it is looked at what pods were given; no request is made for that.
const EVERY: Duration = Duration::from_secs(10);
/// When what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Between two looks at who is left, while pods are evicted.
const LOOK: Duration = Duration::from_secs(1);
/// A watch that has not failed for so long is well again.
const STALE: Duration = Duration::from_secs(60);
/// One reservation after another is not made faster than this, whoever ends them.
const APART: Duration = Duration::from_secs(10);

/// What keeps the reservation of a shared host.
pub struct SharedKeeper {
    /// What pods share.
    pub context: Arc<Context>,
    /// Their tasks.
    pub pods: Pods,
    /// The API server, as the identity of `shared.kubeconfig`.
    pub client: Client,
    /// Who hears what is known.
    pub views: watch::Sender<Option<View>>,
}

/// What is known, and what was done.
#[derive(Default)]
struct Known {
    /// The kubelet's Node, once it is known whether there is one.
    node: Option<Option<Node>>,
    /// The reservation pod, likewise.
    pod: Option<Option<Pod>>,
    /// What kept us from the last step.
    failure: Option<String>,
    /// When a watch last failed, and of what.
    unseen: Option<(Instant, String)>,
    /// What machines together are held to.
    held_to: Option<Together>,
    /// Whether the pod has had the amounts of the configuration once.
    was_sized: bool,
    /// When the last pod was made.
    made: Option<Instant>,
    /// While pods are evicted: who is left, as it was told last.
    draining: Option<String>,
}

impl Known {
    /// What is wrong by now. A watch that fails is begun again within this time.
    fn mishap(&self) -> Option<&str> {
        let unseen = self.unseen.as_ref().filter(|(at, _)| at.elapsed() < STALE);
        self.failure.as_deref().or(unseen.map(|(_, words)| &**words))
    }
}

impl SharedKeeper {
    /// Keeps it, for ever. Comes to its end at once on a host that is kvmlet's own.
    pub async fn keep(self) {
        let config = self.context.config.clone();
        let Some(shared) = &config.shared else { return };
        let nodes = watcher::watch_object(Api::<Node>::all(self.client.clone()), &shared.node_name);
        let reservations = Api::<Pod>::namespaced(self.client.clone(), &shared.namespace);
        let pods = watcher::watch_object(reservations, &config.reservation_name());
        let mut nodes = pin!(nodes.default_backoff());
        let mut pods = pin!(pods.default_backoff());
        let mut evictions = Evictions::new(self.context.clone(), self.pods.clone());
        let (mut known, mut pause) = (Known::default(), EVERY);
        loop {
            tokio::select! {
                Some(event) = nodes.next() => match event {
                    Ok(node) => known.node = Some(node),
                    Err(error) => self.is_not_seen(shared, format!("watch Node {}", shared.node_name), &error, &mut known),
                },
                Some(event) = pods.next() => match event {
                    Ok(pod) => known.pod = Some(pod),
                    Err(error) => self.is_not_seen(shared, format!("watch pods in {}", shared.namespace), &error, &mut known),
                },
                () = sleep(pause) => {}
            }
            pause = self.go_on(&config, shared, &mut known, &mut evictions).await;
        }
    }

    /// What was known before counts on. Where a watch was refused and nothing is known yet, that is known.
    fn is_not_seen(&self, shared: &SharedHost, what: String, error: &watcher::Error, known: &mut Known) {
        use watcher::Error::{InitialListFailed, WatchStartFailed};
        warn!(%error, "{what}");
        let refusal = match error {
            InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) => Some(status),
            _ => None,
        };
        let words = refusal.map_or_else(|| error.to_string(), |status| hint(status.code, &status.message));
        let message = format!("{what}: {words}");
        if self.views.borrow().is_none() && refusal.is_some_and(|status| (400..500).contains(&status.code)) {
            self.views.send_replace(Some(View {
                held: Amounts::default(),
                node: shared.node_name.clone(),
                cordoned: None,
                is_held: false,
                reason: "ReservationUnseen",
                message: message.clone(),
            }));
        }
        known.unseen = Some((Instant::now(), message));
    }

    /// Tells what is known by now and takes the next step; when to look again.
    async fn go_on(&self, config: &Config, shared: &SharedHost, known: &mut Known, evictions: &mut Evictions) -> Duration {
        let (Some(pod), Some(node)) = (known.pod.clone(), known.node.clone()) else {
            return EVERY;
        };
        let (pod, node) = (pod.as_ref(), node.as_ref());
        let state = see::state(config, shared, pod, node);
        let (given, pods) = self.context.ledger.given();
        self.tell(see::view(config, shared, pod, node, known.mishap()), given, known);

        let is_cordoned = node.is_some_and(see::is_cordoned);
        let drains = is_cordoned && matches!(state, State::Ending(_)) && pods > 0;
        let is_drained = drains && self.drain(known, evictions).await;
        if !drains {
            self.has_drained(known, pods);
        }
        let facts = Facts {
            is_cordoned,
            pods,
            is_drained,
            requested: pod.map(see::requested).unwrap_or_default(),
            wanted: shared.reservation.amounts(),
            was_sized: known.was_sized,
        };
        let next = step(&state, &facts);
        if next == Step::Create && known.made.is_some_and(|made| made.elapsed() < APART) {
            return RETRY;
        }
        let done = match (next, pod, node) {
            (Step::Create, None, Some(node)) => {
                known.made = Some(Instant::now());
                self.create(config, shared, node).await
            }
            (Step::Resize, Some(pod), _) => self.resize(shared, pod).await,
            (Step::End(seconds), Some(pod), _) => end(&self.client, pod, seconds).await,
            _ => Ok(()),
        };
        if done.is_ok() && (next == Step::Create || state == State::Held) {
            known.was_sized = true;
        }
        let failure = done.err();
        if failure.is_some() && failure != known.failure {
            warn!("{}", failure.as_deref().unwrap_or_default());
        }
        known.failure = failure;
        if known.failure.is_some() {
            self.tell(see::view(config, shared, pod, node, known.mishap()), given, known);
        }
        match next {
            Step::Drain => LOOK,
            Step::Wait => EVERY,
            _ => RETRY,
        }
    }

    /// Has machines held to it and then others know, or the other way round where it is less than before.
    fn tell(&self, view: View, given: Amounts, known: &mut Known) {
        let is_less = known.held_to.is_none_or(|before| before.memory > view.held.memory.value());
        let running = if is_less { cgroup::running() } else { 0 };
        let limits = slice::together(view.held, given, self.context.config.reserved.amounts(), running);
        let wide = known.held_to.map_or(limits, |before| before.max(limits));
        self.hold(wide, known);
        self.views.send_if_modified(|before| {
            let is_news = before.as_ref() != Some(&view);
            if is_news {
                info!(reason = view.reason, "the reservation: {}", view.message);
                *before = Some(view);
            }
            is_news
        });
        self.hold(limits, known);
    }

    fn hold(&self, limits: Together, known: &mut Known) {
        if known.held_to == Some(limits) {
            return;
        }
        match cgroup::hold(Some(&limits)) {
            Ok(()) => {
                known.held_to = Some(limits);
                self.context.clear_trouble("machines");
            }
            // A host that does not hold machines to what they have is not to be shared.
            Err(error) => self
                .context
                .trouble("machines", format!("hold them to what is reserved (cgroup v2): {error}")),
        }
    }

    /// Has pods leave; whether all have that have to.
    async fn drain(&self, known: &mut Known, evictions: &mut Evictions) -> bool {
        let left = evictions.pass().await;
        // While somebody is left here nobody else need be asked.
        let is_clear = if left.is_empty() { evictions.is_clear().await } else { Ok(false) };
        let words = match is_clear {
            Ok(true) => {
                if known.draining.take().is_some() {
                    info!("drained with the kubelet's Node");
                }
                return true;
            }
            // One that the API server has and that is not here yet will be.
            Ok(false) => plan::told(&left),
            Err(error) => format!("the node's pods cannot be listed: {error}"),
        };
        if known.draining.is_none() {
            let why = "the kubelet's Node is cordoned and the reservation pod was told to end: pods here are evicted";
            self.note(Note::normal("NodeDraining", None, why.into()));
        }
        if known.draining.as_ref() != Some(&words) {
            info!("draining with the kubelet's Node: {words}");
            known.draining = Some(words);
        }
        false
    }

    /// No pods are evicted any more: says whether some are left.
    fn has_drained(&self, known: &mut Known, pods: u32) {
        match known.draining.take() {
            Some(left) if pods > 0 => {
                let why = format!("the reservation has ended or its Node takes pods again; these pods run on: {left}");
                self.note(Note::warning("NodeNotDrained", None, why));
            }
            Some(_) => info!("drained with the kubelet's Node"),
            None => {}
        }
    }

    fn note(&self, note: Note) {
        self.context.recorder.node(&self.context.config.node_name, note);
    }

    async fn create(&self, config: &Config, shared: &SharedHost, other: &Node) -> Result<(), String> {
        let own = Api::<Node>::all(self.context.client.clone()).get(&config.node_name).await;
        let owner = own.map_err(|error| why("read our Node", &error))?.uid().unwrap_or_default();
        let made = pod::pod(config, shared, &owner, other);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &shared.namespace);
        match pods.create(&PostParams::default(), &made).await {
            // The watch will have it.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            done => done.map(drop).map_err(|error| why("create the reservation pod", &error)),
        }
    }

    async fn resize(&self, shared: &SharedHost, pod: &Pod) -> Result<(), String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &shared.namespace);
        let patch = Patch::Strategic(pod::resize(shared.reservation.amounts()));
        let done = pods
            .patch_subresource("resize", &pod.name_any(), &PatchParams::default(), &patch)
            .await;
        done.map(drop).map_err(|error| why("resize the reservation pod", &error))
    }
}

/// Ends the reservation of a host that leaves.
///
/// # Errors
/// When the API server refuses; there may be none.
pub async fn release(client: &Client, config: &Config) -> Result<(), String> {
    let Some(shared) = &config.shared else { return Ok(()) };
    let params = DeleteParams::default().grace_period(u32::try_from(SHORT).expect("it is small"));
    let pods: Api<Pod> = Api::namespaced(client.clone(), &shared.namespace);
    unless_gone(pods.delete(&config.reservation_name(), &params).await.map(drop))
}

/// Ends this pod within so many seconds.
async fn end(client: &Client, pod: &Pod, seconds: i64) -> Result<(), String> {
    let params = DeleteParams {
        grace_period_seconds: u32::try_from(seconds).ok(),
        preconditions: Some(Preconditions {
            uid: pod.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    unless_gone(pods.delete(&pod.name_any(), &params).await.map(drop))
}

/// Gone, or another of this name.
fn unless_gone(done: kube::Result<()>) -> Result<(), String> {
    match done {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        done => done.map_err(|error| why("end the reservation pod", &error)),
    }
}

fn why(what: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{what}: {}", hint(status.code, &status.message)),
        error => format!("{what}: {error}"),
    }
}

/// What the API server said, and what is to be done about it.
fn hint(code: u16, message: &str) -> String {
    match code {
        401 => format!("{message} (shared.kubeconfig has no valid credentials)"),
        403 => format!("{message} (its rights, namespace and priority class: kubectl apply -k manifests/shared)"),
        404 => format!("{message} (its namespace: kubectl apply -k manifests/shared)"),
        _ => message.into(),
    }
}
