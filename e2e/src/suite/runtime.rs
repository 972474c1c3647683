//! The switch of the whole cluster and the checks of its hosts: what the API server lets in, and how nodes are checked, kept from pods, mended and switched
//! off. The webhook is a process beside the API server, with the identity and rights that its manifests give it.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    admission::SYSTEM,
    scratch_format::formats,
    switched_off::off,
    workload::{PATIENCE, Place, STAY, condition, pod, sh, with, within},
};
use crate::{
    Cluster, HostKind, command,
    paths::{API_PORT, GATEWAY, manifest, write},
    process::Process,
    wait_for,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "kubectl explains KvmletRuntime and PreflightCheck, and one that breaks a rule is refused with the rule's words",
        hosts: 1,
        kvmlet: false,
        run: ruled,
    },
    Test {
        name: "who enables kvmlet has every host checked by a canary, and scratch disks as imageFormat says; a broken host gets no pods until it is mended, and disabling drains all and takes their Nodes away",
        hosts: 2,
        kvmlet: true,
        run: switched,
    },
];

/// What is installed of the manifests: all but the webhook's pods, and what of it is asked by the API server.
const MANIFESTS: [&str; 5] = [
    "namespace.yaml",
    "runtime.yaml",
    "preflight-check.yaml",
    "rbac.yaml",
    "preflight.yaml",
];
/// What of that has objects.
const KINDS: [&str; 2] = ["runtime.yaml", "preflight-check.yaml"];
/// The process.
pub(super) const NAME: &str = "kvmlet-webhook";
const ADDRESS: &str = "127.0.0.1:18444";
pub(super) const SOON: Duration = Duration::from_secs(60);

fn files<'a>(verb: &'a str, names: &[&str], files: &'a mut Vec<String>) -> Vec<&'a str> {
    *files = names.iter().map(|name| manifest(&format!("webhook/{name}"))).collect();
    let each = files.iter().flat_map(|file| ["-f", file]);
    [verb].into_iter().chain(each).collect()
}

fn check(node: &str) -> Value {
    json!({"apiVersion": "kvmlet.io/v1alpha1", "kind": "PreflightCheck", "metadata": {"generateName": "by-hand-"}, "spec": {"nodeName": node}})
}

fn ruled(cluster: &Cluster) -> Result<()> {
    let mut names = Vec::new();
    cluster.kubectl(&files("apply", &KINDS, &mut names))?;
    let done = rules(cluster);
    cluster.kubectl(&[&files("delete", &KINDS, &mut names)[..], &["--timeout=60s"]].concat())?;
    done
}

fn rules(cluster: &Cluster) -> Result<()> {
    let explained = |field: &str| cluster.kubectl(&["explain", field]);
    wait_for("the kinds to be explained", SOON, || {
        ensure!(explained("kvmletruntimes")?.contains("take pods") && explained("preflightchecks")?.contains("canary"));
        Ok(Some(()))
    })?;
    for (field, words) in [
        ("kvmletruntimes.spec.useEmulation", "QEMU's TCG"),
        ("kvmletruntimes.spec.imageFormat", "Pods that run keep theirs"),
        ("kvmletruntimes.status.preflightCheckSummary.featureStatuses", "over all nodes"),
        ("preflightchecks.spec.reason", "kvmlet.io/skip-schedule"),
        ("preflightchecks.status.checks", "mends a host"),
    ] {
        let text = explained(field)?.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(text.contains(words), "{field}: {text}");
    }
    let runtime = |name: &str, spec: Value| json!({"apiVersion": "kvmlet.io/v1alpha1", "kind": "KvmletRuntime", "metadata": {"name": name}, "spec": spec});
    let lives = |ca: &str, ca_before: &str, server: &str, server_before: &str| {
        let span = |duration: &str, before: &str| json!({"duration": duration, "renewBefore": before});
        let config = json!({"ca": span(ca, ca_before), "server": span(server, server_before)});
        runtime("kvmlet", json!({"enabled": true, "certConfig": config}))
    };
    let with_reason = |reason: &str| with(check("kvm-1"), &[("/spec/reason", reason.into())]);
    for (object, words) in [
        (
            runtime("other", json!({"enabled": true})),
            "there is one KvmletRuntime, and its name is kvmlet",
        ),
        (runtime("kvmlet", json!({})), "spec.enabled: Required value"),
        (runtime("kvmlet", json!({"enabled": "yes"})), "spec.enabled"),
        (
            runtime("kvmlet", json!({"enabled": true, "imageFormt": "raw"})),
            "unknown field \"spec.imageFormt\"",
        ),
        (
            runtime("kvmlet", json!({"enabled": true, "imageFormat": "vmdk"})),
            "supported values: \"raw\", \"qcow2\"",
        ),
        (
            lives("1h", "1h", "1h", "30m"),
            "ca.duration is smaller than ca.renewBefore, or the same",
        ),
        (lives("1h", "30m", "2h", "1h"), "ca.duration is smaller than server.duration"),
        (lives("1h", "9m", "1h", "30m"), "ca.renewBefore must be at least 10m"),
        (lives("1h", "30m", "9m", "30m"), "server.duration must be at least 10m"),
        (lives("9m", "10m", "10m", "10m"), "ca.duration must be at least 10m"),
        (lives("1h", "30m", "1h", "9m"), "server.renewBefore must be at least 10m"),
        (
            lives("1h", "30m", "1h", "1h"),
            "server.duration is smaller than server.renewBefore, or the same",
        ),
        (lives("soon", "30m", "1h", "30m"), "spec.certConfig.ca.duration"),
        (check(""), "spec.nodeName"),
        (with(check("A b"), &[]), "spec.nodeName"),
        (with_reason("Because"), "supported values: \"Enabled\", \"FeaturesChanged\""),
    ] {
        let output = cluster.create_output(&object, &["--dry-run=server"])?;
        let said = command::text(&output.stderr);
        ensure!(
            !output.status.success() && said.contains(words),
            "of {object} kubectl said {said:?}"
        );
    }
    // All that is wrong is said at once.
    let said = command::text(&cluster.create_output(&lives("1h", "2h", "3h", "4h"), &["--dry-run=server"])?.stderr);
    for words in [
        "ca.duration is smaller than ca.renewBefore",
        "server.duration is smaller than server.renewBefore",
        "ca.duration is smaller than server.duration",
    ] {
        ensure!(said.contains(words), "kubectl said {said:?}");
    }
    let least = cluster.create_output(&lives("11m", "10m", "11m", "10m"), &["--dry-run=server"])?;
    ensure!(least.status.success(), "{}", command::text(&least.stderr));
    // Of a node that there is not: nobody answers.
    let made = command::text(&cluster.create_output(&check("nobody"), &["-o", "name"])?.stdout);
    let change = json!({"spec": {"nodeName": "somebody"}}).to_string();
    let output = cluster.kubectl_output(&["patch", made.trim(), "--type=merge", "-p", &change])?;
    let said = command::text(&output.stderr);
    ensure!(said.contains("create another PreflightCheck"), "kubectl said {said:?}");
    Ok(())
}

/// Installs it, does what `body` does and takes everything away, whatever became of it.
fn switched(cluster: &Cluster) -> Result<()> {
    let kvmlet = cluster.kvmlet()?;
    let mut names = Vec::new();
    cluster.kubectl(&files("apply", &MANIFESTS, &mut names))?;
    wait_for("the kinds to be served", SOON, || {
        cluster.kubectl(&["get", "kvmletruntimes,preflightchecks"]).map(Some)
    })?;
    let process = start(cluster, &kvmlet)?;
    let done = within(cluster, "runtime", |place| life(place, &kvmlet));
    process.end(&cluster.state)?;
    if done.is_err() {
        // Nobody is left who would let it go, and other tests need the nodes.
        let _ = cluster.kubectl(&[
            "patch",
            "kvmletruntime/kvmlet",
            "--type=merge",
            "-p",
            "{\"metadata\":{\"finalizers\":null}}",
        ]);
        for host in &cluster.hosts {
            let _ = cluster.kubectl(&["taint", "node", &host.name, "kvmlet.io/preflight-"]);
            let _ = cluster.kubectl(&["uncordon", &host.name]);
            let _ = host.sh("umount /dev/net 2>/dev/null || true");
        }
    }
    cluster.kubectl(&[&files("delete", &MANIFESTS, &mut names)[..], &["--timeout=110s"]].concat())?;
    // Those of a test that ended half-way may be gone until their daemons look for the kind again.
    cluster.wait_until_nodes_are_ready(PATIENCE)?;
    done
}

/// The webhook, with the rights of its service account.
fn start(cluster: &Cluster, kvmlet: &Path) -> Result<Process> {
    let token = wait_for("the service account", SOON, || {
        cluster.kubectl(&["-n", SYSTEM, "create", "token", NAME]).map(Some)
    })?;
    let authority = cluster.state.pki().join("ca.crt");
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "own",
        "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own", "namespace": SYSTEM}}],
        "clusters": [{"name": "own", "cluster": {"server": format!("https://{GATEWAY}:{API_PORT}"), "certificate-authority": authority}}],
        "users": [{"name": "own", "user": {"token": token.trim()}}]});
    let file = cluster.state.root.join("webhook.kubeconfig");
    write(&file, config.to_string())?;
    let mut command = cluster.inside(&kvmlet.to_string_lossy());
    command
        .args(["webhook", "--listen", ADDRESS, "--name", NAME])
        .env("KUBECONFIG", file);
    Process::spawn(&cluster.state, NAME, &mut command)
}

/// Whether `kvmlet` with these arguments, by the administrator, succeeds, and what it says.
fn run(cluster: &Cluster, kvmlet: &Path, arguments: &[&str]) -> Result<(bool, String)> {
    let mut command = cluster.inside(&kvmlet.to_string_lossy());
    command.args(arguments).env("KUBECONFIG", cluster.state.kubeconfig());
    let output = command.stdin(std::process::Stdio::null()).output().context("run kvmlet")?;
    let said = command::text(&output.stdout) + &command::text(&output.stderr);
    Ok((output.status.success(), said))
}

/// Runs it where it must fail; it says these words.
pub(super) fn refuses(cluster: &Cluster, kvmlet: &Path, arguments: &[&str], words: &[&str]) -> Result<()> {
    let (is_done, said) = run(cluster, kvmlet, arguments)?;
    let says = words.iter().all(|word| said.contains(word));
    ensure!(!is_done && says, "kvmlet {} said {said:?}", arguments.join(" "));
    Ok(())
}

/// Runs it where it must succeed.
pub(super) fn does(cluster: &Cluster, kvmlet: &Path, arguments: &[&str]) -> Result<()> {
    let (is_done, said) = run(cluster, kvmlet, arguments)?;
    ensure!(is_done, "kvmlet {} said {said:?}", arguments.join(" "));
    Ok(())
}

/// Waits until the switch tells this.
pub(super) fn told(cluster: &Cluster, what: &str, is_right: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_for(&format!("the KvmletRuntime to tell {what}"), PATIENCE, || {
        let found = cluster.kubectl_json(&["get", "kvmletruntime", "kvmlet"])?;
        ensure!(is_right(&found["status"]), "its status is {}", found["status"]);
        Ok(Some(found["status"].clone()))
    })
}

pub(super) fn checks(cluster: &Cluster) -> Result<Vec<Value>> {
    let found = cluster.kubectl_json(&["get", "preflightchecks"])?;
    Ok(found["items"].as_array().cloned().unwrap_or_default())
}

/// Waits until there is a check of this node and reason.
fn asked(cluster: &Cluster, node: &str, reason: &str) -> Result<()> {
    wait_for(&format!("{node} to be checked: {reason}"), SOON, || {
        let all = checks(cluster)?;
        let is_there = all
            .iter()
            .any(|one| one["spec"]["nodeName"] == node && one["spec"]["reason"] == reason);
        ensure!(is_there, "there are {all:?}");
        Ok(Some(()))
    })
}

/// The taint's value; none without it.
pub(super) fn taint(cluster: &Cluster, node: &str) -> Result<Option<String>> {
    let found = cluster.kubectl_json(&["get", "node", node])?;
    let taints = found["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let ours = taints.iter().find(|taint| taint["key"] == "kvmlet.io/preflight");
    Ok(ours.and_then(|taint| taint["value"].as_str()).map(str::to_owned))
}

fn until_taint(cluster: &Cluster, node: &str, value: Option<&str>) -> Result<()> {
    wait_for(&format!("{node} to be {value:?}"), PATIENCE, || {
        let found = taint(cluster, node)?;
        ensure!(found.as_deref() == value, "its taint is {found:?}");
        Ok(Some(()))
    })
}

fn life(place: &Place<'_>, kvmlet: &Path) -> Result<()> {
    let cluster = place.cluster;
    let (first, last) = (&cluster.hosts[0], cluster.hosts.last().context("there are hosts")?);
    refuses(cluster, kvmlet, &["disable"], &["there is no KvmletRuntime"])?;
    does(cluster, kvmlet, &["enable"])?;
    refuses(cluster, kvmlet, &["enable"], &["kvmlet is enabled already"])?;
    if first.kind == HostKind::Emulated {
        let status = told(cluster, "that hosts are emulated", |status| {
            status["message"].as_str().is_some_and(|text| text.contains("emulated by software"))
        })?;
        ensure!(status["ready"] == false, "{status}");
    }
    let emulation = "{\"spec\":{\"useEmulation\":true}}";
    cluster.kubectl(&["patch", "kvmletruntime", "kvmlet", "--type=merge", "-p", emulation])?;
    asked(cluster, &first.name, "FeaturesChanged")?;
    let ready = told(cluster, "that all have passed", |status| status["ready"] == true)?;
    let features = ready["preflightCheckSummary"]["featureStatuses"]
        .as_array()
        .context("no features")?
        .clone();
    ensure!(
        features.len() > 20 && features.iter().all(|one| one["passed"] == true),
        "{features:?}"
    );
    for host in &cluster.hosts {
        ensure!(taint(cluster, &host.name)?.is_none(), "{} has passed, and has its taint", host.name);
    }
    let newest = checks(cluster)?;
    let canaries = newest
        .iter()
        .flat_map(|one| one["status"]["checks"].as_array().cloned().unwrap_or_default());
    let said: Vec<_> = canaries
        .filter(|one| one["name"] == "canary")
        .map(|one| one["message"].to_string())
        .collect();
    let booted = said.iter().filter(|one| one.contains("its agent answered after")).count();
    ensure!(booted >= cluster.hosts.len(), "canaries said {said:?}");
    let printed = cluster.kubectl(&["get", "preflightchecks"])?;
    let head: Vec<_> = printed.lines().next().unwrap_or_default().split_whitespace().collect();
    ensure!(head == ["NAME", "NODE", "REASON", "PASS", "AGE"], "{printed}");
    formats(place)?;

    cluster.kubectl(&["label", "node", &last.name, "kvmlet.io/skip-schedule="])?;
    until_taint(cluster, &last.name, Some("skip-schedule"))?;
    cluster.kubectl(&["label", "node", &last.name, "kvmlet.io/skip-schedule-"])?;
    asked(cluster, &last.name, "Unskipped")?;

    first.sh("mount -t tmpfs none /dev/net")?;
    let broken = broken(place, &first.name);
    first.sh("umount /dev/net")?;
    broken?;
    cluster.create_output(&check(&first.name), &[])?;
    place.until_ready("waits")?;
    until_taint(cluster, &first.name, None)?;
    off(place, kvmlet)
}

/// A host that lacks something: its pods wait, and whoever looks is told why.
fn broken(place: &Place<'_>, node: &str) -> Result<()> {
    let cluster = place.cluster;
    cluster.create_output(&check(node), &[])?;
    until_taint(cluster, node, Some("failed"))?;
    let status = told(cluster, "what is wrong", |status| status["ready"] == false)?;
    ensure!(status["message"].to_string().contains("there is no /dev/net/tun"), "{status}");
    wait_for("the node's event", SOON, || {
        let about = format!("involvedObject.kind=Node,involvedObject.name={node},reason=PreflightFailed");
        let said = cluster.kubectl(&["get", "events", "--field-selector", &about, "-o", "jsonpath={.items[*].message}"])?;
        ensure!(
            said.contains("tun: there is no /dev/net/tun") && said.contains("modprobe tun"),
            "{said}"
        );
        Ok(Some(()))
    })?;
    let waits = pod("waits", sh(STAY));
    place.create(&[waits])?;
    place.until("waits", "be refused by the scheduler", |found| {
        let scheduled = condition(found, "PodScheduled");
        scheduled["reason"] == "Unschedulable" && scheduled["message"].to_string().contains("untolerated taint(s)")
    })?;
    // No node speaks for another.
    let one = checks(cluster)?.first().context("no checks")?["metadata"]["name"].clone();
    let lie = json!({"apiVersion": "kvmlet.io/v1alpha1", "kind": "PreflightCheck", "metadata": {"name": one}, "status": {"passed": true}});
    let file = cluster.state.root.join("lie.json");
    write(&file, lie.to_string())?;
    // Not `patch`, which would first get what a node may not.
    let output = cluster.kubectl_output(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "--subresource=status",
        "--validate=false",
        "-f",
        &file.to_string_lossy(),
        "--as=system:node:somebody",
        "--as-group=system:nodes",
    ])?;
    let said = command::text(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("a node answers checks of its own host only"),
        "kubectl said {said:?}"
    );
    Ok(())
}
