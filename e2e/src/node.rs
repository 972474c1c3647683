//! kvmlet and kube-proxy on a host: where their files go, how they are started. What is in the files is `host_config`'s.

use std::path::Path;

use anyhow::Result;

use crate::{Host, agent::Service, artifacts::Guest, host_config, paths::State};

/// The daemon's service.
pub const KVMLET: &str = "kvmlet";
/// The daemon's output.
pub const KVMLET_LOG: &str = "/var/log/kvmlet.log";
/// kube-proxy's service.
pub const KUBE_PROXY: &str = "kube-proxy";

/// The program, in a folder that is each host's own, also of native ones.
pub const PROGRAM: &str = "/usr/local/lib/kvmlet-rig/kvmlet";
/// The program of machines, beside it.
pub const MACHINE: &str = "/usr/local/lib/kvmlet-rig/kvmlet-machine";

/// The daemon.
pub fn kvmlet_service() -> Service {
    let argv = [PROGRAM, "node", "--config", "/etc/kvmlet/config.yaml"];
    let env = vec![(
        "RUST_LOG".into(),
        "info,kvmlet=debug,kvmlet_provider=debug,kvmlet_machine=debug".into(),
    )];
    Service {
        name: KVMLET.into(),
        argv: argv.map(str::to_owned).to_vec(),
        env,
        log: KVMLET_LOG.into(),
    }
}

/// kube-proxy, from the control plane's programs.
pub fn kube_proxy_service() -> Service {
    let argv = ["/opt/controlplane/kube-proxy", "--config=/etc/kube-proxy/config.yaml"];
    Service {
        name: KUBE_PROXY.into(),
        argv: argv.map(str::to_owned).to_vec(),
        env: vec![("GOMAXPROCS".into(), "1".into())],
        log: "/var/log/kube-proxy.log".into(),
    }
}

/// Puts identities and configuration on a host.
pub fn configure(state: &State, host: &Host) -> Result<()> {
    let pki = state.pki();
    host.put("/etc/kvmlet/config.yaml", 0o644, host_config::kvmlet(host).as_bytes())?;
    host.put("/etc/kvmlet/resolv.conf", 0o644, host_config::resolv_conf().as_bytes())?;
    host.put("/etc/kube-proxy/config.yaml", 0o644, host_config::kube_proxy(host).as_bytes())?;
    host.put_file("/etc/kvmlet/kubeconfig", 0o600, &pki.join(format!("{}.kubeconfig", host.name)))?;
    host.put_file("/etc/kvmlet/server.crt", 0o644, &pki.join(format!("{}.crt", host.name)))?;
    host.put_file("/etc/kvmlet/server.key", 0o600, &pki.join(format!("{}.key", host.name)))?;
    host.put_file("/etc/kvmlet/ca.crt", 0o644, &pki.join("ca.crt"))?;
    host.put_file("/etc/kvmlet/routes.kubeconfig", 0o600, &pki.join("routes.kubeconfig"))?;
    host.put_file("/etc/kvmlet/shared.kubeconfig", 0o600, &pki.join("shared.kubeconfig"))?;
    host.put_file("/etc/kube-proxy/kubeconfig", 0o600, &pki.join("kube-proxy.kubeconfig"))
}

/// Puts the programs and the guest on a host. `kvmlet` is one of them, with the other beside it. A program that runs keeps its old file.
pub fn install(host: &Host, kvmlet: &Path, guest: &Guest) -> Result<()> {
    host.put_file(PROGRAM, 0o755, kvmlet)?;
    host.put_file(MACHINE, 0o755, &kvmlet.with_file_name("kvmlet-machine"))?;
    host.put_file("/usr/lib/kvmlet/vmlinux", 0o644, &guest.kernel)?;
    host.put_file("/usr/lib/kvmlet/initramfs.cpio", 0o644, &guest.initramfs)
}
