//! Looks at the host every 10 s, and does what [`super::monitor`] and [`super::rank`] come to: shows the conditions, removes images that no pod
//! needs, evicts one pod and waits until it is gone before it looks again.

use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tracing::{info, warn};

use super::{
    Observation, Observations, Resource,
    monitor::Monitor,
    rank::{Candidate, Used, message, rank},
};
use crate::{
    cgroup,
    config::{Signal, Threshold},
    context::Context,
    driver::{Handle, Update, View},
    events::Note,
    eviction::{Eviction, GRACE},
    figures::{self, PodUsage},
    image_gc,
    kubelet::Pods,
    priority::{is_critical, priority},
    readings,
};

/// How often it is looked (the kubelet's monitoringInterval).
const PERIOD: Duration = Duration::from_secs(10);
/// How long an evicted pod may take to be gone before it is looked again (the kubelet's podCleanupTimeout).
const CLEANUP: Duration = Duration::from_secs(30);

/// Keeps the node from running out, for ever.
pub async fn keep(context: Arc<Context>, pods: Pods) {
    let config = &context.config;
    let mut monitor = Monitor::new(config.thresholds(), config.eviction_pressure_transition_period.0);
    loop {
        match look(&context, &pods, &mut monitor).await {
            Some(evicted) => {
                let _ = timeout(CLEANUP, evicted.gone()).await;
            }
            None => tokio::time::sleep(PERIOD).await,
        }
    }
}

/// One look; answers with the pod that is evicted.
async fn look(context: &Arc<Context>, pods: &Pods, monitor: &mut Monitor) -> Option<Arc<Handle>> {
    let seen = observe(context);
    let found = monitor.look(&seen, Instant::now());
    let name = &context.config.node_name;
    for (condition, is_short) in context.pressure.set(&found.conditions) {
        let event = condition.words(is_short).event;
        info!(condition = condition.name(), is_short, "the node's condition has changed");
        let message = format!("Node {name} status is now: {event}");
        context.recorder.node(name, Note::normal(event, None, message));
    }
    let first = *found.due.first()?;
    let resource = first.signal.resource();
    let attempt = format!("Attempting to reclaim {}", resource.name());
    context.recorder.node(name, Note::warning("EvictionThresholdMet", None, attempt));
    if frees_images(context, first.signal) {
        match image_gc::remove_unneeded(context, pods).await {
            Ok(bytes) => info!(bytes, "the node is short of room: images that no pod needs are removed"),
            Err(why) => warn!(why, "remove images that no pod needs"),
        }
        if monitor.is_relieved(&observe(context)) {
            return None;
        }
    }
    evict(context, pods, first, (&found.due, &seen)).await
}

/// What the host says now.
fn observe(context: &Context) -> Observations {
    let mut seen = Observations::new();
    match readings::memory() {
        Ok(memory) => {
            let (available, capacity) = (memory.available, memory.total);
            seen.insert(Signal::MemoryAvailable, Observation { available, capacity });
        }
        Err(error) => warn!(%error, "look at the host's memory"),
    }
    let disks = [
        (&*context.config.state_dir, Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
        (context.images.dir(), Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
    ];
    for (path, bytes, inodes) in disks {
        match readings::disk(path) {
            Ok(disk) => {
                let (available, capacity) = (disk.available, disk.capacity);
                seen.insert(bytes, Observation { available, capacity });
                // A file system that makes inodes as it needs them has none to run out of.
                if disk.inodes > 0 {
                    let (available, capacity) = (disk.inodes_free, disk.inodes);
                    seen.insert(inodes, Observation { available, capacity });
                }
            }
            Err(error) => warn!(%error, path = %path.display(), "look at a disk"),
        }
    }
    let (used, capacity) = readings::processes();
    if capacity > 0 {
        let available = capacity.saturating_sub(used);
        seen.insert(Signal::PidAvailable, Observation { available, capacity });
    }
    seen
}

/// Whether removing images helps: they lie on the disk in question.
fn frees_images(context: &Context, signal: Signal) -> bool {
    let device = |path: &Path| path.metadata().map(|meta| meta.dev()).ok();
    match signal {
        Signal::ImageFsAvailable | Signal::ImageFsInodesFree => true,
        Signal::NodeFsAvailable | Signal::NodeFsInodesFree => device(&context.config.state_dir) == device(context.images.dir()),
        Signal::MemoryAvailable | Signal::PidAvailable => false,
    }
}

/// Evicts the first pod that may be.
async fn evict(
    context: &Arc<Context>,
    pods: &Pods,
    threshold: Threshold,
    (due, seen): (&[Threshold], &Observations),
) -> Option<Arc<Handle>> {
    let resource = threshold.signal.resource();
    let handles: HashMap<String, Arc<Handle>> = active(pods);
    let usage = figures::usage(context, pods).await;
    let mut candidates: Vec<_> = handles
        .iter()
        .map(|(uid, handle)| candidate(&handle.view.borrow(), usage.get(uid), resource))
        .collect();
    rank(&mut candidates, resource);
    for pod in &candidates {
        let handle = &handles[&pod.uid];
        if pod.critical {
            info!(pod = pod.name, uid = pod.uid, "a pod that the system needs is not evicted");
            continue;
        }
        let eviction = Eviction {
            reason: "Evicted",
            message: message(pod, resource, due, seen),
            grace: grace(context, threshold, handle),
            told: true,
            disrupted: true,
        };
        info!(pod = pod.name, uid = pod.uid, resource = resource.name(), "a pod is evicted");
        // A task that is gone has nothing left.
        if handle.updates.send(Update::Evict(eviction)).await.is_ok() {
            context.meters.evicted(threshold.signal.name());
            return Some(handle.clone());
        }
    }
    warn!(
        resource = resource.name(),
        "the node is short of something, and there is no pod to evict"
    );
    None
}

/// Seconds that the pod has: as good as none, unless the threshold is a soft one.
fn grace(context: &Context, threshold: Threshold, handle: &Handle) -> u64 {
    if threshold.grace.is_zero() {
        return GRACE;
    }
    let most = u64::from(context.config.eviction_max_pod_grace_period);
    most.min(handle.view.borrow().desired.grace)
}

/// Pods that have something to give back, and are not about to.
fn active(pods: &Pods) -> HashMap<String, Arc<Handle>> {
    let pods = pods.lock().expect("no holder panics");
    let active = |handle: &Handle| {
        let view = handle.view.borrow();
        let state = &view.state;
        view.lives() && state.verdict.is_none() && state.deletion.is_none()
    };
    let all = pods.iter().filter(|(_, handle)| active(handle));
    all.map(|(uid, handle)| (uid.clone(), handle.clone())).collect()
}

fn candidate(view: &View, usage: Option<&PodUsage>, resource: Resource) -> Candidate {
    let desired = &view.desired;
    let asked = |name: &str| {
        let own = desired.containers.iter().find(|container| container.name == name);
        own.map_or(0, |container| container.requests.memory.value())
    };
    let used = usage.map(|usage| Used {
        memory: usage.memory,
        storage: usage.storage,
        // The only figure that is the host's own.
        processes: if resource == Resource::Pids {
            cgroup::processes(&desired.uid).unwrap_or_default()
        } else {
            0
        },
        containers: usage
            .containers
            .iter()
            .map(|(name, memory)| (name.clone(), *memory, asked(name)))
            .collect(),
    });
    Candidate {
        uid: desired.uid.clone(),
        name: desired.name.clone(),
        priority: priority(&desired.pod),
        critical: is_critical(&desired.pod),
        requests: desired.requests(),
        accepted: view.state.accepted,
        used,
    }
}
