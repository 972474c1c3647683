//! The containers' logs: taken from the agent through the machine's own vsock device, written to the files the daemon has passed, then
//! acknowledged. Nothing is dropped while its container is known; nothing a guest sends ends more than its own connection.

mod book;
mod line;
mod link;
#[cfg(test)]
mod tests;

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub(crate) use self::book::Book;
use self::link::{Broken, Link};
use crate::control::MachineState;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Until a file that failed is tried again.
const FILE_PAUSE: Duration = Duration::from_secs(1);

/// Opens a connection to the machine's vsock device.
pub(crate) type Dial = Box<dyn Fn() -> io::Result<UnixStream> + Send>;

/// The thread that writes logs.
pub(crate) struct Writer {
    book: Arc<Book>,
    waker: Arc<OwnedFd>,
    /// To the machine's vsock device.
    dial: Dial,
    link: Option<Link>,
    /// When to dial again, and after how long the next time.
    dial_at: Instant,
    pause: Duration,
}

impl Writer {
    pub(crate) fn new(book: Arc<Book>, dial: Dial) -> io::Result<Self> {
        Ok(Self {
            waker: book.waker()?,
            book,
            dial,
            link: None,
            dial_at: Instant::now(),
            pause: FIRST_PAUSE,
        })
    }

    /// Until the machine has ended and all that came is written.
    pub(crate) fn run(mut self) {
        loop {
            let ended = self.book.state() == MachineState::Ended;
            if self.link.is_none() && !ended && Instant::now() >= self.dial_at {
                self.dial();
            }
            let written = self.book.write();
            if let Some(link) = &mut self.link {
                link.acknowledge(written.acks);
            }
            if self.book.abandoned() || self.link.is_none() && self.book.finished() {
                return;
            }
            self.exchange(ended, written.failed);
        }
    }

    fn dial(&mut self) {
        match Link::dial(&self.dial) {
            Ok(link) => {
                self.link = Some(link);
                self.book.link_up();
            }
            Err(broken) => self.hang_up(broken),
        }
    }

    fn hang_up(&mut self, broken: Broken) {
        self.link = None;
        self.book.link_down(match broken {
            Broken::Closed => None,
            Broken::Violation(what) => Some(what),
        });
        self.dial_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// Waits for the guest, the daemon or a deadline, and moves bytes.
    fn exchange(&mut self, ended: bool, failed: bool) {
        let full = self.book.full();
        let mut timeout = failed.then_some(FILE_PAUSE);
        let mut fds = vec![PollFd::from_borrowed_fd(self.waker.as_fd(), PollFlags::IN)];
        match &self.link {
            // Without room and with nothing to say there is nothing to watch for; its end would be told again and again.
            Some(link) if full && !link.wants_to_write() => {}
            Some(link) => {
                let mut flags = if full { PollFlags::empty() } else { PollFlags::IN };
                flags.set(PollFlags::OUT, link.wants_to_write());
                fds.push(PollFd::from_borrowed_fd(link.stream().as_fd(), flags));
            }
            None if !ended => {
                let pause = self.dial_at.saturating_duration_since(Instant::now());
                timeout = Some(timeout.map_or(pause, |timeout| timeout.min(pause)));
            }
            None => {}
        }
        let timeout = timeout.map(|timeout| Timespec::try_from(timeout).expect("pauses are short"));
        // An interrupted wait is a wait that was over early.
        let _ = poll(&mut fds, timeout.as_ref());
        let (woken, link_ready) = (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty()));
        if woken {
            let _ = rustix::io::read(&self.waker, &mut [0u8; 8]);
        }
        let Some(link) = self.link.as_mut().filter(|_| link_ready) else {
            return;
        };
        match link.exchange(&self.book, full) {
            Ok(true) => self.pause = FIRST_PAUSE,
            Ok(false) => {}
            Err(broken) => self.hang_up(broken),
        }
    }
}
