//! What is done next with the certificates: one step at a time, from what the Secret holds and the API server was told. Pure.
//!
//! A new authority is told to the API server first, beside the old one, and signs only when that has had time to arrive. The old one stays told
//! until its time is over. So whichever replica shows whichever certificate, the API server knows its authority.

use jiff::{SignedDuration, Timestamp};

use super::config::{CertConfig, Span};

/// Certificates count from so long before they are made, as clocks differ.
pub(crate) const SKEW: SignedDuration = SignedDuration::from_mins(5);
/// How long the API servers have to learn of a new authority before it signs what they are shown.
pub(crate) const SETTLE: SignedDuration = SignedDuration::from_secs(60);

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// PEM, one section.
    pub pem: String,
    /// Its subject.
    pub subject: String,
    /// Whose subject signed it.
    pub issuer: String,
    /// From when it counts.
    pub begins: Timestamp,
    /// Until when.
    pub ends: Timestamp,
}

/// All that counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The authority that signs, if the Secret holds one with its key.
    pub authority: Option<Facts>,
    /// The serving certificate, if the Secret holds one with its key.
    pub serving: Option<Facts>,
    /// Authorities before it, of the Secret.
    pub earlier: Vec<Facts>,
    /// What the API server was told, for each of the configuration's webhooks.
    pub told: Vec<Vec<Facts>>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A new authority is made; these remain told beside it.
    NewAuthority {
        /// Of the Secret from now on.
        earlier: Vec<Facts>,
    },
    /// The API server is told these.
    Tell(Vec<Facts>),
    /// A new serving certificate is signed.
    NewServing {
        /// Until when it counts.
        ends: Timestamp,
    },
}

fn counts(facts: &Facts, now: Timestamp) -> bool {
    facts.begins <= now && now < facts.ends
}

/// Whether a certificate is to be renewed: its end is near, or it lives longer than is wanted by now.
fn is_due(facts: &Facts, span: &Span, now: Timestamp) -> bool {
    let life = facts.ends.duration_since(facts.begins).saturating_sub(SKEW);
    !counts(facts, now) || facts.ends.duration_since(now) <= span.renew_before || life > span.duration
}

/// The next step, none when all is well.
pub fn next(state: &State, config: &CertConfig, now: Timestamp) -> Option<Step> {
    let known = known(state, now);
    let Some(authority) = state.authority.as_ref().filter(|facts| !is_due(facts, &config.ca, now)) else {
        return Some(Step::NewAuthority { earlier: known });
    };
    if state.told.iter().any(|told| *told != known) {
        return Some(Step::Tell(known));
    }
    let is_signed_by = |serving: &Facts, by: &Facts| serving.issuer == by.subject;
    let usable = state.serving.as_ref().filter(|serving| counts(serving, now));
    // Where no other authority is known, nobody shows anything that would be taken: there is nothing to wait for.
    let settled = known.len() == 1 || authority.begins.duration_until(now) >= SKEW + SETTLE;
    let Some(serving) = usable.filter(|serving| is_signed_by(serving, authority)) else {
        return if settled { new_serving(authority, config, now) } else { None };
    };
    // One that ends with its authority is renewed by the next authority; another one would end no later.
    let is_due = is_due(serving, &config.server, now) && serving.ends < authority.ends;
    if is_due { new_serving(authority, config, now) } else { None }
}

fn new_serving(authority: &Facts, config: &CertConfig, now: Timestamp) -> Option<Step> {
    let ends = now.saturating_add(config.server.duration).unwrap_or(Timestamp::MAX);
    Some(Step::NewServing {
        ends: ends.min(authority.ends),
    })
}

/// All authorities whose time is not over: the present one, earlier ones, and what the API server was told, as somebody may show a
/// certificate of a Secret that is gone.
fn known(state: &State, now: Timestamp) -> Vec<Facts> {
    let all = state.authority.iter().chain(&state.earlier).chain(state.told.iter().flatten());
    let mut found: Vec<Facts> = Vec::new();
    for facts in all.filter(|facts| counts(facts, now)) {
        if !found.iter().any(|one| one.pem == facts.pem) {
            found.push(facts.clone());
        }
    }
    found
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
