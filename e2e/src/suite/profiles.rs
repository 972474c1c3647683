//! BurstProfiles: what the API server lets in and explains of them, what becomes of pods while no webhook answers, and what
//! a quota counts of the RuntimeClass.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    admission::{LABEL, SYSTEM},
    workload::{pod, sh, with, within},
};
use crate::{Cluster, command, paths::repository, wait_for};

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

/// Long enough for what the API server and its controllers do by themselves.
const SOON: Duration = Duration::from_secs(60);

fn profile(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "kvmlet.io/v1alpha1", "kind": "BurstProfile", "metadata": {"name": name}, "spec": spec})
}

/// A file of the webhook's manifests.
fn manifest(name: &str) -> String {
    repository().join("manifests/webhook").join(name).to_string_lossy().into_owned()
}

/// Installs the kind, does what `body` does and takes it away.
fn with_kind(cluster: &Cluster, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let file = manifest("burst-profile.yaml");
    cluster.kubectl(&["apply", "-f", &file])?;
    wait_for("the kind to be served", SOON, || {
        cluster.kubectl(&["get", "burstprofiles"]).map(Some)
    })?;
    let done = body();
    cluster.kubectl(&["delete", "-f", &file, "--timeout=60s"])?;
    done
}

/// What the API server says of an object that it must refuse.
fn refused(cluster: &Cluster, object: &Value) -> Result<String> {
    let file = cluster.state.root.join("refused.json");
    crate::paths::write(&file, object.to_string())?;
    let output = cluster.kubectl_output(&["create", "--dry-run=server", "-f", &file.to_string_lossy()])?;
    let said = command::text(&output.stderr);
    ensure!(!output.status.success(), "{object} was let in");
    Ok(said)
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
            (json!({"effect": {"annotations": {long: "c"}}}), "a name of annotations is too long"),
            (
                json!({"effect": {"labels": {"kvmlet.io/inject": "false"}}}),
                "labels of kvmlet.io are the webhook's own",
            ),
            (json!({"effect": {"labels": {"a": "b c"}}}), "spec.effect.labels.a"),
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
            let said = refused(cluster, &profile("p", &spec))?;
            ensure!(said.contains(words), "of {spec} kubectl said {said:?}");
        }
        let said = refused(cluster, &profile(&name, &json!({"effect": {"max": 1}})))?;
        ensure!(said.contains("at most 63 characters"), "kubectl said {said:?}");
        let all = json!({"policy": "normalNodePrefer", "max": 0, "annotations": {"a.b/c": "d"}, "labels": {"e": ""}});
        cluster.apply(&profile("whole", &json!({"priority": -5, "effect": all})).to_string())
    })
}

/// What `kubectl` says of a pod that is only tried, with its labels.
fn tried(cluster: &Cluster, namespace: &str, labels: &str) -> Result<(bool, String)> {
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
    let configuration = manifest("webhook.yaml");
    let done = with_kind(cluster, || {
        for name in [SYSTEM, "down"] {
            cluster.create_namespace(name)?;
            cluster.kubectl(&["label", "namespace", name, LABEL])?;
        }
        cluster.apply(&profile("all", &json!({"effect": {"policy": "virtualNodeOnly"}})).to_string())?;
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
    let classes = manifest("runtime-class.yaml");
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
