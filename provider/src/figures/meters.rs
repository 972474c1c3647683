//! What this daemon counts while it works: probes, machines' starts and their phases, images, requests, evictions.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, core::Collector, proto::MetricFamily};
use serde::{Deserialize, Serialize};

use super::kubelet::KubeletMeters;
use crate::probe::spec::Kind;

/// Seconds, from what a copy takes on hardware to what a large image does.
const BUCKETS: [f64; 14] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// What making a pod's machine is made of, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Network and what is in volumes.
    Surroundings,
    /// Files of images that it may read, and its scratch disk.
    Disks,
    /// Waiting until a guest may boot.
    Queue,
    /// From its process to its agent's answer.
    Guest,
    /// The agent makes volumes, network and names.
    Setup,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Surroundings, Self::Disks, Self::Queue, Self::Guest, Self::Setup];

    /// As figures and records call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Surroundings => "surroundings",
            Self::Disks => "disks",
            Self::Queue => "queue",
            Self::Guest => "guest",
            Self::Setup => "setup",
        }
    }
}

/// The counts.
#[derive(Debug)]
pub struct Meters {
    registry: Registry,
    phases: HistogramVec,
    queue: IntGauge,
    images: IntCounterVec,
    requests: IntCounterVec,
    probes: IntCounterVec,
    starts: HistogramVec,
    failed_starts: IntCounterVec,
    pulls: Histogram,
    evictions: IntCounterVec,
    /// What a kubelet counts too.
    pub kubelet: KubeletMeters,
}

/// A metric as it was made, shown by `registry` from now on.
pub(super) fn shown<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let metric = made.expect("a metric's name");
    registry.register(Box::new(metric.clone())).expect("each name once");
    metric
}

impl Meters {
    /// None counted yet.
    ///
    /// # Panics
    ///
    /// If the name of a metric here were none: their tests would see it.
    pub fn new() -> Self {
        let seconds = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
        let registry = Registry::new();
        Self {
            kubelet: KubeletMeters::new(&registry),
            probes: IntCounterVec::new(
                Opts::new(
                    "prober_probe_total",
                    "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
                ),
                &["probe_type", "result", "container", "pod", "namespace", "pod_uid"],
            )
            .expect("a metric's name"),
            starts: shown(
                &registry,
                HistogramVec::new(
                    seconds(
                        "kvmlet_machine_start_seconds",
                        "From a machine's start to its guest's answer, by whether it booted or is a copy of the template.",
                    ),
                    &["how"],
                ),
            ),
            failed_starts: shown(
                &registry,
                IntCounterVec::new(
                    Opts::new("kvmlet_machine_start_errors_total", "Machines that did not come up."),
                    &["how"],
                ),
            ),
            pulls: shown(
                &registry,
                Histogram::with_opts(seconds("kvmlet_image_pull_seconds", "Pulls of images that were not here.")),
            ),
            phases: shown(
                &registry,
                HistogramVec::new(
                    seconds(
                        "kvmlet_machine_phase_seconds",
                        "Phases of making pods' machines, one after the other.",
                    ),
                    &["phase"],
                ),
            ),
            queue: shown(
                &registry,
                IntGauge::new("kvmlet_boots_waiting", "Machines that wait until they may begin to boot."),
            ),
            images: shown(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "kvmlet_image_requests_total",
                        "Images that pods needed, by whether they were present, were pulled, or could not be had.",
                    ),
                    &["result"],
                ),
            ),
            requests: shown(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "rest_client_requests_total",
                        "[ALPHA] Number of HTTP requests, partitioned by status code and method.",
                    ),
                    &["code", "method"],
                ),
            ),
            evictions: shown(
                &registry,
                IntCounterVec::new(
                    Opts::new("kubelet_evictions", "[ALPHA] Cumulative number of pod evictions by eviction signal"),
                    &["eviction_signal"],
                ),
            ),
            registry,
        }
    }

    /// A probe was answered.
    pub fn probed(&self, kind: Kind, result: &str, [container, pod, namespace, uid]: [&str; 4], took: Duration) {
        let labels = [&*kind.to_string(), result, container, pod, namespace, uid];
        self.probes.with_label_values(&labels).inc();
        // As the kubelet, which does not time refusals.
        if result != "failed" {
            self.kubelet.probed(kind, [container, pod, namespace], took);
        }
    }

    /// A pod is gone: its probes are no longer shown.
    pub fn forget(&self, uid: &str) {
        let families = self.probes.collect();
        let all = families.iter().flat_map(MetricFamily::get_metric);
        for metric in all {
            let value = |name: &str| metric.get_label().iter().find(|l| l.name() == name).map_or("", |l| l.value());
            if value("pod_uid") == uid {
                let labels = ["probe_type", "result", "container", "pod", "namespace", "pod_uid"].map(value);
                let _ = self.probes.remove_label_values(&labels);
                self.kubelet
                    .forget_probe(["probe_type", "container", "pod", "namespace"].map(value));
            }
        }
    }

    /// A machine came up, or did not.
    pub fn started(&self, how: &str, came_up: bool, took: Duration) {
        if came_up {
            self.starts.with_label_values(&[how]).observe(took.as_secs_f64());
        } else {
            self.failed_starts.with_label_values(&[how]).inc();
        }
    }

    /// A phase of a machine's making is over.
    pub fn passed(&self, phase: Phase, took: Duration) {
        self.phases.with_label_values(&[phase.name()]).observe(took.as_secs_f64());
    }

    /// How many machines wait until they may boot.
    pub fn queue(&self) -> &IntGauge {
        &self.queue
    }

    /// Requests to the API server, by code and method.
    pub fn requests(&self) -> IntCounterVec {
        self.requests.clone()
    }

    /// An image was pulled.
    pub fn pulled(&self, took: Duration) {
        self.pulls.observe(took.as_secs_f64());
    }

    /// A pod needed an image: it was `present`, was `pulled`, or could not be had, `failed`.
    pub fn image(&self, result: &str) {
        self.images.with_label_values(&[result]).inc();
    }

    /// A pod is evicted for this signal.
    pub fn evicted(&self, signal: &str) {
        self.evictions.with_label_values(&[signal]).inc();
    }

    /// `/metrics/probes`.
    pub fn probes(&self) -> Vec<MetricFamily> {
        [self.probes.collect(), self.kubelet.probes()].concat()
    }

    /// All others.
    pub fn own(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}

impl Default for Meters {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::text::encode, *};

    #[test]
    fn probes_are_counted_until_their_pod_is_gone() {
        let meters = Meters::new();
        for (uid, times) in [("u", 2), ("v", 1)] {
            for _ in 0..times {
                meters.probed(Kind::Liveness, "successful", ["c", "p", "n", uid], Duration::from_millis(7));
            }
        }
        let line = |uid: &str, times| {
            format!(
                "prober_probe_total{{container=\"c\",namespace=\"n\",pod=\"p\",pod_uid=\"{uid}\",probe_type=\"Liveness\",result=\"successful\"}} {times}\n"
            )
        };
        let text = encode(meters.probes()).unwrap();
        assert!(text.contains(&line("u", 2)) && text.contains(&line("v", 1)), "{text}");
        assert!(text.contains("prober_probe_duration_seconds_count{"), "{text}");
        meters.forget("u");
        let text = encode(meters.probes()).unwrap();
        assert!(!text.contains("pod_uid=\"u\"") && text.contains(&line("v", 1)), "{text}");
    }

    #[test]
    fn phases_queue_and_images_have_names_of_their_own() {
        let meters = Meters::new();
        meters.passed(Phase::Guest, Duration::from_millis(200));
        meters.queue().inc();
        meters.image("present");
        let text = encode(meters.own()).unwrap();
        for line in [
            "kvmlet_machine_phase_seconds_count{phase=\"guest\"} 1",
            "kvmlet_boots_waiting 1",
            "kvmlet_image_requests_total{result=\"present\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn starts_are_told_apart_by_how_they_were() {
        let meters = Meters::new();
        meters.started("copy", true, Duration::from_millis(20));
        meters.started("boot", false, Duration::from_secs(1));
        let text = encode(meters.own()).unwrap();
        assert!(
            text.contains("kvmlet_machine_start_seconds_bucket{how=\"copy\",le=\"0.025\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("kvmlet_machine_start_errors_total{how=\"boot\"} 1\n"));
    }
}
