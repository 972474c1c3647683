//! Who is ended with whom, and for how long they are waited for (nodeshutdown_manager.go, groupByPriority). Pure.

use std::time::Duration;

use crate::config::ShutdownGracePeriod;

/// Pods that are ended together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group<T> {
    /// Seconds that they have at the most, and are waited for.
    pub seconds: u64,
    /// The pods.
    pub pods: Vec<T>,
}

/// Pods and their priorities in groups that are ended one after the other; nobody waits for a group without pods. `periods` are in order. A pod
/// belongs to the highest priority that is not above its own, one below all of them to the lowest.
pub fn groups<T>(periods: &[ShutdownGracePeriod], pods: impl IntoIterator<Item = (T, i32)>) -> Vec<Group<T>> {
    let of = |period: &ShutdownGracePeriod| Group {
        seconds: period.shutdown_grace_period_seconds,
        pods: Vec::new(),
    };
    let mut groups: Vec<_> = periods.iter().map(of).collect();
    for (pod, priority) in pods {
        let above = periods.partition_point(|period| period.priority <= priority);
        if let Some(group) = groups.get_mut(above.saturating_sub(1)) {
            group.pods.push(pod);
        }
    }
    groups.retain(|group| !group.pods.is_empty());
    groups
}

/// How long all of it may take.
pub fn whole(periods: &[ShutdownGracePeriod]) -> Duration {
    Duration::from_secs(
        periods
            .iter()
            .map(|period| period.shutdown_grace_period_seconds)
            .fold(0, u64::saturating_add),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn periods(all: &[(i32, u64)]) -> Vec<ShutdownGracePeriod> {
        let of = |(priority, shutdown_grace_period_seconds): &(i32, u64)| ShutdownGracePeriod {
            priority: *priority,
            shutdown_grace_period_seconds: *shutdown_grace_period_seconds,
        };
        all.iter().map(of).collect()
    }

    #[test]
    fn pods_end_in_order_of_priority_each_with_the_highest_that_it_reaches() {
        let periods = periods(&[(0, 30), (100, 20), (2_000_000_000, 10)]);
        let pods = [
            ("critical", 2_000_001_000),
            ("zero", 0),
            ("low", -5),
            ("high", 100),
            ("nearly", 99),
            ("most", 1_999_999_999),
        ];
        let group = |seconds, pods: &[&'static str]| Group {
            seconds,
            pods: pods.to_vec(),
        };
        assert_eq!(
            groups(&periods, pods),
            [
                group(30, &["zero", "low", "nearly"]),
                group(20, &["high", "most"]),
                group(10, &["critical"])
            ]
        );
        assert_eq!(whole(&periods), Duration::from_secs(60));
    }

    #[test]
    fn nobody_waits_for_a_priority_without_pods() {
        let periods = periods(&[(0, 30), (100, 20)]);
        assert_eq!(
            groups(&periods, [("high", 500)]),
            [Group {
                seconds: 20,
                pods: vec!["high"]
            }]
        );
        assert_eq!(groups(&periods, Vec::<((), i32)>::new()), []);
        assert_eq!(groups(&[], [("any", 0)]), []);
    }
}
