//! `/metrics`: the daemon itself, the kubelet's names for what the kubelet has too, `kvmlet_*` for what only this node has; and `/configz`.

use jiff::Timestamp;
use prometheus::proto::MetricFamily;
use serde_json::{Value, json};

use super::{
    certificates, host,
    model::Snapshot,
    text::{Family, seconds},
};
use crate::{config::Config, context::Context, kubelet::Pods, state::Slot};

/// How many pods and containers there are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pods: usize,
    /// Waiting, running, ended.
    containers: [usize; 3],
}

impl Counts {
    pub(super) fn of(pods: &Pods) -> Self {
        let mut counts = Self::default();
        for handle in pods.lock().expect("no holder panics").values() {
            let view = handle.view.borrow();
            let mut runs = false;
            for container in &view.state.containers {
                let column = match container.slot {
                    Slot::Waiting { .. } | Slot::Starting { .. } => 0,
                    Slot::Running { .. } => 1,
                    Slot::Ended(_) => 2,
                };
                runs |= column == 1;
                counts.containers[column] += 1;
            }
            counts.pods += usize::from(runs);
        }
        counts
    }
}

pub(super) fn families(context: &Context, counts: &Counts, snapshot: &Snapshot) -> Vec<MetricFamily> {
    let mut families = context.meters.own();
    families.extend(of_this_process());
    let node = Family::gauge("kubelet_node_name", "[ALPHA] The node's name. The count is always 1.");
    families.push(one(node, &[("node", &context.config.node_name)], 1.0));
    let pods = Family::gauge("kubelet_running_pods", "[ALPHA] Number of pods that have a running pod sandbox");
    families.push(one(pods, &[], counts.pods as f64));
    let mut containers = Family::gauge("kubelet_running_containers", "[ALPHA] Number of containers currently running");
    for (state, number) in ["created", "running", "exited"].into_iter().zip(counts.containers) {
        containers.add(&[("container_state", state)], number as f64, None);
    }
    families.push(containers.done());
    let waiting = Family::gauge("kvmlet_boots_free", "Machines that may begin to boot at once with those that do.");
    families.push(one(waiting, &[], context.boots.available_permits() as f64));
    let images = Family::gauge("kvmlet_images_bytes", "Images on this node, decompressed.");
    families.push(one(images, &[], snapshot.node.images as f64));
    families.extend(certificates::families(&context.certificates, Timestamp::now()));
    families.extend(of_machines(snapshot));
    families
}

fn of_this_process() -> [MetricFamily; 4] {
    let [cpu, memory, files, start] = host::this_process();
    [
        (
            Family::counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds."),
            cpu,
        ),
        (
            Family::gauge("process_resident_memory_bytes", "Resident memory size in bytes."),
            memory,
        ),
        (Family::gauge("process_open_fds", "Number of open file descriptors."), files),
        (
            Family::gauge(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
            ),
            start,
        ),
    ]
    .map(|(family, value)| one(family, &[], value))
}

fn one(mut family: Family, labels: &[(&str, &str)], value: f64) -> MetricFamily {
    family.add(labels, value, None);
    family.done()
}

/// What machines cost the host: guest, monitor and the kernel's share for both.
fn of_machines(snapshot: &Snapshot) -> [MetricFamily; 4] {
    let mut cpu = Family::counter(
        "kvmlet_machine_cpu_seconds_total",
        "Processor time of the host that a pod's machine has used.",
    );
    let mut memory = Family::gauge("kvmlet_machine_memory_bytes", "Memory of the host that a pod's machine has.");
    let mut spent = Family::gauge(
        "kvmlet_machine_overhead_cpu_seconds",
        "Of it, what no container of the pod has used: the guest's kernel, the agent, the monitor.",
    );
    let mut overhead = Family::gauge(
        "kvmlet_machine_overhead_memory_bytes",
        "Of it, what no container of the pod has: the guest's kernel, the agent, the monitor.",
    );
    for pod in &snapshot.pods {
        let labels = [("pod", &*pod.name), ("namespace", &*pod.namespace)];
        let Some(machine) = pod.machine else { continue };
        cpu.add(&labels, seconds(machine.cpu), Some(snapshot.at));
        memory.add(&labels, machine.memory as f64, Some(snapshot.at));
        if let Some(guest) = &pod.guest {
            spent.add(&labels, seconds(machine.cpu.saturating_sub(guest.pod.cpu)), Some(snapshot.at));
            overhead.add(&labels, machine.memory.saturating_sub(guest.pod.memory) as f64, Some(snapshot.at));
        }
    }
    [cpu, memory, spent, overhead].map(Family::done)
}

/// What a kubelet of this configuration would say of its own.
pub(super) fn configz(config: &Config) -> Value {
    json!({"kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": config.node_ip,
        "port": config.port,
        "maxPods": config.max_pods,
        "clusterDNS": config.cluster_dns,
        "clusterDomain": config.cluster_domain,
        "resolvConf": config.resolv_conf,
        "podLogsDir": config.log_dir,
        "rotateCertificates": config.renews_client_certificate(),
        "serverTLSBootstrap": config.server_tls_bootstrap,
        "authentication": {"x509": {"clientCAFile": config.tls.client_ca_file}, "anonymous": {"enabled": false}},
        "authorization": {"mode": "Webhook"},
    }})
}

#[cfg(test)]
mod tests {
    use super::{super::text::encode, *};
    use crate::figures::{model::MachineFigures, summary::tests::snapshot};

    #[test]
    fn this_process_has_memory_files_and_a_start_in_the_past() {
        let [_, memory, files, start] = host::this_process();
        assert!(memory > 1e5 && files > 2.0, "{memory} {files}");
        let now = jiff::Timestamp::now().as_second() as f64;
        assert!((now - 86_400.0..now + 1.0).contains(&start), "{start} {now}");
    }

    #[test]
    fn what_a_machine_costs_besides_its_containers_is_told_apart() {
        let mut seen = snapshot(2_000, 1_000_000_000);
        seen.pods[0].machine = Some(MachineFigures {
            cpu: 3_500_000_000,
            memory: 10_000,
        });
        let text = encode(of_machines(&seen).into()).unwrap();
        for line in [
            r#"kvmlet_machine_cpu_seconds_total{pod="p",namespace="n"} 3.5 2000000"#,
            r#"kvmlet_machine_overhead_cpu_seconds{pod="p",namespace="n"} 2.5 2000000"#,
            r#"kvmlet_machine_overhead_memory_bytes{pod="p",namespace="n"} 1808 2000000"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
