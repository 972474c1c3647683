//! Many pods created at once on one host: how long each takes to run, what the daemon takes meanwhile, and what a machine of a real pod
//! holds in memory.

use std::{
    collections::BTreeMap,
    io::BufReader,
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Options, Row, median, percentile, process::Measured, smaps, start::MOST_PRIVATE};
use crate::{Cluster, Host, node, progress::say};

const NAMESPACE: &str = "bench-pods";
/// For each pod; emulated machines take seconds of all processors.
const DEADLINE_A_POD: Duration = Duration::from_secs(30);
/// No machine has less.
const LEAST_RAM: u64 = 100 << 20;

pub(super) fn rows(cluster: &Cluster, options: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    cluster.create_namespace(NAMESPACE)?;
    let measured = measure(cluster, host, options.pods);
    cluster.delete_namespace(NAMESPACE)?;
    measured
}

fn measure(cluster: &Cluster, host: &Host, count: usize) -> Result<Vec<Row>> {
    // The image is there before the clock runs: what is measured is pods, not the registry.
    cluster.apply(&list(std::iter::once("first".to_owned())).to_string())?;
    cluster.wait_for_phase(NAMESPACE, "first", "Running", Duration::from_secs(180))?;
    cluster.kubectl(&["delete", "pod", "first", "-n", NAMESPACE, "--timeout=110s"])?;

    let bench = super::prepare(host)?;
    let daemon = Measured::find(host, &bench, &format!("{} node ", node::PROGRAM))?;
    daemon.forget_peak()?;
    let before = daemon.cpu_seconds()?;
    let mut seconds = watch(cluster, count)?;
    let cpu = daemon.cpu_seconds()? - before;
    let peak = daemon.peak()?;
    let machines = machines(host)?;
    let failures = count - seconds.len();
    seconds.sort_by(f64::total_cmp);
    let row = |name: &str, unit, value: f64| Row::new(host.kind, format!("{count} pods at once: {name}"), unit, value);
    let figure = |figure: fn(&smaps::Usage) -> u64| median(machines.iter().map(|usage| figure(usage) as f64).collect());
    let most = machines.iter().map(|usage| usage.private as f64).fold(0.0, f64::max);
    Ok(vec![
        row("create to Running, P50", "s", percentile(&seconds, 50)),
        row("create to Running, P95", "s", percentile(&seconds, 95)),
        row("create to Running, last", "s", percentile(&seconds, 100)),
        row("failures and restarts", "pods", failures as f64).at_most(0.0),
        row("the daemon's processor time", "s", cpu),
        row("the daemon's peak memory", "bytes", peak),
        row("a machine process's private memory without guest RAM, most", "bytes", most).at_most(MOST_PRIVATE),
        row(
            "a machine's guest RAM taken from the host, median",
            "bytes",
            figure(|usage| usage.ram),
        ),
    ])
}

/// Creates all and answers how long each took that runs without having failed before.
fn watch(cluster: &Cluster, count: usize) -> Result<Vec<f64>> {
    #[derive(Deserialize)]
    struct Event {
        object: Value,
    }
    let mut kubectl = cluster.kubectl_command();
    kubectl.args(["get", "pods", "-n", NAMESPACE, "--watch", "--output-watch-events", "-o", "json"]);
    let mut kubectl = kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("watch pods")?;
    let output = kubectl.stdout.take().context("kubectl has no output")?;
    let (sender, events) = mpsc::channel();
    let reader = thread::spawn(move || {
        for event in serde_json::Deserializer::from_reader(BufReader::new(output)).into_iter::<Event>() {
            let Ok(event) = event else { break };
            if sender.send((Instant::now(), event.object)).is_err() {
                break;
            }
        }
    });
    let followed = follow(cluster, count, &events);
    kubectl.kill().context("end the watch")?;
    kubectl.wait().context("wait for the watch")?;
    drop(events);
    reader.join().ok().context("reading the watch panicked")?;
    followed
}

fn follow(cluster: &Cluster, count: usize, events: &mpsc::Receiver<(Instant, Value)>) -> Result<Vec<f64>> {
    cluster.apply(&list((0..count).map(|number| format!("pod-{number}"))).to_string())?;
    let deadline = Instant::now() + DEADLINE_A_POD * u32::try_from(count)? + Duration::from_secs(60);
    let (mut created, mut ran) = (BTreeMap::new(), BTreeMap::new());
    while ran.len() < count {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok((at, pod)) = events.recv_timeout(left) else {
            say(format_args!("{} of {count} pods came to run", ran.values().flatten().count()));
            break;
        };
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?.to_owned();
        let begun = *created.entry(name.clone()).or_insert(at);
        let status = &pod["status"];
        let restarts = status["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(0);
        let outcome = match status["phase"].as_str() {
            Some("Running") if restarts == 0 => Some(at.duration_since(begun).as_secs_f64()),
            Some("Failed" | "Running") => None,
            _ => continue,
        };
        if outcome.is_none() {
            say(format_args!("{name}: {status}"));
        }
        ran.entry(name).or_insert(outcome);
    }
    ensure!(!ran.is_empty(), "no pod came to run");
    Ok(ran.into_values().flatten().collect())
}

fn list(names: impl Iterator<Item = String>) -> Value {
    let pod = |name: String| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "nodeSelector": {"type": "virtual-kubelet"},
                "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "c", "image": "busybox", "command": ["sleep", "1000000"],
                    "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "64Mi"}}
                }]
            }
        })
    };
    json!({"apiVersion": "v1", "kind": "List", "items": names.map(pod).collect::<Vec<_>>()})
}

/// All machines' memory.
fn machines(host: &Host) -> Result<Vec<smaps::Usage>> {
    let text = host.sh("for p in $(pgrep -f 'kvmlet vm$'); do echo \"# $p\"; cat /proc/$p/smaps; done")?;
    let machines: Vec<_> = text
        .split("# ")
        .filter(|text| !text.trim().is_empty())
        .map(|text| smaps::parse(text, LEAST_RAM))
        .collect();
    ensure!(!machines.is_empty(), "no machine runs");
    Ok(machines)
}
