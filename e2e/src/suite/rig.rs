//! The rig itself: what every other test takes for granted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::{Cluster, command, paths::GATEWAY, registry, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "the control plane answers and has its controllers",
        hosts: 1,
        kvmlet: false,
        run: control_plane,
    },
    Test {
        name: "kubectl and the API server agree on a version",
        hosts: 1,
        kvmlet: false,
        run: version,
    },
    Test {
        name: "a node's identity may not touch another node",
        hosts: 2,
        kvmlet: false,
        run: node_restriction,
    },
    Test {
        name: "hosts reach one another and the control plane reaches them",
        hosts: 2,
        kvmlet: false,
        run: reach,
    },
    Test {
        name: "every host has a KVM, a tun device and cgroup v2",
        hosts: 1,
        kvmlet: false,
        run: devices,
    },
    Test {
        name: "the state disk of a host is a real ext4 with verity",
        hosts: 1,
        kvmlet: false,
        run: state_disk,
    },
    Test {
        name: "clocks of hosts agree with the control plane's",
        hosts: 1,
        kvmlet: false,
        run: clocks,
    },
    Test {
        name: "the registry serves public images, and private ones only with a password",
        hosts: 1,
        kvmlet: false,
        run: registries,
    },
    Test {
        name: "a service's address works from every host",
        hosts: 1,
        kvmlet: false,
        run: services,
    },
    Test {
        name: "a killed command is gone from its host",
        hosts: 1,
        kvmlet: false,
        run: killed,
    },
];

fn control_plane(cluster: &Cluster) -> Result<()> {
    ensure!(cluster.kubectl(&["get", "--raw", "/readyz"])? == "ok");
    // Made by the controller manager, with a token that the API server's own key signs.
    cluster.create_namespace("rig-control-plane")?;
    let token = cluster.kubectl(&["create", "token", "default", "-n", "rig-control-plane"])?;
    ensure!(token.split('.').count() == 3, "no token: {token}");
    cluster.delete_namespace("rig-control-plane")
}

fn version(cluster: &Cluster) -> Result<()> {
    let version = cluster.kubectl_json(&["version"])?;
    let (client, server) = (&version["clientVersion"]["gitVersion"], &version["serverVersion"]["gitVersion"]);
    ensure!(
        client == server && client.as_str().is_some_and(|text| text.starts_with("v1.")),
        "{version}"
    );
    Ok(())
}

fn node_restriction(cluster: &Cluster) -> Result<()> {
    let pki = cluster.state.pki();
    let can = |verb: &str, resource: &str| -> Result<bool> {
        let kubeconfig = pki.join("kvm-1.kubeconfig");
        let answer = cluster.kubectl_output(&["--kubeconfig", &kubeconfig.to_string_lossy(), "auth", "can-i", verb, resource])?;
        Ok(command::text(&answer.stdout) == "yes")
    };
    ensure!(
        can("update", "nodes/kvm-1")? && can("create", "nodes")?,
        "a node may not report itself"
    );
    ensure!(
        !can("delete", "deployments.apps")? && !can("list", "secrets")?,
        "a node may do what only others may"
    );
    Ok(())
}

fn reach(cluster: &Cluster) -> Result<()> {
    for host in &cluster.hosts {
        let address = host.address.to_string();
        command::run(cluster.inside("ping").args(["-c", "1", "-W", "5", &address]))?;
        host.sh(&format!("ping -c 1 -W 5 {GATEWAY}"))?;
        for other in &cluster.hosts {
            host.sh(&format!("ping -c 1 -W 5 {}", other.address))?;
        }
        host.sh(&format!("curl -sSk --max-time 10 https://{GATEWAY}:6443/version"))?;
    }
    Ok(())
}

fn devices(cluster: &Cluster) -> Result<()> {
    for host in &cluster.hosts {
        host.sh("test -c /dev/kvm && test -c /dev/net/tun")?;
        ensure!(
            host.sh("stat -f -c %T /sys/fs/cgroup")? == "cgroup2fs",
            "{} has no cgroup v2",
            host.name
        );
        let controllers = host.sh("cat /sys/fs/cgroup/cgroup.subtree_control")?;
        ensure!(
            ["cpu", "memory", "pids", "io"].iter().all(|name| controllers.contains(name)),
            "{}: {controllers}",
            host.name
        );
    }
    Ok(())
}

fn state_disk(cluster: &Cluster) -> Result<()> {
    for host in &cluster.hosts {
        for folder in ["/var/lib/kvmlet", "/var/log"] {
            let kind = host.sh(&format!("stat -f -c %T {folder}"))?;
            ensure!(kind.starts_with("ext"), "{}: {folder} is on {kind}", host.name);
        }
        // A write that a full disk refuses must not take the host with it.
        host.sh("fallocate -l 64M /var/lib/kvmlet/probe && rm /var/lib/kvmlet/probe")?;
    }
    Ok(())
}

fn clocks(cluster: &Cluster) -> Result<()> {
    for host in &cluster.hosts {
        let theirs: f64 = host.sh("date +%s.%N")?.parse().context("read a clock")?;
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .context("read the clock")?;
        let apart = (since.as_secs_f64() - theirs).abs();
        ensure!(apart < 5.0, "the clock of {} is {apart:.1} s apart", host.name);
    }
    Ok(())
}

fn registries(cluster: &Cluster) -> Result<()> {
    let tags = cluster.http_get(&format!("http://{}/v2/library/busybox/tags/list", registry::public()))?;
    ensure!(tags.contains("latest"), "{tags}");
    let url = format!("http://{}/v2/private/busybox/tags/list", registry::private());
    ensure!(cluster.http_get(&url).is_err(), "the private registry asks for no password");
    let output = command::run(
        cluster
            .inside("curl")
            .args(["-sS", "--fail", "--max-time", "10", "-u", "puller:let-me-in", &url]),
    )?;
    ensure!(
        command::text(&output.stdout).contains("latest"),
        "the private registry refuses the right password"
    );
    Ok(())
}

fn services(cluster: &Cluster) -> Result<()> {
    let script = format!("curl -sSk --max-time 5 https://{}:443/version", crate::paths::API_SERVICE);
    for host in &cluster.hosts {
        wait_for("kube-proxy to serve the API server's service", Duration::from_secs(90), || {
            host.sh(&script).map(Some)
        })?;
    }
    Ok(())
}

fn killed(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    ensure!(
        host.run_with(&["sleep", "4711"], b"", Duration::from_millis(500)).is_err(),
        "4711 s have passed"
    );
    wait_for("the command to be gone", Duration::from_secs(20), || {
        host.run(&["pgrep", "-fx", "sleep 4711"])
            .map(|found| (found.code == 1).then_some(()))
    })
}
