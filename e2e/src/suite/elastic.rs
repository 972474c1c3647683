//! Hosts that come and go: one joins with nothing but a token, one leaves without the loss of a pod, and one becomes smaller and larger as it runs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    Test,
    certificates::{BOOTSTRAP, WRITTEN, bootstrap_kubeconfig, requests_alone, rights, take_rights_back},
    daemon::{self, Identity, with_config},
    node::bytes,
    workload::{Follower, GOODBYE, PATIENCE, Place, STAY, pod, says_goodbye, sh, with, within},
};
use crate::{
    Cluster, Host, HostKind,
    agent::{ServiceState, ServiceStatus},
    host_config, node,
    paths::manifest,
    wait_for,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a host that has nothing but a bootstrap token joins and runs a pod that waited for it",
        hosts: 1,
        kvmlet: true,
        run: joins,
    },
    Test {
        name: "a host whose pods cannot leave says who stays and why, ends with an error or at a second word, and leaves them running",
        hosts: 1,
        kvmlet: true,
        run: stuck,
    },
    Test {
        name: "a host's processors and memory that come and go are the Node's without a restart",
        hosts: 1,
        kvmlet: true,
        run: capacity,
    },
    Test {
        name: "a host told to leave drains within the disruption budget, its pods end in order, and its Node goes",
        hosts: 2,
        kvmlet: true,
        run: drains,
    },
];

/// A state directory without images, template and certificates.
const FRESH: &str = "/var/lib/kvmlet-joins";

fn joins(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let _requests = requests_alone();
    within(cluster, "elastic-joins", |place| {
        let shown = joined(place);
        // The daemon that has a pod must be the one that ends it.
        let ended = place.kubectl(&["delete", "pods", "--all", "--timeout=100s"]);
        host.stop_daemon()?;
        // A template may have been in the making, and whoever comes next looks elsewhere.
        host.sh(&format!("{} cleanup && rm -rf {FRESH} {WRITTEN} {BOOTSTRAP}", node::PROGRAM))?;
        cluster.kubectl(&["delete", "node", &host.name, "--ignore-not-found"])?;
        host.put(daemon::CONFIG, 0o644, host_config::kvmlet(host).as_bytes())?;
        daemon::restart(cluster)?;
        take_rights_back(cluster)?;
        cluster.wait_until_nodes_are_ready(PATIENCE)?;
        shown.and(ended.map(drop))
    })
}

fn joined(place: &Place<'_>) -> Result<()> {
    let (cluster, host) = (place.cluster, place.cluster.host(0)?);
    cluster.apply(&rights().to_string())?;
    host.stop_daemon()?;
    cluster.kubectl(&["delete", "node", &host.name])?;
    let config = host_config::kvmlet(host).replace(
        "\nkubeconfig: /etc/kvmlet/kubeconfig\n",
        &format!(
            "\nkubeconfig: {WRITTEN}\nbootstrapKubeconfig: {BOOTSTRAP}\nstateDir: {FRESH}\nproviderID: rig://rack/{}\n\
             labels: {{topology.kubernetes.io/zone: rack, node.kubernetes.io/instance-type: small}}\n",
            host.name
        ),
    );
    host.put(BOOTSTRAP, 0o600, bootstrap_kubeconfig(cluster)?.as_bytes())?;
    host.put(daemon::CONFIG, 0o644, config.as_bytes())?;
    let zone = json!({"topology.kubernetes.io/zone": "rack", "kubernetes.io/hostname": host.name});
    place.create(&[with(pod("first", sh(STAY)), &[("/spec/nodeSelector", zone)])])?;
    place.until_event("first", "FailedScheduling", "")?;

    let begun = Instant::now();
    host.start_daemon()?;
    let until = |what: &str, condition: &str| {
        let arguments = ["wait", condition, what, "--timeout=115s"];
        place.kubectl(&arguments).map(|_| begun.elapsed().as_secs_f64())
    };
    let node = format!("node/{}", host.name);
    let there = until(&node, "--for=create")?;
    let ready = until(&node, "--for=condition=Ready")?;
    let runs = until("pod/first", "--for=jsonpath={.status.phase}=Running")?;
    println!(
        "  from the start of the process, on a host without an image: Node {there:.1} s, Ready {ready:.1} s, first pod Running {runs:.1} s"
    );
    let found = cluster.kubectl_json(&["get", "node", &host.name])?;
    ensure!(
        found["spec"]["providerID"] == format!("rig://rack/{}", host.name),
        "{}",
        found["spec"]
    );
    let type_of = &found["metadata"]["labels"]["node.kubernetes.io/instance-type"];
    ensure!(*type_of == "small", "{}", found["metadata"]["labels"]);
    place.until_ready("first").map(drop)
}

/// Whether the scheduler is to leave the host alone.
pub(super) fn cordoned(cluster: &Cluster, host: &Host) -> Result<bool> {
    let found = cluster.kubectl_json(&["get", "node", &host.name])?;
    Ok(found["spec"]["unschedulable"] == true)
}

/// Asks the daemon to end as a service manager would.
fn stop(host: &Host, within: Duration) -> Result<ServiceStatus> {
    host.stop_service(node::KVMLET, Signal::SIGTERM, within)
}

fn stuck(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    with_config(cluster, "drainOnTermination: true\ndrainTimeoutSeconds: 10\n", || {
        within(cluster, "elastic-stuck", |place| {
            place.create(&[pod("alone", sh(STAY))])?;
            place.until_ready("alone")?;
            let before = Identity::of(place, "alone")?;
            let ended = stop(host, Duration::from_secs(90))?;
            ensure!(matches!(ended.state, ServiceState::Exited(code) if code != 0), "{ended:?}");
            let said = host.daemon_log(60)?;
            for words in [
                &format!("leaving: {}/alone has no controller", place.name),
                "not drained in 10 s (drainTimeoutSeconds)",
            ] {
                ensure!(said.contains(words), "no {words:?} in {said}");
            }
            ensure!(cordoned(cluster, host)?, "the Node takes pods");
            daemon::process(host, &before.uid).context("a machine must not end with the daemon")?;
            daemon::restart(cluster)?;
            wait_for("the Node to take pods again", PATIENCE, || {
                Ok((!cordoned(cluster, host)?).then_some(()))
            })?;
            place.until_ready("alone")?;
            ensure!(Identity::of(place, "alone")? == before, "the pod is not the one it was");

            let pid = host.daemon_status()?.pid.context("the daemon has no process")?;
            host.sh(&format!("kill -TERM {pid}"))?;
            wait_for("the Node to be cordoned", PATIENCE, || Ok(cordoned(cluster, host)?.then_some(())))?;
            let ended = stop(host, Duration::from_secs(60))?;
            let said = host.daemon_log(20)?;
            ensure!(
                ended.state == ServiceState::Exited(0) && said.contains("the daemon ends before the node is drained"),
                "{ended:?}: {said}"
            );
            daemon::restart(cluster)?;
            place.until_ready("alone")?;
            ensure!(Identity::of(place, "alone")? == before, "the pod is not the one it was");
            // The configuration goes by a restart, which must not drain.
            place.kubectl(&["delete", "pod", "alone", "--timeout=100s"]).map(drop)
        })
    })
}

/// The Node's capacity of this resource becomes this many.
fn until_has(cluster: &Cluster, host: &Host, resource: &str, wanted: u64) -> Result<()> {
    wait_for(&format!("the Node to have {wanted} of {resource}"), PATIENCE, || {
        let found = cluster.kubectl_json(&["get", "node", &host.name])?;
        let capacity = &found["status"]["capacity"];
        ensure!(bytes(&capacity[resource])? == wanted, "it has {capacity}");
        Ok(Some(()))
    })
}

fn capacity(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let pid = host.daemon_status()?.pid.context("the daemon has no process")?;
    let told = || -> Result<u32> {
        let said = host.sh(&format!(
            "grep -c 'the host has more or less than before' {} || true",
            node::KVMLET_LOG
        ))?;
        said.parse().with_context(|| format!("read {said:?}"))
    };
    let told_before = told()?;
    let all = host.sh(&format!("taskset -p {pid} | sed 's/.*: //'"))?;
    let mask = u64::from_str_radix(&all, 16).with_context(|| format!("read the affinity {all:?}"))?;
    let cpus = u64::from(mask.count_ones());
    host.sh(&format!("taskset -a -p {:x} {pid}", mask & mask.wrapping_neg()))?;
    let fewer = until_has(cluster, host, "cpu", 1);
    host.sh(&format!("taskset -a -p {all} {pid}"))?;
    fewer?;
    until_has(cluster, host, "cpu", cpus)?;
    // On a native host it would be this machine's.
    if host.kind == HostKind::Emulated {
        let total = || -> Result<u64> {
            let said = host.sh("awk '/^MemTotal/ {printf \"%.0f\", $2 * 1024}' /proc/meminfo")?;
            said.parse().with_context(|| format!("read {said:?}"))
        };
        let before = total()?;
        until_has(cluster, host, "memory", before)?;
        // Of a block that is in use the kernel says so; the last ones are the likeliest to be free.
        let off = "cd /sys/devices/system/memory; for b in $(ls -d memory[0-9]* | sort -rV); do \
                   if echo offline > $b/state 2>/dev/null; then echo $b; exit; fi; done; exit 1";
        let block = host.sh(off).context("take a block of memory away")?;
        let less = total().and_then(|less| {
            ensure!(less != before, "the kernel has as much memory as before");
            until_has(cluster, host, "memory", less)
        });
        host.sh(&format!("echo online > /sys/devices/system/memory/{block}/state"))?;
        less?;
        until_has(cluster, host, "memory", total()?)?;
    }
    let now = host.daemon_status()?.pid;
    ensure!(now == Some(pid), "the daemon was started again: {now:?} is not {pid}");
    let times = told()? - told_before;
    ensure!(times >= 2, "it was told {times} times");
    Ok(())
}

fn drains(cluster: &Cluster) -> Result<()> {
    let rights = manifest("examples/elastic.yaml");
    cluster.kubectl(&["apply", "-f", &rights])?;
    let config = "drainOnTermination: true\ndrainTimeoutSeconds: 500\n";
    let done = within(cluster, "elastic-drains", |place| {
        with_config(cluster, config, || {
            let drained = drained(place);
            // Whatever became of it: what puts the configuration back does not wait for a drain.
            cluster.host(0)?.kill_daemon()?;
            drained
        })?;
        cluster.wait_until_nodes_are_ready(PATIENCE)
    });
    cluster.kubectl(&["delete", "-f", &rights])?;
    done
}

/// How many pods there are, and how many of them always.
const PODS: (usize, usize) = (4, 3);

fn web() -> [Value; 2] {
    let labels = json!({"app": "web"});
    let spread = json!([{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
        "nodeTaintsPolicy": "Honor", "labelSelector": {"matchLabels": labels}}]);
    let template = with(
        pod("web", sh(&says_goodbye())),
        &[
            ("/metadata", json!({"labels": labels})),
            ("/spec/nodeSelector", json!({"type": "virtual-kubelet"})),
            ("/spec/topologySpreadConstraints", spread),
            ("/spec/terminationGracePeriodSeconds", json!(30)),
        ],
    );
    let template = json!({"metadata": template["metadata"], "spec": template["spec"]});
    [
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"replicas": PODS.0, "selector": {"matchLabels": labels}, "template": template}}),
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
            "spec": {"minAvailable": PODS.1, "selector": {"matchLabels": labels}}}),
    ]
}

/// Names and nodes of the pods that are not on their way out.
fn pods(place: &Place<'_>) -> Result<Vec<(String, String)>> {
    let found = place.cluster.kubectl_json(&["-n", &place.name, "get", "pods", "-l", "app=web"])?;
    let items = found["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let stay = items.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(stay
        .map(|pod| (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"])))
        .collect())
}

fn drained(place: &Place<'_>) -> Result<()> {
    let (cluster, leaves, stays) = (place.cluster, place.cluster.host(0)?, place.cluster.host(1)?);
    place.create(&web())?;
    place.kubectl(&["rollout", "status", "deployment/web", "--timeout=115s"])?;
    let theirs: Vec<_> = pods(place)?.into_iter().filter(|(_, node)| *node == leaves.name).collect();
    ensure!(theirs.len() == PODS.0 / 2, "{theirs:?} are on {}", leaves.name);
    let logs: Vec<_> = theirs
        .iter()
        .map(|(name, _)| Follower::begin(place, name, &["logs", "-f", name]))
        .collect::<Result<_>>()?;
    let format = "jsonpath={.status.availableReplicas}{\"\\n\"}";
    let available = Follower::begin(place, "available", &["get", "deployment", "web", "-w", "-o", format])?;
    wait_for("the first number of available pods", PATIENCE, || {
        Ok((!available.said()?.is_empty()).then_some(()))
    })?;

    let begun = Instant::now();
    let ended = stop(leaves, Duration::from_secs(560))?;
    println!("  drained in {:.1} s", begun.elapsed().as_secs_f64());
    ensure!(ended.state == ServiceState::Exited(0), "{ended:?}: {}", leaves.daemon_log(30)?);
    let left = cluster.kubectl(&["get", "node", &leaves.name, "--ignore-not-found", "-o", "name"])?;
    ensure!(left.is_empty(), "there is {left} yet");
    let (said, numbers) = (leaves.daemon_log(200)?, available.said()?);
    ensure!(
        said.contains("leaving: ") && said.contains("the Node is gone"),
        "the daemon said {said}"
    );
    let fewest = numbers.lines().map(|line| line.trim().parse().unwrap_or(0)).min();
    ensure!(
        fewest.is_some_and(|fewest| fewest >= PODS.1),
        "available pods were {numbers:?}, and not {} at least",
        PODS.1
    );
    place.kubectl(&["rollout", "status", "deployment/web", "--timeout=115s"])?;
    let now = pods(place)?;
    ensure!(
        now.len() == PODS.0 && now.iter().all(|(_, node)| *node == stays.name),
        "pods are now {now:?}"
    );
    for log in &logs {
        ensure!(log.said()?.trim() == GOODBYE, "a pod that was drained said {:?}", log.said()?);
    }
    place.kubectl(&["delete", "deployment,poddisruptionbudget", "web"]).map(drop)
}
