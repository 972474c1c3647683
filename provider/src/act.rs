//! What a pod's task does: each action runs on its own, and ends with an event in the pod's queue. Decides nothing.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kvmlet_network::PodNetworks;
use kvmlet_protocol::{Request, Response};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, warn};

use crate::{
    agent::{Agent, AgentError},
    context::Context,
    desired::DesiredPod,
    follow::Holding,
    image_volumes,
    lifecycle::{Action, Event, StartFailure},
    logs,
    machine::{self, Running},
    objects::PodObjects,
    prepare, pull, resize,
    state::{PodState, Slot},
    write,
};

/// How long a guest has to power itself off before its machine is stopped.
const POWER_OFF: Duration = Duration::from_secs(3);
/// Watches in a row that may stay unanswered before the guest counts as hung.
const SILENT_WATCHES: u32 = 3;

/// What an action needs.
#[derive(Clone)]
pub struct Act {
    /// What all pods share.
    pub context: Arc<Context>,
    /// The pod's queue.
    pub events: mpsc::Sender<Event>,
    /// The pod's machine.
    pub machine: Arc<Mutex<Option<Running>>>,
    /// The config maps and secrets that the pod refers to.
    pub objects: Arc<PodObjects>,
    /// What the guest has of volumes that follow their source.
    pub holding: Arc<Mutex<Holding>>,
    /// Ends with the pod's task.
    pub token: CancellationToken,
}

impl Act {
    /// Runs an action beside the task; the event it ends with goes into the queue.
    pub fn spawn<F>(&self, action: impl FnOnce(Act) -> F)
    where
        F: Future<Output = Event> + Send + 'static,
    {
        let events = self.events.clone();
        let action = action(self.clone());
        let token = self.token.clone();
        let task = async move {
            tokio::select! {
                event = action => drop(events.send(event).await),
                () = token.cancelled() => {}
            }
        };
        tokio::spawn(task.in_current_span());
    }

    /// The machine, while there is one.
    pub fn running(&self) -> Option<Running> {
        self.machine.lock().expect("no holder panics").clone()
    }

    /// The way to the machine's agent.
    pub fn socket(&self) -> Result<PathBuf, String> {
        self.running().map(|m| m.vsock).ok_or_else(|| "the machine is not there".to_owned())
    }
}

/// Begins an action other than telling and forgetting, which the task does itself.
pub fn begin(act: &Act, desired: &Arc<DesiredPod>, state: &PodState, action: Action) {
    let desired = desired.clone();
    match action {
        Action::Pull(container) => act.spawn(async move |act| {
            let wanted = pull::Wanted::container(&desired, container);
            let image = wanted.image.clone();
            let result = pull::pull(&act.context, &act.objects, &desired, wanted).await;
            Event::Pulled { container, image, result }
        }),
        Action::PullVolume(volume) => act.spawn(async move |act| {
            let own = image_volumes::all(&desired).nth(volume).expect("it was counted there");
            let result = pull::pull(&act.context, &act.objects, &desired, pull::Wanted::volume(own)).await;
            Event::VolumePulled { volume, result }
        }),
        Action::StartMachine => {
            let images = state.device_images();
            let of_volumes: Vec<String> = state.volume_images.iter().filter_map(|i| i.id().map(str::to_owned)).collect();
            let devices = image_volumes::devices(&desired, &of_volumes, &images);
            act.spawn(async move |act| {
                act.context.meters.kubelet.pod_starts();
                let result = prepare::machine(&act, &desired, &images, &devices).await;
                if result.is_err() {
                    act.context.meters.kubelet.pod_failed();
                }
                if result.is_err()
                    && let Err(error) = destroy(&act.context, &desired.uid).await
                {
                    warn!(error, "clean up after a machine that did not start");
                }
                if let (Ok(_), Some(running)) = (&result, act.running()) {
                    watch_machine(&act, &desired, running);
                }
                Event::MachineStarted(result)
            });
        }
        Action::Resize => {
            let order = resize::act::Order::new(state);
            act.spawn(async move |act| Event::Resized(resize::act::resize(&act, &desired, order).await));
        }
        Action::StartContainer {
            container,
            id,
            restarts,
            replaces,
        } => {
            let instance = prepare::Instance {
                container,
                id,
                restarts,
                images: state.device_images(),
                needed: state.needed_images(true),
                image: state.at(container).image.id().unwrap_or_default().to_owned(),
                target: target(&desired, state, container),
                ips: state.ips.clone(),
            };
            act.spawn(async move |act| {
                if let (Some(old), Some(running)) = (replaces, act.running()) {
                    // A machine that is new does not know it: that is as good.
                    let _ = request(&running.vsock, &Request::Remove { container: old.clone() }).await;
                    running.close_log(&old).await;
                }
                act.context.meters.kubelet.container_starts(desired.at(container));
                let result = prepare::container(&act, &desired, instance).await;
                if let Err(failure) = &result {
                    let reason = match failure {
                        StartFailure::Config { reason, .. } => reason,
                        StartFailure::Process { .. } => "RunContainerError",
                    };
                    act.context.meters.kubelet.container_failed(desired.at(container), reason);
                }
                Event::Started { container, result }
            });
        }
        Action::Signal { id, kill, container } => {
            let signal = if kill {
                9
            } else {
                pull::stop_signal(&act.context, &desired, state, container)
            };
            act.spawn(async move |act| {
                if let Ok(socket) = act.socket()
                    && let Err(error) = request(
                        &socket,
                        &Request::Signal {
                            container: id,
                            signal,
                            all: kill,
                        },
                    )
                    .await
                {
                    warn!(%error, signal, "signal a container");
                }
                Event::Tick
            });
        }
        Action::Release => act.spawn(async move |act| {
            let running = act.machine.lock().expect("no holder panics").take();
            if let Some(running) = running {
                running.token.cancel();
                machine::power_off(running, POWER_OFF).await;
            }
            Event::Released(destroy(&act.context, &desired.uid).await)
        }),
        Action::DeleteObject | Action::Tell(_) | Action::Forget => {}
    }
}

/// The identifier of the container whose processes an ephemeral one shares; the error is for people.
fn target(desired: &DesiredPod, state: &PodState, container: usize) -> Result<Option<String>, String> {
    let Some(name) = desired.at(container).ephemeral.as_ref().and_then(|e| e.target.as_ref()) else {
        return Ok(None);
    };
    match state.containers.iter().find(|c| c.name == *name).map(|c| &c.slot) {
        Some(Slot::Running { id, .. }) => Ok(Some(id.clone())),
        Some(_) => Err(format!("target container {name:?} is not running")),
        None => Err(format!("unable to find target container {name:?}")),
    }
}

async fn request(socket: &std::path::Path, request: &Request) -> Result<(), AgentError> {
    Agent::connect(socket).await?.command(request).await
}

/// Follows a machine: its process, its agent's list of containers, its logs' budgets.
fn watch_machine(act: &Act, desired: &Arc<DesiredPod>, running: Running) {
    let (events, token) = (act.events.clone(), running.token.clone());
    let (gone, pod, context) = (running.clone(), desired.clone(), act.context.clone());
    let process = async move {
        tokio::select! {
            why = gone.exited() => drop(events.send(Event::MachineDied(why)).await),
            () = gone.token.cancelled() => {}
        }
        gone.token.cancel();
    };
    tokio::spawn(process.in_current_span());
    let (events, follow) = (act.events.clone(), running.clone());
    let containers = async move {
        tokio::select! {
            () = follow_containers(&follow, &events) => {}
            () = token.cancelled() => {}
        }
    };
    tokio::spawn(containers.in_current_span());
    let token = running.token.clone();
    let logs = async move {
        tokio::select! {
            () = logs::keep_rotating(&context, &pod, &running) => {}
            () = token.cancelled() => {}
        }
    };
    tokio::spawn(logs.in_current_span());
}

/// Long polls; a guest whose agent stays silent is ended, and that shows as its process's end.
async fn follow_containers(running: &Running, events: &mpsc::Sender<Event>) {
    let mut silent = 0;
    loop {
        let mut agent = match Agent::connect(&running.vsock).await {
            Ok(agent) => agent,
            Err(error) => {
                silent += u32::from(matches!(error, AgentError::Silent { .. }));
                if silent >= SILENT_WATCHES {
                    warn!(%error, "the guest hangs: its machine is ended");
                    running.kill("the guest's agent does not answer").await;
                    return;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        let mut seen = 0;
        loop {
            match agent.ask(&Request::Watch { seen }).await {
                Ok(Response::Containers { generation, containers }) => {
                    silent = 0;
                    if generation != seen && events.send(Event::Containers(containers)).await.is_err() {
                        return;
                    }
                    seen = generation;
                }
                Ok(_) => break,
                Err(AgentError::Silent { .. }) => {
                    silent += 1;
                    break;
                }
                Err(error) => {
                    tracing::debug!(%error, "the watch of a guest was cut");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    break;
                }
            }
        }
    }
}

/// Takes a running machine over after a restart of the daemon; the error says why it is not there any more. How its containers stand is told
/// by the agent's first list.
pub async fn adopt(act: &Act, desired: &Arc<DesiredPod>, state: &PodState) -> Result<(), String> {
    let running = machine::adopt(&act.context, &desired.uid).await?;
    for c in state.containers.iter().chain(&state.ephemeral) {
        if let Some(id) = c.slot.id() {
            let log = (log_directory(&act.context, desired, &c.name), c.restarts);
            running.logs.lock().expect("no holder panics").insert(id.to_owned(), log);
        }
    }
    *act.machine.lock().expect("no holder panics") = Some(running.clone());
    *act.holding.lock().expect("no holder panics") = Holding {
        // Without a record all of it is delivered anew.
        delivered: act.context.store.delivered(&desired.uid).unwrap_or_default(),
        ..Holding::default()
    };
    watch_machine(act, desired, running);
    Ok(())
}

/// Ends whatever a pod has on this host: machine process, network, disks. Idempotent.
pub async fn destroy(context: &Arc<Context>, uid: &str) -> Result<(), String> {
    machine::destroy(context, uid).await?;
    // Right after the daemon's start the network may not stand yet: what it has to take down waits for it.
    if context.network.initialized() || PodNetworks::has_trace(&context.config.network_dir(), uid) {
        let network = context.standing_network().await?;
        network
            .teardown(uid)
            .await
            .map_err(|e| format!("tear the pod's network down: {}", chain(&e)))?;
    }
    Ok(())
}

/// Networks of no living pod.
pub async fn sweep_networks(network: &PodNetworks, live: &HashSet<String>) {
    match network.sweep(live).await {
        Ok(swept) => {
            if !swept.removed.is_empty() {
                tracing::info!(?swept.removed, "networks of pods that are gone were removed");
            }
            for (uid, error) in swept.failed {
                warn!(error = chain(&error), uid, "remove the network of a pod that is gone");
            }
        }
        Err(error) => warn!(error = chain(&error), "sweep networks"),
    }
}

/// Deletes the object once its last status has been taken.
pub async fn delete_object(act: Act, pod: Arc<Pod>, reported: Option<(u64, watch::Receiver<u64>)>) -> Event {
    if let Some((number, mut taken)) = reported {
        let _ = taken.wait_for(|n| *n >= number).await;
    }
    let mut wait = Duration::from_millis(100);
    loop {
        match write::delete(&act.context.client, &pod).await {
            Ok(()) => return Event::Deleted(true),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => return Event::Deleted(true),
            Err(error) => warn!(%error, "delete the pod's object; trying again"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(10));
    }
}

/// `/var/log/pods/<namespace>_<name>_<uid>/<container>`.
pub fn log_directory(context: &Context, desired: &DesiredPod, container: &str) -> PathBuf {
    pod_log_directory(context, desired).join(container)
}

fn pod_log_directory(context: &Context, desired: &DesiredPod) -> PathBuf {
    logs::pod_directory(&context.config.log_dir, desired)
}

/// Removes a pod's logs.
pub fn remove_logs(context: &Context, desired: &DesiredPod) {
    let dir = pod_log_directory(context, desired);
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => warn!(%error, dir = %dir.display(), "remove the pod's logs"),
        _ => {}
    }
}

/// An error with its causes, in one line. Some errors say their cause themselves: it is said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

/// Nanoseconds since 1970.
pub fn now_nanoseconds() -> u64 {
    u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or_default()
}
