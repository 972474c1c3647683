//! A whole cluster: brought up, found again, torn down. What a test holds in its hand.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    Host, HostKind,
    artifacts::{self, Guest},
    command, control_plane, dump,
    host::{Size, Source},
    netns::{self, Netns},
    node, packages,
    paths::{State, host_name, repository, write},
    pki,
    preflight::{self, Verdict},
    process::Process,
    progress::{say, step},
    registry, wait_for,
};

/// What a cluster should be like.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many KVM hosts, at least.
    pub hosts: usize,
    /// Processors of an emulated host.
    pub cpus: usize,
    /// Memory of an emulated host in MiB; by default 6 GiB, 4 GiB each when there are more.
    pub memory: Option<usize>,
    /// Build kvmlet and its guest, install them and start the daemon. Without it hosts are bare.
    pub kvmlet: bool,
    /// Take a running cluster that is large enough.
    pub reuse: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            hosts: 1,
            cpus: 2,
            memory: None,
            kvmlet: true,
            reuse: true,
        }
    }
}

/// What runs in a state directory, written when all of it does.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    verdict: Verdict,
    hosts: usize,
    programs: PathBuf,
    images: PathBuf,
    /// The digest of kvmlet and its guest as installed; none on bare hosts.
    kvmlet: Option<String>,
}

/// What runs in every cluster besides hosts.
const PROCESSES: [&str; 6] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    registry::PUBLIC,
    registry::PRIVATE,
];

/// What kvmlet is installed from.
#[derive(Debug, Clone)]
struct Built {
    kvmlet: PathBuf,
    guest: Guest,
    digest: String,
}

/// A running cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Where its state is.
    pub state: State,
    /// Which kind of hosts it has, and why.
    pub verdict: Verdict,
    /// Its KVM hosts; the first is `kvm-1`.
    pub hosts: Vec<Host>,
    /// The folder of the control plane's programs.
    pub programs: PathBuf,
    /// The folder of the test images.
    pub images: PathBuf,
}

impl Cluster {
    /// Brings up a cluster, or takes the running one when that is allowed and it is large enough. kvmlet is then put in
    /// again if it has changed.
    pub fn up(options: &ClusterOptions) -> Result<Self> {
        ensure!((1..=9).contains(&options.hosts), "a cluster has 1 to 9 hosts");
        ensure!(
            geteuid().is_root(),
            "the rig makes network namespaces and installs packages: run it as root"
        );
        let state = State::from_environment()?;
        let _lock = lock(&state)?;
        if let Some((cluster, record)) = attach(&state).filter(|(_, record)| options.reuse && record.hosts >= options.hosts) {
            say(format_args!("using the running cluster with {} hosts", record.hosts));
            cluster.reinstall(&state, options, record)?;
            return Ok(cluster);
        }
        evict(&state)?;
        tear_down(&state)?;
        let started = bring_up(&state, options);
        // Where only kvmlet is at fault the cluster stays: to look into, and for a better kvmlet to be put in.
        if started.is_err() && !state.record().exists() {
            eprint!("{}", dump::logs(&state, 15));
            say(format_args!(
                "taking down what was started; logs stay in {}",
                state.logs().display()
            ));
            tear_down(&state)?;
        }
        started
    }

    /// The running cluster.
    pub fn running() -> Result<Self> {
        let state = State::from_environment()?;
        let (cluster, _) = attach(&state).context("no cluster runs here; `make cluster` starts one")?;
        Ok(cluster)
    }

    /// Ends a cluster, if there is one: its processes, namespaces and state. Logs stay until the next one.
    pub fn down() -> Result<()> {
        let state = State::from_environment()?;
        let _lock = lock(&state)?;
        tear_down(&state)
    }

    /// Host `index`, counted from 0.
    pub fn host(&self, index: usize) -> Result<&Host> {
        self.hosts
            .get(index)
            .with_context(|| format!("the cluster has {} hosts", self.hosts.len()))
    }

    /// A kubectl command that is not started yet, as the administrator.
    pub fn kubectl_command(&self) -> Command {
        control_plane::kubectl(&self.state, &self.programs)
    }

    /// Runs kubectl for at most two minutes, whatever its exit code.
    pub fn kubectl_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Netns::of(&self.state).command("timeout");
        command.args(["-k", "5", "120"]).arg(self.programs.join("kubectl")).args(arguments);
        command
            .env("KUBECONFIG", self.state.kubeconfig())
            .env("KUBECACHEDIR", self.state.root.join("kubectl-cache"));
        command.stdin(Stdio::null()).output().context("run kubectl")
    }

    /// Runs kubectl; its standard output, or an error with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_output(arguments)?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}: {}",
                arguments.join(" "),
                output.status,
                command::text(&output.stderr)
            );
        }
        Ok(command::text(&output.stdout))
    }

    /// `kubectl ... -o json`, parsed.
    pub fn kubectl_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("read what kubectl {} said", arguments.join(" ")))
    }

    /// Applies a manifest.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let file = self.state.root.join(format!("apply-{}.yaml", thread_token()));
        write(&file, yaml)?;
        let applied = self.kubectl(&["apply", "-f", &file.to_string_lossy()]);
        fs::remove_file(&file).context("remove an applied manifest")?;
        applied.map(drop)
    }

    /// Makes a namespace and waits until pods can be made in it.
    pub fn create_namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["create", "namespace", name])?;
        wait_for("the default service account", Duration::from_secs(60), || {
            self.kubectl(&["get", "serviceaccount", "default", "-n", name]).map(Some)
        })?;
        Ok(())
    }

    /// Deletes a namespace with all that is in it, and waits until it is gone.
    pub fn delete_namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["delete", "namespace", name, "--timeout=110s"]).map(drop)
    }

    /// A pod, as the API server has it.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Value> {
        self.kubectl_json(&["get", "pod", name, "-n", namespace])
    }

    /// Waits until a pod's status phase is `phase`.
    pub fn wait_for_phase(&self, namespace: &str, name: &str, phase: &str, deadline: Duration) -> Result<Value> {
        wait_for(&format!("pod {namespace}/{name} to be {phase}"), deadline, || {
            let pod = self.pod(namespace, name)?;
            if pod["status"]["phase"] == phase {
                return Ok(Some(pod));
            }
            bail!("its status is {}", pod["status"])
        })
    }

    /// Waits until every host's Node says Ready, then routes the pods' addresses from the control plane.
    pub fn wait_until_nodes_are_ready(&self, deadline: Duration) -> Result<()> {
        for host in &self.hosts {
            let condition = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}{.spec.podCIDR}";
            let ready = || {
                Ok(self
                    .kubectl(&["get", "node", &host.name, "-o", condition])?
                    .starts_with("True10.")
                    .then_some(()))
            };
            let alive = || {
                let status = host.daemon_status()?;
                ensure!(
                    status.state == crate::agent::ServiceState::Running,
                    "kvmlet node: {:?}: {}",
                    status.state,
                    host.daemon_log(8)?
                );
                Ok(())
            };
            crate::wait::wait_while(&format!("Node {} to be Ready", host.name), deadline, alive, ready)?;
        }
        self.sync_routes()
    }

    /// Routes each Node's pods from the cluster's namespace through their host.
    pub fn sync_routes(&self) -> Result<()> {
        let nodes = self.kubectl_json(&["get", "nodes"])?;
        for host in &self.hosts {
            let items = nodes["items"].as_array().into_iter().flatten();
            let node = items.into_iter().find(|node| node["metadata"]["name"] == host.name.as_str());
            if let Some(cidr) = node.and_then(|node| node["spec"]["podCIDR"].as_str()) {
                Netns::of(&self.state).ip(&["route", "replace", cidr, "via", &host.address.to_string()])?;
            }
        }
        Ok(())
    }

    /// A command inside the cluster's network, where the API server, pods and services of hosts can be reached.
    pub fn inside(&self, program: &str) -> Command {
        Netns::of(&self.state).command(program)
    }

    /// Fetches a URL from inside the cluster's network.
    pub fn http_get(&self, url: &str) -> Result<String> {
        let output = command::run(self.inside("curl").args(["-sS", "--fail", "--max-time", "10", url]))?;
        Ok(command::text(&output.stdout))
    }

    /// Ends the API server at once.
    pub fn stop_api_server(&self) -> Result<()> {
        let recorded = Process::recorded(&self.state)?
            .into_iter()
            .find(|process| process.name == "kube-apiserver");
        recorded.context("the API server does not run")?.end(&self.state)
    }

    /// Starts the API server again and waits until it is ready.
    pub fn start_api_server(&self) -> Result<()> {
        control_plane::start_api_server(&self.state, &self.programs)?;
        control_plane::wait_until_ready(&self.state)
    }

    /// Installs kvmlet and its guest on all hosts and starts the daemons.
    fn install(&self, built: &Built) -> Result<()> {
        let install = |host: &Host| -> Result<()> {
            host.stop_daemon()?;
            node::install(host, &built.kvmlet, &built.guest)?;
            host.start_daemon().map(drop)
        };
        let installed = step("kvmlet on the hosts", || {
            in_parallel(&self.hosts, install)?;
            self.wait_until_nodes_are_ready(Duration::from_secs(90))
        });
        if installed.is_err() {
            eprintln!("{}", dump::cluster(self));
        }
        installed
    }

    fn reinstall(&self, state: &State, options: &ClusterOptions, record: Record) -> Result<()> {
        if !options.kvmlet {
            return Ok(());
        }
        let built = build_kvmlet()?;
        if record.kvmlet.as_ref() != Some(&built.digest) {
            say("kvmlet or its guest has changed: installing it again");
            in_parallel(&self.hosts, |host| node::configure(state, host))?;
            self.install(&built)?;
            keep_record(
                state,
                &Record {
                    kvmlet: Some(built.digest),
                    ..record
                },
            )?;
        }
        Ok(())
    }
}

/// Held while a cluster is brought up or down. The file lies beside the state directory, which may be deleted.
fn lock(state: &State) -> Result<File> {
    let path = state.root.with_extension("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

fn thread_token() -> String {
    format!("{}-{:?}", std::process::id(), thread::current().id()).replace(['(', ')'], "")
}

fn attach(state: &State) -> Option<(Cluster, Record)> {
    let record: Record = serde_json::from_slice(&fs::read(state.record()).ok()?).ok()?;
    let processes = Process::recorded(state).ok()?;
    let mut needed: Vec<String> = PROCESSES.map(str::to_owned).to_vec();
    needed.extend((1..=record.hosts).map(host_name));
    let runs = |name: &String| processes.iter().any(|process| process.name == *name && process.is_alive());
    let alive = needed.iter().all(runs) && Netns::of(state).exists();
    alive.then(|| (cluster(state, &record), record))
}

fn cluster(state: &State, record: &Record) -> Cluster {
    Cluster {
        state: state.clone(),
        verdict: record.verdict.clone(),
        hosts: (1..=record.hosts)
            .map(|index| Host::new(state, index, record.verdict.kind))
            .collect(),
        programs: record.programs.clone(),
        images: record.images.clone(),
    }
}

fn keep_record(state: &State, record: &Record) -> Result<()> {
    write(&state.record(), serde_json::to_vec_pretty(record).context("describe the cluster")?)
}

/// A cluster of another clone of this project holds the same network namespace: it makes room.
fn evict(state: &State) -> Result<()> {
    if let Some(root) = netns::owner(&state.namespace).filter(|owner| *owner != state.root) {
        say(format_args!(
            "taking down the cluster of {}: it has the namespace {}",
            root.display(),
            state.namespace
        ));
        tear_down(&State {
            root,
            namespace: state.namespace.clone(),
        })?;
    }
    Ok(())
}

fn tear_down(state: &State) -> Result<()> {
    for process in Process::recorded(state)? {
        process.end(state)?;
    }
    // Namespaces belong to the state directory that claimed them.
    if netns::owner(&state.namespace).is_none_or(|owner| owner == state.root) {
        for namespace in netns::all(state) {
            namespace.delete()?;
        }
        netns::release(&state.namespace)?;
    }
    let Ok(entries) = fs::read_dir(&state.root) else { return Ok(()) };
    for entry in entries {
        let path = entry.context("list the state directory")?.path();
        if path == state.logs() {
            continue;
        }
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

fn build_kvmlet() -> Result<Built> {
    let (kvmlet, guest) = (artifacts::kvmlet()?, artifacts::guest()?);
    let mut digest = Sha256::new();
    for file in [&kvmlet, &guest.kernel, &guest.initramfs] {
        digest.update(fs::read(file).with_context(|| format!("read {}", file.display()))?);
    }
    Ok(Built {
        kvmlet,
        guest,
        digest: digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

/// Everything that takes a network or a compiler, then everything that takes the namespace.
fn bring_up(state: &State, options: &ClusterOptions) -> Result<Cluster> {
    packages::ensure()?;
    let programs = artifacts::control_plane()?;
    let images = artifacts::images()?;
    let built = options.kvmlet.then(build_kvmlet).transpose()?;
    let verdict = preflight::decide(built.as_ref().map(|built| (built.kvmlet.as_path(), &built.guest)))?;
    say(verdict.line());
    let source = match verdict.kind {
        HostKind::Native => Source::Native {
            programs: programs.clone(),
        },
        HostKind::Emulated => {
            let memory = options.memory.unwrap_or(if options.hosts == 1 { 6144 } else { 4096 });
            let size = Size {
                cpus: options.cpus,
                memory,
            };
            let image = artifacts::host_image()?;
            Source::Emulated {
                image,
                control_plane_disk: artifacts::control_plane_disk(&programs)?,
                size,
            }
        }
    };
    let record = Record {
        verdict,
        hosts: options.hosts,
        programs,
        images,
        kvmlet: None,
    };
    let cluster = cluster(state, &record);

    remove_logs(state)?;
    netns::claim(state)?;
    let network = Netns::of(state);
    network.create()?;
    network.add_bridge()?;
    pki::make(state, options.hosts)?;
    thread::scope(|scope| {
        let control_plane = scope.spawn(|| step("control plane", || start_control_plane(&cluster)));
        let hosts = in_parallel(&cluster.hosts, |host| {
            step(&host.name, || {
                host.start(&source)?;
                host.wait_until_up(Duration::from_secs(180))?;
                node::configure(state, host)?;
                host.start_service(&node::kube_proxy_service()).map(drop)
            })
        });
        control_plane.join().map_err(|_| anyhow!("starting the control plane panicked"))??;
        hosts
    })?;
    keep_record(state, &record)?;
    if let Some(built) = &built {
        cluster.install(built)?;
        keep_record(
            state,
            &Record {
                kvmlet: Some(built.digest.clone()),
                ..record
            },
        )?;
    }
    Ok(cluster)
}

fn start_control_plane(cluster: &Cluster) -> Result<()> {
    registry::start(&cluster.state, &cluster.images)?;
    control_plane::start(&cluster.state, &cluster.programs)?;
    control_plane::bootstrap(&cluster.state, &cluster.programs, &manifests())?;
    registry::wait_until_ready(&cluster.state)
}

fn manifests() -> PathBuf {
    repository().join("manifests")
}

fn remove_logs(state: &State) -> Result<()> {
    let logs: &Path = &state.logs();
    if logs.exists() {
        fs::remove_dir_all(logs).with_context(|| format!("remove {}", logs.display()))
    } else {
        Ok(())
    }
}

/// Does the same on all hosts at once; the first error counts.
fn in_parallel(hosts: &[Host], work: impl Fn(&Host) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = hosts.iter().map(|host| scope.spawn(|| work(host))).collect();
        let results: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("work on a host panicked")))
            .collect();
        results.into_iter().try_for_each(|result| result?)
    })
}
