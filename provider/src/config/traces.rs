//! Where traces of pods' starts go, under the kubelet's keys (component-base/tracing/api/v1).

use hyper::Uri;
use serde::Deserialize;

use super::Config;

/// Of how many spans a rate is.
const MILLION: u32 = 1_000_000;

/// Traces of pods' starts.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Tracing {
    /// Host and port of an OpenTelemetry collector that takes OTLP by gRPC, without TLS.
    pub endpoint: String,
    /// How many of a million pods' starts are traced, 0 to 1000000; 0: none, and nothing is kept or sent for it.
    pub sampling_rate_per_million: u32,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            endpoint: "localhost:4317".into(),
            sampling_rate_per_million: 0,
        }
    }
}

impl Tracing {
    /// The endpoint with its scheme.
    pub fn uri(&self) -> String {
        match self.endpoint.contains("://") {
            true => self.endpoint.clone(),
            false => format!("http://{}", self.endpoint),
        }
    }
}

impl Config {
    /// What is wrong with these keys: which, and why.
    pub(super) fn tracing_mistake(&self) -> Option<(&'static str, String)> {
        let Tracing {
            endpoint,
            sampling_rate_per_million: rate,
        } = &self.tracing;
        if *rate > MILLION {
            return Some(("tracing.samplingRatePerMillion", format!("{rate} is more than {MILLION}")));
        }
        let uri = self.tracing.uri().parse::<Uri>().ok();
        let is_of_a_host = |uri: &Uri| uri.port().is_some() && matches!(uri.path(), "" | "/") && uri.query().is_none();
        match uri {
            Some(uri) if uri.scheme_str() == Some("http") && is_of_a_host(&uri) => None,
            Some(uri) if uri.scheme_str() == Some("https") => {
                let why = format!("{endpoint}: no TLS is spoken with a collector; one on this host can pass traces on by TLS");
                Some(("tracing.endpoint", why))
            }
            _ => Some(("tracing.endpoint", format!("{endpoint:?} is not <host>:<port>"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::tests::GOOD;

    fn parse(keys: &str) -> Result<Tracing, String> {
        let config = Config::parse(Path::new("config.yaml"), &format!("{GOOD}tracing: {keys}\n"));
        config.map(|config| config.tracing).map_err(|error| error.to_string())
    }

    #[test]
    fn a_kubelets_section_means_what_it_means_there() {
        let silent = Config::parse(Path::new("config.yaml"), GOOD).unwrap().tracing;
        assert_eq!((silent.endpoint.as_str(), silent.sampling_rate_per_million), ("localhost:4317", 0));
        let only_where = parse("{endpoint: 'otel:4317'}").unwrap();
        assert_eq!(only_where.sampling_rate_per_million, 0, "without a rate none is taken");
        let found = parse("{endpoint: '[fd00::1]:4317', samplingRatePerMillion: 1000000}").unwrap();
        assert_eq!(
            (found.uri().as_str(), found.sampling_rate_per_million),
            ("http://[fd00::1]:4317", MILLION)
        );
        assert_eq!(parse("{endpoint: 'http://otel:4317'}").unwrap().uri(), "http://otel:4317");
    }

    #[test]
    fn an_endpoint_that_is_none_and_a_rate_of_more_than_all_are_mistakes() {
        for (keys, words) in [
            (
                "{samplingRatePerMillion: 1000001}",
                "tracing.samplingRatePerMillion: 1000001 is more than 1000000",
            ),
            ("{endpoint: otel}", "tracing.endpoint: \"otel\" is not <host>:<port>"),
            ("{endpoint: ''}", "tracing.endpoint: \"\" is not"),
            ("{endpoint: 'http://otel:4318/v1/traces'}", "is not <host>:<port>"),
            ("{endpoint: 'unix:///run/otel.sock'}", "is not <host>:<port>"),
            ("{endpoint: 'https://otel:4317'}", "no TLS is spoken with a collector"),
            ("{rate: 1}", "rate"),
        ] {
            let error = parse(keys).unwrap_err();
            assert!(error.contains(words), "{keys}: {error}");
        }
    }
}
