//! `certConfig`: how long the authority's and the serving certificate live, and how long before their end they are renewed.

use std::str::FromStr as _;

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, de::Error as _};

/// The shortest of all durations.
const LEAST: SignedDuration = SignedDuration::from_mins(10);

/// Both certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CertConfig {
    /// Of the authority.
    pub ca: Span,
    /// Of the serving certificate.
    pub server: Span,
}

/// One certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Span {
    /// Its life, as `48h` or `24h0m0s`.
    #[serde(deserialize_with = "duration")]
    pub duration: SignedDuration,
    /// How long before its end it is renewed.
    #[serde(deserialize_with = "duration")]
    pub renew_before: SignedDuration,
}

/// Every rule that a configuration breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("certConfig: {}", .0.join("; "))]
pub struct Conflicts(pub Vec<String>);

impl Default for CertConfig {
    fn default() -> Self {
        let span = |duration, renew_before| Span {
            duration: SignedDuration::from_hours(duration),
            renew_before: SignedDuration::from_hours(renew_before),
        };
        Self {
            ca: span(48, 24),
            server: span(24, 12),
        }
    }
}

impl CertConfig {
    /// Checks all rules, and answers with all that are broken.
    pub fn check(&self) -> Result<(), Conflicts> {
        let mut found = Vec::new();
        for (name, span) in [("ca", self.ca), ("server", self.server)] {
            for (field, value) in [("duration", span.duration), ("renewBefore", span.renew_before)] {
                if value < LEAST {
                    found.push(format!("{name}.{field} is {value:#}, and must be at least {LEAST:#}"));
                }
            }
            if span.duration < span.renew_before {
                found.push(format!("{name}.duration is smaller than {name}.renewBefore"));
            } else if span.duration == span.renew_before {
                found.push(format!(
                    "{name}.duration is {name}.renewBefore, so it would be renewed again and again"
                ));
            }
        }
        if self.ca.duration < self.server.duration {
            found.push("ca.duration is smaller than server.duration".into());
        }
        if found.is_empty() { Ok(()) } else { Err(Conflicts(found)) }
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SignedDuration, D::Error> {
    let text = String::deserialize(deserializer)?;
    SignedDuration::from_str(&text).map_err(|_| D::Error::custom(format!("{text:?} is no duration as 48h or 10m")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> CertConfig {
        serde_saphyr::from_str(text).unwrap()
    }

    fn conflicts(text: &str) -> Vec<String> {
        read(text).check().map_or_else(|conflicts| conflicts.0, |()| Vec::new())
    }

    #[test]
    fn the_defaults_and_the_shortest_durations_keep_all_rules() {
        assert_eq!(CertConfig::default().check(), Ok(()));
        assert_eq!(read("server: {duration: 24h0m0s, renewBefore: 12h}"), CertConfig::default());
        let short = "{ca: {duration: 11m, renewBefore: 10m}, server: {duration: 11m, renewBefore: 10m}}";
        assert_eq!(conflicts(short), [] as [&str; 0]);
    }

    #[test]
    fn an_authority_that_ends_before_what_it_signs_is_a_conflict() {
        let found = conflicts("{ca: {duration: 23h, renewBefore: 1h}}");
        assert_eq!(found, ["ca.duration is smaller than server.duration"]);
    }

    #[test]
    fn each_certificate_lives_longer_than_it_is_renewed_before() {
        assert_eq!(
            conflicts("{ca: {duration: 48h, renewBefore: 49h}}"),
            ["ca.duration is smaller than ca.renewBefore"]
        );
        assert_eq!(
            conflicts("{server: {duration: 24h, renewBefore: 24h}}"),
            ["server.duration is server.renewBefore, so it would be renewed again and again"]
        );
    }

    #[test]
    fn every_conflict_is_told_and_not_only_the_first() {
        let wrong = read("{ca: {duration: 5m, renewBefore: 6m}, server: {duration: 9m59s, renewBefore: 1m}}");
        assert_eq!(
            wrong.check().unwrap_err().to_string(),
            "certConfig: ca.duration is 5m, and must be at least 10m; ca.renewBefore is 6m, and must be at least 10m; \
             ca.duration is smaller than ca.renewBefore; server.duration is 9m 59s, and must be at least 10m; \
             server.renewBefore is 1m, and must be at least 10m; ca.duration is smaller than server.duration"
        );
    }

    #[test]
    fn a_text_that_is_no_duration_and_a_key_that_is_none_are_refused() {
        let said = |text: &str| serde_saphyr::from_str::<CertConfig>(text).unwrap_err().to_string();
        assert!(said("{ca: {duration: soon, renewBefore: 1h}}").contains(r#""soon" is no duration as 48h or 10m"#));
        assert!(said("{client: {}}").contains("client"));
    }
}
