//! How long pods have when the host shuts down, by KubeletConfiguration's names and rules (kubelet.config.k8s.io/v1beta1,
//! shutdownGracePeriod and its like; pkg/kubelet/nodeshutdown, migrateConfig).

use std::time::Duration;

use serde::Deserialize;

use super::{Config, Span};
use crate::priority::CRITICAL;

/// Pods from this priority on, up to the next one's, and how long they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ShutdownGracePeriod {
    /// The lowest priority.
    pub priority: i32,
    /// How long such pods have, seconds.
    pub shutdown_grace_period_seconds: u64,
}

impl Config {
    /// How long which pods have, the lowest priority first, as they are ended one after the other; nothing where a shutdown is not waited for.
    pub fn shutdown_grace_periods(&self) -> Vec<ShutdownGracePeriod> {
        let mut all = self.shutdown_grace_period_by_pod_priority.clone();
        let (whole, critical) = (self.shutdown_grace_period.0, self.shutdown_grace_period_critical_pods.0);
        if all.is_empty() && !whole.is_zero() {
            let of = |priority, period: Duration| ShutdownGracePeriod {
                priority,
                shutdown_grace_period_seconds: period.as_secs(),
            };
            all = vec![of(0, whole.saturating_sub(critical)), of(CRITICAL, critical)];
        }
        all.sort_by_key(|one| one.priority);
        all
    }

    /// shutdownGracePeriod, shutdownGracePeriodCriticalPods and shutdownGracePeriodByPodPriority, as they are configured.
    pub fn shutdown_keys(&self) -> (Span, Span, &[ShutdownGracePeriod]) {
        (
            self.shutdown_grace_period,
            self.shutdown_grace_period_critical_pods,
            &self.shutdown_grace_period_by_pod_priority,
        )
    }

    /// What is wrong with them: the key, and why.
    pub(super) fn shutdown_mistake(&self) -> Option<(&'static str, &'static str)> {
        let (whole, critical) = (self.shutdown_grace_period.0, self.shutdown_grace_period_critical_pods.0);
        let too_short = |period: Duration| !period.is_zero() && period < Duration::from_secs(1);
        let by_priority = !self.shutdown_grace_period_by_pod_priority.is_empty();
        let checks = [
            (
                critical > whole,
                "shutdownGracePeriodCriticalPods",
                "must be <= shutdownGracePeriod",
            ),
            (too_short(whole), "shutdownGracePeriod", "must be either zero or otherwise >= 1 sec"),
            (
                too_short(critical),
                "shutdownGracePeriodCriticalPods",
                "must be either zero or otherwise >= 1 sec",
            ),
            (
                by_priority && !(whole.is_zero() && critical.is_zero()),
                "shutdownGracePeriodByPodPriority",
                "cannot be set beside shutdownGracePeriod",
            ),
        ];
        checks.into_iter().find_map(|(wrong, key, why)| wrong.then_some((key, why)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::tests::GOOD;

    fn parse(more: &str) -> Result<Vec<(i32, u64)>, String> {
        let config = Config::parse(Path::new("config.yaml"), &format!("{GOOD}{more}\n")).map_err(|error| error.to_string())?;
        let all = config.shutdown_grace_periods().into_iter();
        Ok(all.map(|one| (one.priority, one.shutdown_grace_period_seconds)).collect())
    }

    #[test]
    fn critical_pods_have_the_last_part_of_the_whole_and_priorities_come_in_order() {
        assert_eq!(parse(""), Ok(vec![]));
        let two = "shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s";
        assert_eq!(parse(two), Ok(vec![(0, 20), (2_000_000_000, 10)]));
        let own = "shutdownGracePeriodByPodPriority: [{priority: 100, shutdownGracePeriodSeconds: 5}, \
            {priority: -1, shutdownGracePeriodSeconds: 60}]";
        assert_eq!(parse(own), Ok(vec![(-1, 60), (100, 5)]));
    }

    #[test]
    fn periods_that_contradict_each_other_are_named() {
        for (keys, words) in [
            ("shutdownGracePeriodCriticalPods: 10s", "must be <= shutdownGracePeriod"),
            ("shutdownGracePeriod: 500ms", "shutdownGracePeriod: must be either zero"),
            (
                "shutdownGracePeriod: 5s\nshutdownGracePeriodByPodPriority: [{priority: 0, shutdownGracePeriodSeconds: 5}]",
                "shutdownGracePeriodByPodPriority: cannot",
            ),
            ("shutdownGracePeriodByPodPriority: [{priority: 0, seconds: 5}]", "seconds"),
        ] {
            let error = parse(keys).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
