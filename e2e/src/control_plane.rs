//! The real control plane: etcd, API server, controller manager and scheduler as processes in the cluster's namespace.
//! The API server asks etcd again until it answers; the others start when the API server is ready, as their permissions
//! are made by its own start.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};

use crate::{
    command,
    netns::Netns,
    paths::{API_PORT, GATEWAY, POD_CIDR, SERVICE_CIDR, State, write},
    process::Process,
    wait::wait_while,
};

/// What the rest of the cluster may be allowed beyond what Kubernetes itself sets up.
const BOOTSTRAP: &str = r"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kvmlet-rig-kubelet-api-admin}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:kubelet-api-admin'}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: kube-apiserver-kubelet-client}]
";

fn etcd(state: &State) -> Vec<String> {
    let data = state.root.join("etcd");
    let arguments = [
        "--name=kvmlet",
        &format!("--data-dir={}", data.display()),
        "--unsafe-no-fsync",
        "--log-level=warn",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=kvmlet=http://127.0.0.1:2380",
        "--heartbeat-interval=50",
        "--election-timeout=500",
    ];
    arguments.map(str::to_owned).to_vec()
}

fn api_server(state: &State) -> Vec<String> {
    let folder = state.pki();
    let pki = folder.display();
    let arguments = [
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0",
        &format!("--advertise-address={GATEWAY}"),
        &format!("--secure-port={API_PORT}"),
        &format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        &format!("--tls-cert-file={pki}/apiserver.crt"),
        &format!("--tls-private-key-file={pki}/apiserver.key"),
        &format!("--client-ca-file={pki}/ca.crt"),
        "--enable-bootstrap-token-auth=true",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        &format!("--service-account-signing-key-file={pki}/sa.key"),
        &format!("--service-account-key-file={pki}/sa.pub"),
        &format!("--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt"),
        &format!("--kubelet-client-key={pki}/apiserver-kubelet-client.key"),
        &format!("--kubelet-certificate-authority={pki}/ca.crt"),
        "--kubelet-preferred-address-types=InternalIP",
        &format!("--requestheader-client-ca-file={pki}/front-proxy-ca.crt"),
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        &format!("--proxy-client-cert-file={pki}/front-proxy-client.crt"),
        &format!("--proxy-client-key-file={pki}/front-proxy-client.key"),
        // No kube-proxy runs beside it: it dials what an aggregated API's service stands for.
        "--enable-aggregator-routing=true",
        "--max-requests-inflight=2000",
        "--max-mutating-requests-inflight=1000",
        "--profiling=false",
    ];
    arguments.map(str::to_owned).to_vec()
}

fn controller_manager(state: &State) -> Vec<String> {
    let folder = state.pki();
    let pki = folder.display();
    let kubeconfig = format!("{pki}/kube-controller-manager.kubeconfig");
    let arguments = [
        &format!("--kubeconfig={kubeconfig}"),
        &format!("--authentication-kubeconfig={kubeconfig}"),
        &format!("--authorization-kubeconfig={kubeconfig}"),
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        &format!("--service-account-private-key-file={pki}/sa.key"),
        &format!("--root-ca-file={pki}/ca.crt"),
        &format!("--cluster-signing-cert-file={pki}/ca.crt"),
        &format!("--cluster-signing-key-file={pki}/ca.key"),
        "--allocate-node-cidrs=true",
        &format!("--cluster-cidr={POD_CIDR}"),
        "--node-cidr-mask-size=24",
        &format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        "--configure-cloud-routes=false",
        "--horizontal-pod-autoscaler-sync-period=5s",
        "--horizontal-pod-autoscaler-initial-readiness-delay=5s",
        "--horizontal-pod-autoscaler-cpu-initialization-period=10s",
        "--kube-api-qps=1000",
        "--kube-api-burst=2000",
    ];
    arguments.map(str::to_owned).to_vec()
}

fn scheduler(state: &State) -> Result<Vec<String>> {
    let kubeconfig = state.pki().join("kube-scheduler.kubeconfig");
    let kubeconfig = kubeconfig.display();
    let config = state.root.join("scheduler.yaml");
    let text = format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
         clientConnection: {{kubeconfig: {kubeconfig}, qps: 5000, burst: 10000}}\nleaderElection: {{leaderElect: false}}\n"
    );
    write(&config, text)?;
    let arguments = [
        &format!("--config={}", config.display()),
        "--bind-address=127.0.0.1",
        &format!("--authentication-kubeconfig={kubeconfig}"),
        &format!("--authorization-kubeconfig={kubeconfig}"),
    ];
    Ok(arguments.map(ToOwned::to_owned).to_vec())
}

fn spawn(state: &State, programs: &Path, name: &str, arguments: Vec<String>) -> Result<Process> {
    let mut command = Netns::of(state).command(programs.join(name));
    Process::spawn(state, name, command.args(arguments))
}

/// Starts all parts; answers when the API server is ready.
pub fn start(state: &State, programs: &Path) -> Result<()> {
    fs::remove_dir_all(state.root.join("etcd")).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error).context("remove the old etcd data"),
    })?;
    spawn(state, programs, "etcd", etcd(state))?;
    start_api_server(state, programs)?;
    wait_until_ready(state)?;
    spawn(state, programs, "kube-controller-manager", controller_manager(state))?;
    spawn(state, programs, "kube-scheduler", scheduler(state)?)?;
    Ok(())
}

/// Starts the API server alone, after a test has ended it.
pub fn start_api_server(state: &State, programs: &Path) -> Result<Process> {
    spawn(state, programs, "kube-apiserver", api_server(state))
}

/// Whether the API server says that it is ready.
pub fn is_ready(state: &State) -> Result<bool> {
    let pki = state.pki();
    let mut curl = Netns::of(state).command("curl");
    curl.args(["-sS", "--max-time", "5", "--cacert"]).arg(pki.join("ca.crt"));
    curl.arg("--cert")
        .arg(pki.join("admin.crt"))
        .arg("--key")
        .arg(pki.join("admin.key"));
    let output = command::run(curl.arg(format!("https://{GATEWAY}:{API_PORT}/readyz")))?;
    Ok(command::text(&output.stdout) == "ok")
}

/// Waits until the API server is ready; fails at once when a part has died.
pub fn wait_until_ready(state: &State) -> Result<()> {
    let parts: Vec<Process> = Process::recorded(state)?
        .into_iter()
        .filter(|part| !part.name.starts_with("kvm-"))
        .collect();
    let alive = || parts.iter().try_for_each(|part| part.check(state));
    wait_while("the API server to be ready", Duration::from_secs(120), alive, || {
        Ok(is_ready(state)?.then_some(()))
    })
}

/// kubectl as the administrator, inside the namespace.
pub fn kubectl(state: &State, programs: &Path) -> Command {
    let mut command = Netns::of(state).command(programs.join("kubectl"));
    command.env("KUBECONFIG", state.kubeconfig());
    // Discovery is cached with the cluster it describes.
    command.env("KUBECACHEDIR", state.root.join("kubectl-cache"));
    command
}

/// What is put into every fresh cluster: the rig's own permissions and the project's manifests.
pub fn bootstrap(state: &State, programs: &Path, manifests: &Path) -> Result<()> {
    let file = state.root.join("bootstrap.yaml");
    write(&file, BOOTSTRAP)?;
    command::run(kubectl(state, programs).args(["apply", "-f"]).arg(&file))?;
    command::run(kubectl(state, programs).args(["apply", "-k"]).arg(manifests)).map(drop)
}
