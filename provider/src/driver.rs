//! One task a pod: its queue, its state, and the actions that [`lifecycle::step`] asks for. Guests' and processes' events come before the
//! API server's. The record is written before an action begins.

use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::{
    act::{self, Act},
    context::Context,
    desired::{Deletion, DesiredPod},
    eviction::{Eviction, Warden},
    figures::{Course, Startup},
    follow::{Follower, Holding},
    hooks::Hooks,
    lifecycle::{self, Action, Event},
    machine::{self, Running},
    objects::PodObjects,
    prepare,
    probe::Prober,
    size,
    state::{Machine, PodState},
    status,
    store::{Record, Written},
};

/// Events of a pod that wait for its task.
const QUEUE: usize = 256;

/// What others see of a pod.
#[derive(Debug, Clone)]
pub struct View {
    /// What it wants.
    pub desired: Arc<DesiredPod>,
    /// Where it stands.
    pub state: PodState,
    /// What is reported of it.
    pub status: Arc<PodStatus>,
}

impl View {
    /// Whether the pod has something that could be ended.
    pub fn lives(&self) -> bool {
        !self.state.released && !lifecycle::is_over(&self.state, &self.desired)
    }
}

/// News of the object.
#[derive(Debug)]
pub enum Update {
    /// It is like this now.
    Object(Arc<Pod>),
    /// It is gone from the API server.
    Gone,
    /// The node ends the pod.
    Evict(Eviction),
}

/// A pod's task, seen from outside.
pub struct Handle {
    /// Takes news.
    pub updates: mpsc::Sender<Update>,
    /// Shows the pod; closed when nothing of it is left.
    pub view: watch::Receiver<Arc<View>>,
    /// The machine, for exec.
    pub machine: Arc<std::sync::Mutex<Option<Running>>>,
}

impl Handle {
    /// Waits until nothing of the pod is left on the host.
    pub async fn gone(&self) {
        // The view is closed when its task has ended.
        let _ = self.view.clone().wait_for(|view| view.state.released).await;
    }
}

/// Ends pods, each within its grace period and so many seconds, and waits until nothing of them is left on the host.
pub async fn end(pods: &[Arc<Handle>], most: u64, eviction: impl Fn(u64) -> Eviction) {
    for handle in pods {
        let grace = handle.view.borrow().desired.grace.min(most);
        // A task that is gone has nothing left.
        let _ = handle.updates.send(Update::Evict(eviction(grace))).await;
    }
    join_all(pods.iter().map(|handle| handle.gone())).await;
}

/// Where a pod's life begins in this process.
pub enum Start {
    /// Just seen.
    New(PodState),
    /// Read from its record, which has this revision.
    Recovered(PodState, u64),
}

/// Starts a pod's task.
pub fn start(context: Arc<Context>, mut desired: DesiredPod, begin: Start) -> Handle {
    let (updates, api) = mpsc::channel(QUEUE);
    let (events_in, events) = mpsc::channel(QUEUE);
    let (recovered, state, revision) = match begin {
        Start::New(state) => (false, state, 0),
        Start::Recovered(mut state, revision) => {
            state.complete(&desired);
            (true, state, revision)
        }
    };
    desired.keep(&state.allocated);
    if recovered && !state.released {
        context.ledger.enter(&desired);
    }
    let desired = Arc::new(desired);
    let first = status::status(&desired, &state, &context.host_ips, None, Timestamp::now());
    let view = watch::Sender::new(Arc::new(View {
        desired: desired.clone(),
        state: state.clone(),
        status: Arc::new(first),
    }));
    let machine = Arc::new(std::sync::Mutex::new(None));
    let handle = Handle {
        updates,
        view: view.subscribe(),
        machine: machine.clone(),
    };
    let span = info_span!("pod", namespace = desired.namespace, name = desired.name, uid = desired.uid);
    let act = Act {
        context: context.clone(),
        events: events_in,
        machine,
        objects: Arc::new(PodObjects::new(context.objects.clone())),
        holding: Arc::new(std::sync::Mutex::new(Holding::default())),
        token: CancellationToken::new(),
    };
    let driver = Driver {
        context,
        desired,
        state,
        act,
        view,
        prober: Prober::default(),
        hooks: Hooks::default(),
        follower: Follower::default(),
        warden: Warden::default(),
        startup: if recovered { Startup::over() } else { Startup::default() },
        referring: None,
        stepped: Timestamp::UNIX_EPOCH,
        written: None,
        lasting: None,
        revision,
        reported: None,
    };
    tokio::spawn(driver.run(events, api, recovered).instrument(span));
    handle
}

struct Driver {
    context: Arc<Context>,
    desired: Arc<DesiredPod>,
    state: PodState,
    act: Act,
    view: watch::Sender<Arc<View>>,
    prober: Prober,
    hooks: Hooks,
    follower: Follower,
    warden: Warden,
    startup: Startup,
    /// The pod as its objects were last looked for.
    referring: Option<Arc<DesiredPod>>,
    /// When the last step was.
    stepped: Timestamp,
    written: Option<Written>,
    /// The last one that was written to outlast the host.
    lasting: Option<PodState>,
    /// How many records of the pod there were.
    revision: u64,
    reported: Option<(Arc<PodStatus>, u64, watch::Receiver<u64>)>,
}

impl Driver {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, mut api: mpsc::Receiver<Update>, recovered: bool) {
        if recovered {
            self.recover().await;
        }
        let mut next = match self.desired.deletion {
            Some(deletion) => Event::Delete(deletion),
            None => Event::Tick,
        };
        let mut deletion = self.desired.deletion;
        loop {
            if self.take(next) {
                return;
            }
            let tick = lifecycle::next_tick(&self.state, &self.desired, self.stepped);
            let sleep = async {
                match tick {
                    Some(at) => {
                        let wait = at.duration_since(Timestamp::now());
                        tokio::time::sleep(wait.try_into().unwrap_or_default()).await;
                    }
                    None => std::future::pending().await,
                }
            };
            next = tokio::select! {
                biased;
                Some(event) = events.recv() => event,
                update = api.recv() => match update {
                    Some(Update::Object(pod)) => self.changed(pod, &mut deletion),
                    Some(Update::Gone) => Event::ObjectGone,
                    Some(Update::Evict(eviction)) => Event::Evicted(eviction),
                    // The daemon ends; the machine stays.
                    None => return,
                },
                () = sleep => Event::Tick,
            };
        }
    }

    /// Takes the object's news; a deletion counts once, and again when its grace gets shorter.
    fn changed(&mut self, pod: Arc<Pod>, known: &mut Option<Deletion>) -> Event {
        let (mut desired, _) = DesiredPod::read(pod);
        desired.keep(&self.state.allocated);
        self.desired = Arc::new(desired);
        match (self.desired.deletion, &known) {
            (Some(new), old) if old.is_none_or(|old| old.at != new.at || old.grace != new.grace) => {
                *known = Some(new);
                Event::Delete(new)
            }
            _ => Event::Tick,
        }
    }

    /// What comes of amounts that are asked for and not allocated, when that is to be looked at (again).
    fn judge(&mut self, now: Timestamp) -> Option<Event> {
        let asked = self.desired.asked.clone()?;
        let generation = self.desired.pod.metadata.generation.unwrap_or_default();
        let known = self.state.resize.pending.as_ref();
        let looked_at = known.is_some_and(|known| known.generation == generation && known.again.is_none_or(|at| at > now));
        if looked_at || self.state.deletion.is_some() || lifecycle::is_over(&self.state, &self.desired) {
            return None;
        }
        let mut wished = (*self.desired).clone();
        wished.give(&asked);
        wished.asked = None;
        let images = self.state.device_images();
        // An image that is not here yet counts when the machine is made.
        let size =
            prepare::size_with(&self.context, &wished, &images).unwrap_or_else(|_| size::size(&wished, &self.context.config.pod_defaults));
        let verdict = self.context.ledger.resize(&wished, size, self.state.room);
        if verdict.is_ok() {
            self.desired = Arc::new(wished);
        }
        Some(Event::Judged(verdict.map(|()| asked)))
    }

    /// One step, and another one when other amounts are asked for; true when nothing of the pod is left.
    fn take(&mut self, event: Event) -> bool {
        if self.step(event) {
            return true;
        }
        match self.judge(Timestamp::now()) {
            Some(verdict) => self.step(verdict),
            None => false,
        }
    }

    fn step(&mut self, event: Event) -> bool {
        if !matches!(event, Event::Tick | Event::Containers(_)) {
            tracing::debug!(?event, "step");
        }
        let now = Timestamp::now();
        self.stepped = now;
        let actions = lifecycle::step(&mut self.state, &self.desired, event, now, &mut crate::context::new_id);
        if self.desired.asked.is_none() {
            // What was asked for and not given is not asked for any more.
            self.state.resize.pending = None;
        }
        if self.state.released || lifecycle::is_over(&self.state, &self.desired) {
            self.context.ledger.remove(&self.desired.uid);
        }
        let previous = self.reported.as_ref().map(|(status, ..)| &**status);
        let status = status::status(&self.desired, &self.state, &self.context.host_ips, previous, now);
        for begun in self.startup.look(&self.desired, &self.state, &status, now) {
            self.context.meters.kubelet.begun(&begun);
        }
        let course = self.startup.course(&self.state, &status, now);
        let status = Arc::new(status);
        self.save(&status);
        self.publish(status);
        if let Some(course) = course {
            self.trace(course);
        }
        self.refer();
        for action in actions {
            match action {
                Action::Tell(note) => self.context.recorder.pod(&self.desired.pod, note),
                Action::Forget => {
                    self.forget();
                    return true;
                }
                Action::DeleteObject => {
                    let (pod, taken) = (
                        self.desired.pod.clone(),
                        self.reported.as_ref().map(|(_, number, taken)| (*number, taken.clone())),
                    );
                    self.act.spawn(async move |act| act::delete_object(act, pod, taken).await);
                }
                other => act::begin(&self.act, &self.desired, &self.state, other),
            }
        }
        self.prober.keep(&self.act, &self.desired, &self.state);
        self.hooks.keep(&self.act, &self.desired, &self.state);
        self.follower.keep(&self.act, &self.desired, &self.state);
        self.warden.keep(&self.act, &self.desired, &self.state);
        false
    }

    /// Watches what the pod refers to, as long as it may need it.
    fn refer(&mut self) {
        let over = self.state.released || lifecycle::is_over(&self.state, &self.desired);
        let wanted = (!over).then_some(&self.desired);
        if wanted.map(Arc::as_ptr) != self.referring.as_ref().map(Arc::as_ptr) {
            self.act.objects.keep(wanted.map(|pod| &**pod));
            self.referring = wanted.cloned();
        }
    }

    /// Writes the record when it changed. The status in it is this node's own, so that its way back from the API server is no change.
    fn save(&mut self, status: &Arc<PodStatus>) {
        let state = serde_json::to_vec(&self.state).expect("plain data becomes JSON");
        let pod = &self.desired.pod;
        if self.written.as_mut().is_some_and(|written| written.says(pod, status, &state)) {
            return;
        }
        let record = Record {
            pod: Arc::new(Pod {
                metadata: pod.metadata.clone(),
                spec: pod.spec.clone(),
                status: Some((**status).clone()),
            }),
            state: self.state.clone(),
            revision: self.revision + 1,
        };
        let lasts = match &self.lasting {
            Some(before) => self.state.has_more_that_lasts(before),
            None => self
                .state
                .has_more_that_lasts(&PodState::new(&self.desired, None, self.state.accepted)),
        };
        match self.context.store.save(&self.desired.uid, &record, lasts) {
            Ok(()) => {
                self.revision += 1;
                if lasts {
                    self.lasting = Some(record.state);
                }
                let (pod, status) = (pod.clone(), status.clone());
                self.written = Some(Written { pod, status, state });
                self.context.clear_trouble("state");
            }
            Err(error) => {
                // The pod goes on: what would be lost is only known after a crash, and the node says that it is not well.
                warn!(error = &error as &dyn std::error::Error, "write the pod's record");
                self.context.trouble("state", format!("pods' records cannot be written: {error}"));
            }
        }
    }

    /// Shows the pod to the server and reports its status.
    fn publish(&mut self, status: Arc<PodStatus>) {
        self.view.send_replace(Arc::new(View {
            desired: self.desired.clone(),
            state: self.state.clone(),
            status: status.clone(),
        }));
        let gone = self.state.deletion.as_ref().is_some_and(|d| d.object_gone);
        if gone || self.reported.as_ref().is_some_and(|(reported, ..)| *reported == status) {
            return;
        }
        let (number, taken) = self.context.reporter.report(self.desired.pod.clone(), status.clone());
        self.reported = Some((status, number, taken));
    }

    /// Tells how the pod started, where somebody wants to know, once the API server has heard that it runs.
    fn trace(&self, course: Course) {
        if let (Some(traces), Some((_, number, taken))) = (&self.context.traces, &self.reported) {
            let machine = machine::directory(&self.context, &self.desired.uid);
            let told = traces
                .clone()
                .follow(self.desired.clone(), course, machine, (*number, taken.clone()));
            tokio::spawn(told);
        }
    }

    fn forget(&mut self) {
        self.context.ledger.remove(&self.desired.uid);
        self.act.token.cancel();
        act::remove_logs(&self.context, &self.desired);
        self.context.meters.forget(&self.desired.uid);
        if let Err(error) = self.context.store.remove(&self.desired.uid) {
            warn!(error = &error as &dyn std::error::Error, "remove the pod's record");
        }
        self.context.reporter.forget(&self.desired.uid);
        info!("nothing of the pod is left");
    }

    /// After a restart of the daemon: running machines are adopted, half-made ones thrown away.
    async fn recover(&mut self) {
        match self.state.machine {
            Machine::Starting => {
                info!("the machine was half-made: it is thrown away");
                if let Err(error) = act::destroy(&self.context, &self.desired.uid).await {
                    warn!(error, "throw a half-made machine away");
                }
                self.state.machine = Machine::None { not_before: None };
            }
            // Done again from the start: each part may be missing by now.
            Machine::Stopping => self.state.machine = Machine::None { not_before: None },
            Machine::Ready => match act::adopt(&self.act, &self.desired, &self.state).await {
                Ok(()) => info!("the machine is adopted"),
                Err(why) => {
                    info!(why, "the machine ended while no daemon watched");
                    let _ = self.act.events.try_send(Event::MachineDied(why));
                }
            },
            Machine::None { .. } => {}
        }
    }
}
