//! Hooks: postStart right after a container's start, preStop before it is asked to end. Which are to be under way follows from the pod's
//! state after each step; one whose container is gone ends with it. A hook is done at least once: after a restart of the daemon again.
//!
//! As the kubelet does it (pkg/kubelet/lifecycle/handlers.go): an HTTP hook has done its part whatever it is answered with, a postStart hook has
//! no time of its own, a preStop hook has the container's grace.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::{
    act::Act,
    desired::DesiredPod,
    events::Note,
    lifecycle::Event,
    probe::{
        ask::{self, Target},
        spec::Handler,
    },
    state::{PodState, Slot, Stage},
};

/// Longest that a hook without a limit of its own may take; its container's end comes first.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Which hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum When {
    PostStart,
    PreStop,
}

/// The hooks of one pod that are under way.
#[derive(Default)]
pub struct Hooks(HashMap<(String, When), AbortOnDropHandle<()>>);

/// A hook that shall be under way.
#[derive(Debug, PartialEq, Eq)]
struct Planned {
    container: usize,
    id: String,
    when: When,
    handler: Handler,
    /// When its time is over.
    until: Option<Timestamp>,
}

impl Hooks {
    /// Begins the hooks that the state asks for, ends those that it no longer does.
    pub fn keep(&mut self, act: &Act, desired: &Arc<DesiredPod>, state: &PodState) {
        let wanted = plan(desired, state);
        self.0.retain(|(id, when), _| wanted.iter().any(|p| p.when == *when && p.id == *id));
        for planned in wanted {
            let key = (planned.id.clone(), planned.when);
            self.0.entry(key).or_insert_with(|| {
                let work = work(act.clone(), desired.clone(), planned, state.ips.clone());
                AbortOnDropHandle::new(tokio::spawn(work.in_current_span()))
            });
        }
    }
}

fn plan(desired: &DesiredPod, state: &PodState) -> Vec<Planned> {
    let mut planned = Vec::new();
    for (container, (d, c)) in desired.containers.iter().zip(&state.containers).enumerate() {
        let Slot::Running { id, .. } = &c.slot else { continue };
        let (when, handler, until) = match (&c.stop, c.health.hook_pending) {
            (None, true) => (When::PostStart, &d.hooks.post_start, None),
            (Some(stop), _) if stop.stage == Stage::Hook => (When::PreStop, &d.hooks.pre_stop, Some(stop.kill_at)),
            _ => continue,
        };
        if let Some(handler) = handler.clone() {
            let id = id.clone();
            planned.push(Planned {
                container,
                id,
                when,
                handler,
                until,
            });
        }
    }
    planned
}

async fn work(act: Act, desired: Arc<DesiredPod>, planned: Planned, ips: Vec<String>) {
    let limit = match planned.until {
        Some(until) => until.duration_since(Timestamp::now()).try_into().unwrap_or_default(),
        None => LONGEST,
    };
    let target = Target {
        act: &act,
        container: &planned.id,
        ips: &ips,
    };
    let result = ask::tell(&target, &planned.handler, limit).await.map_err(|why| {
        let pod = format!("{}_{}({})", desired.name, desired.namespace, desired.uid);
        failure(&planned.handler, &desired.containers[planned.container].name, &pod, &why)
    });
    let result = match result {
        Ok(warning) => {
            if let Some(message) = warning {
                let note = Note::warning("LifecycleHTTPFallback", None, message);
                act.context.recorder.pod(&desired.pod, note);
            }
            Ok(())
        }
        Err(why) => {
            tracing::info!(why, "a hook failed");
            Err(why)
        }
    };
    let id = planned.id;
    let event = match planned.when {
        When::PostStart => Event::PostStarted { id, result },
        When::PreStop => Event::PreStopped { id, well: result.is_ok() },
    };
    // The pod may be gone.
    let _ = act.events.send(event).await;
}

/// As the kubelet says it.
fn failure(handler: &Handler, container: &str, pod: &str, why: &str) -> String {
    match handler {
        Handler::Exec(command) => format!(
            "Exec lifecycle hook ([{}]) for Container {container:?} in Pod {pod:?} failed - error: command failed, message: {why:?}",
            command.join(" ")
        ),
        Handler::Http(get) => format!(
            "HTTP lifecycle hook ({}) for Container {container:?} in Pod {pod:?} failed - error: {why}",
            get.path
        ),
        _ => format!("Cannot run handler: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Machine, Stop};
    use serde_json::json;

    #[test]
    fn hooks_are_planned_after_the_start_and_before_the_signal_only() {
        let pod = json!({"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "c", "lifecycle": {
            "postStart": {"sleep": {"seconds": 1}}, "preStop": {"sleep": {"seconds": 2}}}}]}});
        let (desired, _) = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap()));
        let now = Timestamp::from_second(1_000_000).unwrap();
        let mut state = PodState::new(&desired, None, now);
        state.machine = Machine::Ready;
        let handlers = |state: &PodState| plan(&desired, state).into_iter().map(|p| p.handler).collect::<Vec<_>>();
        assert_eq!(handlers(&state), []);
        state.containers[0].slot = Slot::Running {
            id: "i".into(),
            started: now,
        };
        assert_eq!(handlers(&state), []);
        state.containers[0].health.hook_pending = true;
        assert_eq!(handlers(&state), [Handler::Sleep(1)]);
        // The end is stronger than the beginning.
        let kill_at = now;
        for (stage, expected) in [
            (Stage::Hook, vec![Handler::Sleep(2)]),
            (Stage::Turn, vec![]),
            (Stage::Signalled, vec![]),
        ] {
            state.containers[0].stop = Some(Stop { kill_at, stage });
            assert_eq!(handlers(&state), expected);
        }
    }

    #[test]
    fn a_failure_has_the_kubelets_words() {
        let exec = Handler::Exec(vec!["false".into()]);
        let words = failure(&exec, "c", "p_n(u)", "x");
        assert!(
            words.starts_with("Exec lifecycle hook ([false]) for Container \"c\" in Pod \"p_n(u)\" failed"),
            "{words}"
        );
        let none = Handler::Invalid("invalid handler".into());
        assert_eq!(
            failure(&none, "c", "p_n(u)", "invalid handler"),
            "Cannot run handler: invalid handler"
        );
    }
}
