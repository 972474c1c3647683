//! The terminal, or whatever standard input and output are, as the console of a machine run by hand. The machine gets pipes that never block
//! it; threads here carry bytes between them and the outside. A terminal is raw meanwhile, and afterwards as it was.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::fd::OwnedFd,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use rustix::{
    io::ioctl_fionbio,
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
    process::getpgrp,
    stdio::{stdin, stdout},
    termios::{LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr},
};
use vmm_lib::{machine::Handle, spec::ConsoleSize};

/// Bytes of output on their way: single bytes of a serial port share a page of a pipe.
const PIPE: usize = 1 << 20;
/// How long the last output may take to get out of a terminal that is stopped.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Ctrl-A begins what is for us.
const ESCAPE: u8 = 1;

/// What the machine gets.
pub(super) struct Ends {
    /// For its output.
    pub(super) output: OwnedFd,
    /// For its input, where there is any.
    pub(super) input: Option<OwnedFd>,
}

/// The outside of them.
pub(super) struct Terminal {
    shown: File,
    keys: Option<(Keys, File)>,
}

impl Terminal {
    /// Standard output, and with `input` standard input, as a console that nothing is carried to yet.
    pub(super) fn new(input: bool) -> anyhow::Result<(Self, Ends)> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).context("make a pipe");
        let (shown, output) = pipe()?;
        // An unprivileged process may have spent what it may have; then less is on its way.
        let _ = fcntl_setpipe_size(&output, PIPE);
        ioctl_fionbio(&output, true)?;
        let mut ends = Ends { output, input: None };
        let mut keys = None;
        if let Some(source) = Source::of_standard_input().filter(|_| input) {
            let (end, writer) = pipe()?;
            ioctl_fionbio(&end, true)?;
            // A guest that does not read must not keep us from seeing Ctrl-A; a file can wait for it.
            ioctl_fionbio(&writer, source == Source::Terminal)?;
            ends.input = Some(end);
            keys = Some((Keys::new(source), File::from(writer)));
        }
        let shown = File::from(shown);
        Ok((Self { shown, keys }, ends))
    }

    /// Carries from now on. Signals must have been taken care of: what ends this process at once leaves a terminal raw.
    pub(super) fn start(self, handle: Handle) -> anyhow::Result<Carrying> {
        let raw = match &self.keys {
            Some((keys, _)) if keys.source == Source::Terminal => {
                eprintln!("kvmlet: this terminal is the machine's console; Ctrl-A x ends the machine, Ctrl-A Ctrl-A types Ctrl-A");
                Some(Raw::enter().context("use the terminal")?)
            }
            _ => None,
        };
        let (done, shown) = mpsc::channel();
        let show = move || {
            show(self.shown);
            // Whoever waited has given up.
            let _ = done.send(());
        };
        thread::Builder::new().name("output".into()).spawn(show).context("start a thread")?;
        if let Some((mut keys, writer)) = self.keys {
            let listen = move || {
                if keys.carry(&writer) {
                    handle.stop();
                }
            };
            thread::Builder::new()
                .name("input".into())
                .spawn(listen)
                .context("start a thread")?;
        }
        Ok(Carrying { shown, _raw: raw })
    }
}

/// Bytes are carried.
pub(super) struct Carrying {
    shown: mpsc::Receiver<()>,
    _raw: Option<Raw>,
}

impl Carrying {
    /// The machine is over, and has closed its ends: shows what is still on its way, and leaves the terminal as it was.
    pub(super) fn end(self) {
        let _ = self.shown.recv_timeout(LAST_WORDS);
    }
}

/// The size of the terminal, if standard output is one.
pub(super) fn size() -> Option<ConsoleSize> {
    let size = tcgetwinsize(stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(ConsoleSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

fn show(mut shown: File) {
    let (mut block, mut out) = ([0; 16 << 10], io::stdout().lock());
    while let Ok(length) = shown.read(&mut block) {
        // Nobody is left to tell when standard output is gone; the machine goes on.
        if length == 0 || out.write_all(&block[..length]).and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

/// What standard input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A terminal that is ours to use.
    Terminal,
    /// A file, a pipe: taken as it is, to its end.
    File,
}

impl Source {
    /// None: a terminal that is somebody else's at the moment, as a job in the background must not read from it or change it.
    fn of_standard_input() -> Option<Self> {
        if !io::stdin().is_terminal() {
            return Some(Self::File);
        }
        (tcgetpgrp(stdin()).ok()? == getpgrp()).then_some(Self::Terminal)
    }
}

/// A terminal in raw mode until this is dropped. Output is processed as before: our own lines shall begin on the left, and a guest's carriage
/// returns do no harm.
struct Raw(Termios);

impl Raw {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes |= before.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
        raw.local_modes -= LocalModes::TOSTOP;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone away needs nothing.
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.0);
    }
}

/// Reads input, and finds in it what is for us.
struct Keys {
    source: Source,
    escaped: bool,
}

impl Keys {
    fn new(source: Source) -> Self {
        Self { source, escaped: false }
    }

    /// Carries input to the machine until its end; whether the machine is to be ended.
    fn carry(&mut self, mut machine: &File) -> bool {
        let (mut block, mut input) = ([0; 4096], io::stdin().lock());
        loop {
            let length = match input.read(&mut block) {
                Ok(0) => return false,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return false,
            };
            let Some(typed) = self.take(&block[..length]) else { return true };
            match machine.write_all(&typed) {
                Ok(()) => {}
                // As a terminal drops what is typed ahead too far.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
    }

    /// What of this is the machine's; `None` to end it.
    fn take(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        if self.source == Source::File {
            return Some(typed.to_vec());
        }
        let mut kept = Vec::with_capacity(typed.len());
        for byte in typed {
            match (std::mem::take(&mut self.escaped), *byte) {
                (true, b'x' | b'X') => return None,
                // Twice is once; anything else was not for us after all.
                (true, ESCAPE) => kept.push(ESCAPE),
                (true, other) => kept.extend([ESCAPE, other]),
                (false, ESCAPE) => self.escaped = true,
                (false, other) => kept.push(other),
            }
        }
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new(Source::Terminal)
    }

    #[test]
    fn ctrl_a_x_ends_the_machine_also_when_it_comes_in_two_pieces() {
        assert_eq!(keys().take(b"ls\r\x01x"), None);
        let mut keys = keys();
        assert_eq!(keys.take(b"ls\x01").as_deref(), Some(&b"ls"[..]));
        assert_eq!(keys.take(b"X"), None);
    }

    #[test]
    fn everything_else_is_the_machines_ctrl_c_and_ctrl_a_among_it() {
        assert_eq!(
            keys().take(b"\x03\x1a\x1cx\x01\x01\x01b").as_deref(),
            Some(&b"\x03\x1a\x1cx\x01\x01b"[..])
        );
    }

    #[test]
    fn a_file_is_carried_as_it_is() {
        assert_eq!(Keys::new(Source::File).take(b"\x01x").as_deref(), Some(&b"\x01x"[..]));
    }
}
