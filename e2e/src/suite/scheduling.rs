//! Rules of scheduling that users know, on the real scheduler: kvmlet's nodes are nodes like others. Pods that are only to be placed have an image that is
//! never pulled, so that no machine is made for them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    survival::until_gone,
    workload::{Follower, GOODBYE, PATIENCE, Place, STAY, condition, container, pod, says_goodbye, sh, with, within},
};
use crate::{Cluster, command, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a pod goes to the node that its required affinity names, prefers the one it prefers, and waits where there is none",
        hosts: 2,
        kvmlet: true,
        run: node_affinity,
    },
    Test {
        name: "a pod goes where its affinity to another pod leads it",
        hosts: 2,
        kvmlet: true,
        run: pod_affinity,
    },
    Test {
        name: "pods that repel each other are on different nodes, and one too many waits",
        hosts: 2,
        kvmlet: true,
        run: anti_affinity,
    },
    Test {
        name: "pods are spread over nodes no less evenly than their constraint says",
        hosts: 2,
        kvmlet: true,
        run: spread,
    },
    Test {
        name: "a node's taints keep pods away that do not tolerate them, and NoExecute sends those that are there",
        hosts: 2,
        kvmlet: true,
        run: taints,
    },
    Test {
        name: "a namespace's quota counts pods of kvmlet's nodes, and refuses what is more",
        hosts: 1,
        kvmlet: true,
        run: quota,
    },
    Test {
        name: "a pod of high priority that must not preempt waits, and one that may takes the place of the lowest, which ends in order",
        hosts: 1,
        kvmlet: true,
        run: preemption,
    },
];

const HOSTNAME: &str = "kubernetes.io/hostname";

/// A pod that is only placed, on any of our nodes, with more of a spec.
fn placed(name: &str, fields: &[(&str, Value)]) -> Value {
    let container = json!({"image": "kvmlet-e2e/none", "imagePullPolicy": "Never"});
    let anywhere = with(pod(name, container), &[("/spec/nodeSelector", json!({"type": "virtual-kubelet"}))]);
    with(with(anywhere, &[("/metadata/labels", json!({"app": name}))]), fields)
}

fn on(node: &str) -> (&'static str, Value) {
    ("/spec/nodeSelector", json!({ HOSTNAME: node }))
}

/// Where the scheduler has put a pod.
fn node_of(place: &Place<'_>, pod: &str) -> Result<String> {
    let found = place.until(pod, "be placed", |found| found["spec"]["nodeName"].is_string())?;
    Ok(found["spec"]["nodeName"].as_str().unwrap_or_default().to_owned())
}

/// Waits until the scheduler has said that a pod finds no node, in these words.
fn finds_none(place: &Place<'_>, pod: &str, words: &str) -> Result<()> {
    let found = place.until(pod, "be refused by the scheduler", |found| {
        condition(found, "PodScheduled")["reason"] == "Unschedulable"
    })?;
    let said = condition(&found, "PodScheduled")["message"].as_str().unwrap_or_default();
    ensure!(said.contains(words), "the scheduler said {said:?}, without {words:?}");
    Ok(())
}

fn expression(key: &str, values: &[&str]) -> Value {
    json!({"matchExpressions": [{"key": key, "operator": "In", "values": values}]})
}

fn node_affinity(cluster: &Cluster) -> Result<()> {
    let (first, second) = (&cluster.host(0)?.name, &cluster.host(1)?.name);
    let path = "/spec/affinity/nodeAffinity";
    let required = |term: Value| json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}});
    let prefers =
        json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": expression(HOSTNAME, &[first])}]});
    within(cluster, "scheduling-nodes", |place| {
        place.create(&[
            placed("required", &[(path, required(expression(HOSTNAME, &[second])))]),
            placed("preferred", &[(path, prefers)]),
            placed("nowhere", &[(path, required(expression("topology.kubernetes.io/zone", &["none"])))]),
        ])?;
        ensure!(node_of(place, "required")? == *second, "it is not on {second}");
        ensure!(node_of(place, "preferred")? == *first, "it is not on {first}");
        finds_none(place, "nowhere", "didn't match Pod's node affinity/selector")
    })
}

/// A term of an affinity to pods with the label `app`.
fn beside(app: &str) -> Value {
    json!({"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": HOSTNAME, "labelSelector": {"matchLabels": {"app": app}}}]})
}

fn pod_affinity(cluster: &Cluster) -> Result<()> {
    within(cluster, "scheduling-pods", |place| {
        let path = "/spec/affinity/podAffinity";
        for host in &cluster.hosts {
            let (leader, follower) = (format!("leads-{}", host.name), format!("follows-{}", host.name));
            place.create(&[placed(&leader, &[on(&host.name)]), placed(&follower, &[(path, beside(&leader))])])?;
            let node = node_of(place, &follower)?;
            ensure!(node == host.name, "{follower} is on {node}");
        }
        place.create(&[placed("lonely", &[(path, beside("nobody"))])])?;
        finds_none(place, "lonely", "didn't match pod affinity rules")
    })
}

fn anti_affinity(cluster: &Cluster) -> Result<()> {
    within(cluster, "scheduling-rivals", |place| {
        let rival = |name: &str| {
            let labels = ("/metadata/labels", json!({"app": "rival"}));
            placed(name, &[labels, ("/spec/affinity/podAntiAffinity", beside("rival"))])
        };
        let names: Vec<_> = cluster.hosts.iter().map(|host| format!("rival-{}", host.name)).collect();
        place.create(&names.iter().map(|name| rival(name)).collect::<Vec<_>>())?;
        let nodes: BTreeSet<_> = names.iter().map(|name| node_of(place, name)).collect::<Result<_>>()?;
        ensure!(nodes.len() == names.len(), "{names:?} are on {nodes:?}");
        place.create(&[rival("one-too-many")])?;
        finds_none(place, "one-too-many", "didn't match pod anti-affinity rules")
    })
}

fn spread(cluster: &Cluster) -> Result<()> {
    let first = &cluster.host(0)?.name;
    within(cluster, "scheduling-spread", |place| {
        let even = json!([{"maxSkew": 1, "topologyKey": HOSTNAME, "whenUnsatisfiable": "DoNotSchedule", "nodeAffinityPolicy": "Ignore",
            "labelSelector": {"matchLabels": {"app": "even"}}}]);
        let even = |name: &str| {
            let labels = ("/metadata/labels", json!({"app": "even"}));
            placed(name, &[labels, ("/spec/topologySpreadConstraints", even.clone())])
        };
        let names: Vec<_> = (0..2 * cluster.hosts.len()).map(|number| format!("even-{number}")).collect();
        place.create(&names.iter().map(|name| even(name)).collect::<Vec<_>>())?;
        let mut here = 0;
        for name in &names {
            here += usize::from(node_of(place, name)? == *first);
        }
        ensure!(here == 2, "{here} of {} are on {first}", names.len());
        place.create(&[with(even("third-here"), &[on(first)])])?;
        ensure!(node_of(place, "third-here")? == *first, "it is not where it has to be");
        place.create(&[with(even("fourth-here"), &[on(first)])])?;
        finds_none(place, "fourth-here", "didn't match pod topology spread constraints")
    })
}

fn taints(cluster: &Cluster) -> Result<()> {
    const KEY: &str = "kvmlet-e2e/only";
    let second = &cluster.host(1)?.name;
    let taint = |effect: &str| cluster.kubectl(&["taint", "node", second, &format!("{KEY}=batch:{effect}")]);
    within(cluster, "scheduling-taints", |place| {
        let provider = json!({"key": "virtual-kubelet.io/provider", "operator": "Exists"});
        let tolerates = json!([provider, {"key": KEY, "operator": "Equal", "value": "batch"}]);
        place.create(&[placed("before", &[on(second)])])?;
        node_of(place, "before")?;
        let shown = (|| {
            taint("NoSchedule")?;
            place.create(&[
                placed("plain", &[on(second)]),
                placed("batch", &[on(second), ("/spec/tolerations", tolerates)]),
                placed("ordinary", &[("/spec/tolerations", json!([]))]),
            ])?;
            ensure!(node_of(place, "batch")? == *second, "it is not on {second}");
            finds_none(place, "plain", "untolerated taint(s)")?;
            finds_none(place, "ordinary", "untolerated taint(s)")?;
            place.get("before").context("NoSchedule sends nobody away")?;
            taint("NoExecute")?;
            until_gone(place, "before")?;
            place.get("batch").context("who tolerates it stays").map(drop)
        })();
        for effect in ["NoSchedule", "NoExecute"] {
            // One that is not there yet is no failure of the test's own.
            let _ = cluster.kubectl(&["taint", "node", second, &format!("{KEY}:{effect}-")]);
        }
        shown?;
        ensure!(node_of(place, "plain")? == *second, "nothing keeps it away any more");
        Ok(())
    })
}

fn quota(cluster: &Cluster) -> Result<()> {
    let here = on(&cluster.host(0)?.name);
    within(cluster, "scheduling-quota", |place| {
        let hard = json!({"pods": "2", "requests.memory": "150Mi"});
        place.create(&[json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "all"}, "spec": {"hard": hard}})])?;
        let until_used = |pods: &str| {
            wait_for(&format!("the quota to count {pods} pods"), PATIENCE, || {
                let found = cluster.kubectl_json(&["-n", &place.name, "get", "resourcequota", "all"])?;
                ensure!(found["status"]["used"]["pods"] == pods, "{}", found["status"]);
                Ok(Some(()))
            })
        };
        until_used("0")?;
        let asks = |name: &str, memory: &str| {
            let resources = json!({"requests": {"memory": memory}, "limits": {"memory": memory}});
            placed(name, &[here.clone(), ("/spec/containers/0/resources", resources)])
        };
        let refused = |pod: Value| -> Result<String> {
            let output = cluster.create_output(&with(pod, &[("/metadata/namespace", json!(place.name))]), &[])?;
            ensure!(!output.status.success(), "a pod beyond the quota was created");
            Ok(command::text(&output.stderr))
        };
        place.create(&[asks("small", "100Mi")])?;
        node_of(place, "small")?;
        let said = refused(asks("large", "100Mi"))?;
        ensure!(said.contains("exceeded quota: all, requested: requests.memory=100Mi"), "{said}");
        place.create(&[asks("tiny", "50Mi")])?;
        let said = refused(asks("third", "1Mi"))?;
        ensure!(said.contains("exceeded quota: all, requested: pods=1"), "{said}");
        place.kubectl(&["delete", "pod", "small", "--timeout=100s"])?;
        until_used("1")?;
        place.create(&[asks("large", "100Mi")])?;
        node_of(place, "large").map(drop)
    })
}

/// Priority classes: name, value, whether pods of it preempt others.
const CLASSES: [(&str, u32, &str); 4] = [
    ("kvmlet-e2e-lowest", 10, "PreemptLowerPriority"),
    ("kvmlet-e2e-middle", 20, "PreemptLowerPriority"),
    ("kvmlet-e2e-patient", 1000, "Never"),
    ("kvmlet-e2e-urgent", 1000, "PreemptLowerPriority"),
];

fn preemption(cluster: &Cluster) -> Result<()> {
    let classes = CLASSES.map(|(name, value, policy)| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value, "preemptionPolicy": policy})
    });
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": classes}).to_string())?;
    let shown = within(cluster, "scheduling-preemption", |place| {
        let node = cluster.kubectl_json(&["get", "node", &cluster.host(0)?.name])?;
        let cpus = node["status"]["allocatable"]["cpu"]
            .as_str()
            .and_then(|text| text.parse::<u32>().ok());
        // Two of these are all that a node has room for.
        let half = format!("{}m", cpus.context("no whole number of processors")? * 1000 / 2 - 100);
        let takes = |name: &str, class: &str, script: &str| {
            let resources = json!({"requests": {"cpu": half, "memory": "64Mi"}, "limits": {"memory": "64Mi"}});
            with(
                pod(name, sh(script)),
                &[
                    ("/spec/priorityClassName", json!(class)),
                    ("/spec/terminationGracePeriodSeconds", json!(30)),
                    ("/spec/containers/0/resources", resources),
                ],
            )
        };
        let leaves = says_goodbye();
        place.create(&[takes("lowest", CLASSES[0].0, &leaves), takes("middle", CLASSES[1].0, &leaves)])?;
        for name in ["lowest", "middle"] {
            place.until_ready(name)?;
        }
        let log = Follower::begin(place, "lowest", &["logs", "-f", "lowest"])?;
        place.create(&[takes("patient", CLASSES[2].0, STAY)])?;
        finds_none(place, "patient", "Insufficient cpu")?;
        place.until_event("patient", "FailedScheduling", "preemptionPolicy=Never")?;
        place.kubectl(&["delete", "pod", "patient", "--timeout=100s"])?;
        for name in ["lowest", "middle"] {
            ensure!(place.get(name)?["metadata"]["deletionTimestamp"].is_null(), "{name} had to go");
        }
        place.create(&[takes("urgent", CLASSES[3].0, STAY)])?;
        place.until_event("lowest", "Preempted", "Preempted by")?;
        until_gone(place, "lowest")?;
        let said = log.said()?;
        ensure!(said.trim() == GOODBYE, "the victim said {said:?}");
        place.until_ready("urgent")?;
        let middle = place.get("middle")?;
        ensure!(
            middle["metadata"]["deletionTimestamp"].is_null() && container(&middle, "main")["restartCount"] == 0,
            "{}",
            middle["status"]
        );
        Ok(())
    });
    let names = CLASSES.map(|(name, ..)| name);
    cluster.kubectl(&[&["delete", "priorityclass"], &names[..]].concat())?;
    shown
}
