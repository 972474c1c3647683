use super::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn step(phase: Phase, begin: u64, took: u64) -> Step {
    Step {
        phase,
        begin: ms(begin),
        took: ms(took),
    }
}

fn log(lines: &[(u64, &str)]) -> Vec<(Duration, String)> {
    lines.iter().map(|(came, line)| (ms(*came), (*line).to_owned())).collect()
}

/// Entered after 10 ms; the kernel's clock begins at 15; its first lines come late, with the console.
fn boot() -> Timeline {
    let steps = [step(Phase::Check, 0, 2), step(Phase::Threads, 2, 8), step(Phase::Guest, 10, 500)];
    let lines = [
        (60, "[    0.000000] Linux version 6.12"),
        (60, "[    0.020000] calling  early+0x0/0x10 @ 1"),
        (60, "[    0.021000] initcall early+0x0/0x10 returned 0 after 1000 usecs"),
        (66, "[    0.050000] calling  slow+0x0/0x10 @ 1"),
        (95, "[    0.080000] probe of 0000:00:01.0 returned 0 after 9000 usecs"),
        (106, "[    0.090000] initcall slow+0x0/0x10 returned 0 after 40000 usecs"),
        (120, "[    0.100000] calling  stuck+0x0/0x10 @ 1"),
        (150, "[    0.120000] Run /init as init process"),
    ];
    assemble(&steps, &log(&lines), Some(ms(200)))
}

#[test]
fn the_guests_clock_is_placed_by_the_line_that_came_with_the_least_delay() {
    let boot = boot();
    let row = |what: &str| {
        let row = boot.rows.iter().find(|row| row.what == what).expect(what);
        (row.begin, row.took)
    };
    // The probe's line: 95 ms here, 80 there.
    assert_eq!(row("initcall slow"), (ms(15 + 50), Some(ms(40))));
    assert_eq!(row("probe 0000:00:01.0"), (ms(15 + 71), Some(ms(9))));
    assert_eq!(row("/init begins as process 1"), (ms(15 + 120), None));
    assert_eq!(row("up to the start of the kernel's clock"), (ms(10), Some(ms(5))));
    assert_eq!(row("from there to the first initcall"), (ms(15), Some(ms(20))));
}

#[test]
fn rows_are_in_the_order_of_their_beginnings_and_the_last_one_is_the_total() {
    let boot = boot();
    assert!(boot.rows.is_sorted_by_key(|row| row.begin), "{:?}", boot.rows);
    assert_eq!(boot.rows.last().map(|row| row.who), Some(Who::Agent));
    assert_eq!(boot.total, ms(200));
    assert!(boot.rows.iter().all(|row| row.what != Phase::Guest.to_string()));
}

#[test]
fn the_longest_initcall_is_the_first_and_one_that_did_not_return_is_named() {
    let boot = boot();
    let names: Vec<_> = boot.initcalls.iter().map(|call| (call.work.name.as_str(), call.printed)).collect();
    // The probe within the slow one.
    assert_eq!(names, [("slow", 1), ("early", 0)]);
    assert_eq!(boot.unfinished, [("stuck".to_owned(), 0)]);
    assert_eq!(boot.in_initcalls, Some(ms(100)));
}

#[test]
fn a_guest_that_says_nothing_leaves_the_hosts_steps() {
    let boot = assemble(&[step(Phase::Check, 0, 2)], &[], None);
    assert_eq!((boot.rows.len(), boot.total), (1, ms(2)));
    assert_eq!(boot.in_initcalls, None);
}

#[test]
fn without_times_in_the_log_the_initcalls_are_still_known_and_not_placed() {
    let boot = assemble(&[], &log(&[(9, "initcall x+0x0/0x1 returned 0 after 7 usecs")]), None);
    assert_eq!((boot.rows.len(), boot.initcalls.len()), (0, 1));
}
