//! Makes what a pod runs on: network, volumes, disks, machine, surroundings; then each of its containers.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerPort;
use kvmlet_image::{ImageDevice, PulledImage};
use kvmlet_network::{HostPort, PodInterface, PodNetwork, PodNetworkRequest, Protocol};
use kvmlet_protocol::{
    ContainerSpec, ErrorKind, Extras, Filter, IMAGE_VERSION, Interface, LIMIT_POD_VERSION, Request, Response, Route, SANDBOX_VERSION,
    SHARE_VERSION, START_AS_VERSION, STREAMS_VERSION, USAGE_VERSION,
};
use tracing::{info, warn};

use crate::{
    act::{self, Act, chain, now_nanoseconds},
    agent::{Agent, AgentError},
    bandwidth, cgroup,
    context::Context,
    desired::DesiredPod,
    env, env_file,
    events::Note,
    eviction,
    figures::{Lap, Phase, on_machines, turn},
    follow::Holding,
    host_path::{self, Shared},
    late_image,
    lifecycle::{Event, Failure, StartFailure, Up},
    logs, lower,
    machine::{self, Launch, Running},
    names, scratch, seccomp,
    size::{self, Room, Size},
    started::{How, Started},
    streams,
    template::{self, Start},
    volumes,
};

/// How long a guest may take from spawn to its agent's hello. Far above any real boot, also on an emulated KVM under load.
const BOOT_TIME: Duration = Duration::from_secs(120);

/// The pod's size, with room for the images that its guest reads in place.
pub fn size_with(context: &Context, desired: &DesiredPod, images: &[String]) -> Result<Size, String> {
    Ok(size_of(context, desired, &found(context, images)?))
}

fn size_of(context: &Context, desired: &DesiredPod, images: &[PulledImage]) -> Size {
    let devices: Vec<_> = images.iter().map(|image| &image.device).collect();
    let mapped = lower::in_place(&devices).iter().map(|index| devices[*index].size).sum();
    size::size(desired, &context.config.pod_defaults).with_images(mapped)
}

/// Makes the machine and its surroundings; the answer is what it can grow to. `devices` are those of image volumes, by the volumes' names. What was
/// made before a failure is for the caller to destroy.
pub async fn machine(act: &Act, desired: &Arc<DesiredPod>, images: &[String], devices: &BTreeMap<String, String>) -> Result<Room, Failure> {
    let context = &act.context;
    let mount = |message: String| Failure {
        reason: "FailedMount",
        message,
    };
    let sandbox = |message: String| Failure {
        reason: "FailedCreatePodSandBox",
        message: format!("Failed to create pod sandbox: {message}"),
    };
    let images = found(context, images).map_err(sandbox)?;
    let (begun, begun_at) = (Instant::now(), Timestamp::now());
    // Whatever an earlier machine of this pod has left.
    act::destroy(context, &desired.uid).await.map_err(sandbox)?;
    let size = size_of(context, desired, &images);
    let queues = lower::network_queues(&context.config.machines, size);
    let network = network(context, desired, queues).await.map_err(sandbox)?;
    let ips: Vec<String> = network.interface.addresses.iter().map(|a| a.addr().to_string()).collect();
    let _ = act.events.send(Event::Addressed(ips.clone())).await;
    let facts = context.facts(ips.clone());
    let (pod, config) = (desired.clone(), context.config.clone());
    let opening = tokio::task::spawn_blocking(move || host_path::open_all(&pod, &config.volumes.host_path.allowed));
    let host_paths = opening.await.map_err(|e| mount(e.to_string()))?.map_err(mount)?;
    let (volumes, delivered, tokens) = volumes::resolve(desired, &facts, &act.objects, &host_paths, devices)
        .await
        .map_err(mount)?;
    if let Err(error) = context.store.save_delivered(&desired.uid, &delivered) {
        // The next daemon would deliver all of it anew.
        warn!(error = chain(&error), "write what volumes are made of");
    }
    *act.holding.lock().expect("no holder panics") = Holding { delivered, tokens };
    let prepared = begun.elapsed();
    let mut lap = Lap::of(context, begun);
    lap.passed(Phase::Surroundings);

    let dir = machine::directory(context, &desired.uid);
    let mut own = Vec::with_capacity(images.len());
    for image in &images {
        own.push(own_device(context, desired, image).await.map_err(sandbox)?);
    }
    let extents: Vec<_> = own.iter().collect();
    let pmems = lower::in_place(&extents);
    let (shared, disk, templates) = (context.clone(), lower::scratch_path(&dir), context.config.state_dir.join("scratch"));
    let format = *context.scratch_format.borrow();
    let make = move || {
        std::fs::create_dir_all(disk.parent().expect("a disk lies in a directory")).map_err(|e| e.to_string())?;
        let template = {
            let _one = shared.scratch.lock().expect("no holder panics");
            scratch::template(&templates, size.scratch, format)
        };
        template.and_then(|template| scratch::copy(&template, &disk)).map_err(|e| chain(&e))
    };
    let making = tokio::task::spawn_blocking(|| on_machines(make));
    making.await.map_err(|e| sandbox(e.to_string()))?.map_err(sandbox)?;

    let mtu = u16::try_from(network.interface.mtu).unwrap_or(1500);
    // The annotations may have been changed since the pod was accepted.
    let limits = bandwidth::limits(desired.pod.metadata.annotations.as_ref()).map_err(sandbox)?;
    let (cpus, more) = size.room(context.ledger.stock().capacity);
    let spec = lower::machine(
        desired,
        (size, (cpus, more)),
        (&context.config.guest, &context.config.machines),
        &extents,
        Some((network.interface.mac, mtu, limits)),
        (&dir, format),
        &host_paths.iter().map(|share| share.tag.clone()).collect::<Vec<_>>(),
    );
    let room = Room {
        cpus,
        memory: size.memory.saturating_add(more),
        beside: cgroup::beside(&spec),
    };
    let file_size = scratch::most(size.scratch, format).max(context.config.logs.max_size.value());
    lap.passed(Phase::Disks);
    let permit = turn(context).await.map_err(sandbox)?;
    lap.passed(Phase::Queue);
    let mut needed = if host_paths.is_empty() { SANDBOX_VERSION } else { SHARE_VERSION };
    if !eviction::limited(desired).is_empty() {
        needed = needed.max(USAGE_VERSION);
    }
    if !devices.is_empty() {
        needed = needed.max(IMAGE_VERSION);
    }
    let limits = lower::pod_limits(desired);
    if limits.is_some() {
        needed = needed.max(LIMIT_POD_VERSION);
    }
    let tap = [network.tap].into_iter().chain(network.more_queues).collect();
    let started = Started::new(begun_at, lap.phases(), &spec);
    remember(&started, &dir);
    let launch = Launch {
        spec,
        tap,
        cpus: size.cpus,
        shared: host_paths,
        file_size,
        template: false,
    };
    let (mut agent, how) = up(act, desired, launch).await.map_err(sandbox)?;
    drop(permit);
    lap.passed(Phase::Guest);
    let hello = begun.elapsed();
    let version = agent.welcome().version;
    if version < needed {
        return Err(sandbox(format!(
            "the guest's agent speaks version {version} of the protocol, and {needed} is needed: install the guest of this release"
        )));
    }
    let interfaces = vec![interface(&network.interface)];
    let setup = lower::sandbox(desired, &context.dns, interfaces, &ips, volumes, &pmems, now_nanoseconds());
    let running = act.machine.lock().expect("no holder panics").clone();
    let running = running.ok_or_else(|| sandbox("the machine is not there".into()))?;
    let set_up = async {
        agent.command(&Request::Setup(setup)).await.map_err(|e| chain(&e))?;
        match limits {
            Some(limits) => agent.command(&Request::LimitPod(limits)).await.map_err(|e| chain(&e)),
            None => Ok(()),
        }
    };
    unless_it_ends(&running, set_up).await.map_err(sandbox)?;
    lap.passed(Phase::Setup);
    remember(&started.up(how, lap.phases()), &dir);
    info!(
        prepared_ms = prepared.as_millis(),
        hello_ms = hello.as_millis(),
        ready_ms = begun.elapsed().as_millis(),
        kernel = agent.welcome().kernel,
        "the machine is ready"
    );
    Ok(room)
}

/// For the host's operator: a pod does not need it.
fn remember(started: &Started, machine: &Path) {
    if let Err(error) = started.write(machine) {
        warn!(error = chain(&error), "write how the machine started");
    }
}

/// Starts the machine, as a copy of the node's template if there is one and it fits, else by booting: until its agent has answered, and a copy is
/// one of its own. Tells the pod's owner which it was.
async fn up(act: &Act, desired: &Arc<DesiredPod>, boot: Launch) -> Result<(Agent, How), String> {
    let context = &act.context;
    let told = |start: &Start, took: Duration| {
        let message = start.told(took);
        context.recorder.pod(&desired.pod, Note::normal("MachineStarted", None, message));
        How::new(start, took)
    };
    let mut begun = Instant::now();
    let wanted = template::wanted(desired.pod.metadata.annotations.as_ref())?;
    let (offered, mut start) = match context.copies.no_template() {
        Some(why) => (boot.spec.clone(), Start::Boot(why.into())),
        None if wanted => {
            let dir = machine::directory(context, &desired.uid);
            let offered = context.templates.offer(boot.spec.clone());
            context.copies.own_template((&desired.namespace, &dir), &boot.spec, offered).await
        }
        None => (
            boot.spec.clone(),
            Start::Boot(format!("the pod's {} is \"none\"", template::ANNOTATION)),
        ),
    };
    if let Start::Copy(number) = start {
        let own: Result<_, _> = boot.tap.iter().map(OwnedFd::try_clone).collect();
        let shared: Result<_, _> = boot.shared.iter().map(Shared::try_clone).collect();
        let copy = Launch {
            spec: offered,
            tap: own.map_err(|e| format!("duplicate the tap: {e}"))?,
            shared: shared.map_err(|e| format!("duplicate what is shared: {e}"))?,
            ..boot
        };
        let surplus = template::surplus(&copy.spec);
        let why = match answered(act, &desired.uid, copy).await {
            Ok(mut agent) => {
                context.templates.worked();
                match find(act, &mut agent, surplus).await {
                    Ok(()) => {
                        let how = told(&start, begun.elapsed());
                        return Ok((agent, how));
                    }
                    // It is this pod's own, and says nothing of the template.
                    Err(why) => why,
                }
            }
            Err(why) => {
                context.templates.failed(number, &why);
                why
            }
        };
        machine::stop(context, &desired.uid).await?;
        start = Start::Boot(format!("as a copy of the node's template it did not come up: {why}"));
        begun = Instant::now();
    }
    let agent = answered(act, &desired.uid, boot).await?;
    let how = told(&start, begun.elapsed());
    Ok((agent, how))
}

/// Has the guest of a copy look for what its template has no place for.
async fn find(act: &Act, agent: &mut Agent, surplus: Vec<Request>) -> Result<(), String> {
    let running = act.running().ok_or("the machine is not there")?;
    let found = async {
        for request in surplus {
            agent.command(&request).await.map_err(|e| chain(&e))?;
        }
        Ok(())
    };
    unless_it_ends(&running, found).await
}

/// Starts a machine and waits for its agent; a copy is made one of its own.
async fn answered(act: &Act, uid: &str, launch: Launch) -> Result<Agent, String> {
    let context = &act.context;
    let renewed = launch.spec.restore.is_some().then(|| (launch.spec.clone(), launch.cpus));
    let (how, begun) = (if renewed.is_some() { "copy" } else { "boot" }, Instant::now());
    let running = machine::launch(context, uid, machine::directory(context, uid), launch).await?;
    *act.machine.lock().expect("no holder panics") = Some(running.clone());
    let boot = async {
        let mut agent = Agent::await_boot(&running.vsock, BOOT_TIME).await.map_err(|e| chain(&e))?;
        if let Some((spec, cpus)) = renewed {
            let renewal = template::renewal(&spec, cpus).map_err(|e| format!("read random bytes: {e}"))?;
            agent.command(&Request::Renew(renewal)).await.map_err(|e| chain(&e))?;
        }
        Ok(agent)
    };
    let answered = unless_it_ends(&running, boot).await;
    context.meters.started(how, answered.is_ok(), begun.elapsed());
    answered
}

async fn unless_it_ends<T>(running: &Running, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::select! {
        result = work => result,
        why = running.exited() => Err(format!("the machine ended while it booted: {why}")),
    }
}

/// What one instance of a container is started with.
pub struct Instance {
    /// Which container.
    pub container: usize,
    /// The instance's identifier.
    pub id: String,
    /// Number of its log file.
    pub restarts: u32,
    /// The machine's images, in the order of their devices.
    pub images: Vec<String>,
    /// All images that the pod's containers are of.
    pub needed: Vec<String>,
    /// Its own image.
    pub image: String,
    /// Identifier of the container whose processes it shares, or why there is none to be had.
    pub target: Result<Option<String>, String>,
    /// The pod's addresses.
    pub ips: Vec<String>,
}

/// Starts a container.
pub async fn container(act: &Act, desired: &Arc<DesiredPod>, instance: Instance) -> Result<Up, StartFailure> {
    let context = &act.context;
    let own = desired.at(instance.container);
    let config_error = |message: String| StartFailure::Config {
        reason: "CreateContainerConfigError",
        message,
    };
    let create_error = |message: String| StartFailure::Config {
        reason: "CreateContainerError",
        message,
    };
    let facts = context.facts(instance.ips);
    let image = image(context, &instance.image).map_err(create_error)?;
    let target = instance.target.map_err(config_error)?;
    let present = instance.images.iter().position(|i| *i == instance.image);
    let hostname = names::kernel_hostname(desired, &context.dns.domain);
    let running = act
        .machine
        .lock()
        .expect("no holder panics")
        .clone()
        .ok_or_else(|| create_error("the machine is not there".into()))?;
    let mut agent = Agent::connect(&running.vsock).await.map_err(|e| create_error(chain(&e)))?;
    let files = env_file::gather(&mut agent, desired, own).await.map_err(config_error)?;
    let variables = env::variables(desired, own, &facts, &act.objects, &files)
        .await
        .map_err(config_error)?;
    let device = match present {
        Some(number) => lower::image_name(number),
        None => {
            let own = own_device(context, desired, &image).await.map_err(create_error)?;
            late_image::attach(&running, &instance.image, &own, &instance.needed)
                .await
                .map_err(create_error)?
        }
    };
    let spec = lower::container(desired, own, &instance.id, device, &image.config, &variables, &hostname).map_err(config_error)?;
    let filter = match lower::seccomp_profile(desired, own) {
        Some(profile) => {
            let path = seccomp::path(&context.config.seccomp_dir(), &profile).map_err(create_error)?;
            let filter = seccomp::load(&path, &spec.process.capabilities, &agent.welcome().kernel).await;
            Some(Box::new(filter.map_err(create_error)?))
        }
        None => None,
    };
    let start = start(spec, lower::extras(desired, own, target), filter, agent.welcome().version).map_err(create_error)?;
    logs::open(context, desired, &running, &own.name, &instance.id, instance.restarts)
        .await
        .map_err(|e| create_error(format!("open the container's log: {e}")))?;
    context.recorder.pod(
        &desired.pod,
        Note::normal("Created", Some(own.field_path()), "Container created".into()),
    );
    let up = |user| Up {
        at: Timestamp::now(),
        user,
    };
    match agent.ask(&start).await {
        Ok(Response::Started { .. }) => Ok(up(None)),
        Ok(Response::StartedAs { user, .. }) => Ok(up(Some(user))),
        Ok(_) => Err(create_error("the agent answered with something else".into())),
        Err(AgentError::Failed(failure)) => Err(match failure.kind {
            ErrorKind::CommandNotFound => StartFailure::Process {
                code: 128,
                message: start_message(&failure.message),
            },
            ErrorKind::CommandNotExecutable => StartFailure::Process {
                code: 128,
                message: start_message(&failure.message),
            },
            _ => create_error(failure.message),
        }),
        Err(error) => Err(create_error(chain(&error))),
    }
}

/// What an agent of this version is asked to start a container with.
fn start(spec: ContainerSpec, extras: Extras, filter: Option<Box<Filter>>, version: u16) -> Result<Request, String> {
    let container = Box::new(spec);
    if version >= START_AS_VERSION {
        return Ok(Request::StartAs { container, extras, filter });
    }
    if filter.is_some() {
        return Err(streams::too_old(version, START_AS_VERSION));
    }
    match extras == Extras::default() {
        // All versions know this one.
        true => Ok(Request::Start(container)),
        false if version < STREAMS_VERSION => Err(streams::too_old(version, STREAMS_VERSION)),
        false => Ok(Request::StartWith { container, extras }),
    }
}

/// As container runtimes word it.
fn start_message(message: &str) -> String {
    format!("failed to create container: unable to start container process: {message}")
}

fn image(context: &Context, id: &str) -> Result<PulledImage, String> {
    context
        .images
        .get(id)
        .ok_or_else(|| format!("image {id} is no longer in the store"))
}

/// An image in files whose pages the pod may read.
async fn own_device(context: &Context, desired: &DesiredPod, image: &PulledImage) -> Result<ImageDevice, String> {
    let machine = machine::directory(context, &desired.uid);
    context.copies.image(&desired.namespace, &machine, &image.device).await
}

fn found(context: &Context, images: &[String]) -> Result<Vec<PulledImage>, String> {
    images.iter().map(|id| image(context, id)).collect()
}

async fn network(context: &Context, desired: &DesiredPod, queues: u32) -> Result<PodNetwork, String> {
    let networks = context.standing_network().await?;
    let ports = desired
        .pod
        .spec
        .iter()
        .flat_map(|s| &s.containers)
        .flat_map(|c| c.ports.iter().flatten());
    let request = PodNetworkRequest {
        uid: desired.uid.clone(),
        namespace: desired.namespace.clone(),
        name: desired.name.clone(),
        host_ports: ports.filter_map(host_port).collect(),
        queues: queues as usize,
    };
    networks.setup(&request).await.map_err(|e| chain(&e))
}

fn host_port(port: &ContainerPort) -> Option<HostPort> {
    Some(HostPort {
        host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
        host_port: port.host_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0)?,
        container_port: u16::try_from(port.container_port).ok()?,
        protocol: match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        },
    })
}

/// The pod's interface as the guest makes it.
fn interface(from: &PodInterface) -> Interface {
    let mut routes: Vec<Route> = from
        .routes
        .iter()
        .map(|r| Route {
            destination: r.destination.to_string(),
            gateway: r.via.or(from.gateway).map(|g| g.to_string()).unwrap_or_default(),
        })
        .collect();
    if routes.is_empty()
        && let Some(gateway) = from.gateway
    {
        routes.push(Route {
            destination: "0.0.0.0/0".into(),
            gateway: gateway.to_string(),
        });
    }
    Interface {
        name: "eth0".into(),
        mac: from.mac,
        mtu: from.mtu,
        addresses: from.addresses.iter().map(ToString::to_string).collect(),
        routes,
        neighbours: Vec::new(),
    }
}
