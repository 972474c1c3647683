//! `/metrics/cadvisor`: what dashboards of containers read, under cAdvisor's names and labels (cAdvisor, metrics/prometheus.go). A pod as a
//! whole has no container's name; it alone has the counts of its interface.

use kvmlet_protocol::{DirectoryFigures, GroupFigures, NetworkFigures};
use prometheus::proto::MetricFamily;

use super::{
    model::{PodFigures, Snapshot},
    resource::in_seconds,
    stored::All,
    text::{Family, seconds},
};

/// The device that containers write to, by its name in the guest.
const SCRATCH: &str = crate::lower::SCRATCH;

/// A count or a value of a control group, and how it is read.
type Column = (&'static str, &'static str, fn(&GroupFigures) -> f64);

const COUNTERS: [Column; 4] = [
    (
        "container_cpu_usage_seconds_total",
        "Cumulative cpu time consumed in seconds.",
        |g| seconds(g.cpu),
    ),
    (
        "container_cpu_cfs_periods_total",
        "Number of elapsed enforcement period intervals.",
        |g| g.periods as f64,
    ),
    (
        "container_cpu_cfs_throttled_periods_total",
        "Number of throttled period intervals.",
        |g| g.throttled_periods as f64,
    ),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "Total time duration the container has been throttled.",
        |g| seconds(g.throttled),
    ),
];

const GAUGES: [Column; 5] = [
    (
        "container_memory_usage_bytes",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |g| g.memory as f64,
    ),
    ("container_memory_working_set_bytes", "Current working set in bytes.", |g| {
        g.working_set as f64
    }),
    ("container_memory_rss", "Size of RSS in bytes.", |g| g.anonymous as f64),
    ("container_memory_cache", "Number of bytes of page cache memory.", |g| {
        g.cache as f64
    }),
    ("container_processes", "Number of processes running inside the container.", |g| {
        g.processes as f64
    }),
];

/// A value of what a container has written, and how it is read.
type Layer = (&'static str, &'static str, fn(&DirectoryFigures) -> u64);

const LAYERS: [Layer; 4] = [
    ("container_fs_inodes_free", "Number of available Inodes", |l| l.disk.inodes_free),
    ("container_fs_inodes_total", "Number of Inodes", |l| l.disk.inodes),
    (
        "container_fs_limit_bytes",
        "Number of bytes that can be consumed by the container on this filesystem.",
        |l| l.disk.capacity,
    ),
    (
        "container_fs_usage_bytes",
        "Number of bytes that are consumed by the container on this filesystem.",
        |l| l.used,
    ),
];

/// The words for each of an interface's four counts.
const TRAFFIC: [(&str, &str); 4] = [
    ("bytes", "bytes"),
    ("packets", "packets"),
    ("errors", "errors"),
    ("packets_dropped", "packets dropped"),
];

pub(super) fn families(snapshot: &Snapshot, stored: &All) -> Vec<MetricFamily> {
    let counters = COUNTERS
        .iter()
        .map(|column| of_groups(snapshot, Family::counter(column.0, column.1), column.2));
    let gauges = GAUGES
        .iter()
        .map(|column| of_groups(snapshot, Family::gauge(column.0, column.1), column.2));
    let mut families: Vec<_> = counters.chain(gauges).collect();
    families.extend(of_containers(snapshot));
    families.extend(of_layers(snapshot, stored));
    families.extend(of_interfaces(snapshot, "receive", "while receiving", |network| network.received));
    families.extend(of_interfaces(snapshot, "transmit", "while transmitting", |network| network.sent));
    families.extend(of_host(snapshot));
    families
}

/// A container's labels; a pod as a whole has none of a container's name and image.
fn labels<'a>(pod: &'a PodFigures, container: &'a str, id: &'a str, image: &'a str) -> [(&'static str, &'a str); 6] {
    [
        ("container", container),
        ("id", id),
        ("image", image),
        ("name", id),
        ("namespace", &pod.namespace),
        ("pod", &pod.name),
    ]
}

fn of_groups(snapshot: &Snapshot, mut family: Family, read: fn(&GroupFigures) -> f64) -> MetricFamily {
    for (pod, guest) in snapshot.answered() {
        family.add(&labels(pod, "", &pod.uid, ""), read(&guest.pod), Some(guest.at));
        for container in &guest.containers {
            let labels = labels(pod, &container.name, &container.id, &container.image);
            family.add(&labels, read(&container.group), Some(guest.at));
        }
    }
    family.done()
}

/// What of a container is no count of its group.
fn of_containers(snapshot: &Snapshot) -> [MetricFamily; 3] {
    let mut start = Family::gauge(
        "container_start_time_seconds",
        "Start time of the container since unix epoch in seconds.",
    );
    let mut memory = Family::gauge("container_spec_memory_limit_bytes", "Memory limit for the container.");
    let mut quota = Family::gauge("container_spec_cpu_quota", "CPU quota of the container.");
    for (pod, guest) in snapshot.answered() {
        for container in &guest.containers {
            let labels = labels(pod, &container.name, &container.id, &container.image);
            start.add(&labels, in_seconds(container.started), Some(guest.at));
            memory.add(&labels, container.limits[1] as f64, Some(guest.at));
            // Of periods of 100 ms: 100 microseconds for each thousandth of a processor.
            if container.limits[0] > 0 {
                quota.add(&labels, container.limits[0] as f64 * 100.0, Some(guest.at));
            }
        }
    }
    [start, memory, quota].map(Family::done)
}

/// What containers have written, on the pod's scratch disk.
fn of_layers(snapshot: &Snapshot, stored: &All) -> Vec<MetricFamily> {
    let family = |(name, help, read): Layer| {
        let mut family = Family::gauge(name, help);
        for (pod, guest) in snapshot.answered() {
            let Some(stored) = stored.get(&pod.uid) else { continue };
            for container in &guest.containers {
                let Some((_, layer)) = stored.layers.iter().find(|(id, _)| *id == container.id) else {
                    continue;
                };
                let mut labels = labels(pod, &container.name, &container.id, &container.image).to_vec();
                labels.insert(1, ("device", SCRATCH));
                family.add(&labels, read(layer) as f64, Some(stored.at));
            }
        }
        family.done()
    };
    LAYERS.into_iter().map(family).collect()
}

fn of_interfaces(snapshot: &Snapshot, way: &str, done: &str, counts: fn(&NetworkFigures) -> [u64; 4]) -> Vec<MetricFamily> {
    let family = |(number, (name, words)): (usize, &(&str, &str))| {
        let help = format!("Cumulative count of {words} {done}");
        let mut family = Family::counter(&format!("container_network_{way}_{name}_total"), &help);
        for (pod, guest) in snapshot.answered() {
            let Some(network) = &guest.network else { continue };
            let labels = [
                ("container", ""),
                ("id", &*pod.uid),
                ("interface", &*network.name),
                ("namespace", &*pod.namespace),
                ("pod", &*pod.name),
            ];
            family.add(&labels, counts(network)[number] as f64, Some(guest.at));
        }
        family.done()
    };
    TRAFFIC.iter().enumerate().map(family).collect()
}

fn of_host(snapshot: &Snapshot) -> [MetricFamily; 2] {
    let mut cores = Family::gauge("machine_cpu_cores", "Number of logical CPU cores.");
    cores.add(&[], f64::from(snapshot.node.load.processors), Some(snapshot.at));
    let mut memory = Family::gauge("machine_memory_bytes", "Amount of memory installed on the machine.");
    memory.add(&[], snapshot.node.load.memory as f64, Some(snapshot.at));
    [cores, memory].map(Family::done)
}

#[cfg(test)]
mod tests {
    use kvmlet_protocol::DiskFigures;

    use super::{super::text::encode, *};
    use crate::figures::{model::Stored, summary::tests::snapshot};

    #[test]
    fn containers_and_their_pod_have_cadvisors_names() {
        let seen = snapshot(2_000, 1_500_000_000);
        let layer = DirectoryFigures {
            used: 9,
            inodes_used: 1,
            disk: DiskFigures {
                capacity: 100,
                ..DiskFigures::default()
            },
        };
        let stored = Stored {
            at: seen.at,
            told: true,
            volumes: Vec::new(),
            layers: vec![("1".into(), layer)],
        };
        let text = encode(families(&seen, &All::from([("u".to_owned(), stored)]))).unwrap();
        for line in [
            r#"container_cpu_usage_seconds_total{container="main",id="1",image="i",name="1",namespace="n",pod="p"} 1.5 2000000"#,
            r#"container_cpu_usage_seconds_total{container="",id="u",image="",name="u",namespace="n",pod="p"} 1.5 2000000"#,
            r#"container_memory_usage_bytes{container="main",id="1",image="i",name="1",namespace="n",pod="p"} 8192 2000000"#,
            r#"container_fs_usage_bytes{container="main",device="scratch",id="1",image="i",name="1",namespace="n",pod="p"} 9 2000000"#,
            r#"container_fs_limit_bytes{container="main",device="scratch",id="1",image="i",name="1",namespace="n",pod="p"} 100 2000000"#,
            r#"container_spec_memory_limit_bytes{container="main",id="1",image="i",name="1",namespace="n",pod="p"} 10000 2000000"#,
            r#"container_network_receive_packets_dropped_total{container="",id="u",interface="eth0",namespace="n",pod="p"} 4 2000000"#,
            r#"container_network_transmit_bytes_total{container="",id="u",interface="eth0",namespace="n",pod="p"} 5 2000000"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("container_spec_cpu_quota"), "there is no limit");
    }
}
