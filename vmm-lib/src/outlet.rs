//! Where a guest's console output goes: a file that gets bytes no faster than [`RATE`] (after [`BURST`] at once), so that a guest cannot fill a
//! host's disk as fast as it can write. Bytes that their giver does not want to keep are lost, counted, and told of in the output itself.
//! Never waits, unless the file can block.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

/// Bytes a second in the long run.
pub(crate) const RATE: u64 = 1 << 20;
/// Bytes at once, after a while of silence.
pub(crate) const BURST: u64 = 4 << 20;
/// Bytes of room that are waited for.
const PIECE: u64 = 4096;

/// A file that output goes to.
#[derive(Debug)]
pub(crate) struct Outlet {
    /// For messages.
    name: &'static str,
    file: File,
    room: u64,
    counted: Instant,
    lost: u64,
    /// What is left to be written of the words about a loss.
    note: Vec<u8>,
    /// The host takes nothing any more, and that was said.
    closed: bool,
}

impl Outlet {
    /// Output to this file.
    pub(crate) fn new(name: &'static str, file: File) -> Self {
        Self {
            name,
            file,
            room: BURST,
            counted: Instant::now(),
            lost: 0,
            note: Vec::new(),
            closed: false,
        }
    }

    /// Writes what may go out at the time `now`; says how many bytes that were. A host that is gone takes all.
    pub(crate) fn write(&mut self, bytes: &[u8], now: Instant) -> usize {
        if self.closed {
            return bytes.len();
        }
        self.refill(now);
        if self.is_starved() {
            return 0;
        }
        if !self.tell() {
            return 0;
        }
        if self.closed {
            return bytes.len();
        }
        let part = bytes.len().min(usize::try_from(self.room).unwrap_or(usize::MAX));
        let done = self.put(&bytes[..part]);
        if self.closed { bytes.len() } else { done }
    }

    /// Gives up so many bytes.
    pub(crate) fn lose(&mut self, bytes: u64) {
        self.lost = self.lost.saturating_add(bytes);
    }

    /// How long until there is room again, where that is what is missing.
    pub(crate) fn pause(&self) -> Option<Duration> {
        let missing = PIECE.saturating_sub(self.room);
        self.is_starved().then(|| Duration::from_micros(missing * 1_000_000 / RATE))
    }

    /// Behind a loss, some room is waited for: else there would be more words about losses than output.
    fn is_starved(&self) -> bool {
        self.room == 0 || self.lost > 0 && self.room < PIECE
    }

    /// Tells of a loss, if there was one; whether all that there is to tell is out.
    fn tell(&mut self) -> bool {
        let begun = !self.note.is_empty();
        if !begun && self.lost == 0 {
            return true;
        }
        let note = match begun {
            true => std::mem::take(&mut self.note),
            false => format!("\r\n[{} bytes of output were lost here]\r\n", self.lost).into_bytes(),
        };
        let done = self.put(&note);
        if done > 0 && !begun {
            self.lost = 0;
        }
        if done > 0 || begun {
            // What is told in part is told to its end; more may be lost until then, and is told of next.
            self.note = note[done..].to_vec();
        }
        done == note.len()
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted);
        let gained = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).saturating_mul(RATE) / 1_000_000;
        if gained > 0 {
            self.room = self.room.saturating_add(gained).min(BURST);
            self.counted = now;
        }
    }

    fn put(&mut self, bytes: &[u8]) -> usize {
        loop {
            match self.file.write(bytes) {
                Ok(done) => {
                    self.room = self.room.saturating_sub(done as u64);
                    return done;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return 0,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, output = self.name, "a guest's output is lost from here on");
                    self.closed = true;
                    return bytes.len();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};
    use std::os::fd::OwnedFd;

    #[test]
    fn a_guest_that_floods_gets_a_burst_out_and_then_its_rate() {
        let mut file = tempfile::tempfile().unwrap();
        let mut outlet = Outlet::new("test", file.try_clone().unwrap());
        let begun = Instant::now();
        let block = vec![b'x'; 64 << 10];
        // Ten seconds, in which it has 160 MiB to say.
        for tick in 0..2560 {
            let done = outlet.write(&block, begun + Duration::from_millis(4 * tick));
            outlet.lose((block.len() - done) as u64);
        }
        let size = file.seek(std::io::SeekFrom::End(0)).unwrap();
        assert!((BURST + 10 * RATE..BURST + 11 * RATE).contains(&size), "{size}");
    }

    #[test]
    fn a_loss_is_told_where_it_happened() {
        let mut file = tempfile::tempfile().unwrap();
        let mut outlet = Outlet::new("test", file.try_clone().unwrap());
        let now = Instant::now();
        outlet.write(b"before", now);
        outlet.lose(3);
        outlet.lose(4);
        outlet.write(b"after", now);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before\r\n[7 bytes of output were lost here]\r\nafter");
    }

    #[test]
    fn a_host_that_is_gone_takes_all_and_one_that_is_slow_takes_what_it_has_room_for() {
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let mut outlet = Outlet::new("test", File::from(OwnedFd::from(writer)));
        let block = vec![0; 1 << 20];
        let first = outlet.write(&block, Instant::now());
        assert!((4096..block.len()).contains(&first), "{first}");
        assert_eq!(outlet.write(&block, Instant::now()), 0);
        assert_eq!(outlet.pause(), None);
        drop(reader);
        assert_eq!(outlet.write(&block, Instant::now()), block.len());
    }
}
