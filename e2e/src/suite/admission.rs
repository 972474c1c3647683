//! The admission webhook, with its own pods on kvmlet's nodes: which pods it sends there, what it says of others, and that none is refused
//! while its certificates change. There is one for the whole cluster, so these tests have it for themselves.

use std::{
    fs,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    chart::everywhere,
    guide::follow,
    workload::{PATIENCE, Place, STAY, pod, sh, with, within},
};
use crate::{
    Cluster,
    cluster::LANE,
    command,
    paths::{API_PORT, GATEWAY, manifest, write},
    registry, wait_for,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "pods of a labelled namespace run here by the README's own commands; opt-outs, hostNetwork and a pod's own tolerations are respected",
        hosts: 2,
        kvmlet: true,
        run: sent,
    },
    Test {
        name: "no pod is refused and none is missed while the webhook's authority and certificate are replaced",
        hosts: 2,
        kvmlet: true,
        run: rotated,
    },
    Test {
        name: "of a thousand pods created at once in a labelled namespace none is refused and none comes out as it went in",
        hosts: 2,
        kvmlet: true,
        run: thousand,
    },
    Test {
        name: "ordinary nodes are full before a pod overflows to here, and a Deployment that shrinks gives those up first",
        hosts: 2,
        kvmlet: true,
        run: overflowed,
    },
];

pub(super) const SYSTEM: &str = "kvmlet-system";
const SECRET: &str = "kvmlet-webhook-certificates";
/// Sends a namespace's pods.
pub(super) const LABEL: &str = "virtual-node-affinity-injection=enabled";

/// Whether it is there from the test before.
static INSTALLED: AtomicBool = AtomicBool::new(false);
/// What bore the product's name before.
static BEFORE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Does what `body` does with the webhook installed as its manifests say, and no profiles afterwards. It stays for the next test; see [`remove`].
pub(super) fn with_webhook(cluster: &Cluster, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let is_there = INSTALLED.swap(false, Ordering::Relaxed);
    let installed = if is_there { Ok(()) } else { install(cluster) };
    let done = installed.and_then(|()| body());
    let cleared = cluster.kubectl(&["delete", "burstprofiles", "--all"]);
    if done.is_ok() {
        cleared?;
        INSTALLED.store(true, Ordering::Relaxed);
    } else {
        // Other tests' pods must not wait for it.
        cluster.kubectl(&["delete", "mutatingwebhookconfiguration", "kvmlet-webhook", "--ignore-not-found"])?;
    }
    done
}

fn install(cluster: &Cluster) -> Result<()> {
    *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = everywhere(cluster)?;
    registry::add_kvmlet(&cluster.state, &cluster.kvmlet()?)?;
    cluster.kubectl(&["apply", "-k", &manifest("webhook")])?;
    cluster.kubectl(&["label", "namespace", SYSTEM, &format!("{LANE}={}", cluster.host(0)?.name)])?;
    cluster
        .kubectl(&["-n", SYSTEM, "rollout", "status", "deployment/kvmlet-webhook", "--timeout=110s"])
        .map(drop)
}

/// Takes it away, if it is there.
pub(super) fn remove(cluster: &Cluster) -> Result<()> {
    if !INSTALLED.swap(false, Ordering::Relaxed) {
        return Ok(());
    }
    cluster.kubectl(&["-n", SYSTEM, "delete", "deployment", "kvmlet-webhook"])?;
    cluster.kubectl(&["-n", SYSTEM, "delete", "pods", "--all", "--timeout=110s"])?;
    cluster.kubectl(&["delete", "mutatingwebhookconfiguration", "kvmlet-webhook"])?;
    let manifests = manifest("webhook");
    cluster.kubectl(&["delete", "-k", &manifests, "--ignore-not-found", "--timeout=110s"])?;
    let (before, after) = (BEFORE.lock().unwrap_or_else(PoisonError::into_inner), everywhere(cluster)?);
    ensure!(
        *before == after,
        "before the webhook was installed there were {before:?}, and after it was removed {after:?}"
    );
    Ok(())
}

/// A pod that says nothing of nodes itself.
pub(super) fn plain(name: &str) -> Value {
    let mut pod = pod(name, sh(STAY));
    let spec = pod["spec"].as_object_mut().expect("a pod has a spec");
    spec.remove("nodeSelector");
    spec.remove("tolerations");
    pod
}

fn sent(cluster: &Cluster) -> Result<()> {
    with_webhook(cluster, || {
        follow(cluster, "README.md", "k apply -k manifests/webhook")?;
        cluster.kubectl(&["label", "namespace", "vk", &format!("{LANE}={}", cluster.host(0)?.name)])?;
        let vk = Place {
            cluster,
            name: "vk".into(),
        };
        let nginx = vk.until_ready("nginx")?;
        ensure!(nginx["spec"]["nodeSelector"]["type"] == "virtual-kubelet", "{}", nginx["spec"]);
        let kernel = vk.kubectl(&["exec", "nginx", "--", "cat", "/proc/1/cmdline"])?;
        ensure!(kernel.contains("nginx"), "{kernel:?}");

        let out = with(plain("out"), &[("/metadata/labels", json!({"kvmlet.io/inject": "false"}))]);
        let own = json!([{"key": "virtual-kubelet.io/provider", "operator": "Equal", "value": "kvmlet", "effect": "NoSchedule"}]);
        vk.create(&[out, with(plain("own"), &[("/spec/tolerations", own.clone())])])?;
        let out = vk.get("out")?;
        ensure!(out["spec"].get("nodeSelector").is_none(), "{}", out["spec"]);
        let found = vk.get("own")?;
        let tolerations = found["spec"]["tolerations"].as_array().context("no tolerations")?;
        let of_provider: Vec<_> = tolerations
            .iter()
            .filter(|one| one["key"] == "virtual-kubelet.io/provider")
            .collect();
        ensure!(of_provider == [&own[0]], "{of_provider:?}");
        ensure!(found["spec"]["nodeSelector"]["type"] == "virtual-kubelet", "{}", found["spec"]);

        let overrides = r#"--overrides={"spec": {"hostNetwork": true}}"#;
        let warned = cluster.kubectl_output(&["-n", "vk", "run", "shared", "--image", "nginx", overrides])?;
        let said = command::text(&warned.stderr);
        ensure!(
            warned.status.success() && said.contains("Warning: kvmlet: this pod is left to ordinary nodes: spec.hostNetwork"),
            "kubectl said {said:?}"
        );
        let shared = vk.get("shared")?;
        ensure!(shared["spec"].get("nodeSelector").is_none(), "{}", shared["spec"]);
        vk.kubectl(&["delete", "pods", "--all", "--timeout=110s"])?;
        cluster.kubectl(&["delete", "namespace", "vk", "--wait=false"]).map(drop)
    })
}

/// Pods at once, of which none is really made.
const MANY: usize = 40;

/// Pods for the API server to look at and not to make, at once.
pub(super) struct Batch<'a> {
    place: &'a Place<'a>,
    file: String,
}

impl<'a> Batch<'a> {
    /// Such that say nothing of nodes.
    pub(super) fn of(place: &'a Place<'a>) -> Result<Self> {
        let items: Vec<Value> = (0..MANY)
            .map(|number| with(plain(&format!("p{number}")), &[("/metadata/namespace", place.name.as_str().into())]))
            .collect();
        let file = place.cluster.state.root.join(format!("{}.json", place.name));
        write(&file, json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        let file = file.to_string_lossy().into_owned();
        Ok(Self { place, file })
    }

    /// All of them are let in, and sent to virtual nodes.
    pub(super) fn is_sent(&self) -> Result<()> {
        let each = "jsonpath={.spec.nodeSelector.type}{\"\\n\"}";
        let made = self
            .place
            .cluster
            .kubectl(&["create", "--dry-run=server", "-f", &self.file, "-o", each])?;
        let sent = made.lines().filter(|line| *line == "virtual-kubelet").count();
        ensure!(sent == MANY, "{sent} of {MANY} pods were sent");
        Ok(())
    }
}

/// Pods of a burst.
const BURST: usize = 1000;
/// How many of them are under way at once: replicas in emulated hosts that are not alone on their machine answer less than twenty a second, and the API
/// server waits five seconds.
const AT_ONCE: usize = 25;

/// Asks the API server for them, each by a request of its own; the code of each answer, and the file with what it said.
fn answers(place: &Place<'_>, folder: &Path) -> Result<Vec<String>> {
    let pki = place.cluster.state.pki();
    let own = [("cacert", "ca.crt"), ("cert", "admin.crt"), ("key", "admin.key")];
    let own: String = own
        .map(|(option, file)| format!("{option} = \"{}\"\n", pki.join(file).display()))
        .concat();
    let url = format!("https://{GATEWAY}:{API_PORT}/api/v1/namespaces/{}/pods", place.name);
    let one = |number: usize| {
        let name = format!("p{number}");
        // No machine is made of them.
        let pod = with(plain(&name), &[("/spec/schedulingGates", json!([{"name": "kvmlet.io/e2e"}]))]);
        let (pod, answer) = (Value::from(pod.to_string()), folder.join(&name));
        let answer = answer.display();
        format!(
            "url = \"{url}\"\n{own}header = \"Content-Type: application/json\"\ndata-binary = {pod}\noutput = \"{answer}\"\n\
            write-out = \"%{{http_code}} {answer}\\n\"\n"
        )
    };
    let requests: Vec<String> = (0..BURST).map(one).collect();
    let file = folder.join("requests");
    write(
        &file,
        format!("parallel\nparallel-max = {AT_ONCE}\nno-progress-meter\n{}", requests.join("next\n")),
    )?;
    let output = command::run(place.cluster.inside("curl").arg("-K").arg(&file))?;
    Ok(command::text(&output.stdout).lines().map(str::to_owned).collect())
}

fn thousand(cluster: &Cluster) -> Result<()> {
    with_webhook(cluster, || {
        within(cluster, "thousand", |place| {
            cluster.kubectl(&["label", "namespace", &place.name, LABEL])?;
            let batch = Batch::of(place)?;
            wait_for("each replica to know the label", PATIENCE, || batch.is_sent().map(Some))?;
            let folder = tempfile::tempdir().context("make a folder for answers")?;
            let answers = answers(place, folder.path())?;
            let refused: Vec<_> = answers.iter().filter(|answer| !answer.starts_with("201 ")).collect();
            if let Some((_, file)) = refused.first().and_then(|answer| answer.split_once(' ')) {
                let said = fs::read_to_string(file).unwrap_or_default();
                bail!("{} of {} pods were refused: {}: {said}", refused.len(), answers.len(), refused[0]);
            }
            let found = place.cluster.kubectl_json(&["-n", &place.name, "get", "pods"])?;
            let found = found["items"].as_array().context("no pods")?;
            ensure!(found.len() == BURST, "{} of {BURST} pods are there", found.len());
            for pod in found {
                let spec = &pod["spec"];
                let mut tolerations = spec["tolerations"].as_array().into_iter().flatten();
                ensure!(tolerations.any(|one| one["key"] == "virtual-kubelet.io/provider"), "{spec}");
                ensure!(spec["nodeSelector"] == json!({"type": "virtual-kubelet"}), "{spec}");
            }
            // All in one request.
            let pods = format!("/api/v1/namespaces/{}/pods", place.name);
            cluster.kubectl(&["delete", "--raw", &pods]).map(drop)
        })
    })
}

fn rotated(cluster: &Cluster) -> Result<()> {
    with_webhook(cluster, || {
        within(cluster, "rotation", |place| {
            cluster.kubectl(&["label", "namespace", &place.name, LABEL])?;
            let batch = Batch::of(place)?;
            let shown = || {
                cluster.kubectl(&[
                    "-n",
                    SYSTEM,
                    "get",
                    "secret",
                    SECRET,
                    "--ignore-not-found",
                    "-o",
                    "jsonpath={.data.tls\\.crt}",
                ])
            };
            batch.is_sent()?;
            let before = shown()?;
            cluster.kubectl(&["-n", SYSTEM, "delete", "secret", SECRET])?;
            let mut broken = None;
            wait_for("another certificate to be shown", PATIENCE, || {
                if let Err(error) = batch.is_sent() {
                    broken = Some(error);
                    return Ok(Some(()));
                }
                let now = shown()?;
                Ok((!now.is_empty() && now != before).then_some(()))
            })?;
            broken.map_or(Ok(()), Err)?;
            for _ in 0..5 {
                batch.is_sent()?;
            }
            Ok(())
        })
    })
}

/// A Node without a kubelet: the scheduler counts its room, and pods that it is given stay as the test sets them. Nobody tells that it lives, so
/// its pods tolerate the taints of that.
pub(super) const ORDINARY: &str = "ordinary-1";
/// How many of the test's pods it has room for.
const ROOM: usize = 3;

/// Adds it, with room for so many pods.
pub(super) fn add_ordinary_node(cluster: &Cluster, room: usize) -> Result<()> {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": ORDINARY, "labels": {"kubernetes.io/hostname": ORDINARY}}});
    cluster.apply(&node.to_string())?;
    let amounts = json!({"cpu": "64", "memory": "64Gi", "pods": room.to_string()});
    let status = json!({"status": {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}});
    cluster
        .kubectl(&[
            "patch",
            "node",
            ORDINARY,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status.to_string(),
        ])
        .map(drop)
}

/// The names of the Deployment's pods on the ordinary node, and on others.
pub(super) fn both(place: &Place<'_>) -> Result<(Vec<String>, Vec<String>)> {
    let pods = place.cluster.kubectl_json(&["-n", &place.name, "get", "pods"])?;
    let items = pods["items"].as_array().into_iter().flatten();
    let names = |ordinary: bool| {
        let there = items
            .clone()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .filter(|pod| pod["spec"]["nodeName"].as_str().is_some_and(|node| (node == ORDINARY) == ordinary));
        there
            .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
            .collect()
    };
    Ok((names(true), names(false)))
}

/// Pods that tolerate what is said of a node without a kubelet.
pub(super) fn deployment(replicas: usize) -> Value {
    let mut template = plain("burst");
    template["metadata"] = json!({"labels": {"app": "burst"}});
    template["spec"]["tolerations"] = ["not-ready", "unreachable"]
        .map(|taint| json!({"key": format!("node.kubernetes.io/{taint}"), "operator": "Exists"}))
        .to_vec()
        .into();
    let spec = json!({"replicas": replicas, "selector": {"matchLabels": {"app": "burst"}},
        "template": {"metadata": template["metadata"], "spec": template["spec"]}});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "burst"}, "spec": spec})
}

fn overflowed(cluster: &Cluster) -> Result<()> {
    let done = with_webhook(cluster, || {
        within(cluster, "overflow", |place| {
            cluster.kubectl(&["label", "namespace", &place.name, LABEL, "kvmlet.io/burst-policy=normalNodePrefer"])?;
            add_ordinary_node(cluster, ROOM)?;
            place.create(&[deployment(ROOM)])?;
            wait_for("the ordinary node to be full", Duration::from_secs(60), || {
                let found = both(place)?;
                ensure!(found.0.len() == ROOM && found.1.is_empty(), "{found:?}");
                Ok(Some(()))
            })?;
            place.kubectl(&["scale", "deployment", "burst", &format!("--replicas={}", ROOM + 2)])?;
            let (stay, overflow) = wait_for("two pods to overflow", Duration::from_secs(60), || {
                let found = both(place)?;
                ensure!(found.0.len() == ROOM && found.1.len() == 2, "{found:?}");
                Ok(Some(found))
            })?;
            for name in &overflow {
                place.until_ready(name)?;
                place.until(name, "have a lower deletion cost", |pod| {
                    pod["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"] == "-1000"
                })?;
            }
            // Those that run are removed last whatever their cost, so the others have to run too; no kubelet says so.
            let conditions = ["Ready", "ContainersReady"].map(|name| json!({"type": name, "status": "True"}));
            let running = json!({"status": {"phase": "Running", "conditions": conditions}}).to_string();
            for name in &stay {
                place.kubectl(&["patch", "pod", name, "--subresource=status", "--type=strategic", "-p", &running])?;
            }
            place.kubectl(&["scale", "deployment", "burst", &format!("--replicas={ROOM}")])?;
            wait_for("the pods that overflowed to be removed first", Duration::from_secs(60), || {
                let (ordinary, virtual_) = both(place)?;
                ensure!(virtual_.is_empty(), "{virtual_:?} are still there");
                let all = ordinary.iter().all(|name| stay.contains(name)) && ordinary.len() == ROOM;
                ensure!(all, "left are {ordinary:?} of {stay:?}");
                Ok(Some(()))
            })?;
            place.kubectl(&["delete", "deployment", "burst"])?;
            // Nobody else confirms the end of pods without a kubelet.
            place
                .kubectl(&["delete", "pods", "--all", "--force", "--grace-period=0", "--timeout=60s"])
                .map(drop)
        })
    });
    cluster.kubectl(&["delete", "node", ORDINARY, "--ignore-not-found"])?;
    done
}
