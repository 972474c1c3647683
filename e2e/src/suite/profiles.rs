//! BurstProfiles: what the API server lets in and explains of them, what the webhook does by them on the real scheduler, and what becomes of pods
//! while no webhook answers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    admission::{LABEL, ORDINARY, SYSTEM, add_ordinary_node, both, deployment, plain, with_webhook},
    workload::{Place, pod, sh, with, within},
};
use crate::{
    Cluster,
    burst_profile::{object, with_kind},
    command,
    paths::manifest,
    wait_for,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "kubectl explains each field of a BurstProfile, and one that breaks a rule is refused with the rule's words",
        hosts: 1,
        kvmlet: false,
        run: checked,
    },
    Test {
        name: "while no webhook answers, pods that a label sends are refused, and those of kube-system, its own namespace and profiles are not",
        hosts: 1,
        kvmlet: false,
        run: down,
    },
    Test {
        name: "a ResourceQuota counts the overhead of the RuntimeClass kvmlet",
        hosts: 1,
        kvmlet: true,
        run: counted,
    },
];

/// Those with the webhook.
pub(super) const SENT: &[Test] = &[
    Test {
        name: "of 200 pods that prefer ordinary nodes by a profile, as many run on ordinary nodes as there is room, the others on virtual ones and none waits",
        hosts: 2,
        kvmlet: true,
        run: filled,
    },
    Test {
        name: "profiles count from the moment they are there, in their order, up to their max, and never in kube-system",
        hosts: 2,
        kvmlet: true,
        run: followed,
    },
];

/// Long enough for the scheduler, the leader and its status, and short beside a machine's start.
const SOON: Duration = Duration::from_secs(60);

/// What the API server says of an object that it must refuse.
fn refused(cluster: &Cluster, object: &Value) -> Result<String> {
    let output = cluster.create_output(object, &["--dry-run=server"])?;
    ensure!(!output.status.success(), "{object} was let in");
    Ok(command::text(&output.stderr))
}

fn checked(cluster: &Cluster) -> Result<()> {
    with_kind(cluster, || {
        let explained = |field: &str| cluster.kubectl(&["explain", &format!("burstprofiles{field}")]);
        wait_for("the kind to be explained", SOON, || {
            ensure!(explained("")?.contains("highest priority decides"));
            Ok(Some(()))
        })?;
        for (field, words) in [
            (".spec.effect.max", "on virtual nodes at once"),
            (".spec.podSelector.matchExpressions", "Requirements of labels"),
            (".status.passedOver", "because that comes first"),
        ] {
            let text = explained(field)?.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(text.contains(words), "{field}: {text}");
        }
        let exists_with_value = json!([{"key": "a", "operator": "Exists", "values": ["b"]}]);
        let many = |count: usize| Value::from_iter((0..count).map(|number| (format!("n{number}"), "v")));
        let in_without = json!([{"key": "a", "operator": "In"}]);
        let (name, long) = ("n".repeat(64), format!("a/{}", "n".repeat(64)));
        for (spec, words) in [
            (json!({}), "spec.effect: Required value"),
            (json!({"effect": {}}), "the effect is empty: set one of policy"),
            (
                json!({"effect": {"policy": "never"}}),
                "supported values: \"virtualNodeOnly\", \"normalNodePrefer\", \"fair\"",
            ),
            (json!({"effect": {"max": -1}}), "should be greater than or equal to 0"),
            (
                json!({"effect": {"max": 1, "policy": "fair"}}),
                "max and policy fair exclude each other",
            ),
            (
                json!({"effect": {"max": 1, "runtimeClassName": "c"}}),
                "max and runtimeClassName exclude each other",
            ),
            (json!({"effect": {"runtimeClassName": "A b"}}), "spec.effect.runtimeClassName"),
            (
                json!({"effect": {"annotations": {"a b": "c"}}}),
                "a name is none that annotations can have",
            ),
            (json!({"effect": {"labels": {"-a": "c"}}}), "a name is none that labels can have"),
            (
                json!({"effect": {"annotations": {&long: "c"}}}),
                "a name of annotations is too long",
            ),
            (json!({"effect": {"labels": {&long: "c"}}}), "a name of labels is too long"),
            (
                json!({"effect": {"annotations": {"kvmlet.io/inject": "false"}}}),
                "annotations of kvmlet.io are the webhook's own",
            ),
            (
                json!({"effect": {"labels": {"kvmlet.io/inject": "false"}}}),
                "labels of kvmlet.io are the webhook's own",
            ),
            (json!({"effect": {"labels": {"a": "b c"}}}), "spec.effect.labels.a"),
            (json!({"effect": {"max": 1u64 << 31}}), "should be less than or equal to 2147483647"),
            (json!({"effect": {"annotations": {}}}), "should have at least 1 properties"),
            (json!({"effect": {"labels": {}}}), "should have at least 1 properties"),
            (json!({"effect": {"annotations": many(33)}}), "spec.effect.annotations: Too many"),
            (json!({"effect": {"labels": many(33)}}), "spec.effect.labels: Too many"),
            (
                json!({"effect": {"annotations": {"a": "v".repeat(4097)}}}),
                "spec.effect.annotations.a: Too long",
            ),
            (
                json!({"effect": {"labels": {"a": "v".repeat(64)}}}),
                "spec.effect.labels.a: Too long",
            ),
            (json!({"effect": {"runtimeClassName": ""}}), "should be at least 1 chars long"),
            (
                json!({"effect": {"max": 1}, "podSelector": {"matchLabels": many(33)}}),
                "spec.podSelector.matchLabels: Too many",
            ),
            (
                json!({"effect": {"max": 1}, "podSelector": {"matchExpressions": exists_with_value}}),
                "In and NotIn need values",
            ),
            (
                json!({"effect": {"max": 1}, "namespaceSelector": {"matchExpressions": in_without}}),
                "In and NotIn need values",
            ),
            (
                json!({"effect": {"max": 1}, "namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}),
                "supported values: \"In\"",
            ),
        ] {
            let said = refused(cluster, &object("p", &spec))?;
            ensure!(said.contains(words), "of {spec} kubectl said {said:?}");
        }
        let said = refused(cluster, &object(&name, &json!({"effect": {"max": 1}})))?;
        ensure!(said.contains("at most 63 characters"), "kubectl said {said:?}");
        // As much as may be.
        let all = json!({"policy": "normalNodePrefer", "max": 0, "annotations": many(32), "labels": {"e": "v".repeat(63), "a.b/c": ""}});
        cluster.apply(&object("whole", &json!({"priority": -5, "effect": all})).to_string())
    })
}

/// What `kubectl` says of a pod that is only tried, with its labels.
pub(super) fn tried(cluster: &Cluster, namespace: &str, labels: &str) -> Result<(bool, String)> {
    let run = [
        "run",
        "tried",
        "--image",
        "busybox",
        "--dry-run=server",
        "-o",
        "json",
        "-n",
        namespace,
    ];
    let output = cluster.kubectl_output(&[&run[..], &["--labels", labels]].concat())?;
    let said = if output.status.success() { &output.stdout } else { &output.stderr };
    Ok((output.status.success(), command::text(said)))
}

fn down(cluster: &Cluster) -> Result<()> {
    let configuration = manifest("webhook/webhook.yaml");
    let done = with_kind(cluster, || {
        for name in [SYSTEM, "down"] {
            cluster.create_namespace(name)?;
            cluster.kubectl(&["label", "namespace", name, LABEL])?;
        }
        cluster.apply(&object("all", &json!({"effect": {"policy": "virtualNodeOnly"}})).to_string())?;
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kvmlet-webhook", "namespace": SYSTEM},
            "spec": {"ports": [{"port": 443}], "selector": {"app": "nobody"}}});
        cluster.apply(&service.to_string())?;
        cluster.kubectl(&["apply", "-f", &configuration])?;
        // The API server hears of a new configuration a moment later.
        wait_for("a labelled pod to be refused", SOON, || {
            let (is_let_in, said) = tried(cluster, "down", "a=b")?;
            ensure!(!is_let_in && said.contains("injected-namespace.kvmlet.io"), "{said}");
            Ok(Some(()))
        })?;
        let (is_let_in, said) = tried(cluster, "default", "kvmlet.io/inject=true")?;
        ensure!(!is_let_in && said.contains("pod.kvmlet.io"), "{said}");
        for (namespace, labels) in [
            ("default", "a=b"),
            ("down", "kvmlet.io/inject=false"),
            ("kube-system", "kvmlet.io/inject=true"),
            (SYSTEM, "kvmlet.io/inject=true"),
        ] {
            let (is_let_in, said) = tried(cluster, namespace, labels)?;
            ensure!(is_let_in, "{labels} in {namespace}: {said}");
            ensure!(!said.contains("virtual-kubelet"), "{labels} in {namespace}: {said}");
        }
        Ok(())
    });
    cluster.kubectl(&["delete", "-f", &configuration, "--ignore-not-found"])?;
    done?;
    cluster.delete_namespace("down")?;
    cluster.delete_namespace(SYSTEM)
}

fn counted(cluster: &Cluster) -> Result<()> {
    let classes = manifest("webhook/runtime-class.yaml");
    cluster.kubectl(&["apply", "-f", &classes])?;
    let done = within(cluster, "quota", |place| {
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "memory"},
            "spec": {"hard": {"requests.memory": "130Mi"}}});
        place.create(&[quota])?;
        let of_class = |name: &str, class: &str| {
            let request = json!({"requests": {"memory": "32Mi"}});
            with(
                pod(name, sh(super::workload::STAY)),
                &[("/spec/runtimeClassName", class.into()), ("/spec/containers/0/resources", request)],
            )
        };
        let used = |amount: &str| {
            wait_for(&format!("{amount} to be counted"), SOON, || {
                let quota = cluster.kubectl_json(&["-n", &place.name, "get", "resourcequota", "memory"])?;
                let used = &quota["status"]["used"]["requests.memory"];
                ensure!(used == amount, "{used} is counted");
                Ok(Some(()))
            })
        };
        used("0")?;
        place.create(&[of_class("one", "kvmlet")])?;
        used("76Mi")?;
        let mut second = of_class("two", "kvmlet");
        second["metadata"]["namespace"] = place.name.as_str().into();
        let said = refused(cluster, &second)?;
        ensure!(
            said.contains("exceeded quota: memory, requested: requests.memory=76Mi"),
            "kubectl said {said:?}"
        );
        place.create(&[of_class("two", "kvmlet-no-overhead")])?;
        used("108Mi")?;
        place.until_ready("one")?;
        Ok(())
    });
    cluster.kubectl(&["delete", "-f", &classes])?;
    done
}

/// Pods in all, and how many of them the ordinary node has room for; the others are machines on two emulated hosts.
const PODS: usize = 200;
const ROOM: usize = 192;

/// The profile's status, once it is as `is_right` says.
fn told(cluster: &Cluster, name: &str, what: &str, is_right: impl Fn(&Value) -> bool) -> Result<()> {
    wait_for(&format!("profile {name} to tell {what}"), SOON, || {
        let found = cluster.kubectl_json(&["get", "burstprofile", name])?;
        ensure!(is_right(&found["status"]), "its status is {}", found["status"]);
        Ok(Some(()))
    })
}

fn filled(cluster: &Cluster) -> Result<()> {
    let done = with_webhook(cluster, || {
        within(cluster, "filled", |place| {
            // A pod for which no answer comes in time is refused then, and made again.
            cluster.kubectl(&["label", "namespace", &place.name, LABEL])?;
            let select = json!({"matchLabels": {"kubernetes.io/metadata.name": place.name}});
            let spec = json!({"namespaceSelector": select, "effect": {"policy": "normalNodePrefer", "annotations": {"team": "burst"}}});
            cluster.apply(&object("filled", &spec).to_string())?;
            sent(cluster, &place.name, "a=b", "filled")?;
            add_ordinary_node(cluster, ROOM)?;
            place.create(&[deployment(PODS)])?;
            wait_for("all pods to have a node", Duration::from_secs(180), || {
                let (ordinary, virtual_) = both(place)?;
                let count = (ordinary.len(), virtual_.len());
                ensure!(count == (ROOM, PODS - ROOM), "{count:?} have one");
                Ok(Some(()))
            })?;
            told(cluster, "filled", "all its pods", |status| {
                status["pods"] == PODS && status["onVirtualNodes"] == PODS - ROOM && status["waiting"] == 0
            })?;
            let pods = cluster.kubectl_json(&["-n", &place.name, "get", "pods"])?;
            for pod in pods["items"].as_array().context("no pods")? {
                let metadata = &pod["metadata"];
                ensure!(metadata["annotations"]["team"] == "burst", "{metadata}");
            }
            place.kubectl(&["delete", "deployment", "burst"])?;
            let force = ["--force", "--grace-period=0", "--timeout=110s"];
            place.kubectl(&[&["delete", "pods", "--all"], &force[..]].concat()).map(drop)
        })
    });
    cluster.kubectl(&["delete", "node", ORDINARY, "--ignore-not-found"])?;
    done
}

/// Waits until each replica decides about such a pod by this profile; none where it is empty.
fn sent(cluster: &Cluster, namespace: &str, labels: &str, profile: &str) -> Result<()> {
    wait_for(&format!("{profile:?} to decide"), SOON, || {
        // Whichever replica is asked.
        for _ in 0..6 {
            let (is_let_in, said) = tried(cluster, namespace, labels)?;
            ensure!(is_let_in, "{said}");
            let pod: Value = serde_json::from_str(&said).context("read the pod")?;
            let by = pod["metadata"]["labels"]["kvmlet.io/burst-profile"].as_str().unwrap_or_default();
            ensure!(by == profile, "{by:?} decided");
        }
        Ok(Some(()))
    })
}

/// How many of these pods have a node.
fn bound(place: &Place<'_>, names: &[&str]) -> Result<usize> {
    let nodes = names.iter().map(|name| Ok(place.get(name)?["spec"]["nodeName"].is_string()));
    Ok(nodes.collect::<Result<Vec<_>>>()?.into_iter().filter(|is_bound| *is_bound).count())
}

fn followed(cluster: &Cluster) -> Result<()> {
    with_webhook(cluster, || {
        within(cluster, "followed", |place| {
            let everything = json!({"effect": {"policy": "virtualNodeOnly", "max": 2}});
            cluster.apply(&object("everything", &everything).to_string())?;
            sent(cluster, &place.name, "a=b", "everything")?;
            sent(cluster, &place.name, "kvmlet.io/inject=false", "")?;
            sent(cluster, "kube-system", "a=b", "")?;
            sent(cluster, SYSTEM, "a=b", "")?;

            let names = ["one", "two", "three"];
            let pods = names.map(|name| with(plain(name), &[("/metadata/labels", json!({"a": "b"}))]));
            place.create(&pods)?;
            told(cluster, "everything", "two on virtual nodes and one that waits", |status| {
                status["pods"] == 3 && status["onVirtualNodes"] == 2 && status["waiting"] == 1
            })?;
            ensure!(bound(place, &names)? == 2, "more pods have a node than max allows");

            let spec =
                json!({"priority": 1, "podSelector": {"matchLabels": {"tier": "first"}}, "effect": {"labels": {"decided": "first"}}});
            cluster.apply(&object("first", &spec).to_string())?;
            sent(cluster, &place.name, "tier=first", "first")?;
            sent(cluster, &place.name, "a=b", "everything")?;
            let conflict = with(plain("conflict"), &[("/metadata/labels", json!({"tier": "first"}))]);
            place.create(&[conflict])?;
            let found = place.get("conflict")?;
            let passed_over = &found["metadata"]["annotations"]["kvmlet.io/burst-profiles-passed-over"];
            ensure!(passed_over == "everything", "{}", found["metadata"]);
            ensure!(found["metadata"]["labels"]["decided"] == "first", "{}", found["metadata"]);
            told(cluster, "everything", "by whom it was passed over", |status| {
                status["passedOver"] == json!([{"by": "first", "pods": 1}])
            })?;

            let gone = names.into_iter().find(|name| bound(place, &[*name]).is_ok_and(|count| count == 1));
            place.kubectl(&["delete", "pod", gone.context("no pod has a node")?, "--timeout=60s"])?;
            told(cluster, "everything", "that nothing waits", |status| {
                status["pods"] == 2 && status["onVirtualNodes"] == 2 && status["waiting"] == 0
            })?;
            cluster.kubectl(&["delete", "burstprofile", "everything"])?;
            sent(cluster, &place.name, "a=b", "")
        })
    })
}
