//! Which replica writes: the one that holds the Lease. All of them answer reviews, whoever leads.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, api::PostParams};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::refused::is_outrun;

/// A holder that has not renewed for so long has lost it (client-go's LeaseDuration).
const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for so long writes no more (client-go's RenewDeadline).
const DEADLINE: Duration = Duration::from_secs(10);
/// How often the lease is looked at, and renewed (client-go's RetryPeriod).
const PERIOD: Duration = Duration::from_secs(2);

/// What others are seen to do with the lease, by this replica's own clock alone.
#[derive(Debug, Default)]
struct Seen {
    spec: Option<LeaseSpec>,
    since: Option<Instant>,
}

impl Seen {
    /// Whether `me` may write itself into the lease now.
    fn may_take(&mut self, spec: Option<&LeaseSpec>, me: &str, now: Instant) -> bool {
        if self.spec.as_ref() != spec || self.since.is_none() {
            self.spec = spec.cloned();
            self.since = Some(now);
        }
        match spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default() {
            "" => true,
            holder if holder == me => true,
            _ => self.since.is_some_and(|since| now.duration_since(since) >= DURATION),
        }
    }
}

/// A place in the election.
pub struct Election {
    /// The leases of the namespace.
    pub leases: Api<Lease>,
    /// The lease's name.
    pub name: String,
    /// This replica's.
    pub me: String,
    /// Hears whether this replica leads.
    pub leads: watch::Sender<bool>,
}

impl Election {
    /// Takes part until `stop` is ready, then gives the lease back if it is held.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = self.take_part() => {}
            () = stop => {}
        }
        if self.set(false)
            && let Err(error) = self.release().await
        {
            warn!(%error, "give the lease back");
        }
    }

    async fn take_part(&self) {
        let (mut seen, mut renewed) = (Seen::default(), Instant::now());
        let mut every = tokio::time::interval(PERIOD);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let asked = tokio::time::timeout(DEADLINE - PERIOD, self.attempt(&mut seen)).await;
            match asked {
                Ok(Ok(true)) => {
                    renewed = Instant::now();
                    self.set(true);
                }
                Ok(Ok(false)) => _ = self.set(false),
                Ok(Err(error)) => warn!(%error, "renew the lease {}", self.name),
                Err(_) => warn!("renew the lease {}: no answer", self.name),
            }
            if renewed.elapsed() >= DEADLINE {
                self.set(false);
            }
        }
    }

    /// Whether this replica led before.
    fn set(&self, leads: bool) -> bool {
        let before = self.leads.send_replace(leads);
        if before != leads {
            info!("{} {}", self.me, if leads { "leads" } else { "leads no more" });
        }
        before
    }

    /// Takes or renews the lease if that may be done; whether it is held then. Of two writers the API server refuses the second.
    async fn attempt(&self, seen: &mut Seen) -> kube::Result<bool> {
        let found = self.leases.get_opt(&self.name).await?;
        let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
        if !seen.may_take(spec, &self.me, Instant::now()) {
            return Ok(false);
        }
        let held = spec.is_some_and(|spec| spec.holder_identity.as_deref() == Some(&self.me));
        let now = Some(MicroTime(Timestamp::now()));
        let old = spec.cloned().unwrap_or_default();
        let spec = LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            acquire_time: if held { old.acquire_time } else { now.clone() },
            lease_transitions: Some(old.lease_transitions.unwrap_or_default() + i32::from(!held)),
            renew_time: now,
            ..LeaseSpec::default()
        };
        let mut lease = found.unwrap_or_default();
        lease.spec = Some(spec);
        let written = if lease.metadata.resource_version.is_some() {
            self.leases.replace(&self.name, &PostParams::default(), &lease).await
        } else {
            lease.metadata.name = Some(self.name.clone());
            self.leases.create(&PostParams::default(), &lease).await
        };
        match written {
            Ok(_) => Ok(true),
            Err(error) if is_outrun(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn release(&self) -> kube::Result<()> {
        let mut lease = self.leases.get(&self.name).await?;
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&self.me)) else {
            return Ok(());
        };
        spec.holder_identity = None;
        self.leases.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holder: &str, second: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            renew_time: Some(MicroTime(Timestamp::from_second(second).unwrap())),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_that_is_nobodys_or_mine_is_taken_at_once() {
        let now = Instant::now();
        let mut seen = Seen::default();
        assert!(seen.may_take(None, "me", now));
        assert!(seen.may_take(Some(&held("", 1)), "me", now));
        assert!(seen.may_take(Some(&held("me", 2)), "me", now));
    }

    #[test]
    fn anothers_lease_is_taken_only_when_it_has_stood_still_for_its_duration_by_my_clock() {
        let begin = Instant::now();
        let mut seen = Seen::default();
        let long_ago = held("other", 1);
        assert!(!seen.may_take(Some(&long_ago), "me", begin), "its clock may be another");
        assert!(!seen.may_take(Some(&long_ago), "me", begin + DURATION - PERIOD));
        assert!(!seen.may_take(Some(&held("other", 2)), "me", begin + DURATION), "it was renewed");
        assert!(!seen.may_take(Some(&held("other", 2)), "me", begin + DURATION + PERIOD));
        assert!(seen.may_take(Some(&held("other", 2)), "me", begin + DURATION * 2));
    }
}
