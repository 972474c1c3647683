//! What a kubelet counts of its own work, under its names, labels and buckets (pkg/kubelet/metrics, pkg/kubelet/server/metrics,
//! pkg/kubelet/prober).

use std::time::Duration;

use kvmlet_server::Asked;
use prometheus::{
    DEFAULT_BUCKETS, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, core::Collector,
    proto::MetricFamily,
};

use crate::{desired::DesiredContainer, probe::spec::Kind};

use super::{meters::shown, startup::Begun};

/// Seconds until a pod runs.
const STARTUP: [f64; 25] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0,
    1800.0, 2700.0, 3600.0,
];
/// Labels of requests to the port.
const OF_REQUEST: [&str; 4] = ["method", "path", "server_type", "long_running"];
/// Labels of a probe's duration.
const OF_PROBE: [&str; 4] = ["probe_type", "container", "pod", "namespace"];

/// The counts.
#[derive(Debug)]
pub struct KubeletMeters {
    starts: Histogram,
    sli: Histogram,
    total: Histogram,
    pods: IntCounter,
    failed_pods: IntCounter,
    containers: IntCounterVec,
    failed_containers: IntCounterVec,
    requests: IntCounterVec,
    under_way: IntGaugeVec,
    served: HistogramVec,
    probes: HistogramVec,
}

fn seconds(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(buckets.to_vec())
}

impl KubeletMeters {
    /// None counted yet, shown by `registry`.
    pub(super) fn new(registry: &Registry) -> Self {
        let starts = |name, help| shown(registry, Histogram::with_opts(seconds(name, help, &STARTUP)));
        let count = |name, help| shown(registry, IntCounter::new(name, help));
        let counts = |name, help, labels: &[&str]| shown(registry, IntCounterVec::new(Opts::new(name, help), labels));
        let histograms = |name, help, labels: &[&str]| HistogramVec::new(seconds(name, help, DEFAULT_BUCKETS), labels);
        Self {
            starts: starts(
                "kubelet_pod_start_duration_seconds",
                "[ALPHA] Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
            ),
            sli: starts(
                "kubelet_pod_start_sli_duration_seconds",
                "[ALPHA] Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation \
                 timestamp to when all its containers are reported as started and observed via watch",
            ),
            total: starts(
                "kubelet_pod_start_total_duration_seconds",
                "[ALPHA] Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured \
                 from pod creation timestamp to when all its containers are reported as started and observed via watch",
            ),
            pods: count("kubelet_started_pods_total", "[ALPHA] Cumulative number of pods started"),
            failed_pods: count(
                "kubelet_started_pods_errors_total",
                "[ALPHA] Cumulative number of errors when starting pods",
            ),
            containers: counts(
                "kubelet_started_containers_total",
                "[ALPHA] Cumulative number of containers started",
                &["container_type"],
            ),
            failed_containers: counts(
                "kubelet_started_containers_errors_total",
                "[ALPHA] Cumulative number of errors when starting containers",
                &["container_type", "code"],
            ),
            requests: counts(
                "kubelet_http_requests_total",
                "[ALPHA] Number of the http requests received since the server started",
                &OF_REQUEST,
            ),
            under_way: shown(
                registry,
                IntGaugeVec::new(
                    Opts::new("kubelet_http_inflight_requests", "[ALPHA] Number of the inflight http requests"),
                    &OF_REQUEST,
                ),
            ),
            served: shown(
                registry,
                histograms(
                    "kubelet_http_requests_duration_seconds",
                    "[ALPHA] Duration in seconds to serve http requests",
                    &OF_REQUEST,
                ),
            ),
            probes: histograms(
                "prober_probe_duration_seconds",
                "[ALPHA] Duration in seconds for a probe response.",
                &OF_PROBE,
            )
            .expect("a metric's name"),
        }
    }

    /// A pod has got so far.
    pub fn begun(&self, begun: &Begun) {
        match begun {
            Begun::Runs { since_seen } => self.starts.observe(*since_seen),
            Begun::AllStarted { since_created, own } => {
                self.total.observe(*since_created);
                own.iter().for_each(|own| self.sli.observe(*own));
            }
        }
    }

    /// A machine of a pod is about to be made.
    pub fn pod_starts(&self) {
        self.pods.inc();
    }

    /// It could not be.
    pub fn pod_failed(&self) {
        self.failed_pods.inc();
    }

    /// A container is about to be started.
    pub fn container_starts(&self, container: &DesiredContainer) {
        self.containers.with_label_values(&[kind(container)]).inc();
    }

    /// It could not be, for this reason of its waiting.
    pub fn container_failed(&self, container: &DesiredContainer, reason: &str) {
        self.failed_containers.with_label_values(&[kind(container), reason]).inc();
    }

    /// Somebody asks something of the port.
    pub fn asked(&self, asked: &Asked) {
        self.requests.with_label_values(&labels(asked)).inc();
        self.under_way.with_label_values(&labels(asked)).inc();
    }

    /// The answer is complete.
    pub fn served(&self, asked: &Asked, took: Duration) {
        self.under_way.with_label_values(&labels(asked)).dec();
        self.served.with_label_values(&labels(asked)).observe(took.as_secs_f64());
    }

    /// A probe was answered, well or not at all: what it was refused the kubelet does not time.
    pub fn probed(&self, kind: Kind, [container, pod, namespace]: [&str; 3], took: Duration) {
        let labels = [&*kind.to_string(), container, pod, namespace];
        self.probes.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// A pod's probes are over.
    pub fn forget_probe(&self, labels: [&str; 4]) {
        let _ = self.probes.remove_label_values(&labels);
    }

    /// How long probes took.
    pub(super) fn probes(&self) -> Vec<MetricFamily> {
        self.probes.collect()
    }
}

fn labels(asked: &Asked) -> [&str; 4] {
    [
        asked.method,
        asked.path,
        "readwrite",
        if asked.long_running { "true" } else { "false" },
    ]
}

fn kind(container: &DesiredContainer) -> &'static str {
    match (&container.ephemeral, container.init) {
        (Some(_), _) => "ephemeral_container",
        (None, true) => "init_container",
        (None, false) => "container",
    }
}

#[cfg(test)]
mod tests {
    use super::{super::text::encode, *};

    #[test]
    fn a_kubelets_counts_have_its_names_labels_and_buckets() {
        let registry = Registry::new();
        let meters = KubeletMeters::new(&registry);
        meters.begun(&Begun::Runs { since_seen: 2.5 });
        meters.begun(&Begun::AllStarted {
            since_created: 9.0,
            own: Some(0.25),
        });
        meters.begun(&Begun::AllStarted {
            since_created: 9.0,
            own: None,
        });
        meters.pod_starts();
        let asked = Asked {
            method: "GET",
            path: "metrics/cadvisor",
            long_running: false,
        };
        meters.asked(&asked);
        meters.served(&asked, Duration::from_millis(30));
        meters.probed(Kind::Readiness, ["c", "p", "n"], Duration::from_millis(3));
        let text = encode(registry.gather()).unwrap();
        let of = "method=\"GET\",path=\"metrics/cadvisor\",server_type=\"readwrite\"";
        for line in [
            "kubelet_pod_start_duration_seconds_bucket{le=\"2\"} 0".to_owned(),
            "kubelet_pod_start_duration_seconds_bucket{le=\"3\"} 1".to_owned(),
            "kubelet_pod_start_duration_seconds_bucket{le=\"3600\"} 1".to_owned(),
            "kubelet_pod_start_sli_duration_seconds_count 1".into(),
            "kubelet_pod_start_total_duration_seconds_count 2".into(),
            "kubelet_started_pods_total 1".into(),
            "kubelet_started_pods_errors_total 0".into(),
            format!("kubelet_http_requests_total{{long_running=\"false\",{of}}} 1"),
            format!("kubelet_http_inflight_requests{{long_running=\"false\",{of}}} 0"),
            format!("kubelet_http_requests_duration_seconds_bucket{{long_running=\"false\",{of},le=\"0.025\"}} 0"),
            format!("kubelet_http_requests_duration_seconds_bucket{{long_running=\"false\",{of},le=\"0.05\"}} 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let probes = encode(meters.probes()).unwrap();
        let of = "container=\"c\",namespace=\"n\",pod=\"p\",probe_type=\"Readiness\"";
        let line = format!("prober_probe_duration_seconds_bucket{{{of},le=\"0.005\"}} 1");
        assert!(probes.lines().any(|found| found == line), "{line}\n{probes}");
        meters.forget_probe(["Readiness", "c", "p", "n"]);
        assert_eq!(encode(meters.probes()).unwrap(), "");
    }
}
