//! What is decided of certificates: whether one will do, when it is renewed, what a request's answer is. Pure.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

/// The group of all nodes, which a node's certificates name as organisation.
pub const NODES: &str = "system:nodes";
/// A certificate is renewed when this part of its life is over at the least, and this much later at the most (`jitteryDuration` of client-go's
/// certificate_manager.go).
const EARLIEST: f64 = 0.7;
const SPREAD: f64 = 0.2;
/// Waits after failures: doubled from the first one to the last (`Start` of the same file).
const FIRST_WAIT: u64 = 2;
const LAST_WAIT: u64 = 32;

/// Which of the node's certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The one it shows the API server.
    Client,
    /// The one its port shows.
    Serving,
}

impl Kind {
    /// `spec.signerName` of its requests.
    pub fn signer(self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    /// `spec.usages`: those of a key that only signs.
    pub fn usages(self) -> [&'static str; 2] {
        match self {
            Self::Client => ["digital signature", "client auth"],
            Self::Serving => ["digital signature", "server auth"],
        }
    }

    /// How its files' names begin, the kubelet's.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Client => "kubelet-client",
            Self::Serving => "kubelet-server",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client => "client certificate",
            Self::Serving => "serving certificate",
        })
    }
}

/// What a certificate has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// `system:node:` and the node's name.
    pub user: String,
    /// DNS names.
    pub names: BTreeSet<String>,
    /// Addresses.
    pub addresses: BTreeSet<IpAddr>,
}

impl Template {
    /// Of the node's client certificate: who it is.
    pub fn client(node: &str) -> Self {
        Self {
            user: format!("system:node:{node}"),
            names: BTreeSet::new(),
            addresses: BTreeSet::new(),
        }
    }

    /// Of its serving certificate: also where it is, by its Node's addresses Hostname and InternalIP.
    pub fn serving(node: &str, address: IpAddr) -> Self {
        Self {
            names: [node.to_owned()].into(),
            addresses: [address].into(),
            ..Self::client(node)
        }
    }
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its common name.
    pub user: String,
    /// Its organisations.
    pub groups: Vec<String>,
    /// Its DNS names.
    pub names: BTreeSet<String>,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// From when it counts.
    pub begins: Timestamp,
    /// Until when.
    pub ends: Timestamp,
}

/// Why a certificate will not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Its time is over.
    #[error("it expired at {0}")]
    Expired(Timestamp),
    /// It is somebody else's.
    #[error("it is {found:?}'s, not {wanted:?}'s")]
    User {
        /// Whose.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// It is no node's.
    #[error("it is not of the group {NODES}")]
    Group,
    /// It does not hold for all names and addresses.
    #[error("it is not for {0}")]
    Place(String),
}

/// Why a certificate will not do now, if so. Names and addresses beyond the wanted ones do no harm. That its time has not begun is for the other
/// side to say: this node's clock may be the one that is slow.
pub fn flaw(facts: &Facts, template: &Template, now: Timestamp) -> Option<Flaw> {
    if facts.ends <= now {
        return Some(Flaw::Expired(facts.ends));
    }
    if facts.user != template.user {
        return Some(Flaw::User {
            found: facts.user.clone(),
            wanted: template.user.clone(),
        });
    }
    if !facts.groups.iter().any(|group| group == NODES) {
        return Some(Flaw::Group);
    }
    let name = template.names.difference(&facts.names).next().cloned();
    let missing = name.or_else(|| template.addresses.difference(&facts.addresses).next().map(IpAddr::to_string));
    missing.map(Flaw::Place)
}

/// When a certificate is renewed: after 70 to 90 % of its life, by a number from 0 to 1 that is drawn for it.
pub fn due(facts: &Facts, drawn: f64) -> Timestamp {
    let life = facts.ends.duration_since(facts.begins).as_secs_f64().max(0.0);
    let age = life * (EARLIEST + SPREAD * drawn.clamp(0.0, 1.0));
    let age = SignedDuration::try_from_secs_f64(age).unwrap_or(SignedDuration::MAX);
    facts.begins.saturating_add(age).unwrap_or(Timestamp::MAX)
}

/// How long to wait after so many failures in a row. It never ends.
pub fn wait(failures: u32) -> Duration {
    Duration::from_secs((FIRST_WAIT << failures.saturating_sub(1).min(8)).min(LAST_WAIT))
}

/// What has become of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nobody has decided, or it is approved and not signed yet.
    None,
    /// The certificate, PEM.
    Issued(Vec<u8>),
    /// No, and why.
    Refused(String),
}

/// What a request's status says. As client-go's csr.go: a denial or a failure counts whatever else it says.
pub fn answer(request: &CertificateSigningRequest) -> Answer {
    let Some(status) = &request.status else { return Answer::None };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let refused = conditions.iter().find(|one| matches!(one.type_.as_str(), "Denied" | "Failed"));
    if let Some(condition) = refused {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let why = format!("{}: {}: {}", condition.type_, text(&condition.reason), text(&condition.message));
        return Answer::Refused(why.trim_end_matches([':', ' ']).to_owned());
    }
    match &status.certificate {
        Some(certificate) if !certificate.0.is_empty() => Answer::Issued(certificate.0.clone()),
        _ => Answer::None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn serving() -> (Facts, Template) {
        let template = Template::serving("n", address("10.0.0.1"));
        let facts = Facts {
            user: template.user.clone(),
            groups: vec![NODES.into()],
            names: ["n".into(), "other".into()].into(),
            addresses: [address("10.0.0.1")].into(),
            begins: at(1000),
            ends: at(2000),
        };
        (facts, template)
    }

    #[test]
    fn a_certificate_does_until_its_last_second() {
        let (facts, template) = serving();
        assert_eq!(flaw(&facts, &template, at(1999)), None);
        assert_eq!(flaw(&facts, &template, at(2000)), Some(Flaw::Expired(at(2000))));
        assert_eq!(flaw(&facts, &template, at(500)), None, "a clock that is slow");
    }

    #[test]
    fn a_certificate_of_another_user_group_name_or_address_will_not_do() {
        let (facts, template) = serving();
        let user = Facts {
            user: "system:node:m".into(),
            ..facts.clone()
        };
        let said = flaw(&user, &template, at(1500)).unwrap().to_string();
        assert_eq!(said, r#"it is "system:node:m"'s, not "system:node:n"'s"#);
        let group = Facts {
            groups: vec!["system:masters".into()],
            ..facts.clone()
        };
        assert_eq!(flaw(&group, &template, at(1500)), Some(Flaw::Group));
        let renamed = Facts {
            names: ["other".into()].into(),
            ..facts.clone()
        };
        assert_eq!(flaw(&renamed, &template, at(1500)), Some(Flaw::Place("n".into())));
        let moved = Template::serving("n", address("10.0.0.2"));
        assert_eq!(flaw(&facts, &moved, at(1500)), Some(Flaw::Place("10.0.0.2".into())));
        assert_eq!(flaw(&facts, &Template::client("n"), at(1500)), None, "more than is wanted");
    }

    #[test]
    fn a_certificate_is_renewed_after_seven_to_nine_tenths_of_its_life() {
        let (facts, _) = serving();
        assert_eq!(due(&facts, 0.0), at(1700));
        assert_eq!(due(&facts, 0.5), at(1800));
        assert_eq!(due(&facts, 1.0), at(1900));
        let nonsense = Facts {
            ends: at(0),
            ..facts.clone()
        };
        assert_eq!(due(&nonsense, 0.5), at(1000), "ends before it begins");
        let for_ever = Facts {
            ends: Timestamp::MAX,
            ..facts
        };
        assert!(due(&for_ever, 1.0) < Timestamp::MAX);
    }

    #[test]
    fn a_request_that_fails_is_repeated_ever_more_slowly_but_for_ever() {
        let waits: Vec<u64> = [1, 2, 4, 5, 6, 1000].into_iter().map(|n| wait(n).as_secs()).collect();
        assert_eq!(waits, [2, 4, 16, 32, 32, 32]);
    }

    fn answered(status: serde_json::Value) -> Answer {
        let spec = json!({"request": "", "signerName": "s"});
        answer(&serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).unwrap())
    }

    #[test]
    fn a_request_is_answered_by_its_certificate_or_a_refusal() {
        let approved = json!({"type": "Approved", "status": "True"});
        assert_eq!(answered(json!({})), Answer::None);
        assert_eq!(answered(json!({"conditions": [approved]})), Answer::None);
        assert_eq!(
            answered(json!({"conditions": [approved], "certificate": "QQ=="})),
            Answer::Issued(b"A".into())
        );
        let failed = json!({"type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": "no SAN"});
        assert_eq!(
            answered(json!({"conditions": [approved, failed], "certificate": "QQ=="})),
            Answer::Refused("Failed: SignerValidationFailure: no SAN".into())
        );
        let denied = json!({"type": "Denied", "status": "True"});
        assert_eq!(answered(json!({"conditions": [denied]})), Answer::Refused("Denied".into()));
    }
}
