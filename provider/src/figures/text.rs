//! Metrics as Prometheus reads them (text format 0.0.4), with the time of each reading where the kubelet gives it.

use jiff::Timestamp;
use prometheus::{
    Encoder, TextEncoder,
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

/// One metric under construction.
pub(super) struct Family(MetricFamily);

impl Family {
    /// A count that only grows.
    pub(super) fn counter(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::COUNTER)
    }

    /// A value that goes up and down.
    pub(super) fn gauge(name: &str, help: &str) -> Self {
        Self::new(name, help, MetricType::GAUGE)
    }

    fn new(name: &str, help: &str, kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self(family)
    }

    /// One value, its labels in this order, and when it was read.
    pub(super) fn add(&mut self, labels: &[(&str, &str)], value: f64, at: Option<Timestamp>) {
        let labels = labels.iter().map(|(name, value)| {
            let mut label = LabelPair::default();
            label.set_name((*name).to_owned());
            label.set_value((*value).to_owned());
            label
        });
        let mut metric = Metric::from_label(labels.collect());
        if self.0.get_field_type() == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        if let Some(at) = at {
            metric.set_timestamp_ms(at.as_millisecond());
        }
        self.0.mut_metric().push(metric);
    }

    /// The metric.
    pub(super) fn done(self) -> MetricFamily {
        self.0
    }
}

/// Nanoseconds as seconds.
pub(super) fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// All of them as text. Metrics without a value are left out.
pub(super) fn encode(families: Vec<MetricFamily>) -> Result<String, String> {
    let families: Vec<_> = families.into_iter().filter(|family| !family.get_metric().is_empty()).collect();
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text).map_err(|error| error.to_string())?;
    String::from_utf8(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stay_in_their_order_and_are_escaped() {
        let mut family = Family::gauge("m", "Helps.");
        let at = Timestamp::from_millisecond(1_500).unwrap();
        family.add(&[("b", "1"), ("a", "x\"y\n")], 0.5, Some(at));
        let text = encode(vec![family.done(), Family::counter("none", "").done()]).unwrap();
        assert_eq!(text, "# HELP m Helps.\n# TYPE m gauge\nm{b=\"1\",a=\"x\\\"y\\n\"} 0.5 1500\n");
    }
}
