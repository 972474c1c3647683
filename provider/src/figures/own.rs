//! `/metrics`: the daemon itself, the kubelet's names for what the kubelet has too, `kvmlet_*` for what only this node has.

use std::collections::BTreeSet;

use jiff::Timestamp;
use kvmlet_protocol::DirectoryFigures;
use prometheus::proto::MetricFamily;

use super::{
    certificates, host,
    model::Snapshot,
    spent,
    stored::All,
    text::{Family, seconds},
};
use crate::{context::Context, kubelet::Pods, state::Slot};

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
    let machines = Family::counter(
        "kvmlet_work_on_machines_cpu_seconds_total",
        "Of process_cpu_seconds_total, what went into machines: their processes, sockets, control groups and disks, their taps and network namespaces.",
    );
    let [on_machines, on_network] = spent::on_machines_so_far();
    families.push(one(machines, &[], seconds(on_machines)));
    let network = Family::counter(
        "kvmlet_work_on_network_cpu_seconds_total",
        "Of kvmlet_work_on_machines_cpu_seconds_total, what went into network namespaces and taps.",
    );
    families.push(one(network, &[], seconds(on_network)));
    let pulls = Family::counter(
        "kvmlet_work_on_images_cpu_seconds_total",
        "Of process_cpu_seconds_total, what finding, verifying and pulling pods' images took, unless done by threads that may block.",
    );
    families.push(one(pulls, &[], seconds(spent::on_images_so_far())));
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

/// What claimed volumes hold (pkg/kubelet/metrics/collectors/volume_stats.go).
pub(super) fn of_claims(snapshot: &Snapshot, stored: &All) -> Vec<MetricFamily> {
    type Column = (&'static str, &'static str, fn(&DirectoryFigures) -> u64);
    const COLUMNS: [Column; 6] = [
        ("available_bytes", "Number of available bytes in the volume", |v| v.disk.available),
        ("capacity_bytes", "Capacity in bytes of the volume", |v| v.disk.capacity),
        ("inodes", "Maximum number of inodes in the volume", |v| v.disk.inodes),
        ("inodes_free", "Number of free inodes in the volume", |v| v.disk.inodes_free),
        ("inodes_used", "Number of used inodes in the volume", |v| v.inodes_used),
        ("used_bytes", "Number of used bytes in the volume", |v| v.used),
    ];
    let family = |(name, help, read): Column| {
        let mut family = Family::gauge(&format!("kubelet_volume_stats_{name}"), &format!("[ALPHA] {help}"));
        let mut told = BTreeSet::new();
        for pod in &snapshot.pods {
            for volume in stored.get(&pod.uid).iter().flat_map(|stored| &stored.volumes) {
                // A claim of several pods is told once.
                let Some(claim) = volume.claim.as_deref().filter(|claim| told.insert((&*pod.namespace, *claim))) else {
                    continue;
                };
                let labels = [("namespace", &*pod.namespace), ("persistentvolumeclaim", claim)];
                family.add(&labels, read(&volume.figures) as f64, None);
            }
        }
        family.done()
    };
    COLUMNS.into_iter().map(family).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::text::encode, *};
    use crate::figures::{
        model::{MachineFigures, PodFigures, Stored, StoredVolume},
        summary::tests::snapshot,
    };

    #[test]
    fn this_process_has_memory_files_and_a_start_in_the_past() {
        let [_, memory, files, start] = host::this_process();
        assert!(memory > 1e5 && files > 2.0, "{memory} {files}");
        let now = jiff::Timestamp::now().as_second() as f64;
        assert!((now - 86_400.0..now + 1.0).contains(&start), "{start} {now}");
    }

    #[test]
    fn a_claimed_volume_is_told_once_and_no_other() {
        let mut seen = snapshot(2_000, 1);
        let twin = PodFigures {
            uid: "w".into(),
            ..seen.pods[0].clone()
        };
        seen.pods.push(twin);
        let volume = |name: &str, claim: Option<&str>, used| StoredVolume {
            name: name.into(),
            claim: claim.map(Into::into),
            figures: DirectoryFigures {
                used,
                ..DirectoryFigures::default()
            },
        };
        let stored = Stored {
            at: seen.at,
            told: true,
            volumes: vec![volume("cache", None, 7), volume("data", Some("mine"), 8)],
            layers: Vec::new(),
        };
        let all = All::from([("u".to_owned(), stored.clone()), ("w".to_owned(), stored)]);
        let text = encode(of_claims(&seen, &all)).unwrap();
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("kubelet_volume_stats_used_bytes"))
            .collect();
        assert_eq!(
            lines,
            [r#"kubelet_volume_stats_used_bytes{namespace="n",persistentvolumeclaim="mine"} 8"#]
        );
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
