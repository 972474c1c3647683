//! `kvmlet top`: looks at the host each second, shows what it sees, obeys keys. One thread looks, so that keys are heard while it does.

mod model;
mod view;

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use kvmlet_provider::{figures, template};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::signal::unix::{SignalKind, signal};

use self::model::{Command, Line, Sample, Screen};
use super::{Host, wait};
use crate::{cli::TopArguments, ending::Signals, print::print};

/// Between one look and the next.
const EACH: Duration = Duration::from_secs(1);
/// How long a key may wait.
const SOON: Duration = Duration::from_millis(100);
/// Lines that the page keys go.
const PAGE: isize = 20;

/// Shows what this host's machines use, until `q`.
pub(crate) fn top(arguments: &TopArguments) -> anyhow::Result<ExitCode> {
    let host = Host::open(&arguments.config.path)?;
    let node = host.config.node_name.clone();
    if arguments.once || !io::stdout().is_terminal() {
        let (begun, mut screen) = (Instant::now(), Screen::new());
        screen.take(Ok(host.sample(begun)?));
        thread::sleep(EACH);
        screen.take(Ok(host.sample(begun)?));
        print(view::once(&screen, &node).as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let news = follow(host)?;
    // What failed may have taken half of it.
    let taken = ratatui::try_init().inspect_err(|_| ratatui::restore());
    let mut terminal = taken.context("take the terminal over")?;
    let shown = show(&mut terminal, &news, &node);
    ratatui::try_restore().context("give the terminal back")?;
    shown.map(|()| ExitCode::SUCCESS)
}

/// What the thread that looks tells.
enum News {
    Seen(Result<Sample, String>),
    /// Somebody ends this program: the terminal has to be given back.
    End,
}

/// Looks at the host each second, and listens for signals.
fn follow(host: Host) -> anyhow::Result<Receiver<News>> {
    let (told, news) = mpsc::channel();
    let signals = told.clone();
    let on_signal = move || {
        let ended = wait(async {
            let (mut asked, mut hangup) = (Signals::new()?, signal(SignalKind::hangup())?);
            tokio::select! {
                _ = asked.next() => {}
                _ = hangup.recv() => {}
            }
            io::Result::Ok(())
        });
        if matches!(ended, Ok(Ok(()))) {
            // Nobody listens any more: it ends anyhow.
            let _ = signals.send(News::End);
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(on_signal)
        .context("start a thread")?;
    let begun = Instant::now();
    let look = move || {
        loop {
            // Its directory may come and go.
            let seen = host.sample(begun);
            if told.send(News::Seen(seen.map_err(|error| format!("{error:#}")))).is_err() {
                return;
            }
            thread::sleep(EACH);
        }
    };
    thread::Builder::new().name("look".into()).spawn(look).context("start a thread")?;
    Ok(news)
}

fn show(terminal: &mut DefaultTerminal, news: &Receiver<News>, node: &str) -> anyhow::Result<()> {
    let (mut screen, mut is_old) = (Screen::new(), true);
    loop {
        for told in news.try_iter() {
            match told {
                News::Seen(sample) => screen.take(sample),
                News::End => return Ok(()),
            }
            is_old = true;
        }
        if std::mem::take(&mut is_old) {
            terminal.draw(|frame| view::draw(frame, &screen, node)).context("draw")?;
        }
        if event::poll(SOON).context("wait for a key")? {
            // Also when the terminal has another size.
            is_old = true;
            if let Event::Key(key) = event::read().context("read a key")?
                && let Some(command) = command(key)
                && !screen.obey(command)
            {
                return Ok(());
            }
        }
    }
}

/// What a key means.
fn command(key: KeyEvent) -> Option<Command> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Command::Quit),
        KeyCode::Char('c') if control => Some(Command::Quit),
        KeyCode::Up | KeyCode::Char('k') => Some(Command::Move(-1)),
        KeyCode::Down | KeyCode::Char('j') => Some(Command::Move(1)),
        KeyCode::PageUp => Some(Command::Move(-PAGE)),
        KeyCode::PageDown => Some(Command::Move(PAGE)),
        KeyCode::Home => Some(Command::First),
        KeyCode::End => Some(Command::Last),
        KeyCode::Left => Some(Command::Sort(-1)),
        KeyCode::Right => Some(Command::Sort(1)),
        KeyCode::Char('r') => Some(Command::Reverse),
        _ => None,
    }
}

impl Host {
    fn sample(&self, begun: Instant) -> anyhow::Result<Sample> {
        let seen = self.look()?;
        Ok(Sample {
            at: begun.elapsed(),
            load: figures::load(),
            images: kvmlet_image::look(&self.config.state_dir.join("images")).ok(),
            template: template::look(&self.config).ok(),
            daemon: self.daemon(),
            pods: seen.pods.iter().map(Line::new).collect(),
            damaged: seen.damaged.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_last_line_of_the_screen_says() {
        let press = |code, modifiers| command(KeyEvent::new(code, modifiers));
        let plain = |code| press(code, KeyModifiers::NONE);
        assert_eq!(plain(KeyCode::Char('q')), Some(Command::Quit));
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Command::Quit));
        assert_eq!(plain(KeyCode::Char('c')), None);
        assert_eq!(
            (plain(KeyCode::Up), plain(KeyCode::Down)),
            (Some(Command::Move(-1)), Some(Command::Move(1)))
        );
        assert_eq!(
            (plain(KeyCode::Left), plain(KeyCode::Right)),
            (Some(Command::Sort(-1)), Some(Command::Sort(1)))
        );
        assert_eq!(plain(KeyCode::Char('r')), Some(Command::Reverse));
        let mut released = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
        released.kind = KeyEventKind::Release;
        assert_eq!(command(released), None);
    }
}
