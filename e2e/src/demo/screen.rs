//! The demo's screen: a line a step on standard output, with a tick, its time and what was seen; on standard error what is
//! under way, for steps that take longer than a moment. Colours and redrawing only where a terminal is.

use std::{
    cell::Cell,
    env,
    io::{IsTerminal, stderr, stdout},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::progress::say;

/// A step that takes longer says so.
const PATIENCE: Duration = Duration::from_secs(2);
/// Where nothing can be redrawn, a line now and then must do.
const REMINDER: Duration = Duration::from_secs(20);
/// Where what was seen begins: tick, time and title stand before it.
const INDENT: usize = 27;

const GREEN: &str = "32";
const RED: &str = "31";
const DIM: &str = "2";

/// What is drawn on.
pub(super) struct Screen {
    colours: bool,
    redraws: bool,
    seen: Cell<usize>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            colours: stdout().is_terminal() && env::var_os("NO_COLOR").is_none(),
            redraws: stderr().is_terminal(),
            seen: Cell::new(0),
        }
    }

    /// How many steps were seen.
    pub(super) fn seen(&self) -> usize {
        self.seen.get()
    }

    /// Does a step and draws its line. What was seen may have several lines.
    pub(super) fn step<T>(&self, title: &str, work: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
        let (started, redraws) = (Instant::now(), self.redraws);
        let result = thread::scope(|scope| {
            // Its end, also by a panic, ends the watcher.
            let (_running, ended) = mpsc::channel::<()>();
            scope.spawn(move || watch(title, started, redraws, &ended));
            work()
        });
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok((value, what)) => {
                self.draw("✓", GREEN, seconds, title, &what);
                self.seen.set(self.seen.get() + 1);
                Ok(value)
            }
            Err(error) => {
                self.draw("✗", RED, seconds, title, &format!("{error:#}"));
                Err(error).with_context(|| title.to_owned())
            }
        }
    }

    fn draw(&self, mark: &str, colour: &str, seconds: f64, title: &str, what: &str) {
        let what = what.replace('\n', &format!("\n{:INDENT$}", ""));
        println!(
            " {} {}  {title:13} {what}",
            self.painted(colour, mark),
            self.painted(DIM, &format!("{seconds:6.1} s"))
        );
    }

    fn painted(&self, colour: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Says that a step goes on, until its end hangs up.
fn watch(title: &str, started: Instant, redraws: bool, ended: &mpsc::Receiver<()>) {
    let mut pause = PATIENCE;
    let mut drawn = false;
    while ended.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
        if redraws {
            eprint!("\r\x1b[2K ⋯ {:6} s  {title}", started.elapsed().as_secs());
            (pause, drawn) = (Duration::from_secs(1), true);
        } else {
            say(format_args!("{title} ..."));
            pause = REMINDER;
        }
    }
    if drawn {
        eprint!("\r\x1b[2K");
    }
}
