//! The spans of a pod's start. Pure: what was measured for the figures, put in order.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::{
    figures::{Course, Phase},
    started::Started,
};

/// Of the machine's phases there may be any, in this order; these stand before and after them.
const BOUND: &str = "bound";
const IMAGES: &str = "images";
const FAILED: &str = "failed";
const INIT: &str = "init";
const CONTAINERS: &str = "containers";
const REPORT: &str = "report";

/// A pod's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// When the pod was bound to this node.
    pub from: Timestamp,
    /// When the API server knew that it runs.
    pub to: Timestamp,
    /// What is said of it besides whose it is.
    pub attributes: Vec<(&'static str, String)>,
    /// What it was made of, one after the other.
    pub phases: Vec<Span>,
}

/// A phase of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// What it is called.
    pub name: &'static str,
    /// Its begin.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
}

/// When a pod was bound to its node, by the API server's clock and to the second: what the scheduler's condition says, else (a pod that was made with a
/// `nodeName`) its creation.
pub fn bound(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut scheduled = conditions.filter(|one| one.type_ == "PodScheduled" && one.status == "True");
    let at = scheduled.find_map(|one| one.last_transition_time.as_ref());
    at.or(pod.metadata.creation_timestamp.as_ref()).map(|time| time.0)
}

/// The trace of a pod's start: when it was bound, its course, what is remembered of its machine (nothing where that could not be written), when the
/// API server had taken its status.
///
/// No phase begins before the one in front of it ends, whatever became of a clock meanwhile.
pub fn trace(bound: Option<Timestamp>, course: &Course, machine: Option<&Started>, reported: Timestamp) -> Trace {
    let mut line = Line(bound.unwrap_or(course.accepted).min(course.accepted), Vec::new());
    let from = line.0;
    line.until(BOUND, course.accepted);
    if let Some((begun, over)) = course.images {
        line.phase(IMAGES, begun, over);
    }
    if let Some(machine) = machine {
        if course.failures > 0 {
            line.phase(FAILED, course.machine.unwrap_or(machine.begun), machine.begun);
        }
        line.machine(machine);
    }
    if let Some((_, over)) = course.init {
        line.until(INIT, over);
    }
    line.until(CONTAINERS, course.begun);
    line.until(REPORT, reported);
    let how = machine.and_then(|machine| machine.how.as_ref());
    let said = how.into_iter().flat_map(|how| {
        let why = (!how.why.is_empty()).then(|| ("kvmlet.start.why", how.why.clone()));
        [Some(("kvmlet.start.how", how.word().to_owned())), why]
    });
    let failures = (course.failures > 0).then(|| ("kvmlet.start.failures", course.failures.to_string()));
    Trace {
        from,
        to: line.0,
        attributes: said.chain([failures]).flatten().collect(),
        phases: line.1,
    }
}

/// How far it has come, and the phases up to there.
struct Line(Timestamp, Vec<Span>);

impl Line {
    fn phase(&mut self, name: &'static str, from: Timestamp, to: Timestamp) {
        let from = from.max(self.0);
        let to = to.max(from);
        self.0 = to;
        self.1.push(Span { name, from, to });
    }

    /// One that begins where the last has ended.
    fn until(&mut self, name: &'static str, to: Timestamp) {
        self.phase(name, self.0, to);
    }

    /// Those of making a machine, which lie end to end.
    fn machine(&mut self, machine: &Started) {
        let mut at = machine.begun;
        for took in &machine.phases {
            let end = at.saturating_add(Duration::from_micros(took.microseconds)).unwrap_or(at);
            self.phase(Phase::name(took.phase), at, end);
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use serde_json::json;

    use super::*;
    use crate::started::{How, Shape, Took};

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000 + milliseconds).unwrap()
    }

    fn machine(begun: Timestamp) -> Started {
        let took = |(phase, milliseconds): (Phase, u64)| Took {
            phase,
            microseconds: milliseconds * 1000,
        };
        let phases = Phase::ALL.into_iter().zip([30, 5, 0, 200, 10]).map(took);
        Started {
            version: 1,
            begun,
            how: Some(How {
                copy: false,
                why: "there is no template yet".into(),
                microseconds: 200_000,
            }),
            phases: phases.collect(),
            shape: Shape::default(),
        }
    }

    fn course() -> Course {
        Course {
            accepted: at(0),
            images: Some((at(1), at(500))),
            machine: Some(at(501)),
            failures: 0,
            init: None,
            begun: at(900),
        }
    }

    fn told(trace: &Trace) -> Vec<(&'static str, i64, i64)> {
        let since = |time: Timestamp| time.duration_since(at(0)).as_millis() as i64;
        let of = |span: &Span| (span.name, since(span.from), since(span.to));
        trace.phases.iter().map(of).collect()
    }

    #[test]
    fn a_start_is_its_phases_in_order_between_the_binding_and_the_report() {
        let trace = trace(Some(at(-400)), &course(), Some(&machine(at(502))), at(950));
        assert_eq!((trace.from, trace.to), (at(-400), at(950)));
        assert_eq!(
            told(&trace),
            [
                ("bound", -400, 0),
                ("images", 1, 500),
                ("surroundings", 502, 532),
                ("disks", 532, 537),
                ("queue", 537, 537),
                ("guest", 537, 737),
                ("setup", 737, 747),
                ("containers", 747, 900),
                ("report", 900, 950),
            ]
        );
        let why = "there is no template yet".to_owned();
        assert_eq!(
            trace.attributes,
            [("kvmlet.start.how", "boot".to_owned()), ("kvmlet.start.why", why)]
        );
    }

    #[test]
    fn init_containers_and_attempts_that_failed_are_phases_of_their_own() {
        let course = Course {
            failures: 2,
            init: Some((at(7_000), at(8_000))),
            begun: at(8_500),
            ..course()
        };
        let trace = trace(None, &course, Some(&machine(at(6_600))), at(8_600));
        let told = told(&trace);
        assert_eq!(told[0], ("bound", 0, 0), "nobody knows since when");
        assert_eq!(told[2..4], [("failed", 501, 6_600), ("surroundings", 6_600, 6_630)]);
        assert_eq!(
            told[8..],
            [("init", 6_845, 8_000), ("containers", 8_000, 8_500), ("report", 8_500, 8_600)]
        );
        assert!(trace.attributes.contains(&("kvmlet.start.failures", "2".to_owned())));
    }

    #[test]
    fn a_machine_of_which_nothing_is_remembered_leaves_a_gap_and_no_word_on_how_it_started() {
        let trace = trace(Some(at(-400)), &course(), None, at(950));
        let names: Vec<_> = trace.phases.iter().map(|span| span.name).collect();
        assert_eq!(names, ["bound", "images", "containers", "report"]);
        assert_eq!(trace.attributes, []);
    }

    #[test]
    fn clocks_that_disagree_change_no_order() {
        // The API server's is a minute ahead, and the host's was set back while the machine was made.
        let trace = trace(Some(at(60_000)), &course(), Some(&machine(at(-3_000))), at(100));
        assert_eq!(trace.from, at(0));
        let mut before = trace.from;
        for span in &trace.phases {
            assert!(before <= span.from && span.from <= span.to, "{span:?} after {before}");
            before = span.to;
        }
        assert_eq!((trace.to, trace.phases.len()), (before, 9));
        assert_eq!(trace.to.duration_since(at(900)), SignedDuration::ZERO);
    }

    #[test]
    fn a_pod_was_bound_when_the_scheduler_says_or_when_it_was_made() {
        let pod = |conditions| -> Pod {
            let pod = json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:10Z"}, "status": {"conditions": conditions}});
            serde_json::from_value(pod).unwrap()
        };
        let scheduled = |status: &str| json!([{"type": "PodScheduled", "status": status, "lastTransitionTime": "1970-01-01T00:00:20Z"}]);
        let second = |pod: Pod| bound(&pod).map(Timestamp::as_second);
        assert_eq!(second(pod(scheduled("True"))), Some(20));
        assert_eq!(second(pod(scheduled("False"))), Some(10));
        assert_eq!(second(pod(json!([]))), Some(10));
        assert_eq!(second(Pod::default()), None);
    }
}
