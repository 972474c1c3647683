//! `kvmlet node`: wires the provider together and supervises it. A part that ends, ends the process; machines go on.

use std::{net::SocketAddr, process::ExitCode, sync::Arc};

use anyhow::{Context as _, anyhow, bail};
use kube::Client;
use kvmlet_image::ImageStore;
use kvmlet_machine::{Program, Uids};
use kvmlet_network::PodNetworks;
use kvmlet_preflight::{Facts, judge};
use kvmlet_provider::{
    backend::Provider,
    certificates::{self, NodeClient, PortCertificate, authority::Clients, keeper::Teller},
    cgroup::{self, IoLimits},
    config::Config,
    context::Context,
    events::Recorder,
    figures::{self, Meters, Readings},
    guard::AccessReviews,
    image_gc::{self, Uses},
    kubelet::{Kubelet, Pods},
    leave::keep::Leaver,
    ledger::Ledger,
    names::Dns,
    node::{Entry, Host, NodeKeeper, Troubles},
    objects::Objects,
    pressure::{self, Pressure},
    report::Reporter,
    routes,
    shared::{self, keep::SharedKeeper},
    sharing::Copies,
    shutdown::{self, Shutdown},
    store::Store,
    template::Templates,
    traces::Traces,
};
use kvmlet_server::{CachedReviews, CachedTokens, Server, ServerConfig, ServingCertificate};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    sync::{Notify, OnceCell, mpsc, oneshot, watch},
    task::JoinHandle,
};
use tracing::{error, info, warn};

use crate::{
    checks,
    cli::NodeArguments,
    ending::{Asked, Signals, tell},
    images, network, runtime, systemd,
};

/// What `/logs/` of the kubelet port shows.
const NODE_LOGS: &str = "/var/log";
/// What the log says unless RUST_LOG does. Whoever watches says himself what a watch failed of; of a kind that is not installed kube's own warning
/// would come again and again.
const LOG: &str = "info,kube_runtime::watcher=error";
/// Guests that boot at once, for each processor of the host.
const BOOTS_PER_PROCESSOR: usize = 3;

/// Runs the node until SIGTERM or SIGINT.
pub(crate) fn run(arguments: &NodeArguments) -> anyhow::Result<ExitCode> {
    log_to_stderr();
    let config = Config::load(&arguments.config.path)?;
    allow_open_files();
    let facts = Facts::gather(&config, &crate::machine::path()?, true);
    let checks = judge::judge(&facts);
    let (needed, others): (Vec<_>, Vec<_>) = checks
        .into_iter()
        .filter(|check| !check.passed)
        .partition(|check| kvmlet_preflight::NEEDED.contains(&check.name));
    for check in others {
        warn!(check = check.name, "{}", check.message);
    }
    if !needed.is_empty() {
        let why: Vec<_> = needed.into_iter().map(|check| check.message).collect();
        bail!(
            "this host cannot run machines: {} (`kvmlet preflight` has all checks)",
            why.join("; ")
        );
    }
    let io = IoLimits::of_node(&config).context("machines.io cannot be had")?;
    if arguments.check {
        println!("configuration and KVM are usable");
        return Ok(ExitCode::SUCCESS);
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(serve(config, io, judge::nesting(&facts)))?;
    Ok(ExitCode::SUCCESS)
}

/// The daemon may have open what the host allows it: shells and service managers give less at first, for programs that use select(2).
pub(crate) fn allow_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "raise the limit of open files");
    }
}

/// What the log says, by `RUST_LOG` or from `info` on.
pub(crate) fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| LOG.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}

async fn serve(config: Config, io: IoLimits, nesting: Option<String>) -> anyhow::Result<()> {
    systemd::status("looking at the host and for the API server");
    let config = Arc::new(config);
    let program = crate::machine::path()?;
    let program = Program::open(&program).with_context(|| format!("open {}, which belongs beside this program", program.display()))?;
    let certificates = Arc::default();
    let identity = NodeClient::open(&config, &certificates).await?;
    let meters = Meters::new();
    let client = figures::counted(identity.client.clone(), meters.requests());
    let store = Store::open(&config.state_dir)?;
    let templates = Templates::new(&config);
    let directories = store.machine_dirs()?.into_iter().chain([templates.machine_dir()]);
    let uids = Uids::new(config.machine_uids.range(), directories);
    if let Err(error) = cgroup::prepare().and_then(|()| if config.shared.is_some() { Ok(()) } else { cgroup::hold(None) }) {
        warn!(%error, "machines stay in the daemon's control group");
    }
    let images = Arc::new(ImageStore::open(config.state_dir.join("images"), images::config(&config)).context("open the image store")?);
    let host = Host::measure(&config).context("measure the host")?;
    let troubles = Troubles::default();
    let traces = Traces::open(&config)?;
    let network: Arc<OnceCell<PodNetworks>> = Arc::default();

    // Before anything is touched: two daemons must not serve one host.
    let shown = PortCertificate::open(&config, &client, &certificates)?;
    let pods = Pods::default();
    let scratch_format = watch::Sender::default();
    let entry = watch::Sender::new(Entry::Open(None));
    let context = Arc::new(Context {
        objects: Objects::start(client.clone()),
        recorder: Recorder::start(client.clone(), config.node_name.clone()),
        reporter: Reporter::start(client.clone()),
        store,
        ledger: Ledger::new(host.stock.subscribe(), config.max_pods),
        images: images.clone(),
        network: network.clone(),
        host_ips: vec![config.node_ip.to_string()],
        dns: Dns {
            servers: config.cluster_dns.clone(),
            domain: config.cluster_domain.clone(),
            host: std::fs::read_to_string(&config.resolv_conf).unwrap_or_default(),
        },
        troubles: troubles.clone(),
        pressure: Pressure::default(),
        shutdown: Shutdown::default(),
        uids,
        io,
        program,
        boots: tokio::sync::Semaphore::new(BOOTS_PER_PROCESSOR * std::thread::available_parallelism().map_or(1, usize::from)),
        templates,
        copies: Copies::new(&config, images.dir()),
        http: kvmlet_provider::probe::HttpClients::new().context("make the clients of HTTP probes")?,
        readings: Readings::default(),
        image_uses: Uses::default(),
        meters,
        traces: traces.clone(),
        certificates,
        scratch: std::sync::Mutex::default(),
        scratch_format: scratch_format.subscribe(),
        config: config.clone(),
        client: client.clone(),
    });
    let server = server(
        &config,
        &client,
        shown.certificate.clone(),
        Provider {
            pods: pods.clone(),
            context: context.clone(),
        },
    )
    .await?;
    let teller = Teller {
        recorder: context.recorder.clone(),
        node: config.node_name.clone(),
    };
    identity.keep(teller.clone());
    shown.keep(teller);

    let (views, shared_host) = watch::channel(None);
    let other = match &config.shared {
        Some(shared) => Some(
            certificates::client::of_kubeconfig(&shared.kubeconfig)
                .await
                .context("shared.kubeconfig")?,
        ),
        None => None,
    };
    let (farewell, farewells) = mpsc::channel(1);
    let nesting = watch::Sender::new(nesting);
    let keeper = NodeKeeper {
        client: client.clone(),
        config: config.clone(),
        host,
        troubles,
        pressure: context.pressure.subscribe(),
        shutdown: context.shutdown.subscribe(),
        images,
        network: network.clone(),
        shared: shared_host.clone(),
        gate: runtime::gate(client.clone(), entry.subscribe()),
        farewells,
        nesting: nesting.subscribe(),
    };
    let leaver = Leaver {
        context: context.clone(),
        pods: pods.clone(),
        keeper: farewell,
        gate: entry.subscribe(),
        progress: watch::Sender::new("beginning".into()),
    };
    let copying = context.clone();
    tokio::spawn(async move { copying.templates.keep(&copying).await });
    let kubelet = Kubelet {
        context: context.clone(),
        pods: pods.clone(),
    };
    let (is_registered, registered) = oneshot::channel();
    let (has_recovered, recovered) = oneshot::channel();
    let mut signals = Signals::new()?;
    let stop = tokio_util::sync::CancellationToken::new();
    let checking = tokio::spawn(checks::answer(
        client.clone(),
        config.clone(),
        nesting,
        scratch_format.subscribe(),
        stop.clone(),
    ));
    let told = runtime::Told {
        scratch: scratch_format,
        entry,
    };
    tokio::spawn(runtime::follow(client.clone(), told));
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move { server.serve(stop.cancelled_owned()).await }
    });
    let nodes = tokio::spawn({
        let (config, client, network) = (config.clone(), client.clone(), network.clone());
        let known = shared::known(shared_host.clone());
        async move {
            known.await;
            let _ = is_registered.send(keeper.register().await.is_some());
            let addresses = tokio::spawn(async move {
                if let Err(error) = network::join(&config, &client, &network).await {
                    error!("{error:#}");
                    context.trouble("network", format!("{error:#}"));
                }
            });
            keeper.keep().await;
            addresses.abort();
        }
    });
    let adopted = Arc::new(Notify::new());
    let reserving = other.clone().map(|client| {
        let (context, pods, adopted) = (kubelet.context.clone(), kubelet.pods.clone(), adopted.clone());
        let keeper = SharedKeeper {
            context,
            pods,
            client,
            views,
        };
        tokio::spawn(async move {
            // Before that machines would be held to what others were given, and pods that run be none.
            adopted.notified().await;
            keeper.keep().await;
        })
    });
    let following = tokio::spawn(async move {
        kubelet.recover().await;
        let _ = has_recovered.send(());
        adopted.notify_one();
        // Before it is known what there is, pods would be refused that fit.
        shared::known(shared_host).await;
        // Only then is it known what is needed.
        tokio::spawn(image_gc::keep(kubelet.context.clone(), kubelet.pods.clone()));
        tokio::spawn(pressure::keep::keep(kubelet.context.clone(), kubelet.pods.clone()));
        tokio::spawn(shutdown::keep::keep(kubelet.context.clone(), kubelet.pods.clone()));
        kubelet.follow().await;
    });
    if let Some(path) = &config.network.routes_kubeconfig {
        let other = certificates::client::of_kubeconfig(path).await?;
        tokio::spawn(routes::keep(other, config.node_name.clone()));
    }
    info!(node = config.node_name, address = %config.node_ip, port = config.port, "kvmlet is up");
    let name = config.node_name.clone();
    tokio::spawn(async move {
        // A sender that is gone ends the daemon by itself.
        if let (Ok(is_there), Ok(())) = (registered.await, recovered.await) {
            systemd::ready(&match is_there {
                true => format!("node {name} is registered and serves"),
                false => format!("kvmlet is disabled in this cluster: node {name} registers when it is enabled"),
            });
        }
    });
    let mut lost = std::pin::pin!(async {
        tokio::select! {
            result = serving => anyhow!("the kubelet port ended: {result:?}"),
            result = nodes => anyhow!("the node's upkeep ended: {result:?}"),
            result = following => anyhow!("the watch of pods ended: {result:?}"),
            () = systemd::live(async || works(&pods).await) => anyhow!("signs of life ended"),
        }
    });
    let asked = tokio::select! {
        asked = signals.next() => asked,
        error = &mut lost => return Err(error),
    };
    let mut done = Ok(());
    if asked == Asked::Leave && config.drain_on_termination {
        info!("SIGTERM: the node leaves (drainOnTermination); a second one ends the daemon at once");
        tokio::select! {
            left = leaver.leave() => match left {
                Ok(()) => {
                    release(&config, other.as_ref(), reserving).await;
                    info!("drained: the daemon ends");
                }
                Err(stuck) => done = Err(stuck.into()),
            },
            () = tell(leaver.progress.subscribe()) => {}
            asked = signals.next() => info!("{}: the daemon ends before the node is drained, its machines go on", asked.name()),
            error = &mut lost => return Err(error),
        }
    } else {
        info!("{}: the daemon ends, its machines go on", asked.name());
    }
    systemd::stopping();
    stop.cancel();
    // A canary ends with its daemon.
    let _ = tokio::time::timeout(checks::END, checking).await;
    if let Some(traces) = traces {
        traces.end().await;
    }
    done
}

/// On a host that has a kubelet, too: gives back what was reserved there.
async fn release(config: &Config, other: Option<&Client>, reserving: Option<JoinHandle<()>>) {
    let (Some(client), Some(reserving)) = (other, reserving) else {
        return;
    };
    // Or it would be made again.
    reserving.abort();
    if let Err(why) = shared::keep::release(client, config).await {
        warn!("the reservation pod goes with the Node, in its own time: {why}");
    }
}

/// Comes to its end where the daemon does its work: its main task runs, as do threads for others, and nobody keeps the table of pods.
async fn works(pods: &Pods) {
    let pods = pods.clone();
    let _ = tokio::spawn(async move { drop(pods.lock()) }).await;
}

async fn server(config: &Config, client: &Client, certificate: ServingCertificate, backend: Provider) -> anyhow::Result<Server> {
    let clients = Clients::open(&config.tls.client_ca_file)?;
    let client_authority = clients.authority.clone();
    tokio::spawn(clients.keep());
    let server_config = ServerConfig {
        node: config.node_name.clone(),
        certificate,
        client_authority,
        authenticator: Arc::new(CachedTokens::new(AccessReviews(client.clone()))),
        authorizer: Arc::new(CachedReviews::new(AccessReviews(client.clone()))),
        node_logs: config.enable_system_log_handler.then(|| NODE_LOGS.into()),
    };
    Ok(Server::bind(SocketAddr::new(config.node_ip, config.port), server_config, backend).await?)
}
