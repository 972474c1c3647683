//! The image and its DaemonSet, on a host that has a real kubelet and boots systemd: installed, upgraded and taken away as a cluster's administrator does, who never
//! logs in to a host.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    daemon::Identity,
    reserved::{NAMESPACE as RESERVATIONS, until_said},
    workload::{Place, STAY, pod, sh, with},
};
use crate::{
    Cluster, Host, artifacts, command, host_config, kubelet,
    paths::{WORKER, manifest, write},
    registry, wait_for,
};

/// It needs a host of its own, and none of the cluster's.
pub(super) const TESTS: &[Test] = &[Test {
    name: "a DaemonSet installs kvmlet beside a kubelet; its pods outlive the installer and an upgrade, and uninstalling refuses to end them, then leaves nothing",
    hosts: 1,
    kvmlet: false,
    run: life,
}];

/// The first version and the one after, and their images.
const IMAGES: [(&str, &str); 2] = [("0.1.0", "kvmlet/first"), ("0.1.1", "kvmlet/second")];
/// How long a host may take to have another daemon: an emulated one pulls and copies, and boots nothing before it is registered.
const PATIENCE: Duration = Duration::from_secs(420);
/// Where the DaemonSet is.
const NAMESPACE: &str = "kvmlet-node";
const DAEMON_SET: &str = "daemonset/kvmlet-node";
/// Of the kubelet's Node, by which the DaemonSet finds it.
const LABEL: &str = "nested-virtualization";
/// Where the host has programs.
const BIN: &str = "/var/lib/kvmlet/bin";
/// One line for each thing of kvmlet's on a host. The kubelet's pods have interfaces, too.
const LEFT: &str =
    "ls -d /etc/kvmlet /var/lib/kvmlet /var/log/kvmlet /sys/fs/cgroup/kvmlet.slice /etc/systemd/logind.conf.d/99-kvmlet.conf \
    /etc/systemd/system/kvmlet.service /etc/systemd/system/*/kvmlet.service /run/netns/kvmlet* 2>/dev/null
    systemctl cat kvmlet 2>/dev/null
    systemctl list-units --all --no-legend --plain 'kvmlet*'
    ip -o link | grep -E ' (kvmlet|tap)'
    ip route show proto 75
    nft list tables | grep -w kvmlet
    grep -s kvmlet /proc/mounts
    pgrep -af '^[^ ]*kvmlet (node|vm|fs)'
    pgrep -af '^[^ ]* (vm|fs)( |$)'; true";

/// An administrator's kustomization around the project's, in a folder of the cluster's.
struct Kustomization {
    folder: PathBuf,
    /// Of images, by their order.
    digests: [String; 2],
}

impl Kustomization {
    fn make(cluster: &Cluster) -> Result<Self> {
        let (program, guest) = (artifacts::kvmlet()?, artifacts::guest()?);
        let [first, second] = IMAGES.map(|(version, name)| registry::add_image(&cluster.state, (&program, &guest), version, name));
        let digests = [first?, second?];
        ensure!(digests[0] != digests[1], "two versions are one image, {}", digests[0]);
        let folder = cluster.state.root.join("installer");
        let base = folder.join("base");
        if base.exists() {
            fs::remove_dir_all(&base).context("remove the kustomization of a run before")?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        command::call("cp", [Path::new("-r"), Path::new(&manifest("daemonset")), &base])?;
        let (host, pki) = (cluster.host(0)?, cluster.state.pki());
        write(&folder.join("config.yaml"), config(host))?;
        write(&folder.join("resolv.conf"), host_config::resolv_conf())?;
        for (name, file) in [
            ("kubeconfig", format!("{}.kubeconfig", host.name)),
            ("server.crt", format!("{}.crt", host.name)),
            ("server.key", format!("{}.key", host.name)),
            ("ca.crt", "ca.crt".into()),
            ("routes.kubeconfig", "routes.kubeconfig".into()),
            ("shared.kubeconfig", "shared.kubeconfig".into()),
        ] {
            fs::copy(pki.join(&file), folder.join(name)).with_context(|| format!("copy {file}"))?;
        }
        Ok(Self { folder, digests })
    }

    /// Has the cluster have it, with this image; `component`: what is added to it.
    fn apply(&self, cluster: &Cluster, image: usize, component: Option<&str>) -> Result<()> {
        let components: Vec<_> = component.into_iter().collect();
        let text = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": ["base"],
            "components": components,
            "images": [{"name": "kvmlet/kvmlet", "newName": IMAGES[image].1, "digest": self.digests[image]}],
            "configMapGenerator": [{"name": "kvmlet-node", "namespace": NAMESPACE, "behavior": "replace", "files": ["config.yaml"]}],
            "secretGenerator": [{"name": "kvmlet-node", "namespace": NAMESPACE, "files":
                ["kubeconfig", "server.crt", "server.key", "ca.crt", "resolv.conf", "routes.kubeconfig", "shared.kubeconfig"]}],
        });
        write(&self.folder.join("kustomization.yaml"), text.to_string())?;
        cluster.kubectl(&["apply", "-k", &self.folder.to_string_lossy()]).map(drop)
    }
}

/// As a shared host has it, but for what the installer fills in, and for the guest, which lies beside the program.
fn config(host: &Host) -> String {
    let own = host_config::kvmlet(host).replace("port: 10250\n", "");
    let own = own.replace(&format!("nodeIP: {}\n", host.address), "nodeIP: $(HOST_IP)\n");
    let own = own.replace(
        "guest:\n  kernel: /usr/lib/kvmlet/vmlinux\n  initramfs: /usr/lib/kvmlet/initramfs.cpio\n",
        "",
    );
    own + &host_config::shared("$(NODE_NAME)", "1")
}

fn life(cluster: &Cluster) -> Result<()> {
    let apart = cluster.apart_in_turn()?;
    let here = &apart.cluster;
    let host = apart.host()?;
    here.create_namespace("installer")?;
    here.kubectl(&["apply", "-k", &manifest("shared")])?;
    let place = Place {
        cluster: here,
        name: "installer".into(),
    };
    let story = || -> Result<()> {
        kubelet::start(here)?;
        here.kubectl(&["label", "node", WORKER, &format!("{LABEL}=enabled")])?;
        let ours = Kustomization::make(here)?;
        installs(&place, &ours)?;
        let before = Identity::of(&place, "stays")?;
        again(&place, &before)?;
        upgrades(&place, &ours, &before)?;
        uninstalls(&place, &ours)
    };
    let told = story().with_context(|| said(here, host));
    let cleared = clear(&place);
    told.and(cleared)
}

/// The host ends with the test: what it has to say is said now.
fn said(cluster: &Cluster, host: &Host) -> String {
    let ask = |arguments: &[&str]| cluster.kubectl(arguments).unwrap_or_else(|error| format!("({error:#})"));
    let script = "systemctl --no-pager status kvmlet; journalctl --no-pager -n 60 -u 'kvmlet*'; ls -lR /var/lib/kvmlet/bin /etc/kvmlet";
    let unit = host.run(&["sh", "-c", script]).map(|output| output.text());
    format!(
        "{}\n{}\n{}\n{}\n{}\nwhat failed",
        ask(&["get", "pods", "-A", "-o", "wide"]),
        ask(&["describe", "pods", "-n", NAMESPACE]),
        ask(&["logs", "-n", NAMESPACE, DAEMON_SET, "--tail=60"]),
        unit.unwrap_or_else(|error| format!("({error:#})")),
        kubelet::journal(host),
    )
}

/// Nobody else takes away what is of a host that is off. What never began is not there.
fn clear(place: &Place<'_>) -> Result<()> {
    let cluster = place.cluster;
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false"])?;
    for namespace in [&*place.name, RESERVATIONS, NAMESPACE] {
        cluster.kubectl(&["-n", namespace, "delete", "pods", "--all", "--force", "--grace-period=0"])?;
    }
    cluster.kubectl(&["delete", "node", "--ignore-not-found", WORKER, &cluster.host(0)?.name])?;
    cluster.kubectl(&["delete", "-k", &manifest("shared"), "--wait=false"])?;
    cluster.kubectl(&["delete", "namespace", &place.name, "--wait=false"]).map(drop)
}

/// Waits until the DaemonSet's only pod is one of its present template, and ready.
fn until_rolled_out(cluster: &Cluster, what: &str) -> Result<()> {
    wait_for(what, PATIENCE, || {
        let found = cluster.kubectl_json(&["-n", NAMESPACE, "get", DAEMON_SET])?;
        let status = &found["status"];
        let done = status["observedGeneration"] == found["metadata"]["generation"]
            && status["desiredNumberScheduled"] == 1
            && status["updatedNumberScheduled"] == 1
            && status["numberReady"] == 1;
        ensure!(done, "its status is {status}");
        Ok(Some(()))
    })
}

/// The installer's pod.
fn installer(cluster: &Cluster) -> Result<Value> {
    let found = cluster.kubectl_json(&["-n", NAMESPACE, "get", "pods"])?;
    let pods = found["items"].as_array().context("no list of pods")?;
    ensure!(pods.len() == 1, "there are {} pods", pods.len());
    Ok(pods[0].clone())
}

/// The daemon's process, and the programs that the host has.
fn daemon(host: &Host) -> Result<(String, String)> {
    Ok((
        host.sh("systemctl show -p MainPID --value kvmlet")?,
        host.sh(&format!("readlink {BIN}/kvmlet"))?,
    ))
}

fn installs(place: &Place<'_>, ours: &Kustomization) -> Result<()> {
    let (cluster, host) = (place.cluster, place.cluster.host(0)?);
    ours.apply(cluster, 0, None)?;
    until_rolled_out(cluster, "the DaemonSet to have installed kvmlet")?;
    let state = host.sh("systemctl is-active kvmlet && systemctl is-enabled kvmlet")?;
    ensure!(state == "active\nenabled", "the unit is {state}");
    let mode = host.sh("stat -c %a /etc/kvmlet/kubeconfig /etc/kvmlet/server.key")?;
    ensure!(mode == "600\n600", "identities have the modes {mode}");
    let filled = host.sh("grep -E '^nodeIP|^  nodeName' /etc/kvmlet/config.yaml")?;
    ensure!(
        filled == format!("nodeIP: {}\n  nodeName: {WORKER}", host.address),
        "the configuration has {filled}"
    );
    // By the digest that any tool says.
    let digest = host.sh(&format!("cd {BIN}/*/ && LC_ALL=C sha256sum * | sha256sum | cut -d' ' -f1"))?;
    ensure!(
        daemon(host)?.1 == format!("{digest}/kvmlet"),
        "programs of {digest} are {}",
        daemon(host)?.1
    );
    cluster.wait_until_nodes_are_ready(PATIENCE)?;
    until_said(cluster, "ReservationHeld", WORKER)?;
    let amounts = json!({"requests": {"cpu": "200m"}, "limits": {"cpu": "1", "memory": "64Mi"}});
    place.create(&[with(pod("stays", sh(STAY)), &[("/spec/containers/0/resources", amounts)])])?;
    place.until_ready("stays").map(drop)
}

/// Another installer of the same image changes nothing.
fn again(place: &Place<'_>, before: &Identity) -> Result<()> {
    let (cluster, host) = (place.cluster, place.cluster.host(0)?);
    let daemon_before = daemon(host)?;
    cluster.kubectl(&["-n", NAMESPACE, "delete", "pods", "--all", "--timeout=110s"])?;
    wait_for("another installer to find nothing to do", PATIENCE, || {
        let said = cluster.kubectl(&["-n", NAMESPACE, "logs", DAEMON_SET])?;
        ensure!(said.contains("nothing is to be changed"), "it says {said}");
        Ok(Some(()))
    })?;
    until_rolled_out(cluster, "another installer to be ready")?;
    ensure!(daemon(host)? == daemon_before, "the daemon is another one");
    ensure!(Identity::of(place, "stays")? == *before, "the pod is not the one it was");
    Ok(())
}

fn upgrades(place: &Place<'_>, ours: &Kustomization, before: &Identity) -> Result<()> {
    let (cluster, host) = (place.cluster, place.cluster.host(0)?);
    let old = daemon(host)?;
    ours.apply(cluster, 1, None)?;
    until_rolled_out(cluster, "the DaemonSet to have upgraded kvmlet")?;
    let new = daemon(host)?;
    ensure!(new.0 != old.0 && new.1 != old.1, "before: {old:?}, after: {new:?}");
    cluster.wait_until_nodes_are_ready(PATIENCE)?;
    let after = Identity::of(place, "stays")?;
    ensure!(after == *before, "the upgrade changed the pod: {before:?}, then {after:?}");
    let said = place.exec("stays", "echo here")?;
    ensure!(said == "here", "it says {said:?}");
    // Its process runs on a file that nobody can open any more.
    wait_for("the old programs to be gone", PATIENCE, || {
        let folders = host.sh(&format!("cd {BIN} && ls -d */"))?;
        ensure!(folders == new.1.replace("kvmlet", ""), "there are {folders}");
        Ok(Some(()))
    })
}

fn uninstalls(place: &Place<'_>, ours: &Kustomization) -> Result<()> {
    let (cluster, host) = (place.cluster, place.cluster.host(0)?);
    let before = Identity::of(place, "stays")?;
    ours.apply(cluster, 1, Some("base/uninstall"))?;
    wait_for("the pod to be refused the end of its machine", PATIENCE, || {
        let status = installer(cluster)?["status"]["containerStatuses"][0].clone();
        let words = status["lastState"]["terminated"]["message"].as_str().unwrap_or_default().to_owned();
        ensure!(
            words.contains("pods have machines on this host: installer/stays"),
            "its container is {status}"
        );
        Ok(Some(()))
    })?;
    ensure!(Identity::of(place, "stays")? == before, "a refusal changed the pod");
    ensure!(host.sh("systemctl is-active kvmlet")? == "active", "a refusal ended the daemon");
    place.kubectl(&["delete", "pod", "stays", "--timeout=110s"])?;
    until_rolled_out(cluster, "the DaemonSet to have uninstalled kvmlet")?;
    wait_for("nothing to be left", Duration::from_secs(60), || {
        let left = host.sh(LEFT)?;
        ensure!(left.is_empty(), "there is: {left}");
        Ok(Some(()))
    })?;
    cluster.kubectl(&["delete", "-k", &ours.folder.to_string_lossy(), "--timeout=110s"])?;
    cluster.kubectl(&["delete", "node", &host.name]).map(drop)
}
