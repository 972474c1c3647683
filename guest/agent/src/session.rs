//! What all sessions with the host have in common: waiting for descriptors, and writing to what may not read.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};
use vsock::VsockStream;

/// Waits until one of them is ready, at most for `limit` (less than a second); how many are.
pub(crate) fn ready(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<usize> {
    let limit = limit.map(|l| Timespec {
        tv_sec: 0,
        tv_nsec: l.subsec_nanos().into(),
    });
    loop {
        match poll(fds, limit.as_ref()) {
            Err(Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

/// Waits until something can be read.
pub(crate) fn readable(from: impl AsFd) -> io::Result<()> {
    ready(&mut [PollFd::new(&from, PollFlags::IN)], None).map(drop)
}

/// Writes all to a non-blocking stream; gives up, with `ConnectionAborted`, when the host is gone.
pub(crate) fn write_while_connected<T: AsFd>(to: &T, mut data: &[u8], connection: &VsockStream) -> io::Result<()>
where
    for<'a> &'a T: Write,
{
    while !data.is_empty() {
        match (&mut &*to).write(data) {
            Ok(written) => data = &data[written..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(to, PollFlags::OUT), PollFd::new(connection, PollFlags::RDHUP)];
                ready(&mut fds, None)?;
                if fds[1].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Sets a terminal's size in characters. One whose processes have ended has none to set.
pub(crate) fn set_size(terminal: impl AsFd, width: u16, height: u16) {
    let size = Winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let _ = tcsetwinsize(terminal, size);
}
