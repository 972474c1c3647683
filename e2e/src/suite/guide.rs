//! What the documents tell their readers to type, run as it stands there.

use std::{env, fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Test;
use crate::{
    Cluster, command, helm,
    paths::{manifest, repository},
    registry,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a reader of the README who types its commands gets a pod by selector and one by nodeName",
        hosts: 2,
        kvmlet: true,
        run: first_pods,
    },
    Test {
        name: "a KvmletRuntime whose webhook is gone is removed by the commands of the troubleshooting, with what it did to nodes",
        hosts: 1,
        kvmlet: false,
        run: left_over,
    },
    Test {
        name: "the commands of the guide make identities that hosts can use, and each is who it says and may do what it is for",
        hosts: 1,
        kvmlet: false,
        run: identities,
    },
];

/// A document's block of commands that begins so.
fn block(document: &str, begins: &str) -> Result<String> {
    let text = fs::read_to_string(repository().join(document)).with_context(|| format!("read {document}"))?;
    let block = text.split("```sh\n").skip(1).find(|block| block.starts_with(begins));
    let block = block.and_then(|block| block.split("```").next());
    let block = block.with_context(|| format!("{document} has no commands that begin with {begins:?}"))?;
    Ok(block.to_owned())
}

/// A shell runs such a block as it is, as the cluster's administrator, in this folder; what it said.
pub(super) fn shell(cluster: &Cluster, folder: &Path, document: &str, begins: &str) -> Result<String> {
    let path = format!("{}:{}", cluster.programs.display(), env::var("PATH").unwrap_or_default());
    let mut shell = cluster.inside("timeout");
    shell.args(["-k", "5", "120", "sh", "-euc"]).arg(block(document, begins)?);
    shell
        .current_dir(folder)
        .env("PATH", path)
        .env("KUBECONFIG", cluster.state.kubeconfig())
        .env("KUBECACHEDIR", cluster.state.root.join("kubectl-cache"));
    let output = command::run(&mut shell).with_context(|| format!("{document}, {begins}"))?;
    Ok(command::text(&output.stdout))
}

/// The lines of such a block, without what they say behind a `#`.
fn lines(document: &str, begins: &str) -> Result<Vec<String>> {
    let block = block(document, begins)?;
    let typed = block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
    Ok(typed.filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Types them one after the other; what each said.
pub(super) fn follow(cluster: &Cluster, document: &str, begins: &str) -> Result<Vec<String>> {
    let typed = lines(document, begins)?;
    typed.iter().map(|line| run(cluster, line)).collect()
}

fn run(cluster: &Cluster, line: &str) -> Result<String> {
    // Readers are in the repository, and have a registry of their own.
    let in_repository = |word: &str| match word.strip_prefix("manifests") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => manifest(rest.trim_start_matches('/')),
        _ => word.replace("REGISTRY", &registry::public()),
    };
    let words: Vec<String> = line.split_whitespace().map(in_repository).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.split_first() {
        Some((&("k" | "kubectl"), rest)) => cluster.kubectl(rest),
        Some((&"helm", rest)) => helm::run(cluster, rest),
        _ => bail!("{line:?} is no command for kubectl or helm"),
    }
}

fn first_pods(cluster: &Cluster) -> Result<()> {
    let said = follow(cluster, "README.md", "k apply -f manifests/examples/selector.yaml")?;
    ensure!(said[2].contains("kvmlet"), "a guest's kernel calls itself {:?}", said[2]);
    let said = follow(cluster, "README.md", "k apply -f manifests/examples/node-name.yaml")?;
    ensure!(said[2].contains("kvmlet"), "a guest's kernel calls itself {:?}", said[2]);
    cluster.kubectl(&["delete", "pod", "hello", "here", "--timeout=110s"]).map(drop)
}

/// Nodes as a KvmletRuntime leaves them: one that has not passed, one that it has cordoned, one that somebody else has, and one that is not ours.
const LEFT: [(&str, &str); 4] = [
    ("failed", "virtual-kubelet"),
    ("off", "virtual-kubelet"),
    ("by-hand", "virtual-kubelet"),
    ("other", "kubelet"),
];

fn left_over(cluster: &Cluster) -> Result<()> {
    let definition = manifest("webhook/runtime.yaml");
    cluster.kubectl(&["apply", "-f", &definition])?;
    let definitions = "customresourcedefinition/kvmletruntimes.kvmlet.io";
    cluster.kubectl(&["wait", "--for=condition=Established", definitions, "--timeout=60s"])?;
    let done = (|| {
        for (name, kind) in LEFT {
            let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"type": kind}}, "spec": {}});
            match name {
                "by-hand" => node["spec"]["unschedulable"] = json!(true),
                "off" => {
                    node["spec"]["unschedulable"] = json!(true);
                    node["metadata"]["annotations"] = json!({"kvmlet.io/cordoned": "true"});
                }
                _ => {
                    let taint = |key: &str| json!({"key": key, "value": "kvmlet", "effect": "NoSchedule"});
                    node["spec"]["taints"] = json!([taint("virtual-kubelet.io/provider"), taint("kvmlet.io/preflight")]);
                }
            }
            cluster.apply(&node.to_string())?;
        }
        let switch = json!({"apiVersion": "kvmlet.io/v1alpha1", "kind": "KvmletRuntime", "spec": {"enabled": true},
            "metadata": {"name": "kvmlet", "finalizers": ["kvmlet.io/runtime"]}});
        cluster.apply(&switch.to_string())?;
        cluster.kubectl(&["delete", definitions, "--wait=false"])?;
        shell(
            cluster,
            &repository(),
            "docs/troubleshooting.md",
            "kubectl delete kvmletruntime kvmlet --wait=false",
        )?;
        cluster.kubectl(&["wait", "--for=delete", definitions, "--timeout=60s"])?;
        let state = |name: &str| -> Result<(bool, bool, bool)> {
            let node = cluster.kubectl_json(&["get", "node", name])?;
            let taints = node["spec"]["taints"].as_array().into_iter().flatten();
            let is_held = taints.into_iter().any(|taint| taint["key"] == "kvmlet.io/preflight");
            let is_marked = !node["metadata"]["annotations"]["kvmlet.io/cordoned"].is_null();
            Ok((is_held, node["spec"]["unschedulable"] == true, is_marked))
        };
        for (name, wanted) in [
            ("failed", (false, false, false)),
            ("off", (false, false, false)),
            ("by-hand", (false, true, false)),
            ("other", (true, false, false)),
        ] {
            let found = state(name)?;
            ensure!(found == wanted, "node {name}: held back, cordoned, marked: {found:?}");
        }
        Ok(())
    })();
    let nodes = LEFT.map(|(name, _)| name);
    cluster.kubectl(&[&["delete", "node", "--ignore-not-found"], &nodes[..]].concat())?;
    done
}

fn identities(cluster: &Cluster) -> Result<()> {
    let folder = cluster.state.root.join("identities");
    fs::create_dir_all(&folder).context("make a folder for identities")?;
    // Readers are in the repository; what they make is not left in ours.
    let manifests = folder.join("manifests");
    if !manifests.exists() {
        symlink(manifest(""), &manifests).context("link the manifests")?;
    }
    let done = (|| {
        shell(cluster, &folder, "docs/install.md", "umask 077")?;
        let authority = |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
        let (made, own) = (authority(&folder.join("ca.crt"))?, authority(&cluster.state.pki().join("ca.crt"))?);
        ensure!(made.trim() == own.trim(), "ca.crt is {made:?}");
        for (file, who, group, may) in [
            ("routes", "kvmlet:network", "system:authenticated", &["list", "nodes"][..]),
            (
                "shared",
                "kvmlet:shared",
                "system:authenticated",
                &["create", "pods", "-n", "kvmlet-reservations"],
            ),
            (
                "bootstrap",
                "system:bootstrap:",
                "system:bootstrappers",
                &["create", "certificatesigningrequests"],
            ),
        ] {
            let kubeconfig = format!("--kubeconfig={}", folder.join(format!("{file}.kubeconfig")).display());
            let asked = cluster.kubectl_json(&["auth", "whoami", &kubeconfig])?;
            let user = &asked["status"]["userInfo"];
            let is_who = user["username"].as_str().is_some_and(|name| name.starts_with(who));
            let groups = user["groups"].as_array().into_iter().flatten();
            ensure!(
                is_who && groups.into_iter().any(|one| one == group),
                "{file}.kubeconfig is of {user}"
            );
            cluster.kubectl(&[&["auth", "can-i", &kubeconfig], may].concat())?;
            let secrets = cluster.kubectl_output(&["auth", "can-i", &kubeconfig, "list", "secrets", "-A"])?;
            ensure!(!secrets.status.success(), "{file}.kubeconfig may list Secrets");
        }
        Ok(())
    })();
    fs::remove_dir_all(&folder).context("remove the identities")?;
    cluster.kubectl(&["delete", "csr", "kvmlet-routes", "kvmlet-shared", "--ignore-not-found"])?;
    let tokens = [
        "-n",
        "kube-system",
        "delete",
        "secrets",
        "--field-selector=type=bootstrap.kubernetes.io/token",
    ];
    cluster.kubectl(&tokens)?;
    cluster.kubectl(&["delete", "-f", &manifest("examples/tls-bootstrap.yaml"), "--ignore-not-found"])?;
    cluster.kubectl(&["delete", "-k", &manifest("shared"), "--ignore-not-found"])?;
    done
}
