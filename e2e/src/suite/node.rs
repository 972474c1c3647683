//! The Node object: what schedulers and people are told about a host.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    workload::{STAY, condition, pod, sh, with, within},
};
use crate::{Cluster, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a node says truly what it is, what it has and how it is",
        hosts: 1,
        kvmlet: true,
        run: object,
    },
    Test {
        name: "a node's lease is its own and is renewed",
        hosts: 1,
        kvmlet: true,
        run: lease,
    },
    Test {
        name: "a node's port lists its pods with their status, and those of them that run",
        hosts: 1,
        kvmlet: true,
        run: listed,
    },
];

fn listed(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    within(cluster, "node-pods", |place| {
        let over = with(pod("over", sh("exit 0")), &[("/spec/restartPolicy", json!("Never"))]);
        place.create(&[over, pod("runs", sh(STAY))])?;
        place.until_phase("over", "Succeeded")?;
        place.until_ready("runs")?;
        let list = |path: &str| -> Result<Vec<(String, String)>> {
            let text = cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/{path}", host.name)])?;
            let list: Value = serde_json::from_str(&text).with_context(|| format!("read {path}"))?;
            ensure!(list["kind"] == "PodList" && list["apiVersion"] == "v1", "{path}: {text}");
            let items = list["items"].as_array().context("no items")?;
            let own = items.iter().filter(|item| item["metadata"]["namespace"] == place.name.as_str());
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            Ok(own
                .map(|item| (text(&item["metadata"]["name"]), text(&item["status"]["phase"])))
                .collect())
        };
        let mut all = list("pods")?;
        all.sort();
        ensure!(
            all == [("over".into(), "Succeeded".into()), ("runs".into(), "Running".into())],
            "pods: {all:?}"
        );
        let running: Vec<_> = list("runningpods/")?.into_iter().map(|(name, _)| name).collect();
        ensure!(running == ["runs"], "runningpods: {running:?}");
        Ok(())
    })
}

fn object(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let node = cluster.kubectl_json(&["get", "node", &host.name])?;
    let labels = &node["metadata"]["labels"];
    for (label, value) in [
        ("type", "virtual-kubelet"),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", "amd64"),
        ("kubernetes.io/hostname", &host.name),
        ("node.kubernetes.io/exclude-from-external-load-balancers", "true"),
    ] {
        ensure!(labels[label] == value, "label {label}: {labels}");
    }
    let taints = node["spec"]["taints"].as_array().context("the node has no taint")?;
    ensure!(
        taints.iter().map(|t| (&t["key"], &t["effect"])).collect::<Vec<_>>()
            == [(&json!("virtual-kubelet.io/provider"), &json!("NoSchedule"))],
        "{taints:?}"
    );
    let status = &node["status"];
    ensure!(status["features"]["supplementalGroupsPolicy"] == true, "{}", status["features"]);
    let handlers = status["runtimeHandlers"].as_array().context("the node names no handlers")?;
    for name in ["", "kvmlet"] {
        // An empty name is left out by the API server.
        let handler = handlers.iter().find(|handler| handler["name"].as_str().unwrap_or_default() == name);
        ensure!(
            handler.is_some_and(|handler| handler["features"]["recursiveReadOnlyMounts"] == true),
            "{handlers:?}"
        );
    }
    ensure!(
        status["addresses"] == json!([{"type": "InternalIP", "address": host.address}, {"type": "Hostname", "address": host.name}]),
        "{}",
        status["addresses"]
    );
    ensure!(
        status["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 10250,
        "{}",
        status["daemonEndpoints"]
    );

    // Measured on the host by other means.
    let cpus: u64 = host.sh("nproc")?.parse().context("read nproc")?;
    let memory: u64 = host
        .sh("awk '/^MemTotal/ {printf \"%.0f\", $2 * 1024}' /proc/meminfo")?
        .parse()
        .context("read MemTotal")?;
    let disk: u64 = host
        .sh("stat -f -c '%b %S' /var/lib/kvmlet | awk '{printf \"%.0f\", $1 * $2}'")?
        .parse()
        .context("read the disk's size")?;
    let (capacity, allocatable) = (&status["capacity"], &status["allocatable"]);
    ensure!(
        capacity["cpu"].as_str().and_then(|text| text.parse().ok()) == Some(cpus),
        "{cpus} processors: {capacity}"
    );
    for (resource, there) in [("memory", memory), ("ephemeral-storage", disk)] {
        let (all, usable) = (bytes(&capacity[resource])?, bytes(&allocatable[resource])?);
        ensure!(all == there, "{there} bytes of {resource}: {capacity}");
        ensure!(
            usable < all && usable > all / 2,
            "nothing of {resource} is kept for the host: {allocatable}"
        );
    }
    ensure!(capacity["pods"] == "110" && allocatable["pods"] == "110", "{capacity}");

    let logs = format!("/api/v1/nodes/{}/proxy/logs/", host.name);
    let listed = cluster.kubectl(&["get", "--raw", &logs])?;
    ensure!(listed.contains(">kvmlet.log</a>"), "the host's logs: {listed}");
    let log = cluster.kubectl(&["get", "--raw", &format!("{logs}kvmlet.log")])?;
    ensure!(log.contains("registering the node"), "{log}");

    let info = &status["nodeInfo"];
    for (field, command) in [
        ("kernelVersion", "uname -r"),
        ("bootID", "cat /proc/sys/kernel/random/boot_id"),
        ("osImage", ". /etc/os-release; echo $PRETTY_NAME"),
    ] {
        let there = host.sh(command)?;
        ensure!(info[field] == there, "{field} is {there:?}: {info}");
    }
    let version = cluster.kubectl_json(&["version"])?;
    let minor = |text: &Value| text.as_str().and_then(|t| t.split('.').nth(1)?.parse::<u32>().ok());
    let (server, own) = (minor(&version["serverVersion"]["gitVersion"]), minor(&info["kubeletVersion"]));
    ensure!(
        own.zip(server).is_some_and(|(own, server)| own <= server && own + 3 >= server),
        "kubeletVersion is out of the skew of {version}: {info}"
    );
    ensure!(
        info["containerRuntimeVersion"].as_str().is_some_and(|v| v.starts_with("kvmlet://")),
        "{info}"
    );

    let is_guest = host.sh("grep -qw hypervisor /proc/cpuinfo && echo True || echo False")?;
    let label = &labels["nested-virtualization"];
    ensure!((*label == "enabled") == (is_guest == "True"), "{is_guest}: {labels}");
    let cost = condition(&node, "Nested")["message"].as_str().unwrap_or_default();
    ensure!(
        cost.contains("itself a guest") == (is_guest == "True") && cost.contains("guest"),
        "{is_guest}: {cost}"
    );
    for (kind, value) in [
        ("Nested", is_guest.as_str()),
        ("Ready", "True"),
        ("MemoryPressure", "False"),
        ("DiskPressure", "False"),
        ("PIDPressure", "False"),
    ] {
        let found = condition(&node, kind);
        ensure!(found["status"] == value, "{kind}: {found}");
        ensure!(
            found["reason"].is_string() && found["lastHeartbeatTime"].is_string(),
            "{kind}: {found}"
        );
    }
    Ok(())
}

/// A quantity as this node writes it: a number with a binary unit, or none.
pub(super) fn bytes(quantity: &Value) -> Result<u64> {
    let text = quantity.as_str().context("a quantity is missing")?;
    let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        unit => anyhow::bail!("{text} has a unit {unit:?}"),
    };
    Ok(digits.parse::<u64>().with_context(|| format!("read {text}"))? * factor)
}

fn lease(cluster: &Cluster) -> Result<()> {
    let name = cluster.host(0)?.name.as_str();
    let get = || cluster.kubectl_json(&["get", "lease", name, "-n", "kube-node-lease"]);
    let node = cluster.kubectl_json(&["get", "node", name])?;
    let first = get()?;
    ensure!(
        first["spec"]["holderIdentity"] == name && first["spec"]["leaseDurationSeconds"] == 40,
        "{first}"
    );
    let owner = &first["metadata"]["ownerReferences"][0];
    ensure!(owner["kind"] == "Node" && owner["uid"] == node["metadata"]["uid"], "{first}");
    wait_for("the lease to be renewed in time", Duration::from_secs(25), || {
        Ok((get()?["spec"]["renewTime"] != first["spec"]["renewTime"]).then_some(()))
    })
}
