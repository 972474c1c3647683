//! What pods use, as the cluster's own readers see it: the kubelet's pages through the API server, `kubectl top` and a HorizontalPodAutoscaler
//! by metrics-server.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    workload::{PATIENCE, Place, STAY, container, pod, sh, with, within},
};
use crate::{
    Cluster,
    netns::Netns,
    paths::{API_PORT, GATEWAY, write},
    process::Process,
    wait_for,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "pods' processor time, memory and traffic are on the kubelet's pages, the machine's own share apart",
        hosts: 1,
        kvmlet: true,
        run: pages,
    },
    Test {
        name: "kubectl top shows pods and nodes, and an autoscaler scales, by metrics-server",
        hosts: 2,
        kvmlet: true,
        run: top,
    },
];

/// The value of a sample whose line begins with the metric's name and has all these in it.
pub(super) fn sample(page: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let line = page
        .lines()
        .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && labels.iter().all(|l| line.contains(l)))
        .with_context(|| format!("no {name} with {labels:?} in:\n{page}"))?;
    let values = line.rsplit_once('}').map_or_else(|| &line[name.len()..], |(_, values)| values);
    let value = values.split_ascii_whitespace().next().context("a value")?;
    value.parse().with_context(|| format!("the value of {line}"))
}

/// A page of the node's, through the API server.
pub(super) fn page(place: &Place<'_>, path: &str) -> Result<String> {
    let node = &place.cluster.host(0)?.name;
    place
        .cluster
        .kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/{path}")])
}

/// A container with 64 MiB of memory of its own, which works until somebody makes a file.
const WORKS: &str = "dd if=/dev/zero of=/dev/shm/held bs=1M count=64 2>/dev/null; while [ ! -e /rest ]; do :; done";

fn pages(cluster: &Cluster) -> Result<()> {
    within(cluster, "figures-pages", |place| {
        let busy = with(
            sh(&format!("{WORKS}; {STAY}")),
            &[
                (
                    "/livenessProbe",
                    json!({"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 30}),
                ),
                ("/resources", json!({"limits": {"memory": "160Mi"}})),
            ],
        );
        let written = with(busy, &[("/volumeMounts", json!([{"name": "cache", "mountPath": "/cache"}]))]);
        let volumes = json!([{"name": "cache", "emptyDir": {}}, {"name": "told", "downwardAPI": {"items": []}}]);
        place.create(&[with(pod("busy", written), &[("/spec/volumes", volumes)])])?;
        let found = place.until_ready("busy")?;
        let of_busy = ["container=\"main\"", "pod=\"busy\"", "namespace=\"figures-pages\""];
        let held = f64::from(64 << 20);
        let first = wait_for("its memory to be seen", PATIENCE, || {
            let page = page(place, "metrics/resource")?;
            let memory = sample(&page, "container_memory_working_set_bytes", &of_busy)?;
            ensure!((held..held * 2.0).contains(&memory), "its working set is {memory} bytes");
            Ok(Some(page))
        })?;
        let cpu = |page: &str| sample(page, "container_cpu_usage_seconds_total", &of_busy);
        wait_for("its processor time to grow", PATIENCE, || {
            let grown = cpu(&page(place, "metrics/resource")?)? - cpu(&first)?;
            ensure!(grown > 1.0, "it has grown by {grown} s");
            Ok(Some(()))
        })?;
        ensure!(sample(&first, "resource_scrape_error", &[])? == 0.0, "a guest did not answer");
        ensure!(
            sample(&first, "node_memory_working_set_bytes", &[])? > held,
            "the node has less than its pod"
        );
        let files = "dd if=/dev/zero of=/own bs=1M count=3 2>/dev/null; dd if=/dev/zero of=/cache/f bs=1M count=5 2>/dev/null";
        place.exec("busy", &format!("touch /rest; {files}; sync"))?;

        let summary: Value = serde_json::from_str(&page(place, "stats/summary")?)?;
        let uid = &found["metadata"]["uid"];
        let pods = summary["pods"].as_array().into_iter().flatten();
        let pod = pods
            .into_iter()
            .find(|pod| pod["podRef"]["uid"] == *uid)
            .context("the pod in the summary")?;
        let main = &pod["containers"][0];
        ensure!(
            main["name"] == "main" && main["memory"]["workingSetBytes"].as_f64() > Some(held),
            "{main}"
        );
        ensure!(main["cpu"]["usageNanoCores"].is_u64(), "a rate, as it was read before: {main}");
        ensure!(pod["network"]["interfaces"][0]["name"] == "eth0", "{pod}");
        ensure!(pod["ephemeral-storage"]["capacityBytes"].as_u64() > Some(0), "{pod}");
        let used = |what: &Value| what["usedBytes"].as_u64().unwrap_or_default() >> 20;
        ensure!((3..5).contains(&used(&main["rootfs"])), "{main}");
        let volume = |name: &str| pod["volume"].as_array().into_iter().flatten().find(|volume| volume["name"] == name);
        let cache = volume("cache").context("the volume in the summary")?;
        ensure!(used(cache) == 5 && cache["inodesUsed"] == 2, "{cache}");
        ensure!(cache["capacityBytes"] == pod["ephemeral-storage"]["capacityBytes"], "{pod}");
        ensure!(volume("told").is_some_and(|told| used(told) == 0), "{pod}");
        ensure!(summary["node"]["fs"]["capacityBytes"].as_u64() > Some(0), "{}", summary["node"]);

        let cadvisor = page(place, "metrics/cadvisor")?;
        ensure!(
            sample(&cadvisor, "container_memory_rss", &of_busy)? < held,
            "shared memory is no RSS"
        );
        let written = sample(&cadvisor, "container_fs_usage_bytes", &of_busy)?;
        ensure!(written >= f64::from(3 << 20), "{written} bytes in the container's own files");
        sample(
            &cadvisor,
            "container_network_receive_bytes_total",
            &["pod=\"busy\"", "interface=\"eth0\""],
        )?;
        let own = page(place, "metrics")?;
        let machine = sample(&own, "kvmlet_machine_memory_bytes", &["pod=\"busy\""])?;
        let overhead = sample(&own, "kvmlet_machine_overhead_memory_bytes", &["pod=\"busy\""])?;
        ensure!(
            machine > held && overhead > 0.0 && overhead < machine,
            "{overhead} of {machine} bytes"
        );
        ensure!(sample(&own, "kubelet_running_pods", &[])? >= 1.0, "{own}");
        sample(&own, "process_resident_memory_bytes", &[])?;
        for phase in ["surroundings", "disks", "queue", "guest", "setup"] {
            sample(&own, "kvmlet_machine_phase_seconds_count", &[&format!("phase=\"{phase}\"")])?;
        }
        sample(&own, "kvmlet_boots_waiting", &[])?;
        sample(&own, "kvmlet_image_requests_total", &[])?;
        sample(&own, "rest_client_requests_total", &["method=\"PATCH\"", "code=\"200\""])?;
        let read = &[
            "method=\"GET\"",
            "path=\"metrics\"",
            "server_type=\"readwrite\"",
            "long_running=\"false\"",
        ];
        sample(&page(place, "metrics")?, "kubelet_http_requests_duration_seconds_count", read)?;
        ensure!(sample(&own, "kubelet_http_requests_total", read)? >= 1.0, "{own}");
        for name in [
            "kubelet_pod_start_duration_seconds_count",
            "kubelet_pod_start_sli_duration_seconds_count",
            "kubelet_started_pods_total",
        ] {
            ensure!(sample(&own, name, &[])? >= 1.0, "{name}: {own}");
        }
        ensure!(
            sample(&own, "kubelet_started_containers_total", &["container_type=\"container\""])? >= 1.0,
            "{own}"
        );
        let probes = page(place, "metrics/probes")?;
        sample(
            &probes,
            "prober_probe_duration_seconds_count",
            &["probe_type=\"Liveness\"", "pod=\"busy\""],
        )?;
        sample(
            &probes,
            "prober_probe_total",
            &["probe_type=\"Liveness\"", "result=\"successful\"", "pod=\"busy\""],
        )?;
        let configz: Value = serde_json::from_str(&page(place, "configz")?)?;
        let configz = &configz["kubeletconfig"];
        ensure!(configz["kind"] == "KubeletConfiguration" && configz["maxPods"] == 110, "{configz}");
        ensure!(
            configz["imageMaximumGCAge"] == "0s" && configz["evictionHard"].is_object(),
            "{configz}"
        );
        Ok(())
    })
}

/// Where metrics-server listens.
const PORT: u16 = 4443;

/// What metrics-server may do, and how the API server finds it: as its own manifests say, but for its place, beside the control plane.
fn metrics_server() -> Value {
    let meta = |name: &str| json!({"name": name, "namespace": "kube-system"});
    let subject = json!([{"kind": "ServiceAccount", "name": "metrics-server", "namespace": "kube-system"}]);
    let role = |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    let rbac = "rbac.authorization.k8s.io/v1";
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("metrics-server")},
        {"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": "system:metrics-server"}, "rules": [
            {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}]},
        {"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": "system:metrics-server"},
            "roleRef": role("ClusterRole", "system:metrics-server"), "subjects": subject},
        {"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": "metrics-server:system:auth-delegator"},
            "roleRef": role("ClusterRole", "system:auth-delegator"), "subjects": subject},
        {"apiVersion": rbac, "kind": "RoleBinding", "metadata": meta("metrics-server-auth-reader"),
            "roleRef": role("Role", "extension-apiserver-authentication-reader"), "subjects": subject},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta("metrics-server"),
            "spec": {"ports": [{"name": "https", "port": 443, "targetPort": PORT}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "metrics-server", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "metrics-server"}},
            "addressType": "IPv4", "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}],
            "endpoints": [{"addresses": [GATEWAY], "conditions": {"ready": true}}]},
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {"group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
                "insecureSkipTLSVerify": true, "service": {"name": "metrics-server", "namespace": "kube-system"}}},
    ]})
}

/// A running metrics-server; ended with what it stands in the cluster for.
struct MetricsServer<'a> {
    cluster: &'a Cluster,
    process: Process,
}

impl<'a> MetricsServer<'a> {
    /// Real, with the rights of its own service account.
    fn start(cluster: &'a Cluster) -> Result<Self> {
        let (state, objects) = (&cluster.state, metrics_server());
        cluster.apply(&objects.to_string())?;
        let token = cluster.kubectl(&["-n", "kube-system", "create", "token", "metrics-server"])?;
        let ca = state.pki().join("ca.crt");
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "m",
            "contexts": [{"name": "m", "context": {"cluster": "m", "user": "m"}}],
            "clusters": [{"name": "m", "cluster": {"server": format!("https://{GATEWAY}:{API_PORT}"), "certificate-authority": ca}}],
            "users": [{"name": "m", "user": {"token": token}}]});
        let kubeconfig = state.root.join("metrics-server.kubeconfig");
        write(&kubeconfig, config.to_string())?;
        let mut command = Netns::of(state).command(cluster.programs.join("metrics-server"));
        for option in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
            command.arg(format!("--{option}={}", kubeconfig.display()));
        }
        command
            .arg(format!("--secure-port={PORT}"))
            .arg(format!("--cert-dir={}", state.root.join("metrics-server").display()))
            .arg(format!("--kubelet-certificate-authority={}", ca.display()))
            .args([
                "--kubelet-preferred-address-types=InternalIP",
                "--metric-resolution=10s",
                "--kubelet-request-timeout=8s",
            ]);
        let process = Process::spawn(state, "metrics-server", &mut command)?;
        Ok(Self { cluster, process })
    }

    fn end(self) -> Result<()> {
        self.process.end(&self.cluster.state)?;
        let objects = metrics_server();
        let file = self.cluster.state.root.join("metrics-server.json");
        write(&file, objects.to_string())?;
        self.cluster.kubectl(&["delete", "-f", &file.display().to_string()]).map(drop)
    }
}

fn top(cluster: &Cluster) -> Result<()> {
    within(cluster, "figures-top", |place| {
        let server = MetricsServer::start(cluster)?;
        let shown = top_with(cluster, place);
        server.end()?;
        shown
    })
}

/// The number before a unit (`12m`, `70Mi`) in a column of the line that begins with this word.
fn column(table: &str, row: &str, column: usize, unit: &str) -> Result<u64> {
    let line = table.lines().find(|line| line.split_ascii_whitespace().next() == Some(row));
    let cell = line.and_then(|line| line.split_ascii_whitespace().nth(column));
    let cell = cell.with_context(|| format!("{row} in:\n{table}"))?;
    cell.strip_suffix(unit)
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("{cell} in {unit}"))
}

fn top_with(cluster: &Cluster, place: &Place<'_>) -> Result<()> {
    let template = with(
        pod(
            "x",
            with(
                sh(&format!("{WORKS}; {STAY}")),
                &[("/resources", json!({"requests": {"cpu": "100m"}, "limits": {"memory": "160Mi"}}))],
            ),
        ),
        &[("/metadata", json!({"labels": {"app": "works"}}))],
    );
    let spec = with(template["spec"].clone(), &[("/nodeSelector", json!({"type": "virtual-kubelet"}))]);
    place.create(&[
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "works"}, "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "works"}},
            "template": {"metadata": template["metadata"], "spec": spec}}}),
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "works"}, "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "works"},
            "minReplicas": 1, "maxReplicas": 2,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}}),
    ])?;
    let name = wait_for("the first pod to run", PATIENCE, || {
        let pods = place.cluster.kubectl_json(&["-n", &place.name, "get", "pods"])?;
        let runs = pods["items"].as_array().into_iter().flatten();
        let found = runs.into_iter().find(|pod| container(pod, "main")["ready"] == true);
        Ok(found.and_then(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)))
    })?;
    wait_for("kubectl top to show the pod's processor time and memory", PATIENCE, || {
        let table = place.kubectl(&["top", "pods", "--no-headers"])?;
        let (cpu, memory) = (column(&table, &name, 1, "m")?, column(&table, &name, 2, "Mi")?);
        ensure!(cpu > 100 && (64..128).contains(&memory), "{table}");
        Ok(Some(()))
    })?;
    wait_for("kubectl top to show both nodes", PATIENCE, || {
        let table = cluster.kubectl(&["top", "nodes", "--no-headers"])?;
        for host in &cluster.hosts {
            ensure!(column(&table, &host.name, 1, "m")? > 0, "{table}");
            ensure!(column(&table, &host.name, 3, "Mi")? > 64, "{table}");
        }
        Ok(Some(()))
    })?;
    wait_for("the autoscaler to want a second pod", PATIENCE, || {
        let scaler = place.cluster.kubectl_json(&["-n", &place.name, "get", "hpa", "works"])?;
        ensure!(scaler["status"]["desiredReplicas"] == 2, "{}", scaler["status"]);
        Ok(Some(()))
    })?;
    wait_for("both pods to run", PATIENCE, || {
        let deployment = place.cluster.kubectl_json(&["-n", &place.name, "get", "deployment", "works"])?;
        ensure!(deployment["status"]["readyReplicas"] == 2, "{}", deployment["status"]);
        Ok(Some(()))
    })?;
    place.kubectl(&["delete", "hpa,deployment", "works"]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_found_by_its_whole_name_and_its_labels() {
        let page = "# HELP a b\na_b{x=\"1\"} 5\na{x=\"2\",y=\"3\"} 6.5 1000\na 7\n";
        assert_eq!(sample(page, "a", &["x=\"2\""]).unwrap(), 6.5);
        assert_eq!(sample(page, "a", &[]).unwrap(), 6.5);
        assert_eq!(sample("a 7\n", "a", &[]).unwrap(), 7.0);
        assert!(sample(page, "b", &[]).is_err() && sample(page, "a", &["x=\"9\""]).is_err());
    }

    #[test]
    fn cells_of_a_table_are_numbers_with_a_unit() {
        assert_eq!(column("p-1   12m   70Mi\np-2 1m 2Mi\n", "p-2", 2, "Mi").unwrap(), 2);
        assert!(column("p-1 <unknown> 1Mi\n", "p-1", 1, "m").is_err());
    }
}
