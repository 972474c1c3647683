//! The watchdog as a guest without a kernel meets it: found on the bus, started, fed or not.

mod support;

use std::time::{Duration, Instant};

use support::script::Script;
use vmm_lib::exit::MachineExit;
use vmm_lib::spec::{MachineSpec, Watchdog, WatchdogAction};

/// Behind the host bridge and the source of random bytes.
const CONFIG: u64 = 0xe000_0000 + 2 * 0x8000;
/// As the machine places it.
const BAR: u64 = 0xc000_0000;
const ELSEWHERE: u64 = 0xc100_0000;
const RELOAD: u64 = 0xc;
/// Memory in which nothing ever changes.
const NOTHING: u64 = 0x103_0000;

fn watchdog(spec: &mut MachineSpec) {
    spec.watchdog = Some(Watchdog {
        action: WatchdogAction::PowerOff,
    });
}

fn unlock(script: &mut Script, bar: u64) -> &mut Script {
    script.write(2, bar + RELOAD, 0x80).write(2, bar + RELOAD, 0x86)
}

fn feed(script: &mut Script, bar: u64) {
    unlock(script, bar).write(2, bar + RELOAD, 0x100);
}

/// As Linux's driver does it, with so many ticks (of about 1 ms) a stage.
fn start(script: &mut Script, bar: u64, ticks: u64) {
    script.write(2, CONFIG + 4, 6).write(2, CONFIG + 0x60, 3).write(1, CONFIG + 0x68, 0);
    unlock(script, bar).write(4, bar, ticks);
    unlock(script, bar).write(4, bar + 4, ticks);
    feed(script, bar);
    script.write(1, CONFIG + 0x68, 2);
}

#[test]
fn a_guest_that_hangs_is_ended_with_the_reason_and_what_is_to_be_done() {
    let mut script = Script::default();
    start(&mut script, BAR, 150);
    script.wait(NOTHING, 1);
    let begun = Instant::now();
    let (report, _) = script.run(watchdog);
    assert_eq!(
        report.exit,
        MachineExit::Watchdog {
            action: WatchdogAction::PowerOff
        }
    );
    let passed = begun.elapsed();
    assert!((Duration::from_millis(295)..Duration::from_secs(5)).contains(&passed), "{passed:?}");
    let exits = report.exits.expect("counted");
    eprintln!("{exits:?}");
}

#[test]
fn it_serves_where_its_bar_was_moved_to_and_not_where_it_was() {
    let mut script = Script::default();
    script.write(4, CONFIG + 0x10, ELSEWHERE);
    start(&mut script, BAR, 1);
    // What was written to its old place went nowhere: the stages are as long as they can be.
    script.write(4, CONFIG + 0x10, 0xffff_ffff);
    script.say(CONFIG + 0x10).say(CONFIG + 0x13);
    script.write(4, CONFIG + 0x10, ELSEWHERE);
    script.say(ELSEWHERE).say(ELSEWHERE + 2).say(BAR);
    let (report, said) = script.run(watchdog);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    assert_eq!(said, [0xf0, 0xff, 0xff, 0x0f, 0xff]);
}

#[test]
fn one_that_is_stopped_in_time_or_never_started_ends_nothing() {
    let mut script = Script::default();
    start(&mut script, BAR, 0xf_ffff);
    feed(&mut script, BAR);
    script.write(1, CONFIG + 0x68, 0);
    let (report, _) = script.run(watchdog);
    assert_eq!(report.exit, MachineExit::PoweredOff);
    assert_eq!(Script::default().run(watchdog).0.exit, MachineExit::PoweredOff);
}
