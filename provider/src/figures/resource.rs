//! `/metrics/resource`: what metrics-server reads (pkg/kubelet/metrics/collectors/resource_metrics.go). Some of its readers go by the place of
//! a label, not by its name: container, pod, namespace.

use jiff::Timestamp;
use prometheus::proto::MetricFamily;

use super::{
    model::Snapshot,
    text::{Family, seconds},
};

pub(super) fn families(snapshot: &Snapshot) -> Vec<MetricFamily> {
    let node = &snapshot.node;
    let of_node = |mut family: Family, value: f64| {
        family.add(&[], value, Some(snapshot.at));
        family.done()
    };
    let mut families = vec![
        of_node(
            Family::counter(
                "node_cpu_usage_seconds_total",
                "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
            ),
            seconds(node.load.cpu),
        ),
        of_node(
            Family::gauge("node_memory_working_set_bytes", "[STABLE] Current working set of the node in bytes"),
            node.working_set as f64,
        ),
    ];
    let mut cpu = Family::counter(
        "container_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
    );
    let mut memory = Family::gauge(
        "container_memory_working_set_bytes",
        "[STABLE] Current working set of the container in bytes",
    );
    let mut start = Family::gauge(
        "container_start_time_seconds",
        "[STABLE] Start time of the container since unix epoch in seconds",
    );
    let mut pod_cpu = Family::counter(
        "pod_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
    );
    let mut pod_memory = Family::gauge("pod_memory_working_set_bytes", "[STABLE] Current working set of the pod in bytes");
    for (pod, guest) in snapshot.answered() {
        let at = Some(guest.at);
        for container in &guest.containers {
            let labels = [("container", &*container.name), ("pod", &*pod.name), ("namespace", &*pod.namespace)];
            cpu.add(&labels, seconds(container.group.cpu), at);
            memory.add(&labels, container.group.working_set as f64, at);
            start.add(&labels, in_seconds(container.started), None);
        }
        let labels = [("pod", &*pod.name), ("namespace", &*pod.namespace)];
        pod_cpu.add(&labels, seconds(guest.pod.cpu), at);
        pod_memory.add(&labels, guest.pod.working_set as f64, at);
    }
    families.extend([cpu, memory, start, pod_cpu, pod_memory].map(Family::done));
    let mut error = Family::gauge(
        "resource_scrape_error",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
    );
    let silent = snapshot.pods.iter().any(|pod| pod.guest.is_none());
    error.add(&[], f64::from(u8::from(silent)), None);
    families.push(error.done());
    families
}

/// Seconds since 1970.
pub(super) fn in_seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::{super::text::encode, *};
    use crate::figures::summary::tests::snapshot;

    #[test]
    fn containers_have_their_labels_in_the_order_that_readers_go_by() {
        let text = encode(families(&snapshot(2_000, 1_000_000_000))).unwrap();
        assert!(
            text.contains("\ncontainer_cpu_usage_seconds_total{container=\"main\",pod=\"p\",namespace=\"n\"} 1 2000000\n"),
            "{text}"
        );
        assert!(text.contains("\ncontainer_memory_working_set_bytes{container=\"main\",pod=\"p\",namespace=\"n\"} 4096 2000000\n"));
        assert!(text.contains("\ncontainer_start_time_seconds{container=\"main\",pod=\"p\",namespace=\"n\"} 1000\n"));
        assert!(text.contains("\npod_cpu_usage_seconds_total{pod=\"p\",namespace=\"n\"} 1 2000000\n"));
        assert!(text.contains("\nnode_memory_working_set_bytes 7 2000000\n"));
        assert!(text.contains("\nresource_scrape_error 0\n"));
    }

    #[test]
    fn a_guest_that_does_not_answer_is_left_out_and_counted() {
        let mut seen = snapshot(2_000, 1);
        seen.pods[0].guest = None;
        let text = encode(families(&seen)).unwrap();
        assert!(
            !text.contains("container_") && text.contains("\nresource_scrape_error 1\n"),
            "{text}"
        );
    }
}
