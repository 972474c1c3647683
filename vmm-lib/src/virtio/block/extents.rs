//! A disk's bytes: pieces of files, one behind the other. Reads and writes go between the files and guest memory without a copy in
//! between, never past an extent's end, and a file shorter than promised is an error of that request. All of it by system calls, or all of it by a
//! ring ([`super::uring`]).

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
    sync::Mutex,
};

use rustix::fs::FallocateFlags;

use super::together::{self, Transfer};
use super::uring::{Request, Uring};
use crate::lock::lock;
use crate::virtio::chain::Segments;

/// Most pieces of memory in one system call (UIO_MAXIOV).
pub(super) const MAX_IOVECS: usize = 1024;
/// What is written where a file system cannot clear.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Debug)]
struct Extent {
    /// Where it begins on the disk.
    start: u64,
    file: File,
    offset: u64,
    length: u64,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    FromDisk,
    ToDisk,
}

/// The extents of a disk, in order.
#[derive(Debug)]
pub(super) struct Extents {
    pieces: Vec<Extent>,
    size: u64,
    /// By which everything is done, if there is one; files have their extents' numbers there.
    ring: Option<Box<Mutex<Uring>>>,
}

impl Extents {
    /// `None` when the disk would be larger than 2^63 bytes, or a piece of a file ends there.
    pub(super) fn new(pieces: Vec<(File, u64, u64)>) -> Option<Self> {
        let mut size = 0u64;
        let mut list = Vec::with_capacity(pieces.len());
        for (file, offset, length) in pieces {
            offset.checked_add(length).filter(|end| *end <= i64::MAX as u64)?;
            list.push(Extent {
                start: size,
                file,
                offset,
                length,
            });
            size = size.checked_add(length).filter(|size| *size <= i64::MAX as u64)?;
        }
        Some(Self {
            pieces: list,
            size,
            ring: None,
        })
    }

    /// Has everything done by a ring from here on.
    pub(super) fn with_ring(mut self) -> Result<Self, (&'static str, io::Error)> {
        let ring = Uring::new(self.pieces.iter().map(|extent| &extent.file))?;
        self.ring = Some(Box::new(Mutex::new(ring)));
        Ok(self)
    }

    /// Whether it is.
    pub(super) fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// Moves several at once, if there is a ring.
    pub(super) fn transfer_together(&self, transfers: &mut [Transfer<'_, '_>]) -> io::Result<()> {
        match &self.ring {
            Some(ring) => together::carry_out(self, &mut lock(ring), transfers),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn single(&self) -> bool {
        self.pieces.len() == 1
    }

    /// The extent at `position`, and how far into it that is.
    fn at(&self, position: u64) -> Option<(&Extent, u64)> {
        let index = self.pieces.partition_point(|extent| extent.start <= position).checked_sub(1)?;
        let extent = &self.pieces[index];
        let inside = position - extent.start;
        (inside < extent.length).then_some((extent, inside))
    }

    /// The file at `position`, where that is in it, and how many bytes there are from there on.
    pub(super) fn piece(&self, position: u64) -> Option<(u32, u64, u64)> {
        let (extent, inside) = self.at(position)?;
        let number = self.pieces.partition_point(|extent| extent.start <= position) - 1;
        Some((number as u32, extent.offset + inside, extent.length - inside))
    }

    /// Moves `range` of `memory` to or from the disk at `position`.
    pub(super) fn transfer(
        &self,
        direction: Direction,
        memory: &Segments<'_>,
        range: std::ops::Range<usize>,
        mut position: u64,
    ) -> io::Result<()> {
        if self.has_ring() {
            let mut transfer = [Transfer::new(direction, memory, range, position)];
            self.transfer_together(&mut transfer)?;
            let [transfer] = transfer;
            return transfer.end();
        }
        let mut done = range.start;
        let mut iovecs = Vec::with_capacity(memory.pieces().min(MAX_IOVECS));
        while done < range.end {
            let (extent, inside) = self.at(position).ok_or(io::ErrorKind::UnexpectedEof)?;
            let here = usize::try_from(extent.length - inside).unwrap_or(usize::MAX).min(range.end - done);
            iovecs.clear();
            memory.iovecs(done..done + here, &mut iovecs);
            let moved = vectored(direction, &extent.file, &iovecs, extent.offset + inside)?;
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += moved;
            position += moved as u64;
        }
        Ok(())
    }

    /// Makes all that was written last.
    pub(super) fn flush(&self) -> io::Result<()> {
        if let Some(ring) = &self.ring {
            return (0..self.pieces.len() as u32).try_for_each(|file| one(ring, &Request::Sync { file }).map(drop));
        }
        self.pieces
            .iter()
            .try_for_each(|extent| rustix::fs::fdatasync(&extent.file).map_err(io::Error::from))
    }

    /// Gives the storage of `length` bytes of the only extent back. A file system that cannot keeps it, as a driver must expect.
    pub(super) fn discard(&self, position: u64, length: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::PUNCH_HOLE, position, length).map(|_| ())
    }

    /// Makes `length` bytes of the only extent read as zeros; their storage may be given back only when `unmap`.
    pub(super) fn zero(&self, position: u64, length: u64, unmap: bool) -> io::Result<()> {
        if (unmap && self.fallocate(FallocateFlags::PUNCH_HOLE, position, length)?)
            || self.fallocate(FallocateFlags::ZERO_RANGE, position, length)?
        {
            return Ok(());
        }
        self.write_zeros(position, length)
    }

    /// `false`: the file system does not know how.
    fn fallocate(&self, how: FallocateFlags, position: u64, length: u64) -> io::Result<bool> {
        let extent = self.only()?;
        let (how, offset) = (how | FallocateFlags::KEEP_SIZE, extent.offset + position);
        let done = match &self.ring {
            Some(ring) => {
                let request = Request::Allocate {
                    file: 0,
                    mode: how.bits() as i32,
                    offset,
                    length,
                };
                one(ring, &request).map(drop)
            }
            None => rustix::fs::fallocate(extent.file.as_fd(), how, offset, length).map_err(io::Error::from),
        };
        match done.map_err(|error| (error.raw_os_error(), error)) {
            Ok(()) => Ok(true),
            Err((Some(libc::EOPNOTSUPP | libc::ENOSYS), _)) => Ok(false),
            Err((_, error)) => Err(error),
        }
    }

    fn write_zeros(&self, position: u64, length: u64) -> io::Result<()> {
        let extent = self.only()?;
        let (mut at, end) = (extent.offset + position, extent.offset + position + length);
        while at < end {
            let here = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROS.len());
            let memory = [zeros(here)];
            let moved = match &self.ring {
                Some(ring) => {
                    let request = Request::Move {
                        direction: Direction::ToDisk,
                        file: 0,
                        memory: &memory,
                        offset: at,
                    };
                    one(ring, &request)?
                }
                None => vectored(Direction::ToDisk, &extent.file, &memory, at)?,
            };
            if moved == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            at += moved as u64;
        }
        Ok(())
    }

    fn only(&self) -> io::Result<&Extent> {
        match self.pieces.as_slice() {
            [extent] => Ok(extent),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// One request by a ring, again when a signal comes between.
fn one(ring: &Mutex<Uring>, request: &Request<'_>) -> io::Result<usize> {
    loop {
        let result = lock(ring).run(std::slice::from_ref(request))?.remove(0);
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The first `length` bytes of [`ZEROS`], for the kernel to read.
fn zeros(length: usize) -> libc::iovec {
    libc::iovec {
        iov_base: ZEROS.as_ptr().cast_mut().cast(),
        iov_len: length.min(ZEROS.len()),
    }
}

/// One preadv2 or pwritev2, again when a signal comes between.
fn vectored(direction: Direction, file: &File, iovecs: &[libc::iovec], offset: u64) -> io::Result<usize> {
    let count = libc::c_int::try_from(iovecs.len().min(MAX_IOVECS)).expect("MAX_IOVECS is small");
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        let moved = match direction {
            // SAFETY: each iovec is a piece of guest memory that its VolatileSlice keeps mapped during the call (zeros are only ever written to a
            // disk); the kernel writes only there, and guest memory is never seen as a Rust reference.
            Direction::FromDisk => unsafe { libc::preadv2(file.as_raw_fd(), iovecs.as_ptr(), count, offset, 0) },
            // SAFETY: as above, or all of them lie in a static; and the kernel only reads.
            Direction::ToDisk => unsafe { libc::pwritev2(file.as_raw_fd(), iovecs.as_ptr(), count, offset, 0) },
        };
        match usize::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
