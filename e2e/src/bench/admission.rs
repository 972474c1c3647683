//! The admission webhook under load: the release program on this machine, not emulated, on one of its processors, with the rig's API server; half of
//! the pods are sent by their namespace's label, half by the last of several profiles.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Options, Row, percentile};
use crate::{
    Cluster,
    burst_profile::{object, with_kind},
    command,
    paths::write,
    process::Process,
    wait_for,
};

/// Of the process, its lease, its Secret and its MutatingWebhookConfiguration.
const NAME: &str = "bench-webhook";
const ADDRESS: &str = "127.0.0.1:18443";
/// A namespace whose label sends pods.
const NAMESPACE: &str = "bench-admission";
/// One without labels, and not the webhook's own, which is `default`: no profile would reach that.
const PLAIN: &str = "kube-public";
const PROFILES: usize = 10;
const RATE: &str = "200";
const SECONDS: &str = "20";

pub(super) fn rows(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    let kvmlet = cluster.kvmlet()?;
    let measured = with_kind(cluster, || {
        cluster.apply(&objects().to_string())?;
        let measured = start(cluster, &kvmlet).and_then(|process| {
            let measured = measure(cluster, &process);
            process.end(&cluster.state)?;
            measured
        });
        cluster.kubectl(&["delete", "mutatingwebhookconfiguration", NAME])?;
        measured
    });
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
    cluster.kubectl(&[
        "-n",
        "default",
        "delete",
        "--ignore-not-found",
        &format!("secret/{NAME}-certificates"),
    ])?;
    cluster.kubectl(&["-n", "default", "delete", "--ignore-not-found", &format!("lease/{NAME}")])?;
    let (times, memory) = measured?;
    let row = |name: &str, unit, value| Row::new(cluster.hosts[0].kind, name, unit, value);
    let milliseconds = |percent| percentile(&times, percent) * 1e3;
    Ok(vec![
        row("admission at 200 reviews a second, P50", "ms", milliseconds(50)),
        row("admission at 200 reviews a second, P99", "ms", milliseconds(99)).at_most(5.0),
        row("admission, peak memory", "bytes", memory).at_most(30e6),
    ])
}

/// Nothing of the cluster comes to this webhook: it is asked by the bench alone.
fn objects() -> Value {
    let webhook = json!({"name": "bench.kvmlet.io", "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Ignore",
        "clientConfig": {"service": {"name": NAME, "namespace": "default"}}, "rules": []});
    let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": NAME}, "webhooks": [webhook]});
    let labels = json!({"virtual-node-affinity-injection": "enabled"});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}});
    let mut items = vec![configuration, namespace];
    for number in 0..PROFILES {
        let is_last = number + 1 == PROFILES;
        let spec = json!({"podSelector": {"matchLabels": {"app": if is_last { "web" } else { "other" }}},
            "effect": {"policy": "normalNodePrefer", "annotations": {"example.com/team": "bench"}}});
        items.push(object(&format!("bench-{number}"), &spec));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn start(cluster: &Cluster, kvmlet: &Path) -> Result<Process> {
    let mut command = cluster.inside("taskset");
    command
        .args(["-c", "0"])
        .arg(kvmlet)
        .args(["webhook", "--listen", ADDRESS, "--name", NAME]);
    command.env("KUBECONFIG", cluster.state.kubeconfig());
    Process::spawn(&cluster.state, NAME, &mut command)
}

/// The times of all answers, sorted, and the most memory that the process had, bytes.
fn measure(cluster: &Cluster, process: &Process) -> Result<(Vec<f64>, f64)> {
    wait_for("the webhook to be ready", Duration::from_secs(60), || {
        process.check(&cluster.state)?;
        let answer = cluster
            .inside("curl")
            .args(["-sSk", "--max-time", "5"])
            .arg(format!("https://{ADDRESS}/readyz"))
            .output();
        Ok((answer.context("run curl")?.stdout == b"ok").then_some(()))
    })?;
    let folder = tempfile::tempdir().context("make a folder for reviews")?;
    let secret = format!("{NAME}-certificates");
    let authority = cluster.kubectl(&[
        "-n",
        "default",
        "get",
        "secret",
        &secret,
        "-o",
        "go-template={{index .data \"ca.crt\" | base64decode}}",
    ])?;
    let file = |name: &str| folder.path().join(name);
    write(&file("ca.crt"), authority)?;
    write(&file("label.json"), review(NAMESPACE).to_string())?;
    write(&file("profile.json"), review(PLAIN).to_string())?;
    let mut load = cluster.inside(std::env::current_exe().context("find this program")?.to_string_lossy().as_ref());
    load.args(["measure", "reviews", "--address", ADDRESS, "--rate", RATE, "--seconds", SECONDS]);
    load.args(["--name", &format!("{NAME}.default.svc"), "--authority"])
        .arg(file("ca.crt"));
    load.arg(format!("/mutate={}", file("label.json").display()));
    load.arg(format!("/profile={}", file("profile.json").display()));
    let times: Vec<f64> = serde_json::from_slice(&command::run(&mut load)?.stdout).context("read the answers' times")?;
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).context("read the webhook's memory")?;
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = most.and_then(|most| most.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    ensure!(status.contains("Name:\tkvmlet"), "process {} is not the webhook", process.pid);
    Ok((times, kibibytes.context("the webhook says no memory")? * 1024.0))
}

/// A review of a pod as a Deployment makes them, with two containers.
fn review(namespace: &str) -> Value {
    let env: Vec<Value> = (0..12)
        .map(|number| json!({"name": format!("SETTING_{number}"), "value": "x".repeat(40)}))
        .collect();
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10, "failureThreshold": 3});
    let container = |name: &str| {
        json!({"name": name, "image": "registry.example.com/team/web:1.2.3", "imagePullPolicy": "IfNotPresent", "env": env,
            "ports": [{"containerPort": 8080, "protocol": "TCP"}], "livenessProbe": probe, "readinessProbe": probe,
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}]})
    };
    let volume = json!({"name": "token", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}});
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6d4cf56db6", "uid": "u", "controller": true});
    let metadata = json!({"generateName": "web-6d4cf56db6-", "namespace": namespace, "ownerReferences": [owner],
        "labels": {"app": "web", "pod-template-hash": "6d4cf56db6"}});
    let spec = json!({"containers": [container("web"), container("proxy")], "volumes": [volume], "serviceAccountName": "default",
        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "securityContext": {}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {}});
    let request = json!({"uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"}, "namespace": namespace, "operation": "CREATE",
        "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"}, "object": pod, "oldObject": null});
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
}
