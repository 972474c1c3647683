//! The Debian package and the image, made twice; the package on a host that boots systemd: installed, configured, upgraded, shut down and purged as an administrator does.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    daemon::{CONFIG, Identity},
    workload::{Place, STAY, pod, sh, with},
};
use crate::{Cluster, Host, artifacts, cluster::Beside, command, host_config, node, wait_for};

/// They need a host of their own, and of the cluster's what is installed there alone: so they run beside others.
pub(super) const TESTS: &[Test] = &[
    Test {
        name: "two builds of the Debian package are the same, byte for byte",
        hosts: 1,
        kvmlet: true,
        run: reproducible,
    },
    Test {
        name: "two builds of the image are the same, byte for byte",
        hosts: 1,
        kvmlet: true,
        run: image_is_reproducible,
    },
    Test {
        name: "a host with systemd takes kvmlet from a package; its pods outlive restart and upgrade, end in order at shutdown, and purge leaves nothing",
        hosts: 1,
        kvmlet: true,
        run: life,
    },
];

/// The first version and the one after.
const VERSIONS: [&str; 2] = ["0.1.0", "0.1.1"];
/// Where packages are on the host.
const PACKAGE: &str = "/root/kvmlet.deb";
/// How long a package may take to be unpacked and its daemon to be ready, on an emulated host.
const PATIENCE: Duration = Duration::from_secs(180);
/// Pods of this priority end last.
const CLASS: (&str, i32) = ("kvmlet-e2e-last", 1000);
/// One line for each thing of kvmlet's on a host.
const LEFT: &str = "ls -d /usr/bin/kvmlet /usr/bin/kvmlet-machine /usr/lib/kvmlet /usr/share/doc/kvmlet /etc/kvmlet /var/lib/kvmlet /sys/fs/cgroup/kvmlet.slice \
    /etc/systemd/logind.conf.d/99-kvmlet.conf /etc/systemd/system/kvmlet.service /etc/systemd/system/*/kvmlet.service \
    /var/lib/systemd/deb-systemd-helper-*/kvmlet* /var/log/pods/* /run/netns/* 2>/dev/null
    systemctl cat kvmlet 2>/dev/null
    dpkg-query -W kvmlet 2>/dev/null
    ip -o link | grep -E ' (kvmlet|veth|tap)'
    ip route show proto 75
    nft list tables | grep -w kvmlet
    grep -s kvmlet /proc/mounts
    pgrep -af '^[^ ]*kvmlet (node|vm|fs)'
    pgrep -af '^[^ ]* (vm|fs)( |$)'; true";

/// A package of what is installed on the cluster's hosts.
fn package(cluster: &Cluster, version: &str, folder: &str) -> Result<PathBuf> {
    let folder = cluster.state.root.join("packages").join(folder);
    artifacts::deb((&cluster.kvmlet()?, &cluster.guest()?), version, &folder, true)
}

fn reproducible(cluster: &Cluster) -> Result<()> {
    let build = |name| -> Result<Vec<u8>> {
        let package = package(cluster, VERSIONS[0], name)?;
        fs::read(&package).with_context(|| format!("read {}", package.display()))
    };
    let (one, other) = (build("one")?, build("other")?);
    ensure!(one == other, "two builds differ");
    ensure!(one.len() > 1 << 20, "a package of {} bytes holds no kvmlet", one.len());
    Ok(())
}

fn image_is_reproducible(cluster: &Cluster) -> Result<()> {
    let (program, guest) = (cluster.kvmlet()?, cluster.guest()?);
    let folder = cluster.state.root.join("images");
    let build = |name: &str, version| artifacts::image((&program, &guest), version, &folder.join(name), None, true);
    let [first, second] = VERSIONS;
    let (one, again, other) = (build("one", first)?, build("again", first)?, build("other", second)?);
    ensure!(one == again, "two builds are {one} and {again}");
    ensure!(one != other, "another version is the same image, {one}");
    let same = command::call("diff", [Path::new("-r"), &folder.join("one"), &folder.join("again")]);
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    same
}

fn life(cluster: &Cluster) -> Result<()> {
    let packages = VERSIONS.map(|version| package(cluster, version, "life"));
    let [old, new] = packages;
    let (old, new) = (old?, new?);
    let apart = cluster.apart()?;
    let (host, here) = (apart.host()?, &apart.cluster);
    let namespace = "package";
    here.create_namespace(namespace)?;
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": CLASS.0}, "value": CLASS.1});
    here.apply(&class.to_string())?;
    let place = Place {
        cluster: here,
        name: namespace.into(),
    };
    let story = || -> Result<()> {
        host.put_file(PACKAGE, 0o644, &old)?;
        leaves_a_daemon_sets_host_alone(host)?;
        waits_for_its_configuration(host)?;
        starts(&place)?;
        let before = Identity::of(&place, "stays")?;
        outlives(&place, &before, "a restart", "systemctl restart kvmlet")?;
        host.put_file(PACKAGE, 0o644, &new)?;
        outlives(&place, &before, "an upgrade", &format!("dpkg -i {PACKAGE}"))?;
        ensure!(host.sh("dpkg-query -W -f '${Version}' kvmlet")? == VERSIONS[1], "no upgrade");
        // Removal and the host's shutdown drain such a node: they are shown without.
        configure(here, "")?;
        host.sh("systemctl restart kvmlet")?;
        purge_leaves_nothing(&place)?;
        shuts_down_in_order(&place, &apart)
    };
    let told = story().with_context(|| journal(&place));
    let cleared = clear(&place);
    told.and(cleared)
}

/// Nobody else takes away what is of a host that is off.
fn clear(place: &Place<'_>) -> Result<()> {
    place.kubectl(&["delete", "pods", "--all", "--force", "--grace-period=0"])?;
    let name = &place.cluster.host(0)?.name;
    place.cluster.kubectl(&["delete", "node", "--ignore-not-found", name])?;
    place.cluster.kubectl(&["delete", "priorityclass", CLASS.0])?;
    place
        .cluster
        .kubectl(&["delete", "namespace", &place.name, "--wait=false"])
        .map(drop)
}

/// The host ends with the test: what it has to say is said now.
fn journal(place: &Place<'_>) -> String {
    let script = "systemctl --no-pager status kvmlet; journalctl --no-pager -n 60 -u kvmlet -u systemd-logind; cat /proc/uptime";
    let said = place.cluster.host(0).and_then(|host| {
        let pods = place.kubectl(&["get", "pods", "-o", "yaml"])?;
        let unit = host.run(&["sh", "-c", script]).map(|output| output.text());
        let unit = unit.unwrap_or_else(|error| format!("({error:#})"));
        Ok(format!("{pods}\n{unit}\nits console: {}", host.console(20)))
    });
    format!("{}\nwhat failed", said.unwrap_or_else(|error| format!("({error:#})")))
}

fn install(host: &Host) -> Result<String> {
    let command = format!("DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {PACKAGE}");
    let output = host.run_with(&["sh", "-c", &command], b"", PATIENCE)?;
    ensure!(output.code == 0, "apt-get: {}\n{}", output.text(), output.error_text());
    Ok(output.text())
}

/// Two would drive one unit.
fn leaves_a_daemon_sets_host_alone(host: &Host) -> Result<()> {
    let unit = "/etc/systemd/system/kvmlet.service";
    host.put(
        unit,
        0o644,
        &b"# Written by `kvmlet install`: change it by `systemctl edit kvmlet`.\n"[..],
    )?;
    let output = host.run(&["dpkg", "-i", PACKAGE])?;
    host.sh(&format!("rm {unit}"))?;
    let said = output.error_text();
    let refused = output.code != 0 && said.contains("this host has kvmlet from a DaemonSet");
    ensure!(refused, "dpkg ended with {} and said {said}", output.code);
    let left = host.sh("ls /usr/bin/kvmlet /lib/systemd/system/kvmlet.service 2>/dev/null; true")?;
    ensure!(left.is_empty(), "a refused package leaves {left}");
    Ok(())
}

/// Configures the daemon, with `more` keys.
fn configure(cluster: &Cluster, more: &str) -> Result<()> {
    let host = cluster.host(0)?;
    node::configure(&cluster.state, host)?;
    let periods = format!(
        "shutdownGracePeriodByPodPriority:\n- {{priority: 0, shutdownGracePeriodSeconds: 60}}\n- {{priority: {}, shutdownGracePeriodSeconds: 30}}\n",
        CLASS.1
    );
    let text = host_config::kvmlet(host) + &periods + more;
    host.put(CONFIG, 0o644, text.as_bytes())
}

/// What systemd knows of the unit.
fn shows(host: &Host, property: &str) -> Result<String> {
    host.sh(&format!("systemctl show -p {property} --value kvmlet"))
}

fn waits_for_its_configuration(host: &Host) -> Result<()> {
    let said = install(host)?;
    ensure!(said.contains("has no configuration yet"), "apt-get said: {said}");
    let state = host.run(&["systemctl", "is-active", "kvmlet"])?.text();
    ensure!(state == "inactive", "the unit of a node without configuration is {state}");
    host.sh("systemctl is-enabled kvmlet && ! systemctl --failed --no-legend | grep kvmlet")
        .map(drop)
}

fn ready(cluster: &Cluster) -> Result<()> {
    let name = &cluster.host(0)?.name;
    let condition = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}{.spec.podCIDR}";
    wait_for(&format!("Node {name} to be Ready"), PATIENCE, || {
        Ok(cluster
            .kubectl(&["get", "node", name, "-o", condition])?
            .starts_with("True10.")
            .then_some(()))
    })
}

fn starts(place: &Place<'_>) -> Result<()> {
    let host = place.cluster.host(0)?;
    // A pod without a controller is never drained: who restarts the daemon must not ask for that.
    configure(place.cluster, "drainOnTermination: true\n")?;
    host.sh("systemctl start kvmlet")?;
    // systemd has waited for the daemon to be ready.
    place.cluster.kubectl(&["get", "node", &host.name])?;
    let status = shows(host, "StatusText")?;
    ensure!(
        status == format!("node {} is registered and serves", host.name),
        "its status is {status:?}"
    );
    ready(place.cluster)?;
    place.create(&[pod("stays", sh(STAY))])?;
    place.until_ready("stays")?;
    let alive: u64 = shows(host, "WatchdogTimestampMonotonic")?
        .parse()
        .context("read when it last gave a sign of life")?;
    ensure!(alive > 0, "no sign of life");
    Ok(())
}

/// What is done to the daemon ends it, and its pod goes on.
fn outlives(place: &Place<'_>, before: &Identity, what: &str, script: &str) -> Result<()> {
    let host = place.cluster.host(0)?;
    let daemon = shows(host, "MainPID")?;
    let output = host.run_with(&["sh", "-c", script], b"", PATIENCE)?;
    ensure!(output.code == 0, "{script}: {}\n{}", output.text(), output.error_text());
    let state = host.run(&["systemctl", "is-active", "kvmlet"])?.text();
    ensure!(state == "active", "after {what} the unit is {state}");
    ensure!(shows(host, "MainPID")? != daemon, "{what} started no other daemon");
    ready(place.cluster)?;
    let after = Identity::of(place, "stays")?;
    ensure!(after == *before, "{what} changed the pod: {before:?}, then {after:?}");
    let said = place.exec("stays", "echo here")?;
    ensure!(said == "here", "it says {said:?}");
    Ok(())
}

fn purge_leaves_nothing(place: &Place<'_>) -> Result<()> {
    let host = place.cluster.host(0)?;
    // With a port of its own a pod has rules of iptables, too.
    let port = json!([{"containerPort": 80, "hostPort": 8080}]);
    place.create(&[with(pod("port", sh(STAY)), &[("/spec/containers/0/ports", port)])])?;
    place.until_ready("port")?;
    host.sh("iptables-save | grep 8080")?;
    let apt = |action: &str| host.sh(&format!("DEBIAN_FRONTEND=noninteractive apt-get {action} -y kvmlet"));
    apt("remove")?;
    let machines = host.sh("pgrep -af '^[^ ]* (vm|fs)( |$)'; ls /run/netns; ls -d /sys/fs/cgroup/kvmlet.slice 2>/dev/null; true")?;
    ensure!(machines.is_empty(), "a package that is removed leaves machines: {machines}");
    host.sh("ls /var/lib/kvmlet/pods/*/state.json /etc/kvmlet/config.yaml")?;
    apt("purge")?;
    let left = host.sh(LEFT)?;
    ensure!(left.is_empty(), "purge leaves: {left}");
    let rules = host.sh("iptables-save | grep 8080; true")?;
    ensure!(rules.is_empty(), "purge leaves: {rules}");
    // The Node and its pods are the administrator's to delete.
    place.kubectl(&["delete", "pods", "--all", "--force", "--grace-period=0"])?;
    place.cluster.kubectl(&["delete", "node", &host.name]).map(drop)
}

fn shuts_down_in_order(place: &Place<'_>, apart: &Beside) -> Result<()> {
    let host = place.cluster.host(0)?;
    configure(place.cluster, "")?;
    install(host)?;
    ready(place.cluster)?;
    let leisurely = sh("trap 'sleep 4; exit 0' TERM; while :; do sleep 1 & wait $!; done");
    let first = with(pod("first", leisurely), &[("/spec/terminationGracePeriodSeconds", json!(30))]);
    let class = ("/spec/priorityClassName", json!(CLASS.0));
    let last = with(pod("last", sh(STAY)), &[class, ("/spec/terminationGracePeriodSeconds", json!(30))]);
    place.create(&[first, last])?;
    place.until_ready("first")?;
    place.until_ready("last")?;
    wait_for("the daemon to delay shutdowns", PATIENCE, || {
        let locks = host.sh("systemd-inhibit --list --no-legend")?;
        ensure!(
            locks.contains("kvmlet") && locks.contains("shutdown") && locks.contains("delay"),
            "locks: {locks}"
        );
        Ok(Some(()))
    })?;
    // Its answer may come, or go with the host.
    let _ = host.run(&["shutdown", "-h", "now"]);
    apart.wait_until_off(PATIENCE)?;
    let ended = |name: &str| -> Result<String> {
        let found = place.get(name)?;
        let status = &found["status"];
        ensure!(
            status["phase"] == "Failed" && status["reason"] == "Terminated",
            "{name} is {status}"
        );
        ensure!(
            status["message"] == "Pod was terminated in response to imminent node shutdown.",
            "{name} is {status}"
        );
        ensure!(disrupted(status), "{name} does not say that its node ended it: {status}");
        let state = &status["containerStatuses"][0]["state"]["terminated"];
        ensure!(state["exitCode"] == 0, "{name} had no time to end: {status}");
        state["finishedAt"].as_str().map(str::to_owned).context("no time of its end")
    };
    let (first, last) = (ended("first")?, ended("last")?);
    ensure!(first <= last, "the pod that matters more ended at {last}, the other at {first}");
    let node = place.cluster.kubectl_json(&["get", "node", &host.name])?;
    let said = node["status"]["conditions"].to_string();
    ensure!(said.contains("node is shutting down"), "the Node says {said}");
    Ok(())
}

fn disrupted(status: &Value) -> bool {
    let all = status["conditions"].as_array();
    all.is_some_and(|all| {
        all.iter()
            .any(|one| one["type"] == "DisruptionTarget" && one["status"] == "True" && one["reason"] == "TerminationByKubelet")
    })
}
