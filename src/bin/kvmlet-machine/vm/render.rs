//! A boot's timeline as text. Pure.

use std::{
    fmt::{self, Display, Formatter},
    time::Duration,
};

use super::{
    boot_log::Work,
    timeline::{Row, Timeline, Who},
};

/// Characters of a bar.
const WIDTH: u128 = 32;
/// Initcalls and probes that are named as the longest.
const LONGEST: usize = 10;
/// A guest's part that is shorter than this is counted, not shown.
const SHORT: Duration = Duration::from_millis(1);

/// What a bar's mistakes are, said below every trace.
const NOTE: &str = "\
The guest's log came through its serial port, character by character, and the kernel waits for it: the guest's rows lie later, and the
total is longer, than in a boot without a trace. The time of an initcall is the kernel's own (initcall_debug): it contains the lines that
the initcall printed, not the two about it. Until clocksource_done_booting it is in whole ticks (4 ms at 250 Hz). Probes lie within
initcalls. The guest's clock is placed on the host's by the line that came with the least delay.
";

impl Display for Timeline {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(out, "{:>11} {:>11}  {:<5} part", "begins, ms", "takes, ms", "who")?;
        for row in self.rows.iter().filter(|row| is_shown(row)) {
            let took = row.took.map(Millis);
            let took = took.map_or_else(String::new, |took| took.to_string());
            let bar = bar(row, self.total);
            writeln!(
                out,
                "{:>11} {took:>11}  {:<5} {:<48} {}",
                Millis(row.begin).to_string(),
                name(row.who),
                row.what,
                bar.trim_end()
            )?;
        }
        let hidden: Vec<_> = self.rows.iter().filter(|row| !is_shown(row)).collect();
        if !hidden.is_empty() {
            let sum: Duration = hidden.iter().filter_map(|row| row.took).sum();
            writeln!(
                out,
                "and {} initcalls and probes below {} ms, {} ms together",
                hidden.len(),
                SHORT.as_millis(),
                Millis(sum)
            )?;
        }
        self.longest(out)?;
        self.totals(out)
    }
}

impl Timeline {
    fn longest(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let initcalls = self.initcalls.iter().map(|call| match call.printed {
            0 => (&call.work, String::new()),
            lines => (&call.work, format!(" (printed {lines})")),
        });
        longest(out, "initcalls", initcalls)?;
        longest(out, "probes of devices", self.probes.iter().map(|work| (work, String::new())))?;
        for (name, _) in &self.unfinished {
            writeln!(out, "\ninitcall {name} has not returned")?;
        }
        Ok(())
    }

    fn totals(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let sum = |who: Who| -> Duration { self.rows.iter().filter(|row| row.who == who).filter_map(|row| row.took).sum() };
        writeln!(
            out,
            "\n{:>11} ms  host, up to the guest's first instruction",
            Millis(sum(Who::Host)).to_string()
        )?;
        let own: Duration = self.initcalls.iter().map(|call| call.work.took).sum();
        if !self.initcalls.is_empty() {
            writeln!(out, "{:>11} ms  in {} initcalls", Millis(own).to_string(), self.initcalls.len())?;
        }
        if let Some(wall) = self.in_initcalls {
            let between = Millis(wall.saturating_sub(own)).to_string();
            writeln!(
                out,
                "{between:>11} ms  between them, up to the first process: mostly the trace itself, on the serial port"
            )?;
        }
        writeln!(out, "{:>11} ms  total\n", Millis(self.total).to_string())?;
        match self.initcalls.is_empty() {
            true => writeln!(
                out,
                "The guest's kernel said nothing of its initcalls on its serial port: it has no 8250 console, or is not Linux, or did not get there."
            ),
            false => out.write_str(NOTE),
        }
    }
}

/// The longest of these, which are sorted.
fn longest<'a>(out: &mut Formatter<'_>, what: &str, works: impl ExactSizeIterator<Item = (&'a Work, String)>) -> fmt::Result {
    if works.len() > 0 {
        writeln!(out, "\nthe {} longest of {} {what}", works.len().min(LONGEST), works.len())?;
    }
    for (work, more) in works.take(LONGEST) {
        writeln!(out, "{:>11} ms  {}{more}", Millis(work.took).to_string(), work.name)?;
    }
    Ok(())
}

/// Whether a row is worth a line.
fn is_shown(row: &Row) -> bool {
    let counted = row.what.starts_with("initcall ") || row.what.starts_with("probe ");
    row.who != Who::Guest || !counted || row.took.is_none_or(|took| took >= SHORT)
}

fn name(who: Who) -> &'static str {
    match who {
        Who::Host => "host",
        Who::Guest => "guest",
        Who::Agent => "agent",
    }
}

/// Where a row lies in the whole: at least one character, and within the width.
fn bar(row: &Row, total: Duration) -> String {
    let total = total.as_nanos().max(1);
    let place = |at: Duration| (at.as_nanos() * WIDTH / total).min(WIDTH) as usize;
    let end = place(row.begin + row.took.unwrap_or_default());
    let begin = place(row.begin).min(WIDTH as usize - 1);
    let mark = if row.took.is_some() { "=" } else { "|" };
    format!("{}{}", " ".repeat(begin), mark.repeat(end.saturating_sub(begin).max(1)))
}

/// Milliseconds with three digits behind the point.
struct Millis(Duration);

impl Display for Millis {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        write!(out, "{}.{:03}", micros / 1000, micros % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::super::timeline::Initcall;
    use super::*;

    fn row(who: Who, what: &str, begin: u64, took: Option<u64>) -> Row {
        Row {
            who,
            what: what.into(),
            begin: Duration::from_micros(begin),
            took: took.map(Duration::from_micros),
        }
    }

    #[test]
    fn bars_lie_within_the_width_and_are_never_empty() {
        let total = Duration::from_micros(1000);
        assert_eq!(bar(&row(Who::Host, "", 0, Some(1000)), total), "=".repeat(32));
        assert_eq!(
            bar(&row(Who::Host, "", 500, Some(250)), total),
            format!("{}{}", " ".repeat(16), "=".repeat(8))
        );
        assert_eq!(bar(&row(Who::Host, "", 0, Some(0)), total), "=");
        assert_eq!(bar(&row(Who::Agent, "", 1000, None), total), format!("{}|", " ".repeat(31)));
        assert_eq!(bar(&row(Who::Host, "", 0, Some(0)), Duration::ZERO), "=");
    }

    #[test]
    fn short_initcalls_are_counted_and_everything_else_is_shown() {
        let call = |name: &str, micros, printed| Initcall {
            work: Work {
                name: name.into(),
                took: Duration::from_micros(micros),
            },
            printed,
        };
        let timeline = Timeline {
            rows: vec![
                row(Who::Host, "load the kernel", 0, Some(500)),
                row(Who::Guest, "initcall quick", 600, Some(10)),
                row(Who::Guest, "initcall slow", 700, Some(2000)),
                row(Who::Agent, "kvmlet's agent answers", 3000, None),
            ],
            initcalls: vec![call("slow", 2000, 3), call("quick", 10, 0)],
            in_initcalls: Some(Duration::from_micros(2500)),
            total: Duration::from_micros(3000),
            ..Timeline::default()
        };
        let text = timeline.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("      0.000       0.500  host  load the kernel"), "{text}");
        assert!(lines[2].contains("initcall slow") && lines[3].contains("agent answers"), "{text}");
        assert_eq!(lines[4], "and 1 initcalls and probes below 1 ms, 0.010 ms together");
        for line in [
            "the 2 longest of 2 initcalls",
            "      2.000 ms  slow (printed 3)",
            "      0.010 ms  quick",
        ] {
            assert!(lines.contains(&line), "{line}: {text}");
        }
        for (figure, what) in [
            ("0.500", "host,"),
            ("2.010", "in 2 initcalls"),
            ("0.490", "between"),
            ("3.000", "total"),
        ] {
            let found = lines
                .iter()
                .any(|line| line.trim_start().starts_with(&format!("{figure} ms  {what}")));
            assert!(found, "{figure} {what}: {text}");
        }
        assert!(text.ends_with(NOTE));
    }
}
