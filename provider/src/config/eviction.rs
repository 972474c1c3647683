//! When the node is short of something, by KubeletConfiguration's names and rules (kubelet.config.k8s.io/v1beta1; pkg/kubelet/eviction,
//! ParseThresholdConfig).

use std::{collections::BTreeMap, fmt, time::Duration};

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::Config;
use crate::quantity::{NotAQuantity, Quantity, number_or_text};

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Signal {
    /// Memory that the host could use without anything being thrown out, bytes.
    #[serde(rename = "memory.available")]
    MemoryAvailable,
    /// The file system of the state directory, bytes.
    #[serde(rename = "nodefs.available")]
    NodeFsAvailable,
    /// The same, inodes.
    #[serde(rename = "nodefs.inodesFree")]
    NodeFsInodesFree,
    /// The file system of images, bytes.
    #[serde(rename = "imagefs.available")]
    ImageFsAvailable,
    /// The same, inodes.
    #[serde(rename = "imagefs.inodesFree")]
    ImageFsInodesFree,
    /// Processes and threads that the host could have besides.
    #[serde(rename = "pid.available")]
    PidAvailable,
}

impl Signal {
    /// As the configuration and `kubelet_evictions` name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodeFsAvailable => "nodefs.available",
            Self::NodeFsInodesFree => "nodefs.inodesFree",
            Self::ImageFsAvailable => "imagefs.available",
            Self::ImageFsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }
}

/// An amount, or a share of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Level {
    /// Bytes, inodes or processes.
    Amount(Quantity),
    /// Thousandths of a per cent.
    Share(u64),
}

impl Level {
    /// The amount, where there is so much in all.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount.value(),
            Self::Share(part) => u64::try_from(u128::from(capacity) * u128::from(part) / 100_000).unwrap_or(u64::MAX),
        }
    }

    /// 0% and 100% are no thresholds.
    fn means_never(self) -> bool {
        matches!(self, Self::Share(0 | 100_000))
    }

    fn read(text: &str) -> Result<Self, NotAQuantity> {
        match text.strip_suffix('%') {
            Some(number) => Quantity::parse(number).map(|share| Self::Share(share.milli_value())),
            None => Quantity::parse(text).map(Self::Amount),
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Amount(amount) => amount.fmt(f),
            Self::Share(part) if part % 1000 == 0 => write!(f, "{}%", part / 1000),
            Self::Share(part) => {
                let digits = format!("{:03}", part % 1000);
                write!(f, "{}.{}%", part / 1000, digits.trim_end_matches('0'))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, |number| Self::Amount(Quantity::bytes(number)), Self::read)
    }
}

/// A duration as Go writes it: `10s`, `1m30s`, `4h0m0s`. Parts of a second are not shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
            (0, 0, rest) => write!(f, "{rest}s"),
            (0, minutes, rest) => write!(f, "{minutes}m{rest}s"),
            (hours, minutes, rest) => write!(f, "{hours}h{minutes}m{rest}s"),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let span = text.parse::<SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
        span.map(Self)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not a duration such as \"1m30s\"")))
    }
}

/// Below what the node is short of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// What is looked at.
    pub signal: Signal,
    /// Where it begins.
    pub level: Level,
    /// For how long it must have been so before a pod is evicted; zero of a hard one.
    pub grace: Duration,
    /// By how much more than the level there has to be again.
    pub reclaim: Option<Level>,
}

type Levels = BTreeMap<Signal, Level>;

/// evictionHard of a node that says nothing (pkg/kubelet/eviction/defaults_linux.go).
const DEFAULT_HARD: [(Signal, Level); 5] = [
    (Signal::MemoryAvailable, Level::Amount(Quantity::bytes(100 << 20))),
    (Signal::NodeFsAvailable, Level::Share(10_000)),
    (Signal::NodeFsInodesFree, Level::Share(5_000)),
    (Signal::ImageFsAvailable, Level::Share(15_000)),
    (Signal::ImageFsInodesFree, Level::Share(5_000)),
];

/// evictionPressureTransitionPeriod of a node that says nothing.
pub(super) fn default_transition() -> Span {
    Span(Duration::from_secs(300))
}

impl Config {
    /// When this node is short of something. One that sets evictionHard has no others.
    pub fn thresholds(&self) -> Vec<Threshold> {
        let hard = self.eviction_hard.clone().unwrap_or_else(|| DEFAULT_HARD.into());
        let threshold = |(signal, level): (Signal, Level), grace| Threshold {
            signal,
            level,
            grace,
            reclaim: self.eviction_minimum_reclaim.get(&signal).copied(),
        };
        let grace = |signal| self.eviction_soft_grace_period.get(&signal).map_or(Duration::ZERO, |span| span.0);
        let hard = hard.into_iter().map(|one| threshold(one, Duration::ZERO));
        let soft = self
            .eviction_soft
            .iter()
            .map(|(signal, level)| threshold((*signal, *level), grace(*signal)));
        hard.chain(soft).filter(|threshold| !threshold.level.means_never()).collect()
    }

    /// What is wrong with them: the key, and why.
    pub(super) fn eviction_mistake(&self) -> Option<(&'static str, String)> {
        let none = Levels::new();
        for (key, levels) in [
            ("evictionHard", self.eviction_hard.as_ref().unwrap_or(&none)),
            ("evictionSoft", &self.eviction_soft),
        ] {
            for (signal, level) in levels {
                let why = match level {
                    Level::Amount(amount) if *amount == Quantity::default() => "must be positive",
                    Level::Share(part) if *part > 100_000 => "must be <= 100%",
                    _ => continue,
                };
                return Some((key, format!("{} {why}", signal.name())));
            }
        }
        let without = |signal: &&Signal| !self.eviction_soft_grace_period.contains_key(signal);
        self.eviction_soft.keys().find(without).map(|signal| {
            let message = format!("grace period must be specified for the soft eviction threshold {}", signal.name());
            ("evictionSoftGracePeriod", message)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::tests::GOOD;

    fn parse(more: &str) -> Result<Config, String> {
        Config::parse(Path::new("config.yaml"), &format!("{GOOD}{more}")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_node_that_says_nothing_has_the_kubelets_thresholds_and_one_that_does_no_others() {
        let config = parse("").unwrap();
        let found: Vec<_> = config
            .thresholds()
            .iter()
            .map(|one| (one.signal, one.level.of(1_000_000)))
            .collect();
        let expected = [
            (Signal::MemoryAvailable, 100 << 20),
            (Signal::NodeFsAvailable, 100_000),
            (Signal::NodeFsInodesFree, 50_000),
            (Signal::ImageFsAvailable, 150_000),
            (Signal::ImageFsInodesFree, 50_000),
        ];
        assert_eq!(found, expected);
        assert_eq!(config.eviction_pressure_transition_period.0, Duration::from_secs(300));
        let own = parse("evictionHard: {nodefs.available: 12.5%, pid.available: 100}\n")
            .unwrap()
            .thresholds();
        let found: Vec<_> = own.iter().map(|one| (one.signal, one.level.of(800))).collect();
        assert_eq!(found, [(Signal::NodeFsAvailable, 100), (Signal::PidAvailable, 100)]);
        assert_eq!(parse("evictionHard: {memory.available: 0%}\n").unwrap().thresholds(), []);
    }

    #[test]
    fn a_soft_threshold_has_its_grace_and_what_is_to_be_had_again() {
        let soft = "evictionHard: {memory.available: 0%}\nevictionSoft: {memory.available: 1Gi}\n\
            evictionSoftGracePeriod: {memory.available: 1m30s}\nevictionMinimumReclaim: {memory.available: 500Mi}\n\
            evictionPressureTransitionPeriod: 10s\n";
        let config = parse(soft).unwrap();
        let expected = Threshold {
            signal: Signal::MemoryAvailable,
            level: Level::Amount(Quantity::bytes(1 << 30)),
            grace: Duration::from_secs(90),
            reclaim: Some(Level::Amount(Quantity::bytes(500 << 20))),
        };
        assert_eq!(config.thresholds(), [expected]);
        assert_eq!(config.eviction_pressure_transition_period.0, Duration::from_secs(10));
    }

    #[test]
    fn what_is_no_threshold_is_named() {
        for (keys, words) in [
            ("evictionHard: {memory.free: 1Gi}", "memory.free"),
            ("evictionHard: {memory.available: lots}", "lots"),
            (
                "evictionHard: {memory.available: 0}",
                "evictionHard: memory.available must be positive",
            ),
            ("evictionHard: {nodefs.available: 101%}", "must be <= 100%"),
            (
                "evictionSoft: {nodefs.available: 5%}",
                "grace period must be specified for the soft eviction threshold nodefs.available",
            ),
            ("evictionPressureTransitionPeriod: soon", "soon"),
            ("evictionPressureTransitionPeriod: -5s", "-5s"),
        ] {
            let error = parse(&format!("{keys}\n")).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
