//! A file that is booted: pieces of it are read straight into guest memory, at stated offsets (descriptors may be shared with other
//! machines, so the file's own position is never used).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::BootError;
use crate::dirty::Ram;

/// A file and its size.
pub(super) struct Image<'a> {
    what: &'static str,
    file: &'a File,
    size: u64,
}

impl<'a> Image<'a> {
    /// Looks at the file.
    pub(super) fn new(what: &'static str, file: &'a File) -> Result<Self, BootError> {
        let size = file.metadata().map_err(|source| BootError::Read { what, source })?.len();
        Ok(Self { what, file, size })
    }

    /// Bytes of the file.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Reads headers.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), BootError> {
        self.check(offset, data.len() as u64)?;
        self.file.read_exact_at(data, offset).map_err(|source| self.failed(source))
    }

    /// Reads `size` bytes into guest memory.
    pub(super) fn load(&self, mut offset: u64, size: u64, memory: &Ram, address: u64) -> Result<(), BootError> {
        self.check(offset, size)?;
        let write = |source| BootError::Write { what: self.what, source };
        let mut rest = memory.get_slice(GuestAddress(address), size as usize).map_err(write)?;
        while !rest.is_empty() {
            let target = rest.ptr_guard_mut();
            // SAFETY: the guard points at `rest.len()` bytes of mapped guest memory, to which nothing holds a reference.
            let count = unsafe { libc::pread(self.file.as_raw_fd(), target.as_ptr().cast(), rest.len(), offset as libc::off_t) };
            let count = match usize::try_from(count) {
                Ok(0) => return Err(self.failed(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(_) => match std::io::Error::last_os_error() {
                    error if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    error => return Err(self.failed(error)),
                },
            };
            offset += count as u64;
            rest = rest.offset(count).expect("a read is never longer than asked for");
        }
        Ok(())
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), BootError> {
        let wanted = offset.saturating_add(length);
        if wanted > self.size {
            return Err(BootError::Truncated {
                what: self.what,
                wanted,
                size: self.size,
            });
        }
        Ok(())
    }

    fn failed(&self, source: std::io::Error) -> BootError {
        BootError::Read { what: self.what, source }
    }
}
