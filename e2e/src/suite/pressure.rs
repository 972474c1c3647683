//! A host that runs out of room.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test, daemon,
    workload::{PATIENCE, Place, STAY, condition, container, pod, sh, with, within},
};
use crate::{Cluster, Host, wait_for};

pub(super) const TESTS: &[Test] = &[Test {
    name: "a node short of disk removes images that no pod needs, then evicts the pod of the lowest priority, and takes no new ones meanwhile",
    hosts: 1,
    kvmlet: true,
    run: short_of_disk,
}];

const MIB: u64 = 1 << 20;
/// How much a host keeps free beside what the test fills.
const LEVEL: u64 = 512 * MIB;
/// Names and values of priority classes.
const CLASSES: [(&str, u32); 2] = [("kvmlet-e2e-low", 10), ("kvmlet-e2e-high", 1000)];
/// The node lifecycle controller's taint.
const TAINT: &str = "node.kubernetes.io/disk-pressure";

fn short_of_disk(cluster: &Cluster) -> Result<()> {
    let classes = CLASSES.map(
        |(name, value)| json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value}),
    );
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": classes}).to_string())?;
    let shown = within(cluster, "pressure-disk", |place| {
        let written = |name: &str, class: &str, mebibytes: u32| {
            let script = format!("dd if=/dev/zero of=/written bs=1M count={mebibytes} 2>/dev/null; sync; echo written; {STAY}");
            with(pod(name, sh(&script)), &[("/spec/priorityClassName", json!(class))])
        };
        // It is not who wrote the most that goes.
        place.create(&[written("low", CLASSES[0].0, 48), written("high", CLASSES[1].0, 80)])?;
        let unneeded = json!({"image": "nginx:latest", "command": ["nginx", "-v"]});
        place.create(&[with(pod("once", unneeded), &[("/spec/restartPolicy", json!("Never"))])])?;
        place.until_phase("once", "Succeeded")?;
        place.kubectl(&["delete", "pod", "once", "--timeout=110s"])?;
        for name in ["low", "high"] {
            place.until_says(name, "written")?;
        }
        let config = format!(
            "evictionHard: {{nodefs.available: {LEVEL}}}\nevictionPressureTransitionPeriod: 20s\nimages: {{gc: {{minAgeSeconds: 0}}}}\n"
        );
        let host = cluster.host(0)?;
        let seen = daemon::with_config(cluster, &config, || {
            images_go(place, host)?;
            a_pod_goes(place, host)
        });
        host.sh("rm -f /var/lib/kvmlet/fill*")?;
        seen
    });
    cluster.kubectl(&["delete", "priorityclass", CLASSES[0].0, CLASSES[1].0])?;
    shown
}

/// Fills the host's disk until this much is missing to what it keeps free.
fn fill(host: &Host, missing: u64) -> Result<()> {
    let free = host.sh("df -B1 --output=avail /var/lib/kvmlet | tail -n 1")?;
    let free: u64 = free.trim().parse().context("measure the disk")?;
    let bytes = (free + missing).checked_sub(LEVEL).context("the disk is too full for this test")?;
    host.sh(&format!("fallocate -l {bytes} $(mktemp /var/lib/kvmlet/fillXXXXXX)"))
        .map(drop)
}

/// Waits until the Node says whether it is short of disk, and has the taint or not; answers with it.
fn until_short(place: &Place<'_>, host: &Host, is_short: bool) -> Result<Value> {
    wait_for(&format!("the node's DiskPressure to be {is_short}"), PATIENCE, || {
        let node = place.cluster.kubectl_json(&["get", "node", &host.name])?;
        let said = condition(&node, "DiskPressure");
        let (status, reason) = if is_short {
            ("True", "KubeletHasDiskPressure")
        } else {
            ("False", "KubeletHasNoDiskPressure")
        };
        let taints = node["spec"]["taints"].as_array().into_iter().flatten();
        let tainted = taints.into_iter().any(|taint| taint["key"] == TAINT);
        ensure!(
            said["status"] == status && said["reason"] == reason && tainted == is_short,
            "{said}, tainted: {tainted}"
        );
        Ok(Some(node))
    })
}

fn images_go(place: &Place<'_>, host: &Host) -> Result<()> {
    wait_for("the Node to list the image", Duration::from_secs(60), || {
        let images = until_short(place, host, false)?["status"]["images"].to_string();
        ensure!(images.contains("nginx:latest"), "images are {images}");
        Ok(Some(()))
    })?;
    fill(host, 4 * MIB)?;
    let node = until_short(place, host, true)?;
    ensure!(
        condition(&node, "DiskPressure")["message"] == "kubelet has disk pressure",
        "{}",
        node["status"]
    );
    let node = until_short(place, host, false)?;
    ensure!(
        !node["status"]["images"].to_string().contains("nginx:latest"),
        "{}",
        node["status"]["images"]
    );
    for name in ["low", "high"] {
        ensure!(
            place.get(name)?["status"]["phase"] == "Running",
            "{name} went although images were enough"
        );
    }
    Ok(())
}

fn a_pod_goes(place: &Place<'_>, host: &Host) -> Result<()> {
    fill(host, 24 * MIB)?;
    let low = place.until_phase("low", "Failed")?;
    let status = &low["status"];
    let message = status["message"].as_str().unwrap_or_default();
    let words = format!(
        "The node was low on resource: ephemeral-storage. Threshold quantity: {}Mi, available: ",
        LEVEL / MIB
    );
    ensure!(status["reason"] == "Evicted" && message.starts_with(&words), "{status}");
    ensure!(
        message.contains(". Pod low was using ") && message.ends_with(", request is 0, has larger consumption of ephemeral-storage. "),
        "{status}"
    );
    let disruption = condition(&low, "DisruptionTarget");
    ensure!(
        disruption["status"] == "True" && disruption["reason"] == "TerminationByKubelet" && disruption["message"] == message,
        "{status}"
    );
    ensure!(!container(&low, "main")["state"]["terminated"].is_null(), "{status}");
    place.until_event("low", "Evicted", message.trim_end())?;
    until_short(place, host, true)?;
    place.create(&[with(pod("late", sh(STAY)), &[("/spec/nodeName", json!(host.name))])])?;
    let late = place.until_phase("late", "Failed")?;
    let refusal = "Pod was rejected: The node had condition: [DiskPressure]. ";
    ensure!(
        late["status"]["reason"] == "Evicted" && late["status"]["message"] == refusal,
        "{}",
        late["status"]
    );
    until_short(place, host, false)?;
    let high = place.until_ready("high")?;
    ensure!(container(&high, "main")["restartCount"] == 0, "{}", high["status"]);
    let selector = format!("involvedObject.kind=Node,involvedObject.name={}", host.name);
    wait_for("the node's events", Duration::from_secs(60), || {
        let events = place
            .cluster
            .kubectl(&["get", "events", "-n", "default", "--field-selector", &selector])?;
        let told = [
            "NodeHasDiskPressure",
            "NodeHasNoDiskPressure",
            "Attempting to reclaim ephemeral-storage",
        ];
        ensure!(told.iter().all(|words| events.contains(words)), "{events}");
        Ok(Some(()))
    })
}
