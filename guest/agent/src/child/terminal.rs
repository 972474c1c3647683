//! The terminal of a container's first process: made in the container's own devpts, so that its name means something there, and seen as
//! /dev/console too. The agent gets its master.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use kvmlet_protocol::{Failure, encode};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt};

use crate::failure::Attempt;
use crate::spawn::Report;

/// Makes it this process's own. The process is the first of its session, and in the container's root.
pub(super) fn take(agent: &UnixStream) -> Result<(), Failure> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = open("/dev/pts/ptmx", flags, Mode::empty()).attempt("open a terminal")?;
    unlockpt(&master).attempt("open a terminal")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let end = ioctl_tiocgptpeer(&master, flags).attempt("open a terminal")?;
    console(&master).attempt("make /dev/console")?;
    rustix::stdio::dup2_stdin(&end).attempt("use the terminal")?;
    rustix::stdio::dup2_stdout(&end).attempt("use the terminal")?;
    rustix::stdio::dup2_stderr(&end).attempt("use the terminal")?;
    rustix::process::ioctl_tiocsctty(io::stdin()).attempt("take the terminal")?;
    send(agent, &master).attempt("hand the terminal over")
}

/// The terminal's other name.
fn console(master: impl AsFd) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = open("/dev/console", flags, Mode::from_raw_mode(0o600))?;
    let name = ptsname(master, Vec::new())?;
    let mount = open_tree(CWD, &name, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mount, "", &place, "", empty).map_err(io::Error::from)
}

fn send(agent: &UnixStream, master: impl AsFd) -> io::Result<()> {
    let (frame, descriptors) = (encode(&Report::Terminal), [master.as_fd()]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(agent, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent == frame.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_descriptor_comes_along_with_its_frame() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        send(&theirs, &far).unwrap();
        drop(far);
        let (report, came) = crate::spawn::received(&ours);
        assert!(matches!(report, Report::Terminal));
        let mut far = UnixStream::from(came.unwrap());
        near.write_all(b"x").unwrap();
        let mut byte = [0];
        io::Read::read_exact(&mut far, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
