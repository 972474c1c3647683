//! `make demo`: one pod through the whole path on two hosts, in one screen. Each line stands for something that was seen
//! just then; the first that is not seen ends it. What the lines look like is [`screen`]'s, what a pod leaves is [`traces`]'.

mod screen;
mod traces;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use self::{screen::Screen, traces::Traces};
use crate::{
    Cluster, ClusterOptions, Host, agent::ServiceState, command, dump, paths::write, process::last_lines, progress::say, wait_for,
};

/// The namespace of the pods.
const NAMESPACE: &str = "demo";
/// Longer than anything takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(180);
/// The pods as a person would write them: only the selector and the toleration say that they are for machines. The first one's machine boots,
/// the second one's is a copy of its node's template; and it must be where the first is not.
const WEB: &str = "apiVersion: v1
kind: Pod
metadata: {name: web, namespace: demo, labels: {app: web}, annotations: {kvmlet.io/template: none}}
spec:
  nodeSelector: {type: virtual-kubelet}
  tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
  terminationGracePeriodSeconds: 10
  containers:
  - {name: nginx, image: nginx, ports: [{containerPort: 80}]}
";
const CLIENT: &str = "apiVersion: v1
kind: Pod
metadata: {name: client, namespace: demo}
spec:
  nodeSelector: {type: virtual-kubelet}
  tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]
  terminationGracePeriodSeconds: 1
  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}
  containers:
  - {name: shell, image: busybox, command: [sleep, \"86400\"]}
";

/// Shows it, in the running cluster or one of its own, which then goes again.
pub fn run() -> Result<ExitCode> {
    let was_running = Cluster::running().is_ok();
    let began = Instant::now();
    let options = ClusterOptions {
        hosts: 2,
        ..ClusterOptions::default()
    };
    let shown = Cluster::up(&options).and_then(|cluster| {
        let up = began.elapsed();
        show(&cluster, up)
    });
    if !was_running {
        say("taking the cluster down");
        Cluster::down()?;
    }
    let seen = shown?;
    let fate = if was_running {
        "stays, as it was there before"
    } else {
        "is down again"
    };
    println!("\n All {seen} seen in {:.0} s. The cluster {fate}.", began.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn show(cluster: &Cluster, up: Duration) -> Result<usize> {
    say(format_args!("the cluster is there after {:.0} s", up.as_secs_f64()));
    clean(cluster)?;
    println!("\n One pod through the whole path. {}.\n", cluster.verdict.line());
    let screen = Screen::new();
    let shown = steps(cluster, &screen);
    if shown.is_err() {
        report(cluster);
    }
    // In a cluster that stays nothing stays, also after a failure.
    let cleaned = clean(cluster);
    shown.and(cleaned).map(|()| screen.seen())
}

fn clean(cluster: &Cluster) -> Result<()> {
    cluster
        .kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=110s"])
        .map(drop)
}

fn report(cluster: &Cluster) {
    let text = dump::cluster(cluster);
    let file = cluster.state.logs().join("failed-demo.txt");
    match write(&file, &text) {
        Ok(()) => eprintln!("\n{}\n\neverything about it: {}", last_lines(&text, 60), file.display()),
        Err(error) => eprintln!("\n{}\n\nits dump could not be kept: {error:#}", last_lines(&text, 150)),
    }
}

fn steps(cluster: &Cluster, screen: &Screen) -> Result<()> {
    screen.step("nodes Ready", || nodes(cluster))?;
    screen.step("templates", || templates(cluster))?;
    let empty = [Traces::of(cluster.host(0)?)?, Traces::of(cluster.host(1)?)?];
    cluster.create_namespace(NAMESPACE)?;

    let created = Instant::now();
    let node = screen.step("scheduled", || {
        cluster.apply(WEB)?;
        scheduled(cluster)
    })?;
    let ((here, before), (there, before_there)) = if cluster.host(0)?.name == node {
        ((cluster.host(0)?, &empty[0]), (cluster.host(1)?, &empty[1]))
    } else {
        ((cluster.host(1)?, &empty[1]), (cluster.host(0)?, &empty[0]))
    };
    let address = screen.step("Running", || {
        let address = running(cluster, "web")?;
        let seconds = created.elapsed().as_secs_f64();
        Ok((address.clone(), format!("{seconds:.1} s after create, at {address}")))
    })?;
    cluster.apply(CLIENT)?;

    screen.step("own kernel", || {
        let (inside, outside) = (exec(cluster, "web", &["uname", "-r"])?, here.sh("uname -r")?);
        ensure!(inside != outside, "the pod's kernel is its host's: {inside}");
        Ok(((), format!("{inside} in the pod, {outside} on its host")))
    })?;
    screen.step("logs", || logs(cluster))?;
    let url = format!("http://{address}/");
    screen.step("HTTP by host", || {
        // A container runs before its server listens.
        let get = || here.sh(&format!("curl -sS --fail --max-time 20 {url}")).map(Some);
        let page = wait_for("nginx to answer", DEADLINE, get)?;
        Ok(((), format!("{} got \"{}\" from {url}", here.name, title(&page)?)))
    })?;
    screen.step("HTTP by pod", || {
        let own = running(cluster, "client")?;
        let node = cluster.pod(NAMESPACE, "client")?["spec"]["nodeName"].clone();
        ensure!(node == there.name.as_str(), "the pod that asks is on {node}, not on {}", there.name);
        let page = exec(cluster, "client", &["timeout", "20", "wget", "-q", "-O", "-", &url])?;
        Ok(((), format!("pod {own} on {} got \"{}\" from {url}", there.name, title(&page)?)))
    })?;
    screen.step("both starts", || {
        let (booted, copied) = (started(cluster, "web")?, started(cluster, "client")?);
        ensure!(
            booted.contains("booted") && copied.contains("copy"),
            "web: {booted}; client: {copied}"
        );
        Ok(((), format!("web: {booted}\nclient: {copied}")))
    })?;
    screen.step("exec", || exec_with_code(cluster))?;
    screen.step("daemon killed", || killed(cluster, here, &url))?;

    let lived = [(here, before), (there, before_there)].map(|(host, before)| Traces::of(host).map(|now| (host, before, now.since(before))));
    screen.step("deletion", || {
        cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, "web", "client", "--timeout=110s"])?;
        Ok(((), "web and client, with their grace".to_owned()))
    })?;
    screen.step("nothing left", || {
        let mut lines = Vec::new();
        for lived in lived {
            let (host, before, lived) = lived?;
            left(host, before, &lived)?;
            lines.push(format!("{}: there were {lived}", host.name));
        }
        Ok(((), lines.join("\n")))
    })
}

fn nodes(cluster: &Cluster) -> Result<((), String)> {
    cluster.wait_until_nodes_are_ready(DEADLINE)?;
    let table = cluster.kubectl(&["get", "nodes"])?;
    let ready = table.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count();
    ensure!(ready >= 2, "{table}");
    Ok(((), table))
}

/// The node that the scheduler has chosen, in its own words.
fn scheduled(cluster: &Cluster) -> Result<(String, String)> {
    let node = wait_for("the pod to have a node", DEADLINE, || {
        Ok(cluster.pod(NAMESPACE, "web")?["spec"]["nodeName"].as_str().map(str::to_owned))
    })?;
    let words = wait_for("the scheduler's event", DEADLINE, || {
        let event = event(cluster, "web", "Scheduled")?;
        let by = [&event["reportingComponent"], &event["source"]["component"]];
        let by = by.into_iter().filter_map(Value::as_str).find(|name| !name.is_empty());
        Ok(event["message"].as_str().zip(by).map(|(message, by)| format!("{by}: {message}")))
    })?;
    Ok((node, words))
}

fn event(cluster: &Cluster, pod: &str, reason: &str) -> Result<Value> {
    let fields = format!("involvedObject.name={pod},reason={reason}");
    let events = cluster.kubectl_json(&["get", "events", "-n", NAMESPACE, "--field-selector", &fields])?;
    Ok(events["items"][0].clone())
}

/// Waits until each host has the template that its machines are copies of.
fn templates(cluster: &Cluster) -> Result<((), String)> {
    let mut lines = Vec::new();
    for host in &cluster.hosts {
        let key = wait_for("the host to have made its template", DEADLINE, || {
            let keys = host.sh("cd /var/lib/kvmlet/templates 2>/dev/null && ls | grep -v making || true")?;
            Ok(keys.lines().next().map(str::to_owned))
        })?;
        lines.push(format!(
            "{}: {} of this kernel, processor, KVM, guest and monitor",
            host.name,
            &key[..key.len().min(12)]
        ));
    }
    Ok(((), lines.join("\n")))
}

/// What the owner of a pod is told of its machine's start.
fn started(cluster: &Cluster, pod: &str) -> Result<String> {
    wait_for("the event of a machine's start", DEADLINE, || {
        let event = event(cluster, pod, "MachineStarted")?;
        Ok(event["message"].as_str().map(str::to_owned))
    })
}

/// Waits until the pod runs; its address.
fn running(cluster: &Cluster, name: &str) -> Result<String> {
    let pod = format!("pod/{name}");
    let condition = "--for=jsonpath={.status.phase}=Running";
    cluster.kubectl(&["wait", "-n", NAMESPACE, &pod, condition, "--timeout=110s"])?;
    let pod = cluster.pod(NAMESPACE, name)?;
    pod["status"]["podIP"]
        .as_str()
        .map(str::to_owned)
        .context("a running pod has no address")
}

fn exec(cluster: &Cluster, pod: &str, argv: &[&str]) -> Result<String> {
    cluster.kubectl(&[&["exec", "-n", NAMESPACE, pod, "--"], argv].concat())
}

fn logs(cluster: &Cluster) -> Result<((), String)> {
    let line = wait_for("nginx to say that it has started", DEADLINE, || {
        let logs = cluster.kubectl(&["logs", "-n", NAMESPACE, "web"])?;
        Ok(logs.lines().find(|line| line.contains("start worker process")).map(str::to_owned))
    })?;
    Ok(((), line))
}

fn title(page: &str) -> Result<&str> {
    let inner = page.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
    inner.map(|(title, _)| title).with_context(|| format!("no page of nginx: {page}"))
}

fn exec_with_code(cluster: &Cluster) -> Result<((), String)> {
    let script = "echo \"$(hostname) has $(nproc) processor(s) and $(grep MemTotal /proc/meminfo | tr -dc 0-9) KiB\"; exit 7";
    let output = cluster.kubectl_output(&["exec", "-n", NAMESPACE, "web", "--", "sh", "-c", script])?;
    let (said, errors) = (command::text(&output.stdout), command::text(&output.stderr));
    let code = output.status.code();
    ensure!(
        said.starts_with("web has ") && code == Some(7),
        "{}: {said} {errors}",
        output.status
    );
    Ok(((), format!("\"{said}\", and its exit code 7")))
}

/// What must outlive the daemon.
#[derive(Debug, PartialEq, Eq)]
struct Life {
    machine: String,
    container: String,
    restarts: u64,
    address: String,
    boot: String,
}

impl Life {
    fn of(cluster: &Cluster, host: &Host) -> Result<Self> {
        let pod = cluster.pod(NAMESPACE, "web")?;
        let uid = pod["metadata"]["uid"].as_str().context("a pod without a UID")?;
        let record = format!("/var/lib/kvmlet/pods/{uid}/machine/machine.json");
        let record: Value = serde_json::from_str(&host.sh(&format!("cat {record}"))?).context("read the machine's record")?;
        // The id alone could be a later process's.
        let machine = host.sh(&format!("ps -o pid=,lstart=,args= -p {}", record["pid"]))?;
        let status = &pod["status"]["containerStatuses"][0];
        let text = |value: &Value| value.as_str().map(str::to_owned).context("the pod's status lacks something");
        Ok(Self {
            machine: machine.trim().to_owned(),
            container: text(&status["containerID"])?,
            restarts: status["restartCount"].as_u64().context("no restart count")?,
            address: text(&pod["status"]["podIP"])?,
            boot: exec(cluster, "web", &["cat", "/proc/sys/kernel/random/boot_id"])?,
        })
    }
}

fn killed(cluster: &Cluster, host: &Host, url: &str) -> Result<((), String)> {
    let before = Life::of(cluster, host)?;
    ensure!(before.restarts == 0, "{before:?}");
    let old = host.daemon_status()?.pid;
    let ended = host.kill_daemon()?;
    ensure!(ended.state != ServiceState::Running, "the daemon has outlived SIGKILL");
    host.sh(&format!("curl -sS --fail --max-time 20 -o /dev/null {url}"))
        .context("while the daemon was dead")?;
    let started = Instant::now();
    let new = host.start_daemon()?.pid;
    ensure!(new != old, "the daemon has its old process id");
    // exec goes through the new daemon to the old machine.
    let after = wait_for("the daemon to be back", DEADLINE, || Life::of(cluster, host).map(Some))?;
    ensure!(after == before, "before {before:?}, after {after:?}");
    let pid = before.machine.split(' ').next().unwrap_or_default();
    let container: String = before.container.chars().take("kvmlet://".len() + 12).collect();
    Ok((
        (),
        format!(
            "back in {:.1} s; HTTP answered meanwhile\nuntouched: machine's process {pid}, {container}, restart count {}",
            started.elapsed().as_secs_f64(),
            after.restarts
        ),
    ))
}

fn left(host: &Host, before: &Traces, lived: &Traces) -> Result<()> {
    if let Some(kind) = lived.missing() {
        bail!(
            "on {} the pod had no {kind} that was found, so that none would be: {lived}",
            host.name
        );
    }
    wait_for(&format!("nothing to be left on {}", host.name), Duration::from_secs(30), || {
        let still = Traces::of(host)?.since(before);
        ensure!(still.is_empty(), "{still} left: {}", still.list());
        Ok(Some(()))
    })
}
