//! More of the admission webhook: each of the labels that send pods, pods that are spread over both kinds of nodes, DaemonSets that are kept off, and
//! certificates that live as the KvmletRuntime says.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    admission::{LABEL, ORDINARY, SYSTEM, add_ordinary_node, deployment, plain, with_webhook},
    profiles::tried,
    workload::{PATIENCE, Place, within},
};
use crate::{Cluster, command, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "kvmlet.io/inject sends the pods of a namespace and single pods, and each of the webhook's entries for that changes them",
        hosts: 2,
        kvmlet: true,
        run: labelled,
    },
    Test {
        name: "fair pods of a StatefulSet come to ordinary and to virtual nodes, spread over all hosts",
        hosts: 2,
        kvmlet: true,
        run: fair,
    },
    Test {
        name: "a DaemonSet that tolerates everything has no pod here, also in kube-system, and one that asks for virtual nodes has one on each",
        hosts: 2,
        kvmlet: true,
        run: daemon_sets,
    },
    Test {
        name: "the webhook's certificate is replaced when the KvmletRuntime lets it live shorter",
        hosts: 2,
        kvmlet: true,
        run: shorter,
    },
];

const SOON: Duration = Duration::from_secs(60);
/// Pods of the StatefulSet.
const PODS: usize = 9;

fn labelled(cluster: &Cluster) -> Result<()> {
    with_webhook(cluster, || {
        within(cluster, "inject", |place| {
            let selected = |labels: &str| -> Result<Value> {
                let (is_let_in, said) = tried(cluster, &place.name, labels)?;
                ensure!(is_let_in, "{said}");
                let pod: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
                Ok(pod["spec"]["nodeSelector"]["type"].clone())
            };
            ensure!(selected("a=b")?.is_null(), "nobody sends it");
            // By `pod.kvmlet.io`, as the namespace says nothing.
            ensure!(
                selected("kvmlet.io/inject=true")? == "virtual-kubelet",
                "its own label does not send it"
            );
            // By `namespace.kvmlet.io`, as the pod says nothing.
            cluster.kubectl(&["label", "namespace", &place.name, "kvmlet.io/inject=true"])?;
            wait_for("the namespace's label to send pods", SOON, || {
                let found = selected("a=b")?;
                ensure!(found == "virtual-kubelet", "{found}");
                Ok(Some(()))
            })?;
            ensure!(selected("kvmlet.io/inject=false")?.is_null(), "its own word counts first");
            place.create(&[plain("sent")])?;
            let sent = place.until_ready("sent")?;
            let node = sent["spec"]["nodeName"].as_str().unwrap_or_default();
            ensure!(cluster.hosts.iter().any(|host| host.name == node), "it is on {node:?}");
            Ok(())
        })
    })
}

fn fair(cluster: &Cluster) -> Result<()> {
    let done = with_webhook(cluster, || {
        within(cluster, "fair", |place| {
            cluster.kubectl(&["label", "namespace", &place.name, LABEL, "kvmlet.io/burst-policy=fair"])?;
            add_ordinary_node(cluster, 2 * PODS)?;
            let mut set = deployment(PODS);
            set["kind"] = "StatefulSet".into();
            // On the ordinary node none is ever ready.
            set["spec"]["podManagementPolicy"] = "Parallel".into();
            set["spec"]["serviceName"] = "burst".into();
            place.create(&[set])?;
            let pods = wait_for("all pods to be scheduled", SOON, || {
                let found = cluster.kubectl_json(&["-n", &place.name, "get", "pods"])?;
                let pods = found["items"].as_array().cloned().unwrap_or_default();
                let scheduled = pods.iter().filter(|pod| pod["spec"]["nodeName"].is_string()).count();
                ensure!(scheduled == PODS, "{scheduled} of {PODS} are");
                Ok(Some(pods))
            })?;
            let mut on = BTreeMap::<&str, usize>::new();
            for pod in &pods {
                *on.entry(pod["spec"]["nodeName"].as_str().unwrap_or_default()).or_default() += 1;
                let alike = &pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"];
                let keys: Vec<_> = alike.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
                ensure!(
                    keys == ["app", "controller-revision-hash"],
                    "it is spread with pods of the same {keys:?}"
                );
            }
            let hosts = cluster.hosts.iter().map(|host| host.name.as_str()).chain([ORDINARY]);
            for host in hosts {
                ensure!(on.contains_key(host), "none is on {host}: {on:?}");
            }
            place.kubectl(&["delete", "statefulset", "burst"])?;
            // Nobody else confirms the end of pods without a kubelet.
            let there = format!("spec.nodeName={ORDINARY}");
            place
                .kubectl(&[
                    "delete",
                    "pods",
                    "--field-selector",
                    &there,
                    "--force",
                    "--grace-period=0",
                    "--timeout=60s",
                ])
                .map(drop)
        })
    });
    cluster.kubectl(&["delete", "node", ORDINARY, "--ignore-not-found"])?;
    done
}

/// A DaemonSet of this name with these tolerations.
fn daemon_set(name: &str, namespace: &str, tolerations: &Value) -> Value {
    let mut spec = plain(name)["spec"].clone();
    spec["tolerations"] = tolerations.clone();
    // A DaemonSet takes no other.
    spec["restartPolicy"] = "Always".into();
    let labels = json!({"app": name});
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}})
}

/// What the controller says of a DaemonSet that it has looked at.
fn status(place: &Place<'_>, name: &str) -> Result<Value> {
    let set = place.cluster.kubectl_json(&["-n", &place.name, "get", "daemonset", name])?;
    ensure!(
        set["status"]["observedGeneration"] == set["metadata"]["generation"],
        "{name} was not looked at: {}",
        set["status"]
    );
    Ok(set["status"].clone())
}

fn daemon_sets(cluster: &Cluster) -> Result<()> {
    let everything = json!([{"operator": "Exists"}]);
    let asks = json!([{"operator": "Exists"}, {"key": "virtual-kubelet.io/provider", "operator": "Exists"}]);
    let others = json!([{"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}]);
    let expressions =
        "/spec/template/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchExpressions";
    with_webhook(cluster, || {
        within(cluster, "daemon-sets-off", |place| {
            // Nobody looks for a namespace's labels here, so the first answer counts.
            let made = cluster.create_output(
                &daemon_set("everywhere", "kube-system", &everything),
                &["--dry-run=server", "-o", "json"],
            )?;
            let made: Value = serde_json::from_slice(&made.stdout).with_context(|| command::text(&made.stderr))?;
            ensure!(made.pointer(expressions) == Some(&others), "in kube-system it is {}", made["spec"]);
            place.create(&[
                daemon_set("everywhere", &place.name, &everything),
                daemon_set("asks", &place.name, &asks),
            ])?;
            wait_for("the DaemonSet that asks to run on each host", PATIENCE, || {
                let status = status(place, "asks")?;
                ensure!(status["numberReady"] == cluster.hosts.len(), "{status}");
                Ok(Some(()))
            })?;
            let status = wait_for("the other one to be looked at", SOON, || status(place, "everywhere").map(Some))?;
            ensure!(status["desiredNumberScheduled"] == 0, "{status}");
            let pods = place.kubectl(&["get", "pods", "-l", "app=everywhere", "-o", "name"])?;
            ensure!(pods.trim().is_empty(), "there are {pods:?}");
            // A change that is none of the template does not replace pods.
            place.kubectl(&["annotate", "daemonset", "everywhere", "asks", "a=b"])?;
            let generations = place.kubectl(&["get", "daemonsets", "-o", "jsonpath={.items[*].metadata.generation}"])?;
            ensure!(generations == "1 1", "they are of {generations:?}");
            place.kubectl(&["delete", "daemonsets", "--all", "--timeout=60s"]).map(drop)
        })
    })
}

fn shorter(cluster: &Cluster) -> Result<()> {
    with_webhook(cluster, || {
        let shown = || {
            let secret = ["get", "secret", "kvmlet-webhook-certificates", "-o", "jsonpath={.data.tls\\.crt}"];
            cluster.kubectl(&[&["-n", SYSTEM][..], &secret].concat())
        };
        let before = shown()?;
        let span = json!({"duration": "2h", "renewBefore": "30m"});
        let switch = json!({"apiVersion": "kvmlet.io/v1alpha1", "kind": "KvmletRuntime", "metadata": {"name": "kvmlet"},
            "spec": {"enabled": true, "useEmulation": true, "certConfig": {"ca": span, "server": span}}});
        cluster.apply(&switch.to_string())?;
        let replaced = wait_for("another certificate to be shown", PATIENCE, || {
            let now = shown()?;
            ensure!(!now.is_empty() && now != before, "it is the one of before");
            Ok(Some(()))
        });
        // Other tests need the nodes, whatever became of it.
        cluster.kubectl(&["delete", "kvmletruntime", "kvmlet", "--timeout=110s"])?;
        replaced
    })
}
