//! A node's certificates by request, from the real controllers: asked for with a bootstrap token, approved, renewed while streams and watches
//! go on.

use std::{
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    attached::Attached,
    daemon::{self, until_ticks},
    figures::{page, sample},
    survival::{TICKS, until_gone},
    workload::{Follower, PATIENCE, Place, STAY, pod, pod_of, sh, with, within},
};
use crate::{
    Cluster, Host, command, host_config,
    paths::{API_PORT, GATEWAY, write},
    pki, wait_for,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a node has its certificates by request and bootstrap token, and renews them while streams and watches go on",
        hosts: 1,
        kvmlet: true,
        run: by_request,
    },
    Test {
        name: "another authority of clients in its file is used without a restart",
        hosts: 1,
        kvmlet: true,
        run: authority,
    },
];

/// The host's `tls.clientCAFile`.
const AUTHORITY: &str = "/etc/kvmlet/ca.crt";

fn authority(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let own = fs::read(cluster.state.pki().join("ca.crt")).context("read ca.crt")?;
    let other = fs::read(cluster.state.pki().join("front-proxy-ca.crt")).context("read front-proxy-ca.crt")?;
    let url = format!("https://{}/healthz", host.kubelet());
    let pki = cluster.state.pki();
    // On a connection of its own, as a client that the cluster's authority vouches for.
    let asks = || -> Result<bool> {
        let mut curl = cluster.inside("curl");
        curl.args(["-sS", "--max-time", "20", "--cacert"]).arg(pki.join("ca.crt"));
        curl.arg("--cert")
            .arg(pki.join("admin.crt"))
            .arg("--key")
            .arg(pki.join("admin.key"));
        Ok(curl.arg(&url).output().context("run curl")?.stdout == b"ok")
    };
    let shown = || -> Result<()> {
        ensure!(asks()?, "the port does not answer");
        host.put(AUTHORITY, 0o644, &*other)?;
        wait_for("the old authority to count no longer", PATIENCE, || Ok((!asks()?).then_some(())))?;
        host.put(AUTHORITY, 0o644, &*[other.as_slice(), b"\n", own.as_slice()].concat())?;
        wait_for("both to count", PATIENCE, || Ok(asks()?.then_some(())))
    };
    let shown = shown();
    host.put(AUTHORITY, 0o644, &*own)?;
    shown
}

/// Where the daemon keeps them.
const PKI: &str = "/var/lib/kvmlet/pki";
/// Files of the configuration of this test.
pub(super) const WRITTEN: &str = "/etc/kvmlet/written.kubeconfig";
pub(super) const BOOTSTRAP: &str = "/etc/kvmlet/bootstrap.kubeconfig";
/// How long certificates shall live, seconds: more than one of [`pki::nearly_over`] has left.
const LIFE: i32 = 86_400;
/// The bootstrap token.
const TOKEN: (&str, &str) = ("kvmlet", "0123456789abcdef");
const GROUP: &str = "system:bootstrappers:kvmlet-e2e";
/// The binding by which the controllers approve what a node asks for itself.
const RENEWAL: &str = "kvmlet-e2e-selfnodeclient";

/// Held by a test of requests: they, and rights to them, are the cluster's, and two such tests must not run side by side.
pub(super) fn requests_alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // What a test that panicked left is the next one's to find out.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an administrator does for nodes to come (kubernetes.io, "TLS bootstrapping").
pub(super) fn rights() -> Value {
    let data = json!({"token-id": TOKEN.0, "token-secret": TOKEN.1, "usage-bootstrap-authentication": "true", "auth-extra-groups": GROUP});
    let binding = |name: &str, role: &str, group: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}]})
    };
    let approves = "system:certificates.k8s.io:certificatesigningrequests";
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token", "stringData": data,
            "metadata": {"name": format!("bootstrap-token-{}", TOKEN.0), "namespace": "kube-system"}},
        binding("kvmlet-e2e-bootstrapper", "system:node-bootstrapper", GROUP),
        binding("kvmlet-e2e-nodeclient", &format!("{approves}:nodeclient"), GROUP),
        binding(RENEWAL, &format!("{approves}:selfnodeclient"), "system:nodes"),
    ]})
}

/// Takes back what [`rights`] gives, and what was asked for by it.
pub(super) fn take_rights_back(cluster: &Cluster) -> Result<()> {
    let file = cluster.state.root.join("certificates-rights.json");
    write(&file, rights().to_string())?;
    cluster.kubectl(&["delete", "--ignore-not-found", "-f", &file.to_string_lossy()])?;
    cluster.kubectl(&["delete", "csr", "--all"]).map(drop)
}

pub(super) fn bootstrap_kubeconfig(cluster: &Cluster) -> Result<String> {
    let authority = fs::read(cluster.state.pki().join("ca.crt")).context("read ca.crt")?;
    let authority = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, authority);
    Ok(json!({"apiVersion": "v1", "kind": "Config", "current-context": "b",
        "contexts": [{"name": "b", "context": {"cluster": "b", "user": "b"}}],
        "clusters": [{"name": "b", "cluster": {"server": format!("https://{GATEWAY}:{API_PORT}"), "certificate-authority-data": authority}}],
        "users": [{"name": "b", "user": {"token": format!("{}.{}", TOKEN.0, TOKEN.1)}}]})
    .to_string())
}

/// The host's configuration, with certificates by request in place of files.
fn config(host: &Host) -> String {
    let text = host_config::kvmlet(host).replace(
        "\nkubeconfig: /etc/kvmlet/kubeconfig\n",
        &format!(
            "\nkubeconfig: {WRITTEN}\nbootstrapKubeconfig: {BOOTSTRAP}\nserverTLSBootstrap: true\ncertificateExpirationSeconds: {LIFE}\n"
        ),
    );
    let lines = text
        .lines()
        .filter(|line| !line.contains("certFile:") && !line.contains("keyFile:"));
    lines.map(|line| format!("{line}\n")).collect()
}

fn by_request(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let _requests = requests_alone();
    let shown = bootstraps(cluster).and_then(|()| renews(cluster));
    let as_it_was = || -> Result<()> {
        host.stop_daemon()?;
        host.sh(&format!("rm -rf {PKI} {WRITTEN} {BOOTSTRAP}"))?;
        host.put(daemon::CONFIG, 0o644, host_config::kvmlet(host).as_bytes())?;
        daemon::restart(cluster)?;
        take_rights_back(cluster)
    };
    let restored = as_it_was();
    shown.and(restored)
}

/// Requests of the first host's node that nobody has decided on, of this signer.
fn pending(cluster: &Cluster, signer: &str) -> Result<Vec<String>> {
    let user = format!("system:node:{}", cluster.host(0)?.name);
    let requests = cluster.kubectl_json(&["get", "csr", "--field-selector", &format!("spec.signerName=kubernetes.io/{signer}")])?;
    let items = requests["items"].as_array().cloned().unwrap_or_default();
    let open = items
        .iter()
        .filter(|one| one["spec"]["username"] == user.as_str() && one["status"]["conditions"].is_null());
    Ok(open.filter_map(|one| one["metadata"]["name"].as_str().map(str::to_owned)).collect())
}

/// Approves the one request there is.
fn approve(cluster: &Cluster, signer: &str) -> Result<()> {
    let name = wait_for(&format!("a request to {signer}"), PATIENCE, || Ok(pending(cluster, signer)?.pop()))?;
    cluster.kubectl(&["certificate", "approve", &name]).map(drop)
}

/// The daemon comes up with nothing but a token. What it is gets approved by the controllers, where it is by an administrator.
fn bootstraps(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    cluster.apply(&rights().to_string())?;
    host.stop_daemon()?;
    host.put(BOOTSTRAP, 0o600, bootstrap_kubeconfig(cluster)?.as_bytes())?;
    host.put(daemon::CONFIG, 0o644, config(host).as_bytes())?;
    host.start_daemon()?;
    wait_for("somebody to be told that an approval is needed", PATIENCE, || {
        let selector = format!("involvedObject.kind=Node,involvedObject.name={}", host.name);
        let events = cluster.kubectl(&["get", "events", "-n", "default", "--field-selector", &selector])?;
        Ok(events.contains("ServingCertificateNotApproved").then_some(()))
    })?;
    ensure!(daemon::asks(host).is_err(), "the port shows a certificate that nobody has approved");
    approve(cluster, "kubelet-serving")?;
    daemon::answers(cluster)?;
    cluster.wait_until_nodes_are_ready(PATIENCE)?;
    let files = host.sh(&format!("stat -L -c '%a %n' {PKI} {PKI}/*-current.pem {WRITTEN}"))?;
    let expected = format!("700 {PKI}\n600 {PKI}/kubelet-client-current.pem\n600 {PKI}/kubelet-server-current.pem\n600 {WRITTEN}");
    ensure!(files == expected, "{files}");
    ensure!(
        !host.sh(&format!("cat {WRITTEN} {}", crate::node::KVMLET_LOG))?.contains(TOKEN.1),
        "the token is told"
    );
    Ok(())
}

/// Whether both certificates are the old ones, or new ones.
fn seconds_left(place: &Place<'_>) -> Result<[f64; 2]> {
    let page = page(place, "metrics")?;
    let of = |name: &str| sample(&page, &format!("kubelet_certificate_manager_{name}_ttl_seconds"), &[]);
    Ok([of("client")?, of("server")?])
}

/// The daemon starts with certificates that are due. Their renewal waits for an administrator, so that streams begin before it.
fn renews(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    cluster.kubectl(&["delete", "clusterrolebinding", RENEWAL])?;
    host.stop_daemon()?;
    let [client, server] = pki::nearly_over(&cluster.state, host)?;
    for (name, pair) in [("client", client), ("server", server)] {
        let file = format!("{PKI}/kubelet-{name}-current.pem");
        host.put(&file, 0o600, format!("{}{}", pair.cert, pair.key).as_bytes())?;
    }
    daemon::restart(cluster)?;
    within(cluster, "certificates", |place| {
        let answers = with(
            sh(&format!("while read line; do echo got $line; done; {STAY}")),
            &[("/name", "answers".into()), ("/stdin", true.into())],
        );
        place.create(&[pod_of("pair", json!([answers, with(sh(TICKS), &[("/name", "ticks".into())])]))])?;
        place.until_ready("pair")?;
        let left = seconds_left(place)?;
        ensure!(left.iter().all(|left| (0.0..=3600.0).contains(left)), "{left:?} s");
        let mut attached = Attached::begin(cluster, place, &["-q", "-i", "pair", "-c", "answers"], true, 0)?;
        attached.say("one\n")?;
        attached.until_hears("got one")?;
        let logs = Follower::begin(place, "ticks", &["logs", "-f", "pair", "-c", "ticks"])?;
        let ticks = |most| until_ticks(|| logs.said(), most);
        let seen = ticks(1)?;
        approve(cluster, "kubelet-serving")?;
        approve(cluster, "kube-apiserver-client-kubelet")?;
        wait_for("new certificates", PATIENCE, || {
            let left = seconds_left(place)?;
            ensure!(left.iter().all(|left| *left > 3600.0), "{left:?} s");
            Ok(Some(()))
        })?;
        ensure!(
            shown(cluster, host)?,
            "a new connection is shown another certificate than the newest"
        );
        attached.say("two\n")?;
        attached.until_hears("got two")?;
        ticks(seen + 20)?;
        // The watch of pods has not noticed, and is followed.
        place.create(&[pod("late", sh(STAY))])?;
        place.until_ready("late")?;
        ensure!(place.exec("late", "echo well")? == "well");
        place.kubectl(&["delete", "pod", "late", "--wait=false"])?;
        until_gone(place, "late")?;
        let errors = host.sh(&format!(
            "tac {} | sed '/kvmlet is up/q' | grep -c 'watch pods' || true",
            crate::node::KVMLET_LOG
        ))?;
        ensure!(errors == "0", "the watch of pods was cut {errors} times");
        Ok(())
    })
}

/// Whether the port shows the newest certificate.
fn shown(cluster: &Cluster, host: &Host) -> Result<bool> {
    let mut curl = cluster.inside("curl");
    curl.args(["-sS", "-o", "/dev/null", "-w", "%{certs}", "--max-time", "20", "--cacert"]);
    curl.arg(cluster.state.pki().join("ca.crt"))
        .arg(format!("https://{}/healthz", host.kubelet()));
    let output = command::run(&mut curl)?;
    let kept = host.sh(&format!("sed -n '2,3p' {PKI}/kubelet-server-current.pem"))?;
    Ok(!kept.is_empty() && command::text(&output.stdout).contains(&kept))
}
