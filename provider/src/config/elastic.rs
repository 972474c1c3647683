//! What a host that comes and goes says of itself: labels, a cloud's name for it, whether its pods leave before it does.

use std::time::Duration;

use super::Config;

/// Labels below kubernetes.io and k8s.io that a node may give itself (k8s.io/kubelet/pkg/apis/well_known_labels.go, KubeletLabels).
const LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
/// What their part before the slash may be or end with, too (KubeletLabelNamespaces).
const DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

pub(super) fn default_drain_timeout() -> u64 {
    300
}

impl Config {
    /// How long pods may take to leave.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_seconds)
    }

    /// What is wrong with these keys: which, and why.
    pub(super) fn elastic_mistake(&self) -> Option<(&'static str, String)> {
        if let Some(label) = self.labels.keys().find(|label| !is_own(label)) {
            let why = format!("a node may not give itself {label} (NodeRestriction): an administrator may, or a cloud's controller");
            return Some(("labels", why));
        }
        if self.provider_id.as_ref().is_some_and(|id| !id.contains("://")) {
            return Some(("providerID", "must be <provider>://<what the provider calls this host>".into()));
        }
        let is_short = self.drain_timeout_seconds == 0;
        is_short.then(|| ("drainTimeoutSeconds", "must be 1 or more".into()))
    }
}

/// Whether a node may give itself this label (plugin/pkg/admission/noderestriction, getForbiddenLabels).
fn is_own(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let is_below = |parent: &str| {
        let above = domain.strip_suffix(parent);
        above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
    };
    if is_below("node-restriction.kubernetes.io") {
        return false;
    }
    let is_of_kubernetes = is_below("kubernetes.io") || is_below("k8s.io");
    !is_of_kubernetes || LABELS.contains(&label) || DOMAINS.into_iter().any(is_below)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::tests::GOOD;

    fn parse(more: &str) -> Result<Config, String> {
        Config::parse(Path::new("config.yaml"), &format!("{GOOD}{more}\n")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_host_stays_unless_it_is_told_to_leave_and_has_five_minutes_for_that() {
        let config = parse("").unwrap();
        assert!(!config.drain_on_termination && config.provider_id.is_none());
        let config = parse("drainOnTermination: true\nproviderID: aws:///eu-1a/i-0123").unwrap();
        assert_eq!(
            (config.drain_on_termination, config.drain_timeout()),
            (true, Duration::from_secs(300))
        );
        assert_eq!(config.provider_id.as_deref(), Some("aws:///eu-1a/i-0123"));
    }

    #[test]
    fn labels_are_those_that_a_node_may_give_itself() {
        for label in [
            "tier",
            "example.com/tier",
            "topology.kubernetes.io/zone",
            "topology.kubernetes.io/region",
            "node.kubernetes.io/instance-type",
            "node.kubernetes.io/anything",
            "rack.node.kubernetes.io/row",
            "notkubernetes.io/x",
        ] {
            assert!(parse(&format!("labels: {{{label}: x}}")).is_ok(), "{label}");
        }
        for label in [
            "node-role.kubernetes.io/worker",
            "node-restriction.kubernetes.io/team",
            "a.node-restriction.kubernetes.io/team",
            "topology.kubernetes.io/rack",
            "x.k8s.io/y",
        ] {
            let error = parse(&format!("labels: {{{label}: x}}")).unwrap_err();
            assert!(error.contains("labels: a node may not") && error.contains(label), "{error}");
        }
    }

    #[test]
    fn a_name_without_a_provider_and_no_time_to_leave_are_mistakes() {
        for (keys, words) in [
            ("providerID: i-0123", "providerID: must be <provider>://"),
            ("drainTimeoutSeconds: 0", "drainTimeoutSeconds: must be 1 or more"),
        ] {
            let error = parse(keys).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
