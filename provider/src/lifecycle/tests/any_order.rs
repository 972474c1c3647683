//! Events that are late, doubled or in any order.

use super::*;

#[test]
fn a_start_that_a_dead_daemon_had_only_noted_is_done_again_and_one_it_had_made_is_not() {
    let mut life = Life::simple("Always", 2);
    assert_eq!(life.boot(), [start(0, "id1", 0, None), start(1, "id2", 0, None)]);
    // As after a restart of the daemon.
    life.state.busy.clear();
    let made = ContainerStatus {
        id: "id2".into(),
        state: Seen::Running { pid: 9, started: 1 },
    };
    // The guest may hear of the first one yet: of one identifier it starts one container.
    assert_eq!(life.on(Event::Containers(vec![made])), [start(0, "id1", 0, None)]);
}

#[test]
fn what_is_late_or_doubled_does_no_harm() {
    let mut life = Life::simple("Always", 1);
    life.boot();
    life.started(0);
    assert_eq!(life.started(0), []);
    life.exit(0, 1);
    let stale = ContainerStatus {
        id: "id1".into(),
        state: Seen::Running { pid: 1, started: 0 },
    };
    assert_eq!(life.on(Event::Containers(vec![stale])), []);
    life.on(Event::MachineDied("gone".into()));
    assert_eq!(life.on(Event::MachineDied("gone twice".into())), []);
}

proptest! {
    /// Whatever happens in whatever order: no panic, a deleted pod comes to its end, and nothing starts after its deletion.
    #[test]
    fn every_pod_that_is_deleted_comes_to_its_end(choices in proptest::collection::vec((0u8..8, 0i64..40), 0..60), policy in 0usize..3) {
        let mut life = Life::simple(["Always", "OnFailure", "Never"][policy], 2);
        let mut open: Vec<Action> = life.on(Event::Tick);
        for (choice, seconds) in choices {
            let more = match choice {
                0 => life.pass(seconds),
                1 if life.state.containers[0].slot.is_alive() => life.exit(0, i32::from(seconds % 2 == 0)),
                2 => life.on(Event::MachineDied("x".into())),
                _ if !open.is_empty() => {
                    let action = open.remove(usize::try_from(seconds).unwrap() % open.len());
                    answer(&mut life, action, seconds % 3 != 0)
                }
                _ => life.pass(1),
            };
            open.extend(more);
        }
        open.extend(life.delete(5));
        for _ in 0..200 {
            if matches!(open.last(), Some(Action::Forget)) {
                return Ok(());
            }
            for container in 0..2 {
                if matches!(life.state.containers[container].slot, Slot::Running { .. }) {
                    open.extend(life.exit(container, 0));
                }
            }
            let more = if open.is_empty() { life.pass(5) } else { let action = open.remove(0); answer(&mut life, action, true) };
            for action in &more {
                prop_assert!(!matches!(action, Action::StartMachine | Action::StartContainer { .. } | Action::Pull(_)), "{action:?} after the deletion");
            }
            open.extend(more);
        }
        prop_assert!(false, "it never ended: {:?}, over: {}, next tick {:?}", life.state, is_over(&life.state, &life.desired), next_tick(&life.state, &life.desired, life.now));
    }
}
