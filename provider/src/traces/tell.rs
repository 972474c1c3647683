//! Hands traces to the collector: OTLP over gRPC, as the kubelet's (component-base/tracing). What cannot be delivered is lost, and said once.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use opentelemetry::{
    Context as Parent, KeyValue,
    trace::{Span as _, SpanBuilder, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{SpanExporter as Otlp, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter},
};
use tokio::sync::watch;
use tonic::transport::Endpoint;
use tracing::{info, warn};

use super::plan::{self, Trace};
use crate::{config::Config, desired::DesiredPod, figures::Course, started::Started};

/// The name of the root span.
const NAME: &str = "pod start";
/// How long the collector may take to take connections, and then spans.
const CONNECT: Duration = Duration::from_secs(5);
const TAKE: Duration = Duration::from_secs(10);
/// How long the daemon's end may wait for what is left to be taken.
const LAST: Duration = Duration::from_secs(1);

/// Takes traces. Spans wait for their batch on a thread of the SDK's (2048 of them at most, 5 s), which alone waits for the collector.
#[derive(Debug, Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// As configured; nothing where no start is to be traced. Needs a tokio runtime, and connects when there is something to send.
    ///
    /// # Errors
    /// When the endpoint is none; the configuration has been checked for that.
    pub fn open(config: &Config) -> anyhow::Result<Option<Self>> {
        let tracing = &config.tracing;
        if tracing.sampling_rate_per_million == 0 {
            return Ok(None);
        }
        let endpoint = Endpoint::from_shared(tracing.uri())?.connect_timeout(CONNECT).timeout(TAKE);
        let exporter = Otlp::builder().with_tonic().with_channel(endpoint.connect_lazy()).build()?;
        let share = f64::from(tracing.sampling_rate_per_million) / 1e6;
        Ok(Some(Self::with(Told::new(exporter, &tracing.endpoint), share, &config.node_name)))
    }

    fn with(exporter: impl SpanExporter + 'static, share: f64, node: &str) -> Self {
        let resource = Resource::builder().with_service_name("kvmlet").with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("k8s.node.name", node.to_owned()),
        ]);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))))
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("kvmlet");
        Self { provider, tracer }
    }

    /// Tells the start of a pod with this course and machine (its directory) once the API server has taken the status of that number.
    pub async fn follow(self, pod: Arc<DesiredPod>, course: Course, machine: PathBuf, (number, mut taken): (u64, watch::Receiver<u64>)) {
        // At once, as the machine may be gone when the API server answers.
        let reading = tokio::task::spawn_blocking(move || Started::read(&machine));
        let _ = taken.wait_for(|taken| *taken >= number).await;
        let reported = Timestamp::now();
        let machine = reading.await.ok().flatten();
        let trace = plan::trace(plan::bound(&pod.pod), &course, machine.as_ref(), reported);
        self.tell(&pod, &trace);
    }

    /// Tells a pod's start, if it is among those to be told.
    fn tell(&self, pod: &DesiredPod, trace: &Trace) {
        let own = [
            KeyValue::new("k8s.namespace.name", pod.namespace.clone()),
            KeyValue::new("k8s.pod.name", pod.name.clone()),
            KeyValue::new("k8s.pod.uid", pod.uid.clone()),
        ];
        let said = trace.attributes.iter().map(|(name, value)| KeyValue::new(*name, value.clone()));
        let root = SpanBuilder::from_name(NAME)
            .with_start_time(system(trace.from))
            .with_attributes(own.into_iter().chain(said));
        let root = Parent::new().with_span(self.tracer.build_with_context(root, &Parent::new()));
        for phase in &trace.phases {
            let span = SpanBuilder::from_name(phase.name).with_start_time(system(phase.from));
            let mut span = self.tracer.build_with_context(span, &root);
            span.end_with_timestamp(system(phase.to));
        }
        root.span().end_with_timestamp(system(trace.to));
    }

    /// What is left is sent, if the collector takes it at once.
    pub async fn end(self) {
        let ending = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(LAST));
        if let Ok(Err(error)) = ending.await {
            tracing::debug!(%error, "the last traces");
        }
    }
}

fn system(time: Timestamp) -> SystemTime {
    time.into()
}

/// An exporter whose failures are said when they begin and when they are over.
#[derive(Debug)]
struct Told<E> {
    exporter: E,
    endpoint: String,
    fails: AtomicBool,
}

impl<E> Told<E> {
    fn new(exporter: E, endpoint: &str) -> Self {
        Self {
            exporter,
            endpoint: endpoint.into(),
            fails: AtomicBool::default(),
        }
    }

    /// Whether it was otherwise before; at first it is well.
    fn is_news(&self, fails: bool) -> bool {
        self.fails.swap(fails, Ordering::Relaxed) != fails
    }
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let taken = self.exporter.export(batch).await;
        if self.is_news(taken.is_err()) {
            match &taken {
                Err(error) => warn!(%error, "traces cannot be delivered to {}: they are lost until they can", self.endpoint),
                Ok(()) => info!("traces are delivered to {} again", self.endpoint),
            }
        }
        taken
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use opentelemetry::{Value, trace::SpanId};
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;
    use crate::traces::plan::Span;

    /// Keeps what it is given, or refuses it.
    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>, bool);

    impl SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            if self.1 {
                return Err(OTelSdkError::InternalFailure("away".into()));
            }
            Ok(())
        }
    }

    fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(millisecond).unwrap()
    }

    /// What comes of a start of two phases.
    fn spans(share: f64) -> Vec<SpanData> {
        let kept = Kept::default();
        let traces = Traces::with(kept.clone(), share, "kvm-1");
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": []}});
        let (pod, _) = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap()));
        let phase = |name, from, to| Span {
            name,
            from: at(from),
            to: at(to),
        };
        let trace = Trace {
            from: at(1_000),
            to: at(4_000),
            attributes: vec![("kvmlet.start.how", "copy".into())],
            phases: vec![phase("images", 1_500, 2_000), phase("containers", 2_000, 4_000)],
        };
        traces.tell(&pod, &trace);
        traces.provider.force_flush().unwrap();
        kept.0.lock().unwrap().clone()
    }

    #[test]
    fn a_start_is_told_as_a_root_with_the_pods_names_and_a_child_for_each_phase() {
        let spans = spans(1.0);
        let [images, containers, root] = &spans[..] else {
            panic!("{spans:?}")
        };
        assert_eq!((root.name.as_ref(), root.parent_span_id), (NAME, SpanId::INVALID));
        assert_eq!((root.start_time, root.end_time), (system(at(1_000)), system(at(4_000))));
        let said = |name: &str| root.attributes.iter().find(|one| one.key.as_str() == name).map(|one| &one.value);
        for (name, value) in [
            ("k8s.namespace.name", "n"),
            ("k8s.pod.name", "p"),
            ("k8s.pod.uid", "u"),
            ("kvmlet.start.how", "copy"),
        ] {
            assert_eq!(said(name), Some(&Value::from(value)), "{name}");
        }
        for (child, name, (from, to)) in [(images, "images", (1_500, 2_000)), (containers, "containers", (2_000, 4_000))] {
            assert_eq!(child.name, name);
            assert_eq!(child.parent_span_id, root.span_context.span_id());
            assert_eq!(child.span_context.trace_id(), root.span_context.trace_id());
            assert_eq!((child.start_time, child.end_time), (system(at(from)), system(at(to))));
        }
    }

    #[test]
    fn of_a_start_that_is_not_among_those_to_be_told_nothing_is() {
        assert_eq!(spans(0.0), []);
    }

    #[tokio::test]
    async fn failures_are_said_when_they_begin_and_when_they_end() {
        let told = Told::new(Kept(Arc::default(), true), "collector:4317");
        assert!(told.export(Vec::new()).await.is_err());
        assert!(told.fails.load(Ordering::Relaxed));
        assert!(!told.is_news(true), "it was said");
        assert!(told.is_news(false));
        assert!(!told.is_news(false));
        assert!(told.is_news(true), "again");
    }
}
