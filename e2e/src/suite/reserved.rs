//! A host that a kubelet has, too, as the API server sees it: the reservation pod, what the node offers by it, its rights. The Node of that kubelet is made
//! by the test, and nobody runs pods there: that a pod is Running, the test says. A real kubelet is in `shared.rs`.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    daemon::{self, CONFIG, Identity, with_config},
    workload::{PATIENCE, Place, STAY, condition, pod, sh, within},
};
use crate::{Cluster, command, host_config, paths::manifest, wait_for};

pub(super) const TESTS: &[Test] = &[Test {
    name: "a node beside a kubelet's offers what its reservation pod holds, is cordoned with it, and says which right its identity lacks",
    hosts: 1,
    kvmlet: true,
    run: reserved,
}];

/// There is one set of its manifests: who changes or removes them has them alone.
static MANIFESTS_ARE_TAKEN: Mutex<()> = Mutex::new(());

/// What `manifests/shared` has, for one test at a time.
pub(super) fn with_manifests(cluster: &Cluster, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let _taken = MANIFESTS_ARE_TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let manifests = manifest("shared");
    cluster.kubectl(&["apply", "-k", &manifests])?;
    let done = body();
    cluster.kubectl(&["delete", "-k", &manifests, "--timeout=110s"])?;
    done
}

/// Where reservation pods are.
pub(super) const NAMESPACE: &str = "kvmlet-reservations";
/// A Node without a kubelet.
const OTHER: &str = "ordinary-2";

/// The reservation pod of the first host's Node.
pub(super) fn name(cluster: &Cluster) -> Result<String> {
    Ok(format!("kvmlet-reservation-{}", cluster.host(0)?.name))
}

/// The reservation pod, if there is one.
pub(super) fn reservation(cluster: &Cluster) -> Result<Option<Value>> {
    let found = cluster.kubectl(&["-n", NAMESPACE, "get", "pod", &name(cluster)?, "--ignore-not-found", "-o", "json"])?;
    if found.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&found).map(Some).context("read the reservation pod")
}

/// Waits until the first host's Node says this of its reservation.
pub(super) fn until_said(cluster: &Cluster, reason: &str, words: &str) -> Result<Value> {
    wait_for(&format!("the Node to say {reason} {words:?}"), PATIENCE, || {
        let node = cluster.kubectl_json(&["get", "node", &cluster.host(0)?.name])?;
        let said = condition(&node, "Reserved");
        let is_said = said["reason"] == reason && said["message"].as_str().is_some_and(|text| text.contains(words));
        ensure!(is_said, "it says {said}");
        ensure!(
            said["status"] == if reason == "ReservationHeld" { "True" } else { "False" },
            "{said}"
        );
        Ok(Some(node))
    })
}

/// Waits until the first host's Node offers so many processors.
pub(super) fn until_offers(cluster: &Cluster, cpu: &str) -> Result<Value> {
    wait_for(&format!("the Node to offer cpu {cpu}"), PATIENCE, || {
        let node = cluster.kubectl_json(&["get", "node", &cluster.host(0)?.name])?;
        let status = &node["status"];
        ensure!(status["allocatable"]["cpu"] == cpu, "it offers {}", status["allocatable"]);
        Ok(Some(node))
    })
}

/// Whether a Node is cordoned.
pub(super) fn is_cordoned(cluster: &Cluster, node: &str) -> Result<bool> {
    Ok(cluster.kubectl_json(&["get", "node", node])?["spec"]["unschedulable"] == true)
}

pub(super) fn until_cordoned(cluster: &Cluster, node: &str, wanted: bool) -> Result<()> {
    let what = if wanted { "be cordoned" } else { "take pods" };
    wait_for(&format!("{node} to {what}"), PATIENCE, || {
        Ok((is_cordoned(cluster, node)? == wanted).then_some(()))
    })
}

/// What an operator and a mirror do to two Nodes, one after the other: the kubelet's is `other`.
pub(super) fn cordons(cluster: &Cluster, other: &str) -> Result<()> {
    let own = &cluster.host(0)?.name;
    cluster.kubectl(&["cordon", other])?;
    until_cordoned(cluster, own, true)?;
    cluster.kubectl(&["uncordon", other])?;
    until_cordoned(cluster, own, false)?;

    // What the mirror did not do it does not undo.
    cluster.kubectl(&["cordon", own])?;
    cluster.kubectl(&["cordon", other])?;
    looked(cluster)?;
    cluster.kubectl(&["uncordon", other])?;
    looked(cluster)?;
    ensure!(is_cordoned(cluster, own)?, "an operator's cordon was undone");
    cluster.kubectl(&["uncordon", own])?;

    // And does not do again what an operator has undone.
    cluster.kubectl(&["cordon", other])?;
    until_cordoned(cluster, own, true)?;
    cluster.kubectl(&["uncordon", own])?;
    looked(cluster)?;
    ensure!(!is_cordoned(cluster, own)?, "the Node was cordoned again");
    cluster.kubectl(&["uncordon", other]).map(drop)
}

/// Waits until the daemon has seen both Nodes as they are now: its keeper looks once for each renewal of the lease, after it, so that between two of
/// them it has looked.
fn looked(cluster: &Cluster) -> Result<()> {
    let own = &cluster.host(0)?.name;
    let lease = || cluster.kubectl(&["-n", "kube-node-lease", "get", "lease", own, "-o", "jsonpath={.spec.renewTime}"]);
    for _ in 0..2 {
        let before = lease()?;
        wait_for("the lease to be renewed", PATIENCE, || Ok((lease()? != before).then_some(())))?;
    }
    Ok(())
}

/// Does what `body` does where the first host has a Node of a kubelet beside its own.
fn beside(cluster: &Cluster, namespace: &str, body: impl FnOnce(&Place<'_>) -> Result<()>) -> Result<()> {
    let done = with_manifests(cluster, || {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": OTHER}});
        cluster.apply(&node.to_string())?;
        has(cluster, "2")?;
        let done = with_config(cluster, &host_config::shared(OTHER, "1"), || within(cluster, namespace, body));
        // Nobody else confirms the end of pods without a kubelet.
        cluster.kubectl(&["-n", NAMESPACE, "delete", "pods", "--all", "--force", "--grace-period=0"])?;
        cluster.kubectl(&["delete", "node", OTHER])?;
        done
    });
    let own = &cluster.host(0)?.name;
    cluster.kubectl(&["uncordon", own])?;
    cluster.wait_until_nodes_are_ready(PATIENCE)?;
    done
}

/// Sets how many processors the kubelet's Node has.
fn has(cluster: &Cluster, cpu: &str) -> Result<()> {
    let amounts = json!({"cpu": cpu, "memory": "4Gi", "ephemeral-storage": "20Gi", "pods": "10"});
    let status = json!({"status": {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}});
    let arguments = [
        "patch",
        "node",
        OTHER,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status.to_string(),
    ];
    cluster.kubectl(&arguments).map(drop)
}

/// Says of the reservation pod what its kubelet would.
fn says(cluster: &Cluster, status: &Value) -> Result<()> {
    let text = json!({"status": status}).to_string();
    let arguments = ["patch", "pod", &name(cluster)?, "--subresource=status", "--type=merge", "-p", &text];
    cluster.kubectl(&[&["-n", NAMESPACE], &arguments[..]].concat()).map(drop)
}

/// Brings the reservation pod to its Node, if the scheduler has not, and says that it runs there.
fn runs(cluster: &Cluster) -> Result<()> {
    let name = name(cluster)?;
    wait_for("the reservation pod to be there", PATIENCE, || reservation(cluster))?;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "namespace": NAMESPACE},
        "target": {"apiVersion": "v1", "kind": "Node", "name": OTHER}});
    // The scheduler may have been first.
    let _ = cluster.create_output(&binding, &[])?;
    until_said(cluster, "ReservationStarting", OTHER)?;
    says(cluster, &json!({"phase": "Running"}))?;
    until_said(cluster, "ReservationHeld", "").map(drop)
}

fn reserved(cluster: &Cluster) -> Result<()> {
    beside(cluster, "reserved", |place| {
        offers(place)?;
        rights(cluster)
    })?;
    let host = cluster.host(0)?;
    let limits = host.sh("cd /sys/fs/cgroup/kvmlet.slice && cat cpu.max memory.max cpu.weight")?;
    ensure!(
        limits == "max 100000\nmax\n100",
        "on a host of kvmlet's own machines together may use {limits}"
    );
    Ok(())
}

fn offers(place: &Place<'_>) -> Result<()> {
    let (cluster, host) = (place.cluster, place.cluster.host(0)?);
    let made = wait_for("the scheduler to place the reservation pod", PATIENCE, || {
        let found = reservation(cluster)?.context("there is none")?;
        ensure!(found["spec"]["nodeName"] == OTHER, "its status is {}", found["status"]);
        Ok(Some(found))
    })?;
    let requests = &made["spec"]["containers"][0]["resources"]["requests"];
    ensure!(
        *requests == json!({"cpu": "1", "memory": "1536Mi", "ephemeral-storage": "3Gi"}),
        "it requests {requests}"
    );
    until_said(cluster, "ReservationStarting", OTHER)?;
    until_offers(cluster, "0")?;
    runs(cluster)?;
    let node = until_offers(cluster, "1")?;
    let (capacity, allocatable) = (&node["status"]["capacity"], &node["status"]["allocatable"]);
    // The reserve for the machines' own needs is of what is held.
    ensure!(
        capacity["memory"] == "1536Mi" && allocatable["memory"] == "1Gi" && allocatable["ephemeral-storage"] == "2Gi",
        "{capacity} and {allocatable}"
    );
    let limits = || host.sh("cd /sys/fs/cgroup/kvmlet.slice && cat cpu.max memory.max");
    ensure!(limits()? == "100000 100000\n1610612736", "machines together may use {}", limits()?);

    place.create(&[pod("stays", sh(STAY))])?;
    place.until_ready("stays")?;
    let before = Identity::of(place, "stays")?;
    cordons(cluster, OTHER)?;
    has(cluster, "600m")?;
    until_offers(cluster, "600m")?;
    ensure!(limits()?.starts_with("60000 100000\n"), "machines together may use {}", limits()?);
    has(cluster, "2")?;
    until_offers(cluster, "1")?;

    says(
        cluster,
        &json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
    )?;
    until_offers(cluster, "0")?;
    wait_for("another reservation pod", PATIENCE, || {
        let found = reservation(cluster)?.context("there is none")?;
        Ok((found["metadata"]["uid"] != made["metadata"]["uid"]).then_some(()))
    })?;
    runs(cluster)?;
    until_offers(cluster, "1")?;
    ensure!(Identity::of(place, "stays")? == before, "the pod is not the one it was");
    place
        .kubectl(&["delete", "pod", "stays", "--grace-period=1", "--timeout=110s"])
        .map(drop)
}

/// Takes a verb from the rule about this resource, of a role or a cluster role; `manifests/shared` has it.
fn without(cluster: &Cluster, role: &[&str], resource: &str, verb: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut found = cluster.kubectl_json(&[&["get"], role, &["kvmlet:shared"]].concat())?;
    let mut taken = false;
    for rule in found["rules"].as_array_mut().into_iter().flatten() {
        let is_about = rule["resources"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one == resource));
        if let Some(verbs) = rule["verbs"].as_array_mut().filter(|_| is_about) {
            let all = verbs.len();
            verbs.retain(|one| one != verb);
            taken |= verbs.len() < all;
        }
    }
    ensure!(taken, "{} has no {verb} of {resource}", found["rules"]);
    let rules = found["rules"].as_array_mut().context("it has no rules")?;
    rules.retain(|rule| rule["verbs"] != json!([]));
    cluster.apply(&found.to_string())?;
    let done = body().with_context(|| format!("without {verb} of {resource}"));
    cluster.kubectl(&["apply", "-k", &manifest("shared")])?;
    done
}

fn rights(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let (role, whole) = (["-n", NAMESPACE, "role"], ["clusterrole"]);
    let refused = |verb: &str, resource: &str| format!("cannot {verb} resource \"{resource}\"");
    let anew = || -> Result<()> {
        host.stop_daemon()?;
        daemon::restart(cluster)
    };
    without(cluster, &role, "pods", "create", || {
        cluster.kubectl(&["-n", NAMESPACE, "delete", "pods", "--all", "--force", "--grace-period=0"])?;
        until_said(cluster, "ReservationMissing", &refused("create", "pods")).map(drop)
    })?;
    runs(cluster)?;
    without(cluster, &role, "pods", "delete", || {
        says(cluster, &json!({"phase": "Failed", "reason": "Evicted"}))?;
        until_said(cluster, "ReservationOver", &refused("delete", "pods")).map(drop)
    })?;
    wait_for("another reservation pod", PATIENCE, || {
        let found = reservation(cluster)?.context("there is none")?;
        Ok((found["status"]["phase"] == "Pending").then_some(()))
    })?;
    runs(cluster)?;
    for (of, resource) in [(&whole[..], "nodes"), (&role[..], "pods")] {
        without(cluster, of, resource, "list", || {
            anew()?;
            until_said(cluster, "ReservationUnseen", &refused("list", resource)).map(drop)
        })?;
        without(cluster, of, resource, "watch", || {
            anew()?;
            until_said(cluster, "ReservationHeld", &refused("watch", resource)).map(drop)
        })?;
    }
    without(cluster, &role, "pods/resize", "patch", || {
        let text = host.sh(&format!("cat {CONFIG}"))? + "\n";
        host.put(CONFIG, 0o644, text.replace("{cpu: 1,", "{cpu: 1200m,").as_bytes())?;
        anew()?;
        until_said(cluster, "ReservationHeld", &refused("patch", "pods/resize")).map(drop)
    })?;
    wait_for("the reservation pod to be resized", PATIENCE, || {
        let found = reservation(cluster)?.context("there is none")?;
        let requests = &found["spec"]["containers"][0]["resources"]["requests"];
        ensure!(requests["cpu"] == "1200m", "it requests {requests}");
        Ok(Some(()))
    })?;
    for (verb, what, part, namespace) in [
        ("get", "secrets", "", NAMESPACE),
        ("create", "serviceaccounts", "token", NAMESPACE),
        ("create", "pods", "exec", NAMESPACE),
        ("create", "pods", "eviction", NAMESPACE),
        ("update", "pods", "", NAMESPACE),
        ("list", "pods", "", "default"),
        ("create", "pods", "", "kube-system"),
        ("patch", "nodes", "", "default"),
        ("delete", "nodes", "", "default"),
    ] {
        let part_of = format!("--subresource={part}");
        let asked = ["auth", "can-i", verb, what, &part_of, "-n", namespace, "--as", "kvmlet:shared"];
        let said = command::text(&cluster.kubectl_output(&asked)?.stdout);
        ensure!(said == "no", "may it {verb} {what}/{part} in {namespace}? {said}");
    }
    Ok(())
}
