//! Bytes between a Unix socket and guest memory, one system call, no copy; never a SIGPIPE.

use std::{
    io,
    ops::Range,
    os::{fd::AsRawFd, unix::net::UnixStream},
};

use rustix::net::SendFlags;

use crate::virtio::chain::Segments;

/// Most pieces of memory in one system call (UIO_MAXIOV).
const MAX_IOVECS: usize = 1024;

/// Reads what is there into `to`.
pub(super) fn read(stream: &UnixStream, to: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::io::read(stream, &mut *to))?)
}

/// Writes `bytes`, as far as the socket takes them.
pub(super) fn write(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(rustix::io::retry_on_intr(|| rustix::net::send(stream, bytes, flags))?)
}

/// Reads what is there into pieces of guest memory ([`Segments::iovecs`]), the first [`MAX_IOVECS`] of them.
pub(super) fn read_pieces(stream: &UnixStream, iovecs: &[libc::iovec]) -> io::Result<usize> {
    again(|| {
        let count = iovecs.len().min(MAX_IOVECS) as libc::c_int;
        // SAFETY: each iovec is a piece of guest memory that its VolatileSlice keeps mapped during the call; the kernel writes only there, and guest
        // memory is never seen as a Rust reference.
        unsafe { libc::readv(stream.as_raw_fd(), iovecs.as_ptr(), count) }
    })
}

/// Writes `range` of guest memory, as far as the socket takes it.
pub(super) fn write_segments(stream: &UnixStream, memory: &Segments<'_>, range: Range<usize>) -> io::Result<usize> {
    let mut iovecs = Vec::with_capacity(memory.pieces());
    memory.iovecs(range, &mut iovecs);
    if iovecs.is_empty() {
        return Ok(0);
    }
    again(|| {
        // SAFETY: all zeros is a valid msghdr: no name, no control, no buffers.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iovecs.as_mut_ptr();
        message.msg_iovlen = iovecs.len().min(MAX_IOVECS);
        // SAFETY: the message's only pointer is to the iovecs, which outlive the call and name guest memory that stays mapped; the kernel only reads.
        unsafe { libc::sendmsg(stream.as_raw_fd(), &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) }
    })
}

fn again(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(moved) = usize::try_from(call()) {
            return Ok(moved);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
