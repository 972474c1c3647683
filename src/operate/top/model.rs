//! What `top` knows: samples of the host, the rates between two of them, and what the keys have chosen. Pure.

use std::{cmp::Ordering, time::Duration};

use kvmlet_image::Stored;
use kvmlet_network::Counters;
use kvmlet_provider::{figures::HostLoad, started::Took, template::Standing};

use crate::operate::{
    model::{Memory, Pod, Usage},
    text::{self, or_none},
};

/// The host at one moment.
pub(super) struct Sample {
    /// Since the first one's beginning.
    pub(super) at: Duration,
    pub(super) load: HostLoad,
    pub(super) images: Option<Stored>,
    pub(super) template: Option<Standing>,
    pub(super) daemon: Option<u32>,
    pub(super) pods: Vec<Line>,
    /// Records that could not be read.
    pub(super) damaged: usize,
}

/// A pod in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) state: String,
    pub(super) start: String,
    /// For the order of starts, microseconds.
    pub(super) took: Option<u64>,
    /// Why it booted.
    pub(super) why: String,
    pub(super) phases: Vec<Took>,
    pub(super) has_machine: bool,
    pub(super) usage: Usage,
}

impl Line {
    pub(super) fn new(pod: &Pod) -> Self {
        let how = pod.how();
        Self {
            uid: pod.desired.uid.clone(),
            name: pod.full(),
            state: pod.standing().into(),
            start: pod.start(),
            took: how.map(|how| how.microseconds),
            why: how.map(|how| how.why.clone()).unwrap_or_default(),
            phases: pod.phases().to_vec(),
            has_machine: pod.pid().is_some(),
            usage: pod.usage,
        }
    }
}

/// A pod's line with its rates: what is not known yet is none.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) line: Line,
    /// Per cent of one processor.
    pub(super) cpu: Option<f64>,
    /// Bytes a second.
    pub(super) received: Option<f64>,
    /// Bytes a second.
    pub(super) sent: Option<f64>,
}

/// A column, by which rows may be sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Pod,
    State,
    Start,
    Cpu,
    Unique,
    Shared,
    Received,
    Sent,
}

impl Column {
    pub(super) const ALL: [Self; 8] = [
        Self::Pod,
        Self::State,
        Self::Start,
        Self::Cpu,
        Self::Unique,
        Self::Shared,
        Self::Received,
        Self::Sent,
    ];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Pod => "POD",
            Self::State => "STATE",
            Self::Start => "START",
            Self::Cpu => "CPU%",
            Self::Unique => "UNIQUE",
            Self::Shared => "SHARED",
            Self::Received => "RX/s",
            Self::Sent => "TX/s",
        }
    }

    /// Words from the first letter on, figures from the largest.
    fn compare(self, one: &Row, other: &Row) -> Ordering {
        let memory = |row: &Row| row.line.usage.memory.unwrap_or_default();
        match self {
            Self::Pod => Ordering::Equal,
            Self::State => one.line.state.cmp(&other.line.state),
            Self::Start => other.line.took.cmp(&one.line.took),
            Self::Cpu => larger(one.cpu, other.cpu),
            Self::Unique => memory(other).unique.cmp(&memory(one).unique),
            Self::Shared => memory(other).shared.cmp(&memory(one).shared),
            Self::Received => larger(one.received, other.received),
            Self::Sent => larger(one.sent, other.sent),
        }
    }
}

fn larger(one: Option<f64>, other: Option<f64>) -> Ordering {
    other.unwrap_or(-1.0).total_cmp(&one.unwrap_or(-1.0))
}

impl Row {
    /// As it is shown, in the order of [`Column::ALL`].
    pub(super) fn cells(&self) -> [String; 8] {
        let memory = |of: fn(Memory) -> u64| or_none(self.line.usage.memory.map(|memory| text::bytes(of(memory))));
        let rate = |rate: Option<f64>| or_none(rate.map(|rate| text::bytes(rate as u64)));
        [
            self.line.name.clone(),
            self.line.state.clone(),
            self.line.start.clone(),
            or_none(self.cpu.map(|cpu| format!("{cpu:.1}"))),
            memory(|memory| memory.unique),
            memory(|memory| memory.shared),
            rate(self.received),
            rate(self.sent),
        ]
    }
}

/// The rows of a sample, with the rates since the one before it.
pub(super) fn rows(before: Option<&Sample>, now: &Sample) -> Vec<Row> {
    let row = |line: &Line| {
        let old = before.and_then(|before| before.pods.iter().find(|old| old.uid == line.uid));
        let since = before.map(|before| now.at.saturating_sub(before.at));
        let per_second = |count: fn(&Usage) -> Option<u64>| rate(old.and_then(|old| count(&old.usage)), count(&line.usage), since);
        Row {
            cpu: per_second(|usage| usage.cpu).map(|nanoseconds| nanoseconds / 1e7),
            received: per_second(|usage| traffic(usage, |all| all.received)),
            sent: per_second(|usage| traffic(usage, |all| all.sent)),
            line: line.clone(),
        }
    };
    now.pods.iter().map(row).collect()
}

fn traffic(usage: &Usage, of: fn(Counters) -> u64) -> Option<u64> {
    usage.network.map(of)
}

/// A second's worth of a count; none of one that began anew.
fn rate(before: Option<u64>, now: Option<u64>, since: Option<Duration>) -> Option<f64> {
    let seconds = since.map(|since| since.as_secs_f64()).filter(|seconds| *seconds > 0.0)?;
    now?.checked_sub(before?).map(|more| more as f64 / seconds)
}

/// Per cent of all of the host's processors.
pub(super) fn host_cpu(before: Option<&Sample>, now: &Sample) -> Option<f64> {
    let since = before.map(|before| now.at.saturating_sub(before.at));
    let busy = rate(before.map(|before| before.load.cpu), Some(now.load.cpu), since)?;
    Some(busy / 1e7 / f64::from(now.load.processors.max(1)))
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Quit,
    /// So many lines down, or up.
    Move(isize),
    First,
    Last,
    /// To the column on the right, or on the left.
    Sort(isize),
    Reverse,
}

/// What is on the screen.
pub(super) struct Screen {
    pub(super) before: Option<Sample>,
    pub(super) now: Option<Sample>,
    pub(super) sort: Column,
    pub(super) reversed: bool,
    /// UID of the pod whose start is shown: it stays the same one, wherever its line goes.
    selected: Option<String>,
    /// Why the host could not be looked at the last time.
    pub(super) trouble: Option<String>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            before: None,
            now: None,
            sort: Column::Pod,
            reversed: false,
            selected: None,
            trouble: None,
        }
    }

    /// The host was looked at again.
    pub(super) fn take(&mut self, sample: Result<Sample, String>) {
        match sample {
            Ok(sample) => {
                self.before = self.now.replace(sample);
                self.trouble = None;
            }
            Err(why) => self.trouble = Some(why),
        }
    }

    /// All rows, sorted; those that are equal by their names.
    pub(super) fn rows(&self) -> Vec<Row> {
        let Some(now) = &self.now else { return Vec::new() };
        let mut rows = rows(self.before.as_ref(), now);
        rows.sort_by(|one, other| {
            let order = self.sort.compare(one, other).then_with(|| one.line.name.cmp(&other.line.name));
            if self.reversed { order.reverse() } else { order }
        });
        rows
    }

    /// The number of the selected row: the first, unless one was chosen that is still there.
    pub(super) fn selected(&self, rows: &[Row]) -> Option<usize> {
        let chosen = rows.iter().position(|row| Some(&row.line.uid) == self.selected.as_ref());
        chosen.or((!rows.is_empty()).then_some(0))
    }

    /// Does it; false to end.
    pub(super) fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Quit => return false,
            Command::Move(lines) => self.select(|at, _| at.saturating_add_signed(lines)),
            Command::First => self.select(|_, _| 0),
            Command::Last => self.select(|_, last| last),
            Command::Reverse => self.reversed = !self.reversed,
            Command::Sort(columns) => {
                let count = Column::ALL.len() as isize;
                let at = Column::ALL.iter().position(|column| *column == self.sort).unwrap_or(0) as isize;
                self.sort = Column::ALL[(at + columns).rem_euclid(count) as usize];
            }
        }
        true
    }

    fn select(&mut self, to: impl FnOnce(usize, usize) -> usize) {
        let rows = self.rows();
        let Some(at) = self.selected(&rows) else { return };
        let last = rows.len() - 1;
        self.selected = Some(rows[to(at, last).min(last)].line.uid.clone());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::operate::model::tests::pod;

    /// A sample so many seconds after the first, of pods that have each used so many milliseconds of a processor.
    pub(in crate::operate::top) fn sample(seconds: u64, used: &[(&str, u64)]) -> Sample {
        let line = |(name, milliseconds): &(&str, u64)| {
            let mut line = Line::new(&pod(name, |_| {}));
            line.usage.cpu = Some(milliseconds * 1_000_000);
            line
        };
        Sample {
            at: Duration::from_secs(seconds),
            load: HostLoad {
                processors: 4,
                cpu: seconds * 2_000_000_000,
                memory: 8 << 30,
                memory_available: 6 << 30,
            },
            images: Some(Stored {
                images: 3,
                bytes: 120 << 20,
            }),
            template: Some(Standing::Missing),
            daemon: Some(99),
            pods: used.iter().map(line).collect(),
            damaged: 0,
        }
    }

    pub(in crate::operate::top) fn screen() -> Screen {
        let mut screen = Screen::new();
        screen.take(Ok(sample(0, &[("a", 0), ("b", 0), ("c", 0)])));
        screen.take(Ok(sample(2, &[("a", 20), ("b", 3_000), ("c", 200)])));
        screen
    }

    fn names(screen: &Screen) -> Vec<String> {
        screen.rows().into_iter().map(|row| row.line.name).collect()
    }

    #[test]
    fn rates_are_between_two_samples_and_none_for_what_is_new_or_began_anew() {
        let (before, now) = (
            sample(0, &[("a", 500), ("b", 900)]),
            sample(2, &[("a", 1_500), ("b", 100), ("c", 7)]),
        );
        let cpu: Vec<_> = rows(Some(&before), &now).into_iter().map(|row| row.cpu).collect();
        assert_eq!(cpu, [Some(50.0), None, None]);
        assert_eq!(rows(None, &now)[0].cpu, None);
        assert_eq!(host_cpu(Some(&before), &now), Some(50.0), "two of four processors");
        assert_eq!(host_cpu(None, &now), None);
    }

    #[test]
    fn keys_sort_by_a_column_and_turn_the_order_round() {
        let mut screen = screen();
        assert_eq!(names(&screen), ["default/a", "default/b", "default/c"]);
        screen.obey(Command::Sort(-1));
        assert_eq!(screen.sort, Column::Sent, "from the first column to the last");
        for _ in 0..4 {
            screen.obey(Command::Sort(1));
        }
        assert_eq!(screen.sort, Column::Cpu);
        assert_eq!(names(&screen), ["default/b", "default/c", "default/a"]);
        screen.obey(Command::Reverse);
        assert_eq!(names(&screen), ["default/a", "default/c", "default/b"]);
    }

    #[test]
    fn the_selected_pod_stays_selected_wherever_its_line_goes() {
        let mut screen = screen();
        let selected = |screen: &Screen| {
            let rows = screen.rows();
            screen.selected(&rows).map(|at| rows[at].line.name.clone())
        };
        assert_eq!(selected(&screen).as_deref(), Some("default/a"));
        screen.obey(Command::Move(1));
        assert_eq!(selected(&screen).as_deref(), Some("default/b"));
        screen.sort = Column::Cpu;
        assert_eq!(selected(&screen).as_deref(), Some("default/b"));
        screen.obey(Command::Move(-9));
        screen.obey(Command::Last);
        assert_eq!(selected(&screen).as_deref(), Some("default/a"));
        screen.take(Ok(sample(3, &[("b", 1)])));
        assert_eq!(selected(&screen).as_deref(), Some("default/b"), "the pod is gone");
        screen.take(Ok(sample(4, &[])));
        assert_eq!(selected(&screen), None);
        assert!(screen.obey(Command::Move(1)) && !screen.obey(Command::Quit));
    }

    #[test]
    fn what_could_not_be_looked_at_leaves_what_was_seen_before() {
        let mut screen = screen();
        screen.take(Err("list /x: gone".into()));
        assert_eq!((screen.rows().len(), screen.trouble.as_deref()), (3, Some("list /x: gone")));
    }
}
