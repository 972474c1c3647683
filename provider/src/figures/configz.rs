//! `/configz`: what a kubelet would say of itself that is configured as this node is (kubelet.config.k8s.io/v1beta1). What this node has no equal of
//! is not there; what it has in no key, but does, is.

use std::time::Duration;

use kvmlet_server::{ALLOW_FOR, DENY_FOR, IDLE, KNOWN_FOR};
use serde_json::{Map, Value, json};

use super::stored;
use crate::{
    config::{Config, Span, Threshold},
    lifecycle::MAX_BACKOFF,
    node::{RENEW, STATUS_AT_LEAST, lease::LEASE_SECONDS},
};

/// The whole page.
pub(super) fn configz(config: &Config) -> Value {
    let gc = &config.images.gc;
    let mut object = json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "enableServer": true,
        "address": config.node_ip,
        "port": config.port,
        "rotateCertificates": config.renews_client_certificate(),
        "serverTLSBootstrap": config.server_tls_bootstrap,
        "authentication": {
            "x509": {"clientCAFile": config.tls.client_ca_file},
            "webhook": {"enabled": true, "cacheTTL": shown(KNOWN_FOR)},
            "anonymous": {"enabled": false},
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": {"cacheAuthorizedTTL": shown(ALLOW_FOR), "cacheUnauthorizedTTL": shown(DENY_FOR)},
        },
        "enableDebuggingHandlers": true,
        "enableSystemLogHandler": config.enable_system_log_handler,
        "clusterDomain": config.cluster_domain,
        "clusterDNS": config.cluster_dns,
        "resolvConf": config.resolv_conf,
        "streamingConnectionIdleTimeout": shown(IDLE),
        "nodeStatusUpdateFrequency": shown(RENEW),
        "nodeStatusReportFrequency": shown(STATUS_AT_LEAST),
        "nodeLeaseDurationSeconds": LEASE_SECONDS,
        "imageMinimumGCAge": seconds(gc.min_age_seconds.into()),
        "imageMaximumGCAge": seconds(gc.max_age_seconds.into()),
        "imageGCHighThresholdPercent": gc.high_threshold_percent,
        "imageGCLowThresholdPercent": gc.low_threshold_percent,
        "volumeStatsAggPeriod": shown(stored::FRESH),
        "maxPods": config.max_pods,
        "podPidsLimit": -1,
        "cpuCFSQuota": true,
        "serializeImagePulls": false,
        "registerNode": true,
        "podLogsDir": config.log_dir,
        "containerLogMaxSize": config.logs.max_size.to_string(),
        "containerLogMaxFiles": config.logs.max_files,
        "crashLoopBackOff": {"maxContainerRestartPeriod": seconds(MAX_BACKOFF)},
        "systemReserved": {
            "cpu": config.reserved.cpu.to_string(),
            "memory": config.reserved.memory.to_string(),
            "ephemeral-storage": config.reserved.ephemeral_storage.to_string(),
        },
        "evictionPressureTransitionPeriod": config.eviction_pressure_transition_period.to_string(),
        "evictionMaxPodGracePeriod": config.eviction_max_pod_grace_period,
    });
    object
        .as_object_mut()
        .expect("it was made as one")
        .extend(eviction(&config.thresholds()));
    let (whole, critical, by_priority) = config.shutdown_keys();
    object["shutdownGracePeriod"] = whole.to_string().into();
    object["shutdownGracePeriodCriticalPods"] = critical.to_string().into();
    if !by_priority.is_empty() {
        let one = |p: &crate::config::ShutdownGracePeriod| json!({"priority": p.priority, "shutdownGracePeriodSeconds": p.shutdown_grace_period_seconds});
        object["shutdownGracePeriodByPodPriority"] = by_priority.iter().map(one).collect();
    }
    let tracing = &config.tracing;
    if tracing.sampling_rate_per_million > 0 {
        object["tracing"] = json!({"endpoint": tracing.endpoint, "samplingRatePerMillion": tracing.sampling_rate_per_million});
    }
    json!({"kubeletconfig": object})
}

fn shown(duration: Duration) -> String {
    Span(duration).to_string()
}

fn seconds(seconds: u64) -> String {
    shown(Duration::from_secs(seconds))
}

/// Thresholds by the keys that they are configured with.
fn eviction(thresholds: &[Threshold]) -> Map<String, Value> {
    let mut all = Map::from_iter([("evictionHard".to_owned(), json!({}))]);
    for one in thresholds {
        let (name, level) = (one.signal.name(), one.level.to_string());
        if one.grace.is_zero() {
            all["evictionHard"][name] = level.into();
        } else {
            for (key, value) in [("evictionSoft", level), ("evictionSoftGracePeriod", shown(one.grace))] {
                let object = all.entry(key).or_insert_with(|| json!({}));
                object[name] = value.into();
            }
        }
        if let Some(reclaim) = one.reclaim {
            let object = all.entry("evictionMinimumReclaim").or_insert_with(|| json!({}));
            object[name] = reclaim.to_string().into();
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::tests::GOOD;

    fn of(more: &str) -> Value {
        let config = Config::parse(Path::new("config.yaml"), &format!("{GOOD}{more}")).unwrap();
        configz(&config)["kubeletconfig"].clone()
    }

    #[test]
    fn a_node_that_says_nothing_is_configured_as_a_kubelet_that_says_nothing() {
        let found = of("");
        for (key, value) in [
            ("kind", json!("KubeletConfiguration")),
            ("maxPods", json!(110)),
            (
                "evictionHard",
                json!({"memory.available": "100Mi", "nodefs.available": "10%", "nodefs.inodesFree": "5%",
                "imagefs.available": "15%", "imagefs.inodesFree": "5%"}),
            ),
            ("evictionPressureTransitionPeriod", json!("5m0s")),
            ("imageMinimumGCAge", json!("2m0s")),
            ("imageMaximumGCAge", json!("0s")),
            ("imageGCHighThresholdPercent", json!(85)),
            ("containerLogMaxSize", json!("10Mi")),
            ("streamingConnectionIdleTimeout", json!("4h0m0s")),
            ("shutdownGracePeriod", json!("0s")),
        ] {
            assert_eq!(found[key], value, "{key}");
        }
        for key in ["evictionSoft", "staticPodPath", "tracing"] {
            assert!(found.get(key).is_none(), "{key}");
        }
    }

    #[test]
    fn what_is_configured_is_shown_under_the_kubelets_keys() {
        let found = of(
            "maxPods: 30\nevictionHard: {memory.available: 500Mi}\nevictionSoft: {nodefs.available: 12.5%}\n\
            evictionSoftGracePeriod: {nodefs.available: 1m30s}\nevictionMinimumReclaim: {nodefs.available: 1Gi}\n\
            images: {gc: {maxAgeSeconds: 90000}}\nshutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s\n\
            tracing: {samplingRatePerMillion: 100}\n",
        );
        for (key, value) in [
            ("maxPods", json!(30)),
            ("evictionHard", json!({"memory.available": "500Mi"})),
            ("evictionSoft", json!({"nodefs.available": "12.5%"})),
            ("evictionSoftGracePeriod", json!({"nodefs.available": "1m30s"})),
            ("evictionMinimumReclaim", json!({"nodefs.available": "1Gi"})),
            ("imageMaximumGCAge", json!("25h0m0s")),
            ("shutdownGracePeriod", json!("30s")),
            ("shutdownGracePeriodCriticalPods", json!("10s")),
            ("tracing", json!({"endpoint": "localhost:4317", "samplingRatePerMillion": 100})),
        ] {
            assert_eq!(found[key], value, "{key}");
        }
        let found = of("shutdownGracePeriodByPodPriority: [{priority: 5, shutdownGracePeriodSeconds: 7}]\n");
        assert_eq!(
            found["shutdownGracePeriodByPodPriority"],
            json!([{"priority": 5, "shutdownGracePeriodSeconds": 7}])
        );
    }
}
