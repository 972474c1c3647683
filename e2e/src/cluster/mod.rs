//! A whole cluster: what a test holds in its hand. How it comes and goes is `lifecycle`'s.

mod beside;
mod lifecycle;

pub use self::beside::Beside;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    Host, artifacts::Guest, command, control_plane, netns::Netns, paths::State, paths::write, preflight::Verdict, process::Process,
    wait_for,
};

/// What a cluster should be like.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many KVM hosts, at least.
    pub hosts: usize,
    /// Processors of an emulated host.
    pub cpus: usize,
    /// Memory of an emulated host in MiB; by default 6 GiB, 4 GiB each when there are more.
    pub memory: Option<usize>,
    /// Build kvmlet and its guest, install them and start the daemon. Without it hosts are bare.
    pub kvmlet: bool,
    /// Take a running cluster that is large enough.
    pub reuse: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            hosts: 1,
            cpus: 2,
            memory: None,
            kvmlet: true,
            reuse: true,
        }
    }
}

/// Label of a namespace that tests or the demo made.
pub const LANE: &str = "kvmlet-e2e/lane";

/// A running cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Where its state is.
    pub state: State,
    /// Which kind of hosts it has, and why.
    pub verdict: Verdict,
    /// Its KVM hosts; the first is `kvm-1`.
    pub hosts: Vec<Host>,
    /// The folder of the control plane's programs.
    pub programs: PathBuf,
    /// The folder of the test images.
    pub images: PathBuf,
}

impl Cluster {
    /// Host `index`, counted from 0.
    pub fn host(&self, index: usize) -> Result<&Host> {
        self.hosts
            .get(index)
            .with_context(|| format!("the cluster has {} hosts", self.hosts.len()))
    }

    /// The kvmlet program that is installed on the hosts, with that of machines beside it: what a build makes by now may be another.
    pub fn kvmlet(&self) -> Result<PathBuf> {
        self.installed("kvmlet")
    }

    /// The guest that is installed on the hosts.
    pub fn guest(&self) -> Result<Guest> {
        Ok(Guest {
            kernel: self.installed("vmlinux")?,
            initramfs: self.installed("initramfs.cpio")?,
        })
    }

    fn installed(&self, name: &str) -> Result<PathBuf> {
        let file = self.state.program().join(name);
        ensure!(file.exists(), "{} does not exist: kvmlet is not on the hosts", file.display());
        Ok(file)
    }

    /// A kubectl command that is not started yet, as the administrator.
    pub fn kubectl_command(&self) -> Command {
        control_plane::kubectl(&self.state, &self.programs)
    }

    /// Runs kubectl for at most two minutes, whatever its exit code.
    pub fn kubectl_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Netns::of(&self.state).command("timeout");
        command.args(["-k", "5", "120"]).arg(self.programs.join("kubectl")).args(arguments);
        command
            .env("KUBECONFIG", self.state.kubeconfig())
            .env("KUBECACHEDIR", self.state.root.join("kubectl-cache"));
        command.stdin(Stdio::null()).output().context("run kubectl")
    }

    /// Runs kubectl; its standard output, or an error with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_output(arguments)?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}: {}",
                arguments.join(" "),
                output.status,
                command::text(&output.stderr)
            );
        }
        Ok(command::text(&output.stdout))
    }

    /// `kubectl ... -o json`, parsed.
    pub fn kubectl_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("read what kubectl {} said", arguments.join(" ")))
    }

    /// Applies a manifest.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.handed(yaml, |file| self.kubectl(&["apply", "-f", file])).map(drop)
    }

    /// Asks for an object to be created; what kubectl said of it, good or bad.
    pub fn create_output(&self, object: &Value, more: &[&str]) -> Result<Output> {
        let create = |file: &str| self.kubectl_output(&[&["create", "-f", file], more].concat());
        self.handed(&object.to_string(), create)
    }

    /// Hands a manifest over as a file.
    fn handed<T>(&self, manifest: &str, to: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        let file = self.state.root.join(format!("manifest-{}.yaml", thread_token()));
        write(&file, manifest)?;
        let done = to(&file.to_string_lossy());
        fs::remove_file(&file).context("remove a manifest")?;
        done
    }

    /// The same cluster as one sees it who works on one host only.
    pub fn lane(&self, host: usize) -> Result<Self> {
        Ok(Self {
            hosts: vec![self.host(host)?.clone()],
            ..self.clone()
        })
    }

    /// Makes a namespace and waits until pods can be made in it. Its label [`LANE`] says whose it is: the first host's.
    pub fn create_namespace(&self, name: &str) -> Result<()> {
        let labels = json!({LANE: self.host(0)?.name});
        self.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}).to_string())?;
        wait_for("the default service account", Duration::from_secs(60), || {
            self.kubectl(&["get", "serviceaccount", "default", "-n", name]).map(Some)
        })?;
        Ok(())
    }

    /// Deletes a namespace with all that is in it, and waits until it is gone.
    pub fn delete_namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["delete", "namespace", name, "--timeout=110s"]).map(drop)
    }

    /// A pod, as the API server has it.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Value> {
        self.kubectl_json(&["get", "pod", name, "-n", namespace])
    }

    /// Waits until a pod's status phase is `phase`.
    pub fn wait_for_phase(&self, namespace: &str, name: &str, phase: &str, deadline: Duration) -> Result<Value> {
        wait_for(&format!("pod {namespace}/{name} to be {phase}"), deadline, || {
            let pod = self.pod(namespace, name)?;
            if pod["status"]["phase"] == phase {
                return Ok(Some(pod));
            }
            bail!("its status is {}", pod["status"])
        })
    }

    /// Waits until every host's Node says Ready, then routes the pods' addresses from the control plane.
    pub fn wait_until_nodes_are_ready(&self, deadline: Duration) -> Result<()> {
        for host in &self.hosts {
            let condition = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}{.spec.podCIDR}";
            let ready = || {
                Ok(self
                    .kubectl(&["get", "node", &host.name, "-o", condition])?
                    .starts_with("True10.")
                    .then_some(()))
            };
            crate::wait::wait_while(&format!("Node {} to be Ready", host.name), deadline, || host.daemon_runs(), ready)?;
        }
        self.sync_routes()
    }

    /// Routes each Node's pods from the cluster's namespace through their host.
    pub fn sync_routes(&self) -> Result<()> {
        let nodes = self.kubectl_json(&["get", "nodes"])?;
        for host in &self.hosts {
            let items = nodes["items"].as_array().into_iter().flatten();
            let node = items.into_iter().find(|node| node["metadata"]["name"] == host.name.as_str());
            if let Some(cidr) = node.and_then(|node| node["spec"]["podCIDR"].as_str()) {
                Netns::of(&self.state).ip(&["route", "replace", cidr, "via", &host.address.to_string()])?;
            }
        }
        Ok(())
    }

    /// A command inside the cluster's network, where the API server, pods and services of hosts can be reached.
    pub fn inside(&self, program: &str) -> Command {
        Netns::of(&self.state).command(program)
    }

    /// Fetches a URL from inside the cluster's network.
    pub fn http_get(&self, url: &str) -> Result<String> {
        let output = command::run(self.inside("curl").args(["-sS", "--fail", "--max-time", "10", url]))?;
        Ok(command::text(&output.stdout))
    }

    /// Ends the API server at once.
    pub fn stop_api_server(&self) -> Result<()> {
        let recorded = Process::named(&self.state, "kube-apiserver")?;
        recorded.context("the API server does not run")?.end(&self.state)
    }

    /// Starts the API server again and waits until it is ready.
    pub fn start_api_server(&self) -> Result<()> {
        control_plane::start_api_server(&self.state, &self.programs)?;
        control_plane::wait_until_ready(&self.state)
    }
}

fn thread_token() -> String {
    format!("{}-{:?}", std::process::id(), thread::current().id()).replace(['(', ')'], "")
}
