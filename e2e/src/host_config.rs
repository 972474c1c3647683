//! The configuration files of a host, rendered here and nowhere else: kvmlet's and kube-proxy's.

use crate::{
    Host,
    paths::{CLUSTER_DNS, GATEWAY, KUBELET_PORT, POD_CIDR, REGISTRY_PORT},
};

/// What pods may mount of a host, besides the /tmp that Kubernetes' own specifications mount, and what they may only read.
pub const SHARED: &str = "/srv/shared";
/// See there.
pub const FIXED: &str = "/srv/fixed";

/// Tests fill disks and memory of hosts, and their pods shall not go for it.
const NOBODY_IS_EVICTED: &str = "evictionHard: {memory.available: 0%}";

/// `/etc/kvmlet/config.yaml`. Routes to other Nodes' pods need an identity that may list Nodes; the node's own may not.
pub fn kvmlet(host: &Host) -> String {
    let mirrors: String = ["docker.io", "registry.k8s.io", "quay.io", "ghcr.io"]
        .map(|registry| format!("  {registry}:\n    mirrors: [\"http://{GATEWAY}:{REGISTRY_PORT}\"]\n"))
        .concat();
    let local: String = [REGISTRY_PORT, REGISTRY_PORT + 1]
        .map(|port| format!("  \"{GATEWAY}:{port}\":\n    insecure: true\n"))
        .concat();
    format!(
        "apiVersion: kvmlet.io/v1alpha1
kind: KvmletConfiguration
nodeName: {name}
nodeIP: {address}
kubeconfig: /etc/kvmlet/kubeconfig
port: {KUBELET_PORT}
tls:
  certFile: /etc/kvmlet/server.crt
  keyFile: /etc/kvmlet/server.key
  clientCAFile: /etc/kvmlet/ca.crt
clusterDNS: [\"{CLUSTER_DNS}\"]
clusterDomain: cluster.local
resolvConf: /etc/kvmlet/resolv.conf
{NOBODY_IS_EVICTED}
guest:
  kernel: /usr/lib/kvmlet/vmlinux
  initramfs: /usr/lib/kvmlet/initramfs.cpio
volumes:
  hostPath:
    allowed: [{{prefix: {SHARED}}}, {{prefix: {FIXED}, readOnly: true}}, {{prefix: /tmp}}]
registries:
{mirrors}{local}network:
  clusterCIDR: {POD_CIDR}
  routesKubeconfig: /etc/kvmlet/routes.kubeconfig
",
        name = host.name,
        address = host.address,
    )
}

/// What is another way in the configuration of a host that has a kubelet, too, of this Node, where so many processors are reserved.
pub fn shared(node: &str, cpu: &str) -> String {
    format!(
        "port: 10260
logDir: /var/log/kvmlet/pods
drainTimeoutSeconds: 100
shared:
  nodeName: {node}
  kubeconfig: /etc/kvmlet/shared.kubeconfig
  reservation: {{cpu: {cpu}, memory: 1536Mi, ephemeralStorage: 3Gi}}
"
    )
}

/// `/etc/kvmlet/resolv.conf`, for `dnsPolicy: Default`: the rig has no resolver, so nobody answers there.
pub fn resolv_conf() -> String {
    format!("nameserver {GATEWAY}\nsearch rig.test\n")
}

/// `/etc/kube-proxy/config.yaml`.
pub fn kube_proxy(host: &Host) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: {name}
bindAddress: {address}
clusterCIDR: {POD_CIDR}
clientConnection: {{kubeconfig: /etc/kube-proxy/kubeconfig}}
conntrack: {{maxPerCore: 0}}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
",
        name = host.name,
        address = host.address,
    )
}
