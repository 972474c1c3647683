//! Traces of pods' starts, in an OpenTelemetry collector that writes down what it is sent.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    daemon::with_config,
    workload::{STAY, pod, sh, with, within},
};
use crate::{
    Cluster, Host, artifacts, node,
    paths::{GATEWAY, write},
    process::Process,
    wait::wait_while,
    wait_for,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a pod's start is a trace in an OpenTelemetry collector, with a span for each phase, as long as the node's own record says",
        hosts: 1,
        kvmlet: true,
        run: told,
    },
    Test {
        name: "a collector that is away holds up no pod, is missed once in the log, and hears of what comes later",
        hosts: 1,
        kvmlet: true,
        run: away,
    },
];

/// The collector's port, of each test its own.
const PORTS: [u16; 2] = [4317, 4318];
/// A batch's time, and the file's.
const SOON: Duration = Duration::from_secs(60);

/// A collector that writes traces to a file; it ends with the test.
struct Collector<'a> {
    cluster: &'a Cluster,
    process: Process,
    file: std::path::PathBuf,
}

impl<'a> Collector<'a> {
    fn start(cluster: &'a Cluster, port: u16) -> Result<Self> {
        let folder = cluster.state.root.join(format!("collector-{port}"));
        let _ = fs::remove_dir_all(&folder);
        let (file, config) = (folder.join("traces.json"), folder.join("config.yaml"));
        let text = json!({
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": format!("{GATEWAY}:{port}")}}}},
            "exporters": {"lines": {"path": file}},
            "service": {"pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["lines"]}}, "telemetry": {"metrics": {"level": "none"}}},
        });
        write(&config, text.to_string())?;
        let mut command = cluster.inside(&artifacts::collector()?.to_string_lossy());
        command.arg("--config").arg(&config);
        let process = Process::spawn(&cluster.state, &format!("collector-{port}"), &mut command)?;
        Ok(Self { cluster, process, file })
    }

    fn end(self) -> Result<()> {
        self.process.end(&self.cluster.state)
    }

    /// All spans so far, each with the attributes of its resource as `resource`.
    fn spans(&self) -> Result<Vec<Value>> {
        // The collector makes the file when it starts.
        let text = fs::read_to_string(&self.file).context("read what the collector has written")?;
        let mut all = Vec::new();
        for line in text.lines() {
            // One that is being written is not whole yet.
            let Ok(batch) = serde_json::from_str::<Value>(line) else { continue };
            for of_resource in batch["resourceSpans"].as_array().into_iter().flatten() {
                let scopes = of_resource["scopeSpans"].as_array().into_iter().flatten();
                let spans = scopes.flat_map(|scope| scope["spans"].as_array().into_iter().flatten());
                all.extend(spans.map(|span| with(span.clone(), &[("/resource", of_resource["resource"]["attributes"].clone())])));
            }
        }
        Ok(all)
    }

    /// The spans of a pod's start, root first, once they are here.
    fn trace(&self, uid: &str) -> Result<Vec<Value>> {
        wait_while(
            "the trace of a pod",
            SOON,
            || self.process.check(&self.cluster.state),
            || {
                let (mut all, is_root) = (self.spans()?, |span: &Value| attribute(&span["attributes"], "k8s.pod.uid") == uid);
                let id = all.iter().find(|span| is_root(span)).map(|root| root["traceId"].clone());
                let id = id.with_context(|| format!("{} spans, and none is this pod's", all.len()))?;
                all.retain(|span| span["traceId"] == id);
                all.sort_by_key(|span| {
                    (
                        !is_root(span),
                        nanoseconds(span, "startTimeUnixNano").ok(),
                        nanoseconds(span, "endTimeUnixNano").ok(),
                    )
                });
                Ok(Some(all))
            },
        )
    }
}

/// The text of an attribute; empty without one.
fn attribute<'a>(attributes: &'a Value, key: &str) -> &'a str {
    let mut all = attributes.as_array().into_iter().flatten();
    let found = all.find(|one| one["key"] == key);
    found.and_then(|one| one["value"]["stringValue"].as_str()).unwrap_or_default()
}

fn nanoseconds(span: &Value, key: &str) -> Result<u64> {
    let text = span[key].as_str().with_context(|| format!("no {key} in {span}"))?;
    text.parse().with_context(|| format!("{key} of {span}"))
}

/// The keys of a daemon that traces each start.
fn tracing(port: u16) -> String {
    format!("tracing: {{endpoint: '{GATEWAY}:{port}', samplingRatePerMillion: 1000000}}\n")
}

fn told(cluster: &Cluster) -> Result<()> {
    let port = PORTS[0];
    let collector = Collector::start(cluster, port)?;
    let shown = with_config(cluster, &tracing(port), || {
        within(cluster, "traced", |place| {
            let init = json!([{"name": "first", "image": "busybox", "command": ["true"]}]);
            place.create(&[
                with(pod("traced", sh(STAY)), &[("/spec/initContainers", init)]),
                pod("plain", sh(STAY)),
            ])?;
            for (name, init) in [("traced", &["init"][..]), ("plain", &[])] {
                place.until_ready(name)?;
                let (found, uid) = (place.get(name)?, place.uid(name)?);
                let trace = collector.trace(&uid)?;
                let record = cluster.host(0)?.sh(&format!("cat /var/lib/kvmlet/pods/{uid}/machine/start.json"))?;
                let record = serde_json::from_str(&record).context("read start.json")?;
                is_of(&trace, &found, &record, init).with_context(|| format!("{name}: {trace:#?}"))?;
            }
            Ok(())
        })
    });
    collector.end()?;
    shown
}

/// Whether a trace is that of a pod whose machine has this record and which has these phases before its containers'.
fn is_of(trace: &[Value], pod: &Value, record: &Value, init: &[&str]) -> Result<()> {
    let (root, children) = trace.split_first().context("no root")?;
    ensure!(root["name"] == "pod start" && root["parentSpanId"].as_str().unwrap_or_default().is_empty());
    let said = |key| attribute(&root["attributes"], key);
    ensure!(said("k8s.namespace.name") == pod["metadata"]["namespace"] && said("k8s.pod.name") == pod["metadata"]["name"]);
    let of_resource = |key| attribute(&root["resource"], key);
    ensure!(of_resource("service.name") == "kvmlet" && of_resource("k8s.node.name") == pod["spec"]["nodeName"]);
    let how = if record["how"]["copy"] == true { "copy" } else { "boot" };
    ensure!(said("kvmlet.start.how") == how, "it was a {how}");

    let machine = ["surroundings", "disks", "queue", "guest", "setup"];
    let names: Vec<&str> = children.iter().filter_map(|child| child["name"].as_str()).collect();
    let wanted = [&["bound", "images"], &machine[..], init, &["containers", "report"]].concat();
    ensure!(names == wanted, "the phases are {names:?}");
    let lengths: BTreeMap<&str, u64> = record["phases"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|took| Some((took["phase"].as_str()?, took["microseconds"].as_u64()?)))
        .collect();
    let (mut at, over) = (nanoseconds(root, "startTimeUnixNano")?, nanoseconds(root, "endTimeUnixNano")?);
    for child in children {
        ensure!(child["parentSpanId"] == root["spanId"], "{child} has another parent");
        let (from, to) = (nanoseconds(child, "startTimeUnixNano")?, nanoseconds(child, "endTimeUnixNano")?);
        ensure!(at <= from && from <= to && to <= over, "{child} is not in its place");
        at = to;
        if let Some(took) = child["name"].as_str().and_then(|name| lengths.get(name)) {
            ensure!(to - from == took * 1000, "{child} took {took} us by the record");
        }
    }
    ensure!(lengths.len() == machine.len(), "the record has {lengths:?}");
    ensure!(over == at, "the root ends later than its last phase");
    Ok(())
}

/// The lines of the daemon's log from its last start on.
fn said(host: &Host) -> Result<Vec<String>> {
    let log = host.sh(&format!("cat {}", node::KVMLET_LOG))?;
    let last = log.rfind("kvmlet is up").context("the daemon has not said that it is up")?;
    Ok(log[last..].lines().map(str::to_owned).collect())
}

fn away(cluster: &Cluster) -> Result<()> {
    let (port, host) = (PORTS[1], cluster.host(0)?);
    let lines = |words: &str| -> Result<usize> { Ok(said(host)?.iter().filter(|line| line.contains(words)).count()) };
    let missed = "traces cannot be delivered";
    with_config(cluster, &tracing(port), || {
        within(cluster, "untraced", |place| {
            for name in ["one", "two"] {
                place.create(&[pod(name, sh(STAY))])?;
                place.until_ready(name)?;
            }
            wait_for("the collector to be missed", SOON, || {
                ensure!(lines(missed)? > 0, "the log does not say so");
                Ok(Some(()))
            })?;
            place.create(&[pod("three", sh(STAY))])?;
            place.until_ready("three")?;
            let collector = Collector::start(cluster, port)?;
            let heard = wait_for("the collector to be found", Duration::from_secs(120), || {
                // What was sent before is lost, so that there has to be something new.
                place.kubectl(&["delete", "pod", "later", "--ignore-not-found", "--timeout=60s"])?;
                place.create(&[pod("later", sh(STAY))])?;
                place.until_ready("later")?;
                collector.trace(&place.uid("later")?).map(Some)
            });
            collector.end()?;
            ensure!(heard?[0]["name"] == "pod start");
            ensure!(
                lines("traces are delivered to")? == 1,
                "it is not said that the collector was found"
            );
            ensure!(lines(missed)? == 1, "it was missed {} times", lines(missed)?);
            Ok(())
        })
    })
}
