//! Looks after nodes in the replica that leads, while there is a switch. Without one it waits for one, and knows of no node.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::watcher::{self, Event},
};
use tokio::{sync::watch, time::Instant};
use tracing::{debug, warn};

use super::{
    FINALIZER, KvmletRuntime, NAME, PreflightCheck,
    decide::{Mode, Seen, Why, due, is_orphaned},
    effects::{Effects, news},
    newest,
    summary::{self, Known, Left},
};
use crate::{CertConfig, followed::All, policy::virtual_nodes};

/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// When kinds that are not installed, or may not be seen, are looked for again.
pub const ABSENT: Duration = Duration::from_secs(30);
/// When pods that had to stay are evicted again.
const AGAIN: Duration = Duration::from_secs(5);
/// When a node that no pod has to leave is looked at again: pods that name it themselves come there all the same.
const DRAINED: Duration = Duration::from_secs(30);
/// When checks of nodes that there are not are looked at again.
const ORPHANS: Duration = Duration::from_secs(300);
/// News that are looked at together.
const TOGETHER: usize = 256;

/// Why looking after nodes begins anew.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("watch: {0}")]
    Watch(Box<watcher::Error>),
    #[error("{0}")]
    Api(Box<kube::Error>),
    #[error("a watch has ended")]
    Ended,
}

impl From<kube::Error> for FollowError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl FollowError {
    /// Whether the kinds are not installed, or not for us.
    fn is_absent(&self) -> bool {
        matches!(self, Self::Watch(error) if is_absent(error))
    }
}

/// Whether what was to be watched is not installed, or not for whoever asks.
pub fn is_absent(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    matches!(error, InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 403 | 404))
}

/// Who hears how long certificates are to live; nothing before it is known whether there is a switch that says so.
pub struct Certificates {
    /// What counts where no switch says otherwise.
    pub own: CertConfig,
    /// Who hears.
    pub tell: watch::Sender<Option<CertConfig>>,
}

impl Certificates {
    fn known(&self, runtime: Option<&KvmletRuntime>) {
        let said = runtime.and_then(|runtime| runtime.spec.cert_config);
        let wanted = Some(said.unwrap_or(self.own));
        self.tell.send_if_modified(|told| std::mem::replace(told, wanted) != wanted);
    }
}

/// Looks after nodes while `leads` says so.
pub async fn keep(client: Client, mut leads: watch::Receiver<bool>, certificates: Certificates) {
    loop {
        if !*leads.borrow() {
            // What another replica lets count by then is not known yet.
            certificates.tell.send_replace(None);
        }
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        tokio::select! {
            _ = leads.wait_for(|leads| !*leads) => {}
            done = follow(&client, &certificates) => match done {
                Ok(()) => {}
                Err(error) if error.is_absent() => {
                    debug!(%error, "there is no kind KvmletRuntime for us in this cluster");
                    certificates.known(None);
                    tokio::time::sleep(ABSENT).await;
                }
                Err(error) => {
                    warn!(%error, "look after nodes; beginning anew");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Something has changed.
pub(super) enum News {
    Runtime(Event<KvmletRuntime>),
    Node(Box<Event<Node>>),
    Check(Event<PreflightCheck>),
}

/// Looks after nodes until the switch is gone.
async fn follow(client: &Client, certificates: &Certificates) -> Result<(), FollowError> {
    let boxed = |error| FollowError::Watch(Box::new(error));
    let everything = watcher::Config::default;
    let runtimes = watcher::watcher(Api::<KvmletRuntime>::all(client.clone()), everything());
    let mut runtimes = pin!(runtimes.map_err(boxed));
    let mut seen = Keeper::new(client.clone());
    while !seen.runtime.items.contains_key(NAME) {
        let event = runtimes.next().await.ok_or(FollowError::Ended)??;
        seen.take(News::Runtime(event));
        if seen.runtime.is_complete {
            certificates.known(seen.runtime.items.get(NAME));
        }
    }
    let nodes = watcher::watcher(Api::<Node>::all(client.clone()), everything().labels(&virtual_nodes())).map_err(boxed);
    let checks = watcher::watcher(Api::<PreflightCheck>::all(client.clone()), everything()).map_err(boxed);
    let others = stream::select(nodes.map_ok(|event| News::Node(Box::new(event))), checks.map_ok(News::Check));
    let mut all = pin!(stream::select(runtimes.map_ok(News::Runtime), others).ready_chunks(TOGETHER));
    loop {
        let wake = seen.wake();
        tokio::select! {
            chunk = all.next() => {
                for news in chunk.ok_or(FollowError::Ended)? {
                    seen.take(news?);
                }
            }
            () = tokio::time::sleep(wake.unwrap_or_default()), if wake.is_some() => {}
        }
        if seen.runtime.is_complete {
            certificates.known(seen.runtime.items.get(NAME));
        }
        if !seen.is_complete() {
            continue;
        }
        seen.look(Instant::now()).await?;
        if !seen.runtime.items.contains_key(NAME) {
            return Ok(());
        }
    }
}

/// What is known, and was done.
pub(super) struct Keeper {
    effects: Effects,
    runtime: All<KvmletRuntime>,
    nodes: All<Seen>,
    checks: All<PreflightCheck>,
    /// Checks by node that were asked for, and have not come by the watch yet.
    asked: BTreeMap<String, String>,
    /// What is left on nodes that are drained, and when that was seen.
    leaving: BTreeMap<String, (Left, Instant)>,
    /// Nodes of which the API server refused what was due, and its words: it is tried again.
    refused: BTreeMap<String, String>,
}

impl Keeper {
    pub(super) fn new(client: Client) -> Self {
        Self {
            effects: Effects(client),
            runtime: All::new(),
            nodes: All::new(),
            checks: All::new(),
            asked: BTreeMap::new(),
            leaving: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    pub(super) fn take(&mut self, news: News) {
        match news {
            News::Runtime(event) => self.runtime.take(event, Some),
            News::Node(event) => self.nodes.take(*event, |node| Seen::of(&node)),
            News::Check(event) => {
                match &event {
                    // What is listed has all that was made before.
                    Event::Init => self.asked.clear(),
                    Event::Apply(check) | Event::Delete(check) => self.asked.retain(|_, name| *name != check.name_any()),
                    _ => {}
                }
                self.checks.take(event, Some);
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.runtime.is_complete && self.nodes.is_complete && self.checks.is_complete
    }

    /// When there is something to do that no watch tells of, if there is.
    fn wake(&self) -> Option<Duration> {
        let is_unfinished = !self.refused.is_empty() || self.leaving.values().any(|(left, _)| !is_done(*left));
        let is_orphan = |check: &PreflightCheck| !self.nodes.items.contains_key(&check.spec.node_name);
        if is_unfinished {
            Some(AGAIN)
        } else if !self.leaving.is_empty() {
            Some(DRAINED)
        } else {
            self.checks.items.values().any(is_orphan).then_some(ORPHANS)
        }
    }

    fn checks_of(&self, node: &str) -> Vec<&PreflightCheck> {
        self.checks.items.values().filter(|check| check.spec.node_name == node).collect()
    }

    /// Does what is due by `now` on every node, and tells of it.
    async fn look(&mut self, now: Instant) -> Result<(), FollowError> {
        let runtime = self.runtime.items.get(NAME).cloned();
        let mode = Mode::of(runtime.as_ref());
        let is_held = |runtime: &KvmletRuntime| runtime.finalizers().iter().any(|one| one == FINALIZER);
        if let Some(runtime) = &runtime
            && mode != Mode::Free
            && !is_held(runtime)
        {
            self.effects.hold(runtime, true).await?;
        }
        if mode != Mode::Disabled {
            self.leaving.clear();
        }
        let nodes: Vec<Seen> = self.nodes.items.values().cloned().collect();
        self.leaving.retain(|name, _| nodes.iter().any(|node| node.name == *name));
        self.refused.clear();
        for node in &nodes {
            match self.look_at(mode, node, now).await {
                // Of this node alone: others are not to wait for it.
                Err(error @ kube::Error::Api(_)) => {
                    warn!(%error, node = node.name, "look after a node");
                    self.refused.insert(node.name.clone(), error.to_string());
                }
                other => other?,
            }
        }
        for check in self.checks.items.values() {
            let is_of_a_node = self.nodes.items.contains_key(&check.spec.node_name);
            if !is_of_a_node
                && is_orphaned(check, Timestamp::now())
                && let Err(error) = self.effects.forget(&check.name_any()).await
            {
                warn!(%error, check = check.name_any(), "remove a check of a node that there is not");
            }
        }
        let Some(runtime) = runtime else { return Ok(()) };
        if mode == Mode::Free {
            if is_held(&runtime) && self.refused.is_empty() {
                self.effects.hold(&runtime, false).await?;
            }
            return Ok(());
        }
        let known: Vec<_> = nodes
            .iter()
            .map(|node| Known {
                node,
                checks: self.checks_of(&node.name),
                left: self.leaving.get(&node.name).map_or(Left::default(), |(left, _)| *left),
                refused: self.refused.get(&node.name).map(String::as_str),
            })
            .collect();
        let status = summary::status(&runtime, &known);
        if runtime.status.as_ref() != Some(&status) {
            self.effects.tell(&status).await?;
        }
        Ok(())
    }

    /// Has a node's pods leave, and then the Node: not before it was found empty twice, as the scheduler may have decided on a pod before the cordon.
    async fn drain(&mut self, node: &Seen, now: Instant) -> kube::Result<()> {
        let before = self.leaving.get(&node.name).copied();
        let is_fresh = |(left, at): (Left, Instant)| {
            let lasts = if is_done(left) { DRAINED } else { AGAIN };
            left.pods == 0 && now.duration_since(at) < lasts
        };
        if before.is_some_and(is_fresh) {
            return Ok(());
        }
        let left = self.effects.evict(&node.name).await?;
        self.leaving.insert(node.name.clone(), (left, now));
        let is_empty = |left: Left| left == Left::default();
        if is_empty(left) && before.is_some_and(|(left, _)| is_empty(left)) {
            self.effects.delete(node).await?;
        }
        Ok(())
    }

    async fn look_at(&mut self, mode: Mode, node: &Seen, now: Instant) -> kube::Result<()> {
        let checks = self.checks_of(&node.name);
        let mut due = due(mode, node, &checks);
        if due.ask.is_some() && self.asked.contains_key(&node.name) {
            due.ask = None;
            due.taint = Some(Why::Checking);
        }
        let news = news(mode, node, &due, &newest(&checks));
        if let Some(spec) = &due.ask {
            let name = self.effects.ask(node, spec).await?;
            self.asked.insert(node.name.clone(), name);
        }
        if due.is_change(node)
            && self.effects.change(&node.name, &due).await?
            && let Some(news) = news
            && let Err(error) = self.effects.event(&node.name, &news).await
        {
            warn!(%error, node = node.name, "write an event");
        }
        for name in &due.forget {
            self.effects.forget(name).await?;
        }
        if due.drain {
            self.drain(node, now).await?;
        }
        Ok(())
    }
}

/// Whether there is nothing to be done to a node on which this is left.
fn is_done(left: Left) -> bool {
    left.pods == 0 && left.is_kept
}

#[cfg(test)]
#[path = "keep_tests.rs"]
mod tests;
