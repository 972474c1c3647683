//! The timeline of one boot: the host's steps, the guest's initcalls, its first process, the agent's answer, on one clock. Pure.
//!
//! The guest's clock is placed on the host's by the line of its log that came with the least delay: a line cannot come before it was written.

use std::time::Duration;

use vmm_lib::timeline::{Phase, Step};

use super::boot_log::{Record, Said, Work, parse};

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Host,
    Guest,
    Agent,
}

/// A part of the boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) who: Who,
    pub(super) what: String,
    /// From the beginning of the host's first step.
    pub(super) begin: Duration,
    /// `None` for a moment.
    pub(super) took: Option<Duration>,
}

/// An initcall that has returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Initcall {
    pub(super) work: Work,
    /// Lines that the log got while it ran; each went through the serial port in its time.
    pub(super) printed: usize,
}

/// One boot.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Timeline {
    /// By their beginning. Initcalls and probes only where the kernel prints times.
    pub(super) rows: Vec<Row>,
    /// All initcalls, the longest first.
    pub(super) initcalls: Vec<Initcall>,
    /// All probes of devices, the longest first.
    pub(super) probes: Vec<Work>,
    /// Initcalls that have begun and not returned, with the lines that each has printed.
    pub(super) unfinished: Vec<(String, usize)>,
    /// From the first initcall to the first process, by the guest's clock.
    pub(super) in_initcalls: Option<Duration>,
    /// From the beginning to the last of what is known.
    pub(super) total: Duration,
}

/// Puts everything on one clock: the host's steps, lines of the guest's log with the moment at which each was there, and the agent's answer.
pub(super) fn assemble(steps: &[Step], log: &[(Duration, String)], answered: Option<Duration>) -> Timeline {
    let records: Vec<(Duration, Record)> = log.iter().map(|(came, line)| (*came, parse(line))).collect();
    let zero = records
        .iter()
        .filter_map(|(came, record)| Some(came.saturating_sub(record.at?)))
        .min();
    // It begins when the guest has been entered at the earliest.
    let entered = steps.iter().find(|step| step.phase == Phase::Threads).map(Step::end);
    let zero = zero.max(zero.and(entered));
    let mut timeline = Timeline::default();
    // The guest's own time is what the rest tells.
    let host = steps.iter().filter(|step| step.phase != Phase::Guest);
    timeline.rows.extend(host.map(|step| Row {
        who: Who::Host,
        what: step.phase.to_string(),
        begin: step.begin,
        took: Some(step.took),
    }));
    for (_, record) in &records {
        timeline.take(record, zero);
    }
    timeline.early(&records, zero, steps);
    timeline.rows.extend(answered.map(|begin| Row {
        who: Who::Agent,
        what: "kvmlet's agent answers".into(),
        begin,
        took: None,
    }));
    timeline.rows.sort_by_key(|row| row.begin);
    timeline.initcalls.sort_by_key(|call| std::cmp::Reverse(call.work.took));
    timeline.probes.sort_by_key(|work| std::cmp::Reverse(work.took));
    timeline.total = timeline
        .rows
        .iter()
        .map(|row| row.begin + row.took.unwrap_or_default())
        .max()
        .unwrap_or_default();
    timeline
}

impl Timeline {
    fn take(&mut self, record: &Record, zero: Option<Duration>) {
        let now = record.at.zip(zero).map(|(at, zero)| zero + at);
        let mut row = |what: String, took: Option<Duration>| {
            // A line is written when what it tells of is over.
            self.rows.extend(now.map(|now| Row {
                who: Who::Guest,
                what,
                begin: now.saturating_sub(took.unwrap_or_default()),
                took,
            }));
        };
        if let (Said::Other | Said::Probed(_), Some((_, printed))) = (&record.said, self.unfinished.last_mut()) {
            *printed += 1;
        }
        match &record.said {
            Said::Calling(name) => self.unfinished.push((name.clone(), 0)),
            Said::Returned(work) => {
                row(format!("initcall {}", work.name), Some(work.took));
                let begun = self.unfinished.iter().rposition(|(name, _)| *name == work.name);
                self.initcalls.push(Initcall {
                    work: work.clone(),
                    printed: begun.map_or(0, |begun| self.unfinished.remove(begun).1),
                });
            }
            Said::Probed(work) => {
                row(format!("probe {}", work.name), Some(work.took));
                self.probes.push(work.clone());
            }
            Said::Init(program) => row(format!("{program} begins as process 1"), None),
            Said::Other => {}
        }
    }

    /// What lies before the first initcall, and how long all of them took with what is between them.
    fn early(&mut self, records: &[(Duration, Record)], zero: Option<Duration>, steps: &[Step]) {
        let Some(zero) = zero else { return };
        let mut row = |what: &str, begin: Duration, end: Duration| {
            self.rows.push(Row {
                who: Who::Guest,
                what: what.into(),
                begin,
                took: Some(end.saturating_sub(begin)),
            });
        };
        if let Some(entered) = steps.iter().find(|step| step.phase == Phase::Threads).map(Step::end) {
            row("up to the start of the kernel's clock", entered, zero.max(entered));
        }
        let at = |wanted: fn(&Said) -> bool| {
            records
                .iter()
                .find(|(_, record)| wanted(&record.said))
                .and_then(|(_, record)| record.at)
        };
        let first = at(|said| matches!(said, Said::Calling(_)));
        if let Some(first) = first {
            row("from there to the first initcall", zero, zero + first);
        }
        let init = at(|said| matches!(said, Said::Init(_)));
        self.in_initcalls = first.zip(init).map(|(first, init)| init.saturating_sub(first));
    }
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
