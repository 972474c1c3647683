//! The Helm chart: what `kubectl apply -k` brings, by helm, and nothing of it afterwards.

use std::{collections::BTreeSet, fs, thread};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{
    Test,
    admission::{Batch, SYSTEM},
    guide::follow,
    workload::Place,
};
use crate::{
    Cluster,
    cluster::LANE,
    helm,
    paths::{manifest, write},
    registry,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "helm installs, upgrades while pods are created, and uninstalls, by the guide's own commands, and leaves nothing",
        hosts: 2,
        kvmlet: true,
        run: installed,
    },
    Test {
        name: "each value of the chart changes what it says, in objects that the API server takes, and one that is none is refused",
        hosts: 1,
        kvmlet: false,
        run: values,
    },
];

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

/// Values that are given, what is in the objects then, and what is not.
type Rendering = (&'static [&'static str], &'static [&'static str], &'static [&'static str]);

const RENDERINGS: [Rendering; 8] = [
    (
        &[],
        &["image: kvmlet/kvmlet:", "replicas: 2", "duration: 48h", "name: kvmlet:network"],
        &["imagePullSecrets", "kvmlet:bootstrap", "name: kvmlet:elastic", "kvmlet-system"],
    ),
    (
        &[
            "image.repository=registry.example:5000/a/b",
            "image.tag=v9",
            "image.pullSecrets={one,two}",
        ],
        &[
            "image: registry.example:5000/a/b:v9",
            "imagePullSecrets:\n        - name: one\n        - name: two\n",
        ],
        &["kvmlet/kvmlet:"],
    ),
    (&["webhook.replicas=3"], &["replicas: 3"], &["replicas: 2"]),
    (
        &["webhook.certConfig.ca.duration=72h", "webhook.certConfig.server.renewBefore=1h"],
        &["duration: 72h", "renewBefore: 1h", "duration: 24h"],
        &["duration: 48h", "renewBefore: 12h"],
    ),
    (
        &["webhook.enabled=false"],
        &["name: kvmlet:network"],
        &["kvmlet-webhook", "CustomResourceDefinition", "RuntimeClass", "kvmlet-withdraw"],
    ),
    (&["network.enabled=false"], &["kvmlet-webhook"], &["kvmlet:network"]),
    (
        &["bootstrap.enabled=true", "bootstrap.group=system:bootstrappers:kvm"],
        &[
            "name: system:bootstrappers:kvm",
            "system:node-bootstrapper",
            ":nodeclient",
            ":selfnodeclient",
            "name: system:nodes",
        ],
        &["name: system:bootstrappers\n"],
    ),
    (&["elastic.enabled=true"], &["name: kvmlet:elastic"], &[]),
];

/// Values that are none, and where the refusal says so.
const REFUSED: [(&str, &str); 7] = [
    ("image.repository=", "/image/repository"),
    ("image.pullSecrets=one", "/image/pullSecrets"),
    ("webhook.replicas=0", "/webhook/replicas"),
    ("webhook.certConfig.ca=null", "/webhook/certConfig"),
    ("network.enabled=perhaps", "/network/enabled"),
    ("bootstrap.group=system:masters", "/bootstrap/group"),
    ("elastics.enabled=true", "elastics"),
];

fn values(cluster: &Cluster) -> Result<()> {
    let chart = manifest("helm/kvmlet");
    // A namespace that is there, as the API server is asked.
    let rendered = |values: &[&str]| {
        let set = values.iter().flat_map(|value| ["--set", value]);
        let begin = ["template", "kvmlet", &chart, "--namespace", "default"];
        helm::run(cluster, &begin.into_iter().chain(set).collect::<Vec<_>>())
    };
    let file = cluster.state.root.join("rendered.yaml");
    let mut configurations = BTreeSet::new();
    for (given, has, has_not) in RENDERINGS {
        let text = rendered(given)?;
        for part in has {
            ensure!(text.contains(part), "with {given:?} there is no {part:?}");
        }
        for part in has_not {
            ensure!(!text.contains(part), "with {given:?} there is {part:?}");
        }
        configurations.extend(
            text.lines()
                .filter(|line| line.contains("name: kvmlet-webhook-config-"))
                .map(str::to_owned),
        );
        write(&file, text)?;
        let path = file.to_string_lossy();
        let asked = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--validate=strict",
            "-f",
        ];
        cluster
            .kubectl(&[&asked[..], &[&*path]].concat())
            .with_context(|| format!("{given:?}"))?;
    }
    fs::remove_file(&file).context("remove what was rendered")?;
    // Its name changes with its content, so that a change replaces the pods: twice the default's (indented as a volume's and as an object's), twice the other's.
    ensure!(configurations.len() == 4, "{configurations:?}");
    for (given, place) in REFUSED {
        let said = match rendered(&[given]) {
            Ok(_) => bail!("{given} is taken"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(said.contains(place), "of {given} helm said {said:?}");
    }
    Ok(())
}
