//! A guest that makes its monitor complain as often as it can: what is logged is bounded, and the machine goes on. A program of its own, as it
//! counts all that is logged.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::script::Script;
use tracing::{Event, Metadata, Subscriber, span};
use vmm_lib::exit::MachineExit;

/// Lines that one device's guest may cause.
const MOST: usize = 16;
const ROUNDS: usize = 60;
const CONFIG: u64 = 0xe000_0000 + 0x8000;
const BAR: u64 = 0xc000_0000;

/// Counts events.
struct Counter(Arc<AtomicUsize>);

impl Subscriber for Counter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn a_guest_that_breaks_rules_for_ever_is_logged_a_bounded_number_of_times() {
    let lines = Arc::new(AtomicUsize::new(0));
    tracing::subscriber::set_global_default(Counter(lines.clone())).expect("it is the only one");
    let mut script = Script::default();
    script
        .write(4, CONFIG + 0x10, BAR)
        .write(4, CONFIG + 0x14, 0)
        .write(2, CONFIG + 4, 6);
    for _ in 0..ROUNDS {
        // The device is brought up with a queue that lies nowhere, again and again.
        for status in [0, 1, 3] {
            script.write(1, BAR + 0x14, status);
        }
        script.write(4, BAR + 8, 1).write(4, BAR + 0xc, 1).write(1, BAR + 0x14, 11);
        script
            .write(2, BAR + 0x16, 0)
            .write(2, BAR + 0x18, 8)
            .write(8, BAR + 0x20, 1 << 40)
            .write(2, BAR + 0x1c, 1);
        script.write(1, BAR + 0x14, 15);
    }
    script.say(BAR + 0x14);
    let (report, said) = script.run(|spec| spec.rng = true);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    // It wants to be reset, as it always did.
    assert_eq!(said[0] & 64, 64, "{said:?}");
    let lines = lines.load(Ordering::Relaxed);
    assert!((1..=MOST).contains(&lines), "{ROUNDS} rounds made {lines} lines");
}
