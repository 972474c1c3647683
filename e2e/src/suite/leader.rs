//! The replica of the webhook that leads is killed: another one does its work.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    admission::{LABEL, SYSTEM, plain, with_webhook},
    daemon,
    profiles::tried,
    workload::{PATIENCE, Place, in_namespace, with},
};
use crate::{Cluster, Host, wait_for};

pub(super) const TESTS: &[Test] = &[Test {
    name: "when the webhook's leader is killed, another replica leads and lets a pod overflow, and the first one does not lead when it is back",
    hosts: 2,
    kvmlet: true,
    run: killed,
}];

/// Keeps a pod from the scheduler.
const GATE: &str = "kvmlet.io/e2e";
/// A lease's duration and more.
const SOON: Duration = Duration::from_secs(60);
/// The API server keeps up to 25 connections to a webhook, and each to a replica that died without a word costs it one review and `timeoutSeconds`, 5.
const FORGOTTEN: Duration = Duration::from_secs(180);

/// Who leads, and how many led before.
#[derive(Debug, PartialEq, Eq)]
struct Lead {
    holder: String,
    transitions: i64,
}

/// Waits until there is a leader that is not `other`.
fn leader(cluster: &Cluster, other: &str) -> Result<Lead> {
    wait_for("a replica to lead", SOON, || {
        let lease = cluster.kubectl_json(&["-n", SYSTEM, "get", "lease", "kvmlet-webhook"])?;
        let spec = &lease["spec"];
        let holder = spec["holderIdentity"].as_str().unwrap_or_default();
        ensure!(!holder.is_empty() && holder != other, "the lease is {spec}");
        let transitions = spec["leaseTransitions"].as_i64().unwrap_or_default();
        let holder = holder.to_owned();
        Ok(Some(Lead { holder, transitions }))
    })
}

/// Whether it may go to a virtual node.
fn is_let_in(pod: &Value) -> bool {
    let tolerations = pod["spec"]["tolerations"].as_array().into_iter().flatten();
    tolerations.into_iter().any(|one| one["key"] == "virtual-kubelet.io/provider")
}

fn killed(cluster: &Cluster) -> Result<()> {
    with_webhook(cluster, || {
        in_namespace(cluster, "leader", |place| {
            cluster.kubectl(&["label", "namespace", &place.name, LABEL, "kvmlet.io/burst-policy=normalNodePrefer"])?;
            let system = Place {
                cluster,
                name: SYSTEM.into(),
            };
            let first = leader(cluster, "")?;
            // It is made while both replicas answer, and the scheduler sees it when its leader is dead.
            place.create(&[with(plain("waits"), &[("/spec/schedulingGates", json!([{"name": GATE}]))])])?;
            ensure!(!is_let_in(&place.get("waits")?), "it may go to a virtual node at once");

            let pod = system.get(&first.holder)?;
            let text = |value: &Value| value.as_str().map(str::to_owned).context("the leader has no node or UID");
            let (node, uid) = (text(&pod["spec"]["nodeName"])?, text(&pod["metadata"]["uid"])?);
            let mut hosts = cluster.hosts.iter();
            let host = hosts.find(|host| host.name == node).with_context(|| format!("no host is {node}"))?;
            // Its daemon would make it another machine, with the same name.
            host.stop_daemon()?;
            let taken_over = after_death(place, host, &uid, &first);
            host.start_daemon()?;
            let second = taken_over?;
            cluster.wait_until_nodes_are_ready(PATIENCE)?;
            place.until_ready("waits")?;
            let restarted = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64() > Some(0);
            system.until(&first.holder, "be started again", restarted)?;
            system.until_ready(&first.holder)?;
            let now = leader(cluster, "")?;
            ensure!(now == second, "{second:?} led, and now {now:?}");
            answered(cluster, &place.name)
        })
    })
}

/// Kills the leader's machine; who leads then, when it has let the pod in.
fn after_death(place: &Place<'_>, host: &Host, uid: &str, first: &Lead) -> Result<Lead> {
    host.sh(&format!("kill -KILL {}", daemon::process(host, uid)?))?;
    let patch = json!([{"op": "remove", "path": "/spec/schedulingGates"}]).to_string();
    place.kubectl(&["patch", "pod", "waits", "--type=json", "-p", &patch])?;
    let second = leader(place.cluster, &first.holder)?;
    ensure!(second.transitions == first.transitions + 1, "{first:?} led, then {second:?}");
    place.until("waits", "be let onto virtual nodes", is_let_in)?;
    Ok(second)
}

/// Waits until the API server, which asks by connections that it kept, is answered each time.
fn answered(cluster: &Cluster, namespace: &str) -> Result<()> {
    wait_for("reviews to be answered", FORGOTTEN, || {
        for _ in 0..6 {
            let (is_let_in, said) = tried(cluster, namespace, "a=b")?;
            ensure!(is_let_in, "{said}");
        }
        Ok(Some(()))
    })
}
