//! What is done next about the reservation. Pure.

use super::see::State;
use crate::desired::Amounts;

/// Seconds that a reservation has which is ended at once: the kubelet still stops it in order.
pub(super) const SHORT: i64 = 1;

/// What else is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// The kubelet's Node takes no pods.
    pub is_cordoned: bool,
    /// Pods that have something of this node.
    pub pods: u32,
    /// All pods have left that have to, as far as was asked.
    pub is_drained: bool,
    /// What the reservation pod requests.
    pub requested: Amounts,
    /// What the configuration wants it to.
    pub wanted: Amounts,
    /// Whether this daemon has had it so once: who changes it afterwards means it.
    pub was_sized: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Something else has to happen first.
    Wait,
    /// The pod is made.
    Create,
    /// The pod gets the amounts that the configuration has.
    Resize,
    /// The pod is ended within so many seconds; 0 takes away the object of one that has ended.
    End(i64),
    /// Pods here are evicted.
    Drain,
}

/// The next step.
pub(super) fn step(state: &State, facts: &Facts) -> Step {
    match state {
        State::Missing if !facts.is_cordoned => Step::Create,
        // It would wait for ever.
        State::Waiting(_) if facts.requested != facts.wanted => Step::End(SHORT),
        State::Elsewhere(_) => Step::End(SHORT),
        State::Over(_) => Step::End(0),
        State::Held if !facts.was_sized && resizable(facts.requested) != resizable(facts.wanted) => Step::Resize,
        // While pods have something of the host it is not given to others.
        State::Ending(seconds) => {
            let is_free = facts.pods == 0 || (facts.is_cordoned && facts.is_drained);
            match (is_free, facts.is_cordoned) {
                (true, _) if *seconds > SHORT => Step::End(SHORT),
                (false, true) => Step::Drain,
                _ => Step::Wait,
            }
        }
        _ => Step::Wait,
    }
}

/// What of a pod can be resized in place.
fn resizable(amounts: Amounts) -> Amounts {
    Amounts {
        storage: crate::quantity::Quantity::default(),
        ..amounts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn facts() -> Facts {
        let wanted = Amounts::read([2000, 4 * GIB, 20 * GIB]);
        Facts {
            is_cordoned: false,
            pods: 3,
            is_drained: false,
            requested: wanted,
            wanted,
            was_sized: false,
        }
    }

    fn cordoned() -> Facts {
        Facts {
            is_cordoned: true,
            ..facts()
        }
    }

    #[test]
    fn a_reservation_that_is_missing_is_made_unless_its_node_takes_no_pods() {
        assert_eq!(step(&State::Missing, &facts()), Step::Create);
        assert_eq!(step(&State::Missing, &cordoned()), Step::Wait);
        assert_eq!(step(&State::NoNode, &facts()), Step::Wait);
        assert_eq!(step(&State::Foreign, &facts()), Step::Wait);
    }

    #[test]
    fn one_that_is_over_or_in_the_wrong_place_makes_room_for_another() {
        assert_eq!(step(&State::Over("Evicted".into()), &facts()), Step::End(0));
        assert_eq!(step(&State::Elsewhere("other".into()), &facts()), Step::End(SHORT));
        assert_eq!(step(&State::Waiting(String::new()), &facts()), Step::Wait);
        let other = Facts {
            wanted: Amounts::read([1000, GIB, GIB]),
            ..facts()
        };
        assert_eq!(step(&State::Waiting(String::new()), &other), Step::End(SHORT));
    }

    #[test]
    fn one_that_runs_is_resized_once_to_what_is_configured_and_left_to_others_then() {
        let other = Facts {
            wanted: Amounts::read([3000, 4 * GIB, 20 * GIB]),
            ..facts()
        };
        assert_eq!(step(&State::Held, &other), Step::Resize);
        let sized = Facts { was_sized: true, ..other };
        assert_eq!(step(&State::Held, &sized), Step::Wait);
        assert_eq!(step(&State::Held, &facts()), Step::Wait);
        let disk = Facts {
            wanted: Amounts::read([2000, 4 * GIB, 30 * GIB]),
            ..facts()
        };
        assert_eq!(step(&State::Held, &disk), Step::Wait, "a disk's part cannot be resized");
    }

    #[test]
    fn one_that_ends_is_kept_until_its_pods_have_left_and_no_longer() {
        assert_eq!(step(&State::Ending(300), &facts()), Step::Wait, "its pods run on");
        assert_eq!(step(&State::Ending(300), &cordoned()), Step::Drain);
        let drained = Facts {
            is_drained: true,
            ..cordoned()
        };
        assert_eq!(step(&State::Ending(300), &drained), Step::End(SHORT));
        assert_eq!(step(&State::Ending(SHORT), &drained), Step::Wait);
        let empty = Facts { pods: 0, ..facts() };
        assert_eq!(step(&State::Ending(300), &empty), Step::End(SHORT));
    }
}
