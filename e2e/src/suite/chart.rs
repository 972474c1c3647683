//! The Helm chart: what `kubectl apply -k` brings, by helm, and nothing of it afterwards.

use std::thread;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Test,
    admission::{Batch, SYSTEM},
    guide::follow,
    workload::Place,
};
use crate::{Cluster, cluster::LANE, helm, paths::manifest, registry};

pub(super) const TESTS: &[Test] = &[Test {
    name: "helm installs, upgrades while pods are created, and uninstalls, by the guide's own commands, and leaves nothing",
    hosts: 2,
    kvmlet: true,
    run: installed,
}];

const GUIDE: &str = "docs/install.md";

fn installed(cluster: &Cluster) -> Result<()> {
    registry::add_kvmlet(&cluster.state, &cluster.kvmlet()?)?;
    let manifests = manifest("");
    // Helm takes nothing over that is there without it.
    cluster.kubectl(&["delete", "-k", &manifests])?;
    let before = everywhere(cluster)?;
    // Its pods run on the hosts of this test.
    cluster.create_namespace(SYSTEM)?;
    cluster.kubectl(&["label", "namespace", SYSTEM, &format!("{LANE}={}", cluster.host(0)?.name)])?;
    let done = (|| {
        follow(cluster, GUIDE, "helm install")?;
        sends(cluster)?;
        // The controller has it, and holds it by a finalizer.
        let switch = json!({"apiVersion": "kvmlet.io/v1alpha1", "kind": "KvmletRuntime", "metadata": {"name": "kvmlet"},
            "spec": {"enabled": true, "useEmulation": true}});
        cluster.apply(&switch.to_string())?;
        let asked = [
            "wait",
            "--for=jsonpath={.metadata.finalizers}",
            "kvmletruntime/kvmlet",
            "--timeout=60s",
        ];
        cluster.kubectl(&asked)?;
        follow(cluster, GUIDE, "helm uninstall")?;
        let after = everywhere(cluster)?;
        ensure!(after == before, "there were {before:?}, and there are {after:?}");
        let taints = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].spec.taints[*].key}"])?;
        ensure!(!taints.contains("kvmlet.io/"), "nodes still have {taints:?}");
        Ok(())
    })();
    // Whatever became of it: other tests' pods must not wait for it.
    cluster.kubectl(&["delete", "mutatingwebhookconfiguration", "kvmlet-webhook", "--ignore-not-found"])?;
    cluster.kubectl(&["apply", "-k", &manifests])?;
    done
}

/// Pods of a labelled namespace are sent, also while helm replaces the webhook's pods; a value that is none is refused.
fn sends(cluster: &Cluster) -> Result<()> {
    let place = Place {
        cluster,
        name: "vk".into(),
    };
    follow(cluster, "docs/burst.md", "kubectl create namespace vk")?;
    cluster.kubectl(&["label", "namespace", &place.name, &format!("{LANE}={}", cluster.host(0)?.name)])?;
    place.until_ready("nginx")?;
    let batch = Batch::of(&place)?;
    batch.is_sent()?;
    thread::scope(|scope| {
        let upgrade = scope.spawn(|| follow(cluster, GUIDE, "helm upgrade"));
        while !upgrade.is_finished() {
            batch.is_sent()?;
        }
        upgrade.join().expect("helm's thread").map(drop)
    })?;
    batch.is_sent()?;
    // What was given at the installation is kept.
    let image = cluster.kubectl(&[
        "-n",
        SYSTEM,
        "get",
        "deployment/kvmlet-webhook",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].image}",
    ])?;
    ensure!(image.starts_with(&registry::public()), "after the upgrade the image is {image:?}");
    let chart = manifest("helm/kvmlet");
    let refused = helm::run(
        cluster,
        &["upgrade", "kvmlet", &chart, "-n", SYSTEM, "--set", "webhook.replicas=none"],
    );
    let said = refused.unwrap_or_else(|error| format!("{error:#}"));
    ensure!(said.contains("/webhook/replicas"), "helm said {said:?}");
    cluster.delete_namespace(&place.name)
}

/// Objects that bear the product's name, of those kinds that installations have outside of their own namespace.
pub(super) fn everywhere(cluster: &Cluster) -> Result<Vec<String>> {
    let kinds = [
        "clusterroles",
        "clusterrolebindings",
        "customresourcedefinitions",
        "mutatingwebhookconfigurations",
        "namespaces",
        "priorityclasses",
        "rolebindings",
        "roles",
        "runtimeclasses",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "validatingwebhookconfigurations",
    ];
    let all = cluster.kubectl(&["get", &kinds.join(","), "-A", "-o", "name"])?;
    Ok(all.lines().filter(|name| name.contains("kvmlet")).map(str::to_owned).collect())
}
