//! How `top` looks: in a terminal, and as text that is printed once. Pure: the same model gives the same picture.

use kvmlet_provider::{figures::Phase, template::Standing};
use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Modifier, Style},
    text::Line as TextLine,
    widgets::{Block, Borders, Cell, Paragraph, Row as TableRow, Table, TableState},
};

use super::model::{Column, Row, Screen, host_cpu};
use crate::{
    operate::text::{self, NONE},
    print,
};

/// Lines of the pane below: each phase, the line above them, the borders.
const PANE: u16 = Phase::ALL.len() as u16 + 3;
/// Widths of the columns behind the first.
const WIDTHS: [u16; 7] = [9, 11, 6, 7, 7, 7, 7];
/// Columns of a bar, at most.
const BAR: u64 = 40;
/// Characters of a template's key that are shown.
const KEY: usize = 12;

/// The host in two lines.
pub(super) fn header(screen: &Screen, node: &str) -> [String; 2] {
    let Some(now) = &screen.now else {
        return [format!("kvmlet  {node}  looking at the host"), String::new()];
    };
    let daemon = now
        .daemon
        .map_or("the daemon is NOT running".to_owned(), |pid| format!("daemon {pid}"));
    let machines = now.pods.iter().filter(|pod| pod.has_machine).count();
    let damaged = match now.damaged {
        0 => String::new(),
        count => format!(", {count} records damaged"),
    };
    let cpu = host_cpu(screen.before.as_ref(), now).map_or(NONE.to_owned(), |cpu| format!("{cpu:.1}%"));
    let used = now.load.memory.saturating_sub(now.load.memory_available);
    let images = now
        .images
        .map_or(NONE.to_owned(), |all| format!("{} in {}", all.images, text::bytes(all.bytes)));
    [
        format!("kvmlet  {node}  {daemon}  {machines} machines, {} pods{damaged}", now.pods.len()),
        format!(
            "CPU {cpu} of {}  memory {} of {}  images {images}  template {}",
            now.load.processors,
            text::bytes(used),
            text::bytes(now.load.memory),
            now.template.as_ref().map_or(NONE.to_owned(), template)
        ),
    ]
}

fn template(standing: &Standing) -> String {
    match standing {
        Standing::Never(why) => format!("none ({why})"),
        Standing::Missing => "none".into(),
        Standing::Making => "being made".into(),
        Standing::Kept { key, bytes, .. } => format!("{} ({})", key.chars().take(KEY).collect::<String>(), text::bytes(*bytes)),
    }
}

/// The phases of a machine's start, the longest with a bar of so many columns.
pub(super) fn phases(row: &Row, columns: u64) -> Vec<String> {
    let line = &row.line;
    let most = line.phases.iter().map(|took| took.microseconds).max().unwrap_or(0).max(1);
    let one = |phase: Phase| {
        let took = line.phases.iter().find(|took| took.phase == phase);
        let (time, bar) = match took {
            None => (NONE.to_owned(), 0),
            Some(took) => (text::span(took.microseconds), took.microseconds.saturating_mul(columns) / most),
        };
        format!("{:12}  {time:>8}  {}", phase.name(), "█".repeat(usize::try_from(bar).unwrap_or(0)))
    };
    let lines = Phase::ALL.into_iter().map(|phase| one(phase).trim_end().to_owned());
    std::iter::once(how(row)).chain(lines).collect()
}

fn how(row: &Row) -> String {
    let line = &row.line;
    match (line.took, line.phases.is_empty()) {
        (Some(took), _) if line.why.is_empty() => format!("a copy of the node's template, in {}", text::span(took)),
        (Some(took), _) => format!("booted in {} ({})", text::span(took), line.why),
        (None, false) => "its guest has not answered yet".into(),
        (None, true) => "nothing is known of its start".into(),
    }
}

/// Everything, as text: for what is no terminal.
pub(super) fn once(screen: &Screen, node: &str) -> String {
    let rows: Vec<_> = screen.rows().iter().map(Row::cells).collect();
    let table = print::table(Column::ALL.map(Column::title), &rows);
    let [first, second] = header(screen, node);
    format!("{first}\n{second}\n\n{table}")
}

/// Everything, in a terminal.
pub(super) fn draw(frame: &mut Frame<'_>, screen: &Screen, node: &str) {
    let [head, body, pane, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(3),
        Constraint::Length(PANE),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let lines = header(screen, node).map(TextLine::from).to_vec();
    frame.render_widget(Paragraph::new(lines).style(Style::new().add_modifier(Modifier::BOLD)), head);

    let rows = screen.rows();
    let selected = screen.selected(&rows);
    let mut state = TableState::new().with_selected(selected);
    frame.render_stateful_widget(table(screen, &rows), body, &mut state);

    let chosen = selected.map(|at| &rows[at]);
    let title = chosen.map_or(" start ".to_owned(), |row| format!(" start of {} ", row.line.name));
    let columns = u64::from(pane.width.saturating_sub(26)).min(BAR);
    let told = chosen.map(|row| phases(row, columns)).unwrap_or_default();
    let told: Vec<_> = told.into_iter().map(TextLine::from).collect();
    frame.render_widget(Paragraph::new(told).block(Block::new().borders(Borders::ALL).title(title)), pane);

    let last = match &screen.trouble {
        Some(why) => why.clone(),
        None => "q ends  ↑ ↓ choose a pod  ← → sort by a column  r turns the order round".into(),
    };
    frame.render_widget(Paragraph::new(last), keys);
}

fn table<'a>(screen: &Screen, rows: &[Row]) -> Table<'a> {
    let title = |column: Column| {
        let arrow = if screen.reversed { "▲" } else { "▼" };
        match column == screen.sort {
            true => Cell::new(format!("{}{arrow}", column.title())).style(Style::new().add_modifier(Modifier::UNDERLINED)),
            false => Cell::new(column.title()),
        }
    };
    let head = TableRow::new(Column::ALL.map(title)).style(Style::new().add_modifier(Modifier::BOLD));
    let widths = std::iter::once(Constraint::Min(16)).chain(WIDTHS.map(Constraint::Length));
    Table::new(rows.iter().map(|row| TableRow::new(row.cells())), widths)
        .header(head)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::operate::top::model::{
        Command,
        tests::{sample, screen},
    };

    fn picture(screen: &Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, screen, "kvm-1")).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y: u16| {
            (0..width)
                .map(|x| buffer[(x, y)].symbol())
                .collect::<String>()
                .trim_end()
                .to_owned()
        };
        (0..height).map(line).collect()
    }

    #[test]
    fn the_screen_shows_the_host_its_machines_and_one_start() {
        let shown = picture(&screen(), 90, 16);
        assert_eq!(
            shown[..6],
            [
                "kvmlet  kvm-1  daemon 99  3 machines, 3 pods",
                "CPU 50.0% of 4  memory 2.0Gi of 8.0Gi  images 3 in 120Mi  template none",
                "POD▼                          STATE     START       CPU%   UNIQUE  SHARED  RX/s    TX/s",
                "default/a                     Running   copy 420ms  1.0    40Mi    90Mi    0       0",
                "default/b                     Running   copy 420ms  150.0  40Mi    90Mi    0       0",
                "default/c                     Running   copy 420ms  10.0   40Mi    90Mi    0       0",
            ],
            "{shown:#?}"
        );
        assert!(shown[7].starts_with("┌ start of default/a ─"), "{shown:#?}");
        assert!(shown[8].contains("a copy of the node's template, in 420ms"), "{shown:#?}");
        assert!(shown[9].contains("surroundings     120ms  ███████████ "), "{shown:#?}");
        assert!(
            shown[12].contains(&format!("guest            420ms  {}", "█".repeat(40))),
            "{shown:#?}"
        );
        assert!(shown[15].starts_with("q ends"), "{shown:#?}");
    }

    #[test]
    fn the_chosen_pod_is_marked_and_its_start_is_the_one_below() {
        let mut screen = screen();
        screen.obey(Command::Move(2));
        screen.obey(Command::Sort(3));
        let mut terminal = Terminal::new(TestBackend::new(90, 16)).unwrap();
        terminal.draw(|frame| draw(frame, &screen, "kvm-1")).unwrap();
        let buffer = terminal.backend().buffer();
        let marked: Vec<u16> = (0..16)
            .filter(|y| buffer[(0, *y)].style().add_modifier.contains(Modifier::REVERSED))
            .collect();
        assert_eq!(marked, [4], "default/c has the second line now");
        let shown = picture(&screen, 90, 16);
        assert!(shown[2].contains("CPU%▼") && shown[3].starts_with("default/b"), "{shown:#?}");
        assert!(shown[7].contains("start of default/c"), "{shown:#?}");
    }

    #[test]
    fn a_host_without_daemon_and_without_pods_says_both() {
        let mut screen = Screen::new();
        assert!(picture(&screen, 80, 14)[0].contains("looking at the host"));
        let mut empty = sample(0, &[]);
        (empty.daemon, empty.damaged) = (None, 1);
        screen.take(Ok(empty));
        let shown = picture(&screen, 80, 14);
        assert_eq!(
            shown[0],
            "kvmlet  kvm-1  the daemon is NOT running  0 machines, 0 pods, 1 records damaged"
        );
        screen.take(Err("list /var/lib/kvmlet/pods: gone".into()));
        assert_eq!(picture(&screen, 80, 14)[13], "list /var/lib/kvmlet/pods: gone");
    }

    #[test]
    fn a_small_terminal_is_drawn_without_a_panic() {
        for (width, height) in [(1, 1), (10, 3), (40, 8)] {
            picture(&screen(), width, height);
        }
    }

    #[test]
    fn what_is_no_terminal_gets_the_same_as_text() {
        let text = once(&screen(), "kvm-1");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "kvmlet  kvm-1  daemon 99  3 machines, 3 pods");
        assert_eq!(lines[3], "POD        STATE    START       CPU%   UNIQUE  SHARED  RX/s  TX/s");
        assert_eq!(lines[5], "default/b  Running  copy 420ms  150.0  40Mi    90Mi    0     0");
        assert_eq!(lines.len(), 7);
    }

    #[test]
    fn a_start_that_is_under_way_or_booted_says_so() {
        let rows = screen().rows();
        let of = |change: fn(&mut Row)| {
            let mut row = rows[0].clone();
            change(&mut row);
            phases(&row, 10)
        };
        let waits = of(|row| row.line.took = None);
        assert_eq!(
            (waits[0].as_str(), waits[2].as_str()),
            ("its guest has not answered yet", "disks                -")
        );
        assert_eq!(
            of(|row| row.line.why = "guest.serial is on".into())[0],
            "booted in 420ms (guest.serial is on)"
        );
        let unknown = |row: &mut Row| {
            row.line.took = None;
            row.line.phases.clear();
        };
        assert_eq!(of(unknown)[0], "nothing is known of its start");
    }
}
