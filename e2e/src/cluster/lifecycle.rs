//! How a cluster comes up, is found again and goes: everything that takes a network or a compiler first, then everything
//! that takes the namespace, control plane and hosts side by side, kvmlet last. A cluster exists once its record is written.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Cluster, ClusterOptions};
use crate::{
    Host, HostKind,
    artifacts::{self, Guest},
    control_plane, dump,
    host::{Processors, Size, Source},
    netns::{self, Netns},
    node, packages,
    paths::{State, host_name, manifest, write},
    pki,
    preflight::{self, Verdict},
    process::Process,
    progress::{say, step},
    registry,
};

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

    /// Installs kvmlet and its guest on all hosts and starts the daemons.
    fn install(&self, built: &Built) -> Result<()> {
        keep_program(&self.state, built)?;
        let (kvmlet, guest) = (self.kvmlet()?, self.guest()?);
        let install = |host: &Host| -> Result<()> {
            host.stop_daemon()?;
            node::install(host, &kvmlet, &guest)?;
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

/// Keeps what is installed, for those who need the same later.
fn keep_program(state: &State, built: &Built) -> Result<()> {
    let folder = state.program();
    // Not written over: somebody may run one of them.
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    for (name, file) in [
        ("kvmlet", &built.kvmlet),
        ("kvmlet-machine", &built.kvmlet.with_file_name("kvmlet-machine")),
        ("vmlinux", &built.guest.kernel),
        ("initramfs.cpio", &built.guest.initramfs),
    ] {
        fs::copy(file, folder.join(name)).with_context(|| format!("keep {}", file.display()))?;
    }
    Ok(())
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
                processors: Processors::Several(options.cpus),
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
    control_plane::bootstrap(&cluster.state, &cluster.programs, Path::new(&manifest("")))?;
    registry::wait_until_ready(&cluster.state)
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
