//! A real kubelet with containerd on a host that boots systemd: their programs, configuration and units, as an administrator has them. Its pods' network is
//! CNI's bridge, under another name than kvmlet's.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::{
    Cluster, Host, artifacts, host_config,
    paths::{CLUSTER_DNS, GATEWAY, POD_CIDR, REGISTRY_PORT, WORKER},
    wait_for,
};

/// How long it may take to be registered and Ready on an emulated host.
const PATIENCE: Duration = Duration::from_secs(240);
/// Where programs go, each of the artefact.
const PROGRAMS: [&str; 4] = ["kubelet", "containerd", "containerd-shim-runc-v2", "runc"];

/// containerd's configuration.
const CONTAINERD: &str = r#"version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "registry.k8s.io/pause:3.10.2"
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "/etc/containerd/certs.d"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = "/usr/local/bin/runc"
  SystemdCgroup = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "/etc/cni/net.d"
"#;

/// Its unit, in its project's own words where they matter.
const CONTAINERD_UNIT: &str = "[Unit]
Description=containerd
[Service]
Type=notify
ExecStart=/usr/local/bin/containerd
Delegate=yes
KillMode=process
LimitNOFILE=1048576
TasksMax=infinity
";

/// What the host keeps of itself is more than usual: one processor of an emulated host runs nothing.
fn kubelet(host: &Host) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
port: 10250
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: /etc/kubernetes/ca.crt}}}}
authorization: {{mode: Webhook}}
tlsCertFile: /etc/kubernetes/server.crt
tlsPrivateKeyFile: /etc/kubernetes/server.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: systemd
failSwapOn: false
clusterDNS: [\"{CLUSTER_DNS}\"]
clusterDomain: cluster.local
resolvConf: /etc/kubernetes/resolv.conf
systemReserved: {{cpu: \"1\", memory: 512Mi}}
evictionHard: {{memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}}
",
        address = host.address,
    )
}

fn unit(host: &Host) -> String {
    format!(
        "[Unit]
Description=The kubelet
After=containerd.service
[Service]
ExecStart=/usr/local/bin/kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubeconfig \
--hostname-override={WORKER} --node-ip={address} --v=2
Restart=on-failure
",
        address = host.address,
    )
}

fn network(pod_cidr: &str) -> String {
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "worker", "plugins": [
  {{"type": "bridge", "bridge": "worker0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{pod_cidr}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
"#
    )
}

/// Installs and starts them on the cluster's first host; answers when their Node is Ready.
pub fn start(cluster: &Cluster) -> Result<()> {
    let (host, pki) = (cluster.host(0)?, cluster.state.pki());
    let programs = artifacts::kubelet()?;
    for name in PROGRAMS {
        host.put_file(&format!("/usr/local/bin/{name}"), 0o755, &programs.join(name))?;
    }
    let mirror = format!("[host.\"http://{GATEWAY}:{REGISTRY_PORT}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    for (path, content) in [
        ("/etc/containerd/config.toml", CONTAINERD.to_owned()),
        ("/etc/containerd/certs.d/_default/hosts.toml", mirror),
        ("/etc/kubernetes/kubelet.yaml", kubelet(host)),
        ("/etc/kubernetes/resolv.conf", host_config::resolv_conf()),
        ("/etc/systemd/system/containerd.service", CONTAINERD_UNIT.to_owned()),
        ("/etc/systemd/system/kubelet.service", unit(host)),
    ] {
        host.put(path, 0o644, content.as_bytes())?;
    }
    for (path, file) in [
        ("/etc/kubernetes/kubeconfig", format!("{WORKER}.kubeconfig")),
        ("/etc/kubernetes/ca.crt", "ca.crt".into()),
        ("/etc/kubernetes/server.crt", format!("{}.crt", host.name)),
        ("/etc/kubernetes/server.key", format!("{}.key", host.name)),
    ] {
        host.put_file(path, 0o600, &pki.join(file))?;
    }
    host.sh("systemctl daemon-reload && systemctl start containerd && systemctl start kubelet")?;
    let pod_cidr = wait_for(&format!("Node {WORKER} to have a podCIDR"), PATIENCE, || {
        let found = cluster.kubectl(&["get", "node", WORKER, "-o", "jsonpath={.spec.podCIDR}"])?;
        Ok(Some(found).filter(|cidr| !cidr.is_empty()))
    })?;
    anyhow::ensure!(pod_cidr.starts_with(&POD_CIDR[..7]), "the podCIDR of {WORKER} is {pod_cidr}");
    host.put("/etc/cni/net.d/10-worker.conflist", 0o644, network(&pod_cidr).as_bytes())?;
    let condition = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    wait_for(&format!("Node {WORKER} to be Ready"), PATIENCE, || {
        let found = cluster.kubectl(&["get", "node", WORKER, "-o", condition])?;
        Ok((found == "True").then_some(()))
    })
    .context("the kubelet")
}

/// What they have to say, for a test that fails.
pub fn journal(host: &Host) -> String {
    let script =
        "systemctl --no-pager status kubelet containerd; journalctl --no-pager -n 80 -u kubelet; journalctl --no-pager -n 30 -u containerd";
    match host.run(&["sh", "-c", script]) {
        Ok(output) => output.text(),
        Err(error) => format!("({error:#})"),
    }
}
