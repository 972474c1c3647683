//! Tokens of service accounts in volumes: which are wanted, how long they live, when they are renewed. Pure; as the kubelet's
//! pkg/kubelet/token/token_manager.go, but a token's age is counted by this node's clock from when it was asked for, so that an API server whose
//! clock is another cannot make it late.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Seconds that a token lives when the pod says nothing.
const DEFAULT_SECONDS: i64 = 3600;
/// Longest that a token is used, however long it lives (the kubelet's maxTTL).
const LONGEST: i64 = 24 * 3600;
/// A renewal comes earlier by up to this, so that pods that began together do not ask together (the kubelet's maxJitter).
const JITTER_MILLIS: u64 = 10_000;
/// First wait after a request that failed.
const FIRST_WAIT: i64 = 2;
/// Longest one (the kubelet's for a volume that cannot be mounted).
const LONGEST_WAIT: i64 = 122;

/// A token that a pod asks for. Volumes that ask for the same share it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Wish {
    /// Whom it is meant for; the API server when absent.
    pub audience: Option<String>,
    /// Seconds that it shall live.
    pub seconds: i64,
}

impl Wish {
    /// As a projected volume's source says it.
    pub fn new(audience: Option<&str>, seconds: Option<i64>) -> Self {
        Self {
            audience: audience.filter(|a| !a.is_empty()).map(Into::into),
            seconds: seconds.unwrap_or(DEFAULT_SECONDS),
        }
    }
}

/// When a token was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issue {
    /// Asked for at this time.
    pub at: Timestamp,
    /// Seconds that it lives.
    pub seconds: i64,
}

/// A token, with its value.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Never printed, never written.
    pub value: String,
    /// When it was had.
    pub issue: Issue,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token {{ {:?} }}", self.issue)
    }
}

/// When a token of this pod is due to be renewed: at 80 % of its life, or a day, less a jitter that is the pod's own.
pub fn due(issue: Issue, uid: &str) -> Timestamp {
    let age = (issue.seconds - issue.seconds * 20 / 100).min(LONGEST);
    let digest = Sha256::digest(uid.as_bytes());
    let jitter = u64::from_be_bytes(digest[..8].try_into().expect("eight bytes")) % JITTER_MILLIS;
    let wait = SignedDuration::from_secs(age) - SignedDuration::from_millis(i64::try_from(jitter).unwrap_or(0));
    issue.at.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

/// Whether it is time for that. Of one that was had at a time that has not come yet the clock says nothing, as it was put back since.
pub fn is_due(issue: Issue, uid: &str, now: Timestamp) -> bool {
    due(issue, uid) <= now || issue.at > now
}

/// How long to wait after this many failures in a row.
pub fn wait(failures: u32) -> SignedDuration {
    SignedDuration::from_secs((FIRST_WAIT << failures.saturating_sub(1).min(8)).min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(seconds: i64, uid: &str) -> i64 {
        let at = Timestamp::from_second(1_000_000).unwrap();
        due(Issue { at, seconds }, uid).duration_since(at).as_secs()
    }

    #[test]
    fn a_token_is_renewed_at_four_fifths_of_its_life_less_at_most_ten_seconds() {
        for (seconds, latest) in [(600, 480), (3607, 2886), (86_400, 69_120)] {
            for uid in ["a", "b", "c", "d"] {
                assert!(
                    (latest - 10..=latest).contains(&age(seconds, uid)),
                    "{seconds} {uid}: {}",
                    age(seconds, uid)
                );
            }
        }
        let ages: std::collections::BTreeSet<i64> = (0..50).map(|n| age(600, &n.to_string())).collect();
        assert!(ages.len() > 3, "all at once: {ages:?}");
    }

    #[test]
    fn a_token_that_lives_for_a_year_is_renewed_each_day() {
        assert!((86_390..=86_400).contains(&age(365 * 86_400, "a")));
    }

    #[test]
    fn a_request_that_fails_is_repeated_ever_more_slowly_but_for_ever() {
        let waits: Vec<i64> = [1, 2, 3, 6, 7, 1000].into_iter().map(|n| wait(n).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 64, 122, 122]);
    }

    #[test]
    fn a_value_is_never_printed() {
        let issue = Issue {
            at: Timestamp::UNIX_EPOCH,
            seconds: 600,
        };
        let token = Token {
            value: "hidden".into(),
            issue,
        };
        assert!(!format!("{token:?}").contains("hidden"));
    }

    #[test]
    fn nothing_said_means_an_hour_for_the_api_server() {
        let plain = Wish {
            audience: None,
            seconds: 3600,
        };
        assert_eq!(Wish::new(None, None), plain);
        assert_eq!(Wish::new(Some(""), None), plain);
        assert_eq!(Wish::new(Some("vault"), Some(600)).audience.as_deref(), Some("vault"));
    }
}
