//! What a node costs for its pods' sake besides running them: the daemon's own processor time, memory and requests, for pods created at once, for
//! pods that just run, and for their deletion. Beside it, in the same host, a node of virtual-kubelet whose pods are nothing at all
//! (`e2e/peer`), each with the host to itself for that time: an emulated host is the one that counts, since the other would add to a program what its
//! host takes from it.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{FOLDER, Options, Row, median, percentile, process::Measured, ssh::Guest};
use crate::{Cluster, Host, HostKind, agent::Service, artifacts, node, wait_for};

const NAMESPACE: &str = "bench-burst";
/// The peer's service and node.
const PEER: &str = "peer";
const MOCK: &str = "virtual-kubelet, pods that are nothing";
/// Beside `kubectl exec`.
const SSH: &str = "ssh to a QEMU guest";
/// Where the peer tells the number of its requests.
const REQUESTS: &str = "127.0.0.1:10260";
/// How long pods just run while that is measured.
const IDLE: Duration = Duration::from_secs(90);
/// For each pod; emulated machines take seconds of all processors.
const DEADLINE_A_POD: Duration = Duration::from_secs(30);
/// Pods that are deleted one after the other.
const DELETIONS: usize = 20;
/// Commands that are run one after the other.
const COMMANDS: usize = 10;
/// Until kvmlet asks nothing of the last burst any more.
const REST: Duration = Duration::from_secs(5);

/// What a node spent on one burst.
struct Cost {
    /// Seconds of processor time from creation until all ran.
    creation: f64,
    /// Of it, what went into machines, their network and images.
    spent: Spent,
    /// The same for the time from deletion until all were gone.
    deletion: f64,
    /// Of one processor, while all just ran.
    idle: f64,
    /// Bytes, most.
    memory: f64,
    /// From creation until all ran.
    creating: f64,
    /// From deletion until all were gone.
    deleting: f64,
}

/// Seconds of a node's processor time that its limit does not count.
#[derive(Clone, Copy, Default)]
struct Spent {
    machines: f64,
    /// Of it, network namespaces and taps.
    network: f64,
    images: f64,
}

/// A node that is measured.
struct Node<'a> {
    cluster: &'a Cluster,
    /// Its name.
    name: &'a str,
    daemon: Measured<'a>,
    spent: fn(&Cluster, &str) -> Result<Spent>,
}

pub(super) fn rows(cluster: &Cluster, options: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    // As its users start it: the rig has it say more.
    host.stop_daemon()?;
    host.start_service(&Service {
        env: Vec::new(),
        ..node::kvmlet_service()
    })?;
    cluster.wait_until_nodes_are_ready(Duration::from_secs(60))?;
    let bench = super::prepare(host)?;
    cluster.create_namespace(NAMESPACE)?;
    let measured = measure(cluster, host, options.pods, &bench);
    let stopped = host.stop_service(PEER, Signal::SIGTERM, Duration::from_secs(10));
    // Its node may never have come to be.
    cluster.kubectl(&["delete", "node", PEER, "--ignore-not-found"])?;
    cluster.delete_namespace(NAMESPACE)?;
    if host.kind == HostKind::Emulated {
        // The host that counts is none of the cluster's.
        host.stop_daemon()?;
        cluster.kubectl(&["delete", "node", &host.name])?;
    }
    let measured = measured?;
    stopped.map(|_| measured)
}

fn measure(cluster: &Cluster, host: &Host, count: usize, bench: &str) -> Result<Vec<Row>> {
    let ours = Node {
        cluster,
        name: &host.name,
        daemon: Measured::find(host, bench, &format!("{} node ", node::PROGRAM))?,
        spent,
    };
    // Image and template are there before anything counts, and the guest's first reading of both.
    ours.burst(&["first".to_owned()])?;
    let deletions = deletions(&ours)?;
    let [kubectl, ssh] = commands(&ours, host)?;
    let names: Vec<_> = (0..count).map(|number| format!("pod-{number}")).collect();
    thread::sleep(REST);
    let requests = || own_figure(cluster, &host.name, "rest_client_requests_total");
    let before = requests()?;
    let own = ours.burst(&names)?;
    let requests = requests()? - before;

    let peer = Node {
        daemon: start_peer(cluster, host, bench)?,
        name: PEER,
        spent: |_, _| Ok(Spent::default()),
        ..ours
    };
    peer.burst(&["first".to_owned()])?;
    let before = peer_requests(host)?;
    let theirs = peer.burst(&names)?;
    let peer_requests = peer_requests(host)? - before;

    let row = |name: &str, unit, value: f64| Row::new(host.kind, format!("{count} pods: {name}"), unit, value);
    let pods = count as f64;
    Ok(vec![
        row("processor time, creation to Running", "s", own.creation).beside(MOCK, theirs.creation),
        row(
            "the same, besides its work on machines and images",
            "s",
            own.creation - own.spent.machines - own.spent.images,
        )
        .beside(MOCK, theirs.creation)
        .at_most(4.0),
        row("of the work on machines, network namespaces and taps", "s", own.spent.network),
        row("processor time, deletion to gone", "s", own.deletion)
            .beside(MOCK, theirs.deletion)
            .at_most(1.0),
        row("processor time while they run", "share of one processor", own.idle)
            .beside(MOCK, theirs.idle)
            .at_most(1.0),
        row("peak memory", "bytes", own.memory).beside(MOCK, theirs.memory),
        row("peak memory, of what a hundred pods may take", "bytes", own.memory).at_most(60.0 * 1_048_576.0),
        row("requests to the API server", "a pod", requests / pods).beside(MOCK, peer_requests / pods),
        row("creation to all Running", "s", own.creating).beside(MOCK, theirs.creating),
        row("deletion to all gone", "s", own.deleting).beside(MOCK, theirs.deleting),
        Row::new(
            host.kind,
            "deletion to gone, grace 30, a program that ends on TERM, P95",
            "s",
            percentile(&deletions, 95),
        )
        .at_most(3.0),
        Row::new(
            host.kind,
            "exec true, by kubectl, with the programs' own start, median",
            "s",
            kubectl.whole,
        )
        .beside(SSH, ssh.whole),
        Row::new(
            host.kind,
            "exec true, by kubectl, besides the programs' own start, median",
            "s",
            kubectl.whole - kubectl.start,
        )
        .beside(SSH, ssh.whole - ssh.start)
        .at_most(1.0),
    ])
}

impl Node<'_> {
    /// Creates all at once, lets them run, deletes all at once.
    fn burst(&self, names: &[String]) -> Result<Cost> {
        let deadline = DEADLINE_A_POD * u32::try_from(names.len())? + Duration::from_secs(90);
        self.daemon.forget_peak()?;
        let cpu = || self.daemon.cpu_seconds();
        let spent = || (self.spent)(self.cluster, self.name);
        let without = spent()?;
        let (begun, at_first) = (Instant::now(), cpu()?);
        self.create(names)?;
        wait_for("all pods to run", deadline, || {
            let running = self.phases()?.iter().filter(|phase| *phase == "Running").count();
            ensure!(running == names.len(), "{running} of {} run", names.len());
            Ok(Some(()))
        })?;
        let (creating, running) = (begun.elapsed().as_secs_f64(), cpu()?);
        let spent = spent()?.since(without);
        let mut idle = 0.0;
        if names.len() > 1 {
            thread::sleep(REST);
            let (begun, before) = (Instant::now(), cpu()?);
            thread::sleep(IDLE);
            idle = (cpu()? - before) / begun.elapsed().as_secs_f64();
        }
        let (begun, before) = (Instant::now(), cpu()?);
        self.cluster
            .kubectl(&["-n", NAMESPACE, "delete", "pods", "--all", "--grace-period=1", "--wait=false"])?;
        wait_for("all pods to be gone", deadline, || {
            let left = self.phases()?.len();
            ensure!(left == 0, "{left} are left");
            Ok(Some(()))
        })?;
        Ok(Cost {
            creation: running - at_first,
            spent,
            deletion: cpu()? - before,
            idle,
            memory: self.daemon.peak()?,
            creating,
            deleting: begun.elapsed().as_secs_f64(),
        })
    }

    fn create(&self, names: &[String]) -> Result<()> {
        let items: Vec<_> = names.iter().map(|name| pod(name, self.name)).collect();
        self.cluster
            .apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())
    }

    fn phases(&self) -> Result<Vec<String>> {
        let text = self.cluster.kubectl(&[
            "-n",
            NAMESPACE,
            "get",
            "pods",
            "-o",
            "jsonpath={range .items[*]}{.status.phase}{\"\\n\"}{end}",
        ])?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

impl Spent {
    fn since(self, before: Self) -> Self {
        Self {
            machines: self.machines - before.machines,
            network: self.network - before.network,
            images: self.images - before.images,
        }
    }
}

/// What kvmlet tells of itself.
fn spent(cluster: &Cluster, node: &str) -> Result<Spent> {
    let figure = |what: &str| own_figure(cluster, node, &format!("kvmlet_work_on_{what}_cpu_seconds_total"));
    Ok(Spent {
        machines: figure("machines")?,
        network: figure("network")?,
        images: figure("images")?,
    })
}

/// A program that ends on TERM, with the longest of usual graces.
fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 30,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "c", "image": "busybox",
                "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"],
                "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "64Mi"}}
            }]
        }
    })
}

/// Seconds from deletion to gone, one pod after the other, sorted.
fn deletions(node: &Node<'_>) -> Result<Vec<f64>> {
    let mut seconds = Vec::with_capacity(DELETIONS);
    for number in 0..DELETIONS {
        let name = format!("deleted-{number}");
        node.create(std::slice::from_ref(&name))?;
        node.cluster.wait_for_phase(NAMESPACE, &name, "Running", DEADLINE_A_POD * 4)?;
        let begun = Instant::now();
        node.cluster.kubectl(&["-n", NAMESPACE, "delete", "pod", &name, "--timeout=60s"])?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

/// Medians of seconds.
struct Command {
    /// From its start to its end.
    whole: f64,
    /// Of the program that only says its version: what it takes before it does anything.
    start: f64,
}

/// Commands that do nothing, in a pod by kubectl and in a guest of QEMU on the same host by ssh, in turn.
fn commands(node: &Node<'_>, host: &Host) -> Result<[Command; 2]> {
    let cluster = node.cluster;
    node.create(&["asked".to_owned()])?;
    cluster.wait_for_phase(NAMESPACE, "asked", "Running", DEADLINE_A_POD * 4)?;
    let guest = Guest::start(cluster, host)?;
    let kubectl = || cluster.kubectl(&["-n", NAMESPACE, "exec", "asked", "--", "true"]).map(drop);
    let ssh = || guest.run(&["true"]);
    // The first ones find the way.
    kubectl()?;
    ssh()?;
    let starts: [&dyn Fn() -> Result<()>; 2] = [&|| cluster.kubectl(&["version", "--client"]).map(drop), &|| guest.version()];
    let runs: [&dyn Fn() -> Result<()>; 2] = [&kubectl, &ssh];
    let mut seconds: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..COMMANDS {
        for ((of_program, start), run) in seconds.iter_mut().zip(starts).zip(runs) {
            of_program[0].push(timed(run)?);
            of_program[1].push(timed(start)?);
        }
    }
    drop(guest);
    cluster.kubectl(&["-n", NAMESPACE, "delete", "pod", "asked", "--grace-period=1", "--timeout=60s"])?;
    Ok(seconds.map(|[whole, start]| Command {
        whole: median(whole),
        start: median(start),
    }))
}

/// Seconds of it.
fn timed(run: impl Fn() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    run()?;
    Ok(begun.elapsed().as_secs_f64())
}

fn start_peer<'a>(cluster: &Cluster, host: &'a Host, bench: &'a str) -> Result<Measured<'a>> {
    let (program, kubeconfig) = (format!("{FOLDER}/peer"), format!("{FOLDER}/peer.kubeconfig"));
    host.put_file(&program, 0o755, &artifacts::peer()?)?;
    host.put_file(&kubeconfig, 0o600, &cluster.state.kubeconfig())?;
    let argv = [&*program, "-name", PEER, "-kubeconfig", &kubeconfig, "-requests", REQUESTS];
    host.start_service(&Service {
        name: PEER.into(),
        argv: argv.map(str::to_owned).to_vec(),
        env: Vec::new(),
        log: "/var/log/peer.log".into(),
    })?;
    wait_for("the peer's node to be ready", Duration::from_secs(90), || {
        let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let status = cluster.kubectl(&["get", "node", PEER, "-o", ready])?;
        ensure!(status == "True", "it is {status:?}");
        Ok(Some(()))
    })?;
    Measured::find(host, bench, &format!("{program} -name"))
}

/// A figure of the daemon's own, of all labels.
fn own_figure(cluster: &Cluster, node: &str, name: &str) -> Result<f64> {
    let page = cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics")])?;
    sum(&page, name)
}

fn peer_requests(host: &Host) -> Result<f64> {
    let text = host.sh(&format!("curl -sS --max-time 5 http://{REQUESTS}/"))?;
    text.trim().parse().with_context(|| format!("read {text}"))
}

/// A counter's samples of all labels, added up.
fn sum(page: &str, name: &str) -> Result<f64> {
    let samples = page
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    let values: Vec<f64> = samples
        .filter_map(|line| {
            let value = line.rsplit_once("} ").or_else(|| line.split_once(' '))?.1;
            value.split(' ').next()?.parse().ok()
        })
        .collect();
    ensure!(!values.is_empty(), "no {name} in:\n{page}");
    Ok(values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_all_its_samples_and_no_other_names() {
        let page = "# TYPE a counter\na{code=\"200\"} 3\na{code=\"<error>\"} 4\na_sum{x=\"y\"} 50\nb 6\n";
        assert_eq!(sum(page, "a").unwrap(), 7.0);
        assert!(sum(page, "c").is_err());
    }
}
