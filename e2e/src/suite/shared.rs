//! A host that has a real kubelet and containerd beside kvmlet, and boots systemd: what it has is counted once, and who cordons or drains the kubelet's Node
//! does so to the machines.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    daemon::{self, CONFIG, Identity},
    reserved::{NAMESPACE, cordons, is_cordoned, name, reservation, until_cordoned, until_offers, until_said, with_manifests},
    workload::{PATIENCE, Place, STAY, pod, sh, with},
};
use crate::{Cluster, host_config, kubelet, node, paths::WORKER, wait_for};

pub(super) const TESTS: &[Test] = &[Test {
    name: "a kubelet and kvmlet share a host: neither gives what the other has, and who cordons or drains the kubelet's Node does so to the machines",
    hosts: 1,
    kvmlet: true,
    run: shared,
}];

/// Processors that are reserved of the two that the kubelet's Node has.
const RESERVED: &str = "1";

/// Does what `body` does on a host with a kubelet and kvmlet, whose reservation is held.
fn sharing(cluster: &Cluster, namespace: &str, body: impl FnOnce(&Place<'_>) -> Result<()>) -> Result<()> {
    let (program, guest) = (cluster.kvmlet()?, cluster.guest()?);
    let apart = cluster.apart_in_turn()?;
    let (host, here) = (apart.host()?, &apart.cluster);
    here.create_namespace(namespace)?;
    let place = Place {
        cluster: here,
        name: namespace.into(),
    };
    let story = || -> Result<()> {
        kubelet::start(here)?;
        node::install(host, &program, &guest)?;
        node::configure(&here.state, host)?;
        configure(here)?;
        daemon::restart(here)?;
        here.wait_until_nodes_are_ready(PATIENCE)?;
        until_said(here, "ReservationHeld", WORKER)?;
        body(&place)
    };
    let told = story().with_context(|| {
        let pods = here
            .kubectl(&["get", "pods", "-A", "-o", "wide"])
            .unwrap_or_else(|error| format!("({error:#})"));
        let nodes = here
            .kubectl(&["describe", "nodes", WORKER, &host.name])
            .unwrap_or_else(|error| format!("({error:#})"));
        let log = host.daemon_log(60).unwrap_or_else(|error| format!("({error:#})"));
        format!("{pods}\n{nodes}\n{}\nkvmlet: {log}\nwhat failed", kubelet::journal(host))
    });
    let cleared = clear(&place);
    told.and(cleared)
}

/// kvmlet's configuration beside the kubelet.
fn configure(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let own = host_config::kvmlet(host).replace("port: 10250\n", "");
    let text = own + &host_config::shared(WORKER, RESERVED);
    host.put(CONFIG, 0o644, text.as_bytes())
}

/// Nobody else takes away what is of a host that is off.
fn clear(place: &Place<'_>) -> Result<()> {
    let cluster = place.cluster;
    // It may never have begun.
    let _ = cluster.host(0)?.kill_daemon();
    for namespace in [&place.name, NAMESPACE] {
        cluster.kubectl(&["-n", namespace, "delete", "deployments", "--all"])?;
        cluster.kubectl(&["-n", namespace, "delete", "pods", "--all", "--force", "--grace-period=0"])?;
    }
    cluster.kubectl(&["delete", "node", "--ignore-not-found", WORKER, &cluster.host(0)?.name])?;
    cluster.kubectl(&["delete", "namespace", &place.name, "--wait=false"]).map(drop)
}

/// A pod for the kubelet, that requests so many processors.
fn ordinary(name: &str, cpu: &str) -> Value {
    let mut pod = with(
        pod(name, sh(STAY)),
        &[
            ("/spec/nodeSelector", json!({"kubernetes.io/hostname": WORKER})),
            ("/spec/containers/0/resources", json!({"requests": {"cpu": cpu}})),
        ],
    );
    pod["spec"].as_object_mut().expect("a pod has a spec").remove("tolerations");
    pod
}

/// A pod for kvmlet, that requests so many processors.
fn ours(name: &str, cpu: &str) -> Value {
    let amounts = json!({"requests": {"cpu": cpu}, "limits": {"cpu": "1", "memory": "64Mi"}});
    with(pod(name, sh(STAY)), &[("/spec/containers/0/resources", amounts)])
}

fn shared(cluster: &Cluster) -> Result<()> {
    with_manifests(cluster, || {
        sharing(cluster, "shared", |place| {
            capacity(place)?;
            drained(place)
        })
    })
}

fn capacity(place: &Place<'_>) -> Result<()> {
    let (cluster, host) = (place.cluster, place.cluster.host(0)?);
    let nodes = [cluster.kubectl_json(&["get", "node", WORKER])?, until_offers(cluster, RESERVED)?];
    let [worker, own] = nodes.map(|node| node["status"].clone());
    ensure!(
        worker["allocatable"]["cpu"] == "2",
        "the kubelet's Node has {}",
        worker["allocatable"]
    );
    ensure!(own["allocatable"]["memory"] == "1Gi", "ours has {}", own["allocatable"]);
    let port = |status: &Value| status["daemonEndpoints"]["kubeletEndpoint"]["Port"].clone();
    ensure!(
        (port(&worker), port(&own)) == (json!(10250), json!(10260)),
        "they have the same port"
    );

    // One processor is the kubelet's, one is ours, and neither gives the other's.
    place.create(&[ordinary("fits", "600m"), ours("here", "900m")])?;
    for (name, words) in [("fits", "kubelet"), ("here", "machine")] {
        place.until_ready(name)?;
        let said = place.exec(name, &format!("echo {words}"))?;
        ensure!(said == words, "{name} says {said:?}");
    }
    place.create(&[ordinary("not-there", "600m"), ours("not-here", "200m")])?;
    for name in ["not-there", "not-here"] {
        place.until_event(name, "FailedScheduling", "Insufficient cpu")?;
    }
    let kernels = ["fits", "here"].map(|name| place.exec(name, "cat /proc/version"));
    let [theirs, machine] = kernels;
    ensure!(theirs? != machine?, "both run on one kernel");
    let limits = host.sh("cd /sys/fs/cgroup/kvmlet.slice && cat cpu.max memory.max")?;
    ensure!(limits == "100000 100000\n1610612736", "machines together may use {limits}");
    let before = Identity::of(place, "here")?;

    // Smaller: what is offered is smaller at once, and what runs goes on.
    let smaller =
        json!({"spec": {"containers": [{"name": "reservation", "resources": {"requests": {"cpu": "700m"}, "limits": {"cpu": "700m"}}}]}});
    let arguments = ["patch", "pod", &name(cluster)?, "--subresource=resize", "-p", &smaller.to_string()];
    cluster.kubectl(&[&["-n", NAMESPACE], &arguments[..]].concat())?;
    until_offers(cluster, "700m")?;
    let limits = host.sh("cat /sys/fs/cgroup/kvmlet.slice/cpu.max")?;
    ensure!(limits == "90000 100000", "what runs has 900m, and machines may use {limits}");
    place.until_ready("not-there")?;
    place.kubectl(&["delete", "pod", "fits", "not-there", "not-here", "--timeout=110s"])?;

    // Deleted: nothing is offered, what runs goes on and keeps its part until it has ended; then there is another.
    let uid = reservation(cluster)?.context("there is no reservation")?["metadata"]["uid"].clone();
    cluster.kubectl(&["-n", NAMESPACE, "delete", "pod", &name(cluster)?, "--wait=false"])?;
    until_said(cluster, "ReservationEnding", "")?;
    until_offers(cluster, "0")?;
    let still = reservation(cluster)?.context("the reservation did not wait for what runs on it")?;
    ensure!(still["metadata"]["uid"] == uid, "it is another one");
    ensure!(Identity::of(place, "here")? == before, "the pod is not the one it was");
    place.kubectl(&["delete", "pod", "here", "--timeout=110s"])?;
    until_said(cluster, "ReservationHeld", "")?;
    until_offers(cluster, RESERVED)?;
    let other = reservation(cluster)?.context("there is no reservation")?["metadata"]["uid"].clone();
    ensure!(other != uid, "the reservation was not made anew");
    place.create(&[ours("again", "900m")])?;
    place.until_ready("again")?;
    // A kubelet removes logs of pods that it does not know.
    let logs = host.sh("ls -d /var/log/kvmlet/pods/*_again_*/main/0.log")?;
    ensure!(logs.lines().count() == 1, "{logs}");
    place
        .kubectl(&["delete", "pod", "again", "--grace-period=1", "--timeout=110s"])
        .map(drop)
}

fn drained(place: &Place<'_>) -> Result<()> {
    let (cluster, host) = (place.cluster, place.cluster.host(0)?);
    cordons(cluster, WORKER)?;

    let slow = sh("trap 'sleep 4; exit 0' TERM; while :; do sleep 1 & wait $!; done");
    let deployment = |name: &str, pod: Value| {
        let labels = json!({"app": name});
        let mut template = json!({"metadata": {"labels": labels}, "spec": pod["spec"]});
        template["spec"]["terminationGracePeriodSeconds"] = json!(30);
        if let Some(here) = template["spec"]
            .pointer_mut("/nodeSelector/kubernetes.io~1hostname")
            .filter(|here| **here == "here")
        {
            *here = host.name.as_str().into();
        }
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
                "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}})
    };
    place.create(&[
        deployment("theirs", ordinary("theirs", "100m")),
        deployment("ours", pod("ours", slow)),
    ])?;
    for name in ["theirs", "ours"] {
        place.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=115s"])?;
    }
    let name = place.kubectl(&["get", "pods", "-l", "app=ours", "-o", "jsonpath={.items[*].metadata.name}"])?;
    let machine = Identity::of(place, &name)?.process;
    cluster.kubectl(&["drain", WORKER, "--ignore-daemonsets", "--timeout=110s"])?;
    // kubectl has waited for the reservation, and the reservation for the machines.
    let alive = host.sh(&format!("kill -0 {machine} 2>/dev/null && echo alive; true"))?;
    ensure!(alive.is_empty(), "the drain has ended before machine {machine}");
    ensure!(is_cordoned(cluster, &host.name)?, "pods come back to where they were");
    let events = cluster.kubectl(&["get", "events", "--field-selector", &format!("involvedObject.name={}", host.name)])?;
    ensure!(events.contains("NodeDraining"), "events of our Node: {events}");
    until_offers(cluster, "0")?;
    until_said(cluster, "NodeCordoned", WORKER)?;

    cluster.kubectl(&["uncordon", WORKER])?;
    until_cordoned(cluster, &host.name, false)?;
    until_said(cluster, "ReservationHeld", "")?;
    wait_for("pods of both to run again", Duration::from_secs(120), || {
        for name in ["theirs", "ours"] {
            let found = place.kubectl(&["get", "deployment", name, "-o", "jsonpath={.status.readyReplicas}"])?;
            ensure!(found == "1", "{name} has {found:?}");
        }
        Ok(Some(()))
    })
}
