//! Probes: what a container is asked ([`spec`]), when ([`plan`], pure), how its answers count ([`tally`], pure), and the asking itself
//! ([`ask`]). One small task a probe, no thread; a probe that hangs ends at its timeout, and no answer is read beyond 10 KiB.
//!
//! A task ends where the kubelet's worker goes on hold: a startup probe after its verdict, a liveness probe after a failure. Whether there is
//! a task is decided anew after each step of the pod, so that nothing has to be told to stop. Sources: pkg/kubelet/prober, pkg/probe.

pub mod ask;
mod exec;
mod grpc;
mod http;
mod plan;
pub mod spec;
mod tally;
mod tcp;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

pub use self::http::HttpClients;
use self::{
    ask::{Outcome, Target},
    plan::Planned,
    spec::Kind,
    tally::{Budget, Tally},
};
use crate::{act::Act, desired::DesiredPod, events::Note, lifecycle::Event, state::PodState};

/// How often a probe that could not be asked at all is tried (the kubelet's maxProbeRetries).
const TRIES: u32 = 3;

/// The probes of one pod that are under way.
pub struct Prober {
    tasks: HashMap<(String, Kind), AbortOnDropHandle<()>>,
    /// Probes of containers that ran before this daemon do not begin all at once.
    begun: Timestamp,
    /// Events that may still be told of this pod.
    budget: Arc<Mutex<Budget>>,
}

impl Default for Prober {
    fn default() -> Self {
        Self {
            tasks: HashMap::new(),
            begun: Timestamp::now(),
            budget: Arc::default(),
        }
    }
}

impl Prober {
    /// Begins the probes that the state asks for, ends those that it no longer does.
    pub fn keep(&mut self, act: &Act, desired: &Arc<DesiredPod>, state: &PodState) {
        let wanted = plan::plan(desired, state);
        self.tasks
            .retain(|(id, kind), _| wanted.iter().any(|p| p.kind == *kind && p.id == *id));
        for planned in wanted {
            let key = (planned.id.clone(), planned.kind);
            if self.tasks.contains_key(&key) {
                continue;
            }
            let first = plan::first(&planned, self.begun, Timestamp::now());
            let work = work(act.clone(), desired.clone(), planned, first, self.budget.clone());
            let task = tokio::spawn(work.in_current_span());
            self.tasks.insert(key, AbortOnDropHandle::new(task));
        }
    }
}

/// Asks again and again; what changes goes into the pod's queue.
async fn work(act: Act, desired: Arc<DesiredPod>, planned: Planned, first: Duration, budget: Arc<Mutex<Budget>>) {
    let Planned {
        container,
        id,
        kind,
        spec,
        ips,
        known,
        ..
    } = planned;
    let mut tally = Tally::new(spec.success_threshold, spec.failure_threshold);
    let mut known = known;
    let mut ticks = tokio::time::interval_at(Instant::now() + first, spec.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let target = Target {
        act: &act,
        container: &id,
        ips: &ips,
    };
    loop {
        ticks.tick().await;
        let begun = Instant::now();
        let mut outcome = ask::ask(&target, &spec.handler, spec.timeout).await;
        for _ in 1..TRIES {
            if !matches!(outcome, Outcome::Errored(_)) {
                break;
            }
            outcome = ask::ask(&target, &spec.handler, spec.timeout).await;
        }
        if let Some(note) = note(kind, &outcome, desired.containers[container].field_path())
            && budget.lock().expect("no holder panics").take(Timestamp::now())
        {
            act.context.recorder.pod(&desired.pod, note);
        }
        let labels = [
            &*desired.containers[container].name,
            &*desired.name,
            &*desired.namespace,
            &*desired.uid,
        ];
        act.context.meters.probed(kind, outcome.name(), labels, begun.elapsed());
        let Some(healthy) = outcome.healthy().and_then(|healthy| tally.count(healthy)) else {
            continue;
        };
        if known != Some(healthy) {
            known = Some(healthy);
            let event = Event::Probed {
                id: id.clone(),
                kind,
                healthy,
            };
            if act.events.send(event).await.is_err() {
                return;
            }
        }
        if kind == Kind::Startup || (kind == Kind::Liveness && !healthy) {
            return;
        }
    }
}

/// What the pod's owner is told, in the kubelet's words.
fn note(kind: Kind, outcome: &Outcome, field: String) -> Option<Note> {
    let (reason, message) = match outcome {
        Outcome::Success => return None,
        Outcome::Warning(text) => ("ProbeWarning", format!("{kind} probe warning: {text}")),
        Outcome::Failure(text) => ("Unhealthy", format!("{kind} probe failed: {text}")),
        Outcome::Errored(text) => ("Unhealthy", format!("{kind} probe errored and resulted in unknown state: {text}")),
    };
    Some(Note::warning(reason, Some(field), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_kubelets_words() {
        let words = |outcome| note(Kind::Readiness, &outcome, String::new()).map(|n| (n.reason, n.message));
        assert_eq!(words(Outcome::Success), None);
        assert_eq!(
            words(Outcome::Failure("HTTP probe failed with statuscode: 500".into())),
            Some(("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 500".into()))
        );
        assert_eq!(
            words(Outcome::Warning("w".into())),
            Some(("ProbeWarning", "Readiness probe warning: w".into()))
        );
        assert_eq!(
            words(Outcome::Errored("e".into())),
            Some(("Unhealthy", "Readiness probe errored and resulted in unknown state: e".into()))
        );
    }
}
