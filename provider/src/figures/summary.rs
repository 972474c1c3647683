//! `/stats/summary` (k8s.io/kubelet/pkg/apis/stats/v1alpha1). What is not known is not there, never zero.

use jiff::Timestamp;
use kvmlet_protocol::{DirectoryFigures, DiskFigures, GroupFigures, NetworkFigures};
use serde_json::{Map, Value, json};

use super::{
    Pair,
    model::{ContainerSample, GuestSample, NodeFigures, PodFigures, Snapshot, Stored, rate},
    stored::All,
};

/// The whole page, or, without what pods have stored, of each thing only processor time and memory.
pub(super) fn summary(pair: &Pair, stored: Option<&All>) -> Value {
    let now = &pair.now;
    let mut page = json!({
        "node": node(&now.node, now.at, pair.before.as_deref()),
        "pods": now.answered().map(|(pod, guest)| of_pod(pod, guest, pair.before.as_deref(), stored)).collect::<Vec<_>>(),
    });
    if stored.is_none() {
        reduce(&mut page);
    }
    page
}

/// Leaves out what `only_cpu_and_memory` does not ask for.
fn reduce(page: &mut Value) {
    const KEPT: [&str; 8] = [
        "nodeName",
        "startTime",
        "cpu",
        "memory",
        "podRef",
        "containers",
        "name",
        "systemContainers",
    ];
    let of_node = page["node"].as_object_mut();
    let keep = |object: &mut Map<String, Value>| object.retain(|key, _| KEPT.contains(&key.as_str()));
    of_node.into_iter().for_each(keep);
    for pod in page["pods"].as_array_mut().into_iter().flatten() {
        pod.as_object_mut().into_iter().for_each(keep);
        for container in pod["containers"].as_array_mut().into_iter().flatten() {
            container.as_object_mut().into_iter().for_each(keep);
        }
    }
}

fn node(node: &NodeFigures, at: Timestamp, before: Option<&Snapshot>) -> Value {
    let disk = filesystem(at, node.disk);
    let mut images = disk.clone();
    images["usedBytes"] = node.images.into();
    let mut object = json!({
        "nodeName": node.name,
        "systemContainers": [],
        "startTime": node.boot,
        "cpu": cpu(at, node.load.cpu, before.map(|b| (b.at, b.node.load.cpu))),
        "memory": {
            "time": at,
            "availableBytes": node.load.memory_available,
            "usageBytes": node.memory,
            "workingSetBytes": node.working_set,
            "rssBytes": node.anonymous,
            "pageFaults": node.page_faults,
            "majorPageFaults": node.major_page_faults,
        },
        "fs": disk,
        "runtime": {"imageFs": images},
        "rlimit": {"time": at, "maxpid": node.processes.1, "curproc": node.processes.0},
    });
    if let Some(network) = networks(at, &node.networks) {
        object["network"] = network;
    }
    object
}

fn of_pod(pod: &PodFigures, guest: &GuestSample, before: Option<&Snapshot>, stored: Option<&All>) -> Value {
    let stored = stored.and_then(|all| all.get(&pod.uid));
    let earlier = before.and_then(|before| before.pod(&pod.uid)).and_then(|pod| pod.guest.as_ref());
    let containers = guest.containers.iter().map(|container| {
        let earlier = earlier.and_then(|guest| Some((guest.at, guest.container(&container.id)?.group.cpu)));
        let mut object = of_container(container, guest.at, earlier);
        let layer = |stored: &Stored| {
            stored
                .layers
                .iter()
                .find(|(id, _)| *id == container.id)
                .map(|(_, layer)| directory(stored.at, layer))
        };
        if let Some(layer) = stored.and_then(layer) {
            object["rootfs"] = layer;
        }
        object
    });
    let mut object = json!({
        "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "startTime": pod.started,
        "containers": containers.collect::<Vec<_>>(),
        "cpu": cpu(guest.at, guest.pod.cpu, earlier.map(|guest| (guest.at, guest.pod.cpu))),
        "memory": memory(guest.at, &guest.pod, 0),
        "process_stats": {"process_count": guest.pod.processes},
    });
    if let Some(network) = &guest.network {
        object["network"] = networks(guest.at, std::slice::from_ref(network)).unwrap_or_default();
    }
    if let Some(disk) = guest.disk {
        object["ephemeral-storage"] = filesystem(guest.at, disk);
        object["ephemeral-storage"]["usedBytes"] = guest.storage().into();
    }
    if let Some(stored) = stored.filter(|stored| !stored.volumes.is_empty()) {
        object["volume"] = stored
            .volumes
            .iter()
            .map(|volume| {
                let mut object = directory(stored.at, &volume.figures);
                object["name"] = volume.name.as_str().into();
                if let Some(claim) = &volume.claim {
                    object["pvcRef"] = json!({"name": claim, "namespace": pod.namespace});
                }
                object
            })
            .collect();
    }
    object
}

fn of_container(container: &ContainerSample, at: Timestamp, earlier: Option<(Timestamp, u64)>) -> Value {
    json!({
        "name": container.name,
        "startTime": container.started,
        "cpu": cpu(at, container.group.cpu, earlier),
        "memory": memory(at, &container.group, container.limits[1]),
        "logs": {"time": at, "usedBytes": container.logs},
    })
}

fn cpu(at: Timestamp, used: u64, earlier: Option<(Timestamp, u64)>) -> Value {
    let mut object = json!({"time": at, "usageCoreNanoSeconds": used});
    if let Some(rate) = earlier.and_then(|earlier| rate(earlier, (at, used))) {
        object["usageNanoCores"] = rate.into();
    }
    object
}

/// `limit` bytes; 0 means none.
fn memory(at: Timestamp, group: &GroupFigures, limit: u64) -> Value {
    let mut object = json!({
        "time": at,
        "usageBytes": group.memory,
        "workingSetBytes": group.working_set,
        "rssBytes": group.anonymous,
        "pageFaults": group.page_faults,
        "majorPageFaults": group.major_page_faults,
    });
    if limit > 0 {
        object["availableBytes"] = limit.saturating_sub(group.working_set).into();
    }
    object
}

fn filesystem(at: Timestamp, disk: DiskFigures) -> Value {
    json!({
        "time": at,
        "availableBytes": disk.available,
        "capacityBytes": disk.capacity,
        "usedBytes": disk.used,
        "inodesFree": disk.inodes_free,
        "inodes": disk.inodes,
        "inodesUsed": disk.inodes.saturating_sub(disk.inodes_free),
    })
}

/// A directory of a file system: what is used is its own.
fn directory(at: Timestamp, directory: &DirectoryFigures) -> Value {
    let mut object = filesystem(at, directory.disk);
    object["usedBytes"] = directory.used.into();
    object["inodesUsed"] = directory.inodes_used.into();
    object
}

/// The first of these interfaces, and all of them.
fn networks(at: Timestamp, all: &[NetworkFigures]) -> Option<Value> {
    let one = |network: &NetworkFigures| {
        json!({
            "name": network.name,
            "rxBytes": network.received[0],
            "rxErrors": network.received[2],
            "txBytes": network.sent[0],
            "txErrors": network.sent[2],
        })
    };
    let mut object = one(all.first()?);
    object["time"] = json!(at);
    object["interfaces"] = all.iter().map(one).collect();
    Some(object)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::figures::{HostLoad, model::StoredVolume};

    /// A node with one pod, seen at this second, whose container has used so many nanoseconds.
    pub(in crate::figures) fn snapshot(second: i64, cpu: u64) -> Snapshot {
        let at = Timestamp::from_second(second).unwrap();
        let group = GroupFigures {
            cpu,
            memory: 8192,
            working_set: 4096,
            processes: 3,
            ..GroupFigures::default()
        };
        let container = ContainerSample {
            name: "main".into(),
            id: "1".into(),
            image: "i".into(),
            started: Timestamp::from_second(1_000).unwrap(),
            group,
            limits: [0, 10_000],
            logs: 11,
        };
        let guest = GuestSample {
            at,
            pod: group,
            disk: Some(DiskFigures {
                capacity: 100,
                available: 40,
                used: 60,
                inodes: 10,
                inodes_free: 4,
            }),
            network: Some(NetworkFigures {
                name: "eth0".into(),
                received: [1, 2, 3, 4],
                sent: [5, 6, 7, 8],
            }),
            containers: vec![container],
        };
        Snapshot {
            at,
            node: NodeFigures {
                name: "node".into(),
                working_set: 7,
                load: HostLoad {
                    cpu,
                    ..HostLoad::default()
                },
                ..NodeFigures::default()
            },
            pods: vec![PodFigures {
                namespace: "n".into(),
                name: "p".into(),
                uid: "u".into(),
                started: at,
                machine: None,
                guest: Some(guest),
            }],
        }
    }

    #[test]
    fn pods_and_their_containers_have_what_their_guests_count() {
        let first = Pair {
            now: Arc::new(snapshot(2_000, 1_000_000_000)),
            before: None,
        };
        let disk = DiskFigures {
            capacity: 100,
            available: 40,
            used: 60,
            inodes: 10,
            inodes_free: 4,
        };
        let of = |used| DirectoryFigures {
            used,
            inodes_used: 3,
            disk,
        };
        let volume = |name: &str, claim: Option<&str>, used| StoredVolume {
            name: name.into(),
            claim: claim.map(Into::into),
            figures: of(used),
        };
        let stored = Stored {
            at: Timestamp::from_second(1_990).unwrap(),
            told: true,
            volumes: vec![volume("cache", None, 7), volume("data", Some("mine"), 8)],
            layers: vec![("1".into(), of(9))],
        };
        let page = summary(&first, Some(&All::from([("u".to_owned(), stored)])));
        let pod = &page["pods"][0];
        assert_eq!(pod["podRef"], json!({"name": "p", "namespace": "n", "uid": "u"}));
        let container = &pod["containers"][0];
        assert_eq!(
            container["cpu"],
            json!({"time": "1970-01-01T00:33:20Z", "usageCoreNanoSeconds": 1_000_000_000})
        );
        assert_eq!(container["memory"]["availableBytes"], 10_000 - 4096);
        assert_eq!(pod["memory"]["workingSetBytes"], 4096);
        assert!(pod["memory"].get("availableBytes").is_none(), "no limit is known");
        assert_eq!(pod["ephemeral-storage"]["usedBytes"], 71, "what is written and the logs");
        assert_eq!((&pod["network"]["rxErrors"], &pod["network"]["txBytes"]), (&json!(3), &json!(5)));
        assert_eq!(pod["process_stats"]["process_count"], 3);
        let figures = |used: u64| {
            json!({"time": "1970-01-01T00:33:10Z", "capacityBytes": 100, "availableBytes": 40, "usedBytes": used,
                "inodes": 10, "inodesFree": 4, "inodesUsed": 3})
        };
        assert_eq!(container["rootfs"], figures(9));
        let mut cache = figures(7);
        cache["name"] = "cache".into();
        assert_eq!(pod["volume"][0], cache);
        assert_eq!(pod["volume"][1]["pvcRef"], json!({"name": "mine", "namespace": "n"}));
        assert_eq!(page["node"]["nodeName"], "node");
    }

    #[test]
    fn a_second_reading_gives_rates() {
        let pair = Pair {
            now: Arc::new(snapshot(2_010, 6_000_000_000)),
            before: Some(Arc::new(snapshot(2_000, 1_000_000_000))),
        };
        let page = summary(&pair, Some(&All::new()));
        for cpu in [
            &page["node"]["cpu"],
            &page["pods"][0]["cpu"],
            &page["pods"][0]["containers"][0]["cpu"],
        ] {
            assert_eq!(cpu["usageNanoCores"], 500_000_000);
        }
    }

    #[test]
    fn who_wants_processor_time_and_memory_alone_gets_no_more() {
        let pair = Pair {
            now: Arc::new(snapshot(2_000, 1)),
            before: None,
        };
        let page = summary(&pair, None);
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&page["pods"][0]), ["containers", "cpu", "memory", "podRef", "startTime"]);
        assert_eq!(keys(&page["pods"][0]["containers"][0]), ["cpu", "memory", "name", "startTime"]);
        assert_eq!(keys(&page["node"]), ["cpu", "memory", "nodeName", "startTime", "systemContainers"]);
    }
}
