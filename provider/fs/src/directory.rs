//! Directories, read in pieces from wherever the guest says.

use std::{
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use rustix::{
    fs::{FileType, OFlags, RawDir, SeekFrom, fsync, seek},
    io::Errno,
};

use crate::{
    attributes::{entry, stat},
    node::find,
    server::Server,
    table::Handle,
    wire::{Arguments, Header, MAX_IO, Reply},
};

/// `struct fuse_entry_out` in front of an entry of FUSE_READDIRPLUS.
const ENTRY: usize = 128;
/// `struct fuse_dirent` without its name.
const DIRENT: usize = 24;

impl Server {
    pub(crate) fn opendir(&self, header: &Header, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let node = self.table.node(header.node)?;
        if node.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let directory = self.reopen(&node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        reply.opened(self.table.open(Handle::Directory(Mutex::new(directory)))?);
        Ok(())
    }

    /// Entries from a place on, as many as there is room for; with `plus` each with its file.
    pub(crate) fn readdir(&self, header: &Header, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>, plus: bool) -> Result<(), Errno> {
        let node = self.table.node(header.node)?;
        let (handle, place, size) = (self.table.handle(arguments.u64()?)?, arguments.u64()?, arguments.u32()?);
        let Handle::Directory(directory) = &*handle else {
            return Err(Errno::NOTDIR);
        };
        let directory = directory.lock().unwrap_or_else(PoisonError::into_inner);
        seek(&*directory, SeekFrom::Start(place))?;
        let end = reply.0.len() + (size as usize).min(MAX_IO);
        let mut block = [MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(&*directory, &mut block);
        while let Some(found) = entries.next() {
            let found = found?;
            let name = found.file_name().to_bytes();
            let length = DIRENT + name.len().next_multiple_of(8) + if plus { ENTRY } else { 0 };
            if reply.0.len() + length > end {
                break;
            }
            // What is above is the guest's to know.
            let parent = matches!(name, b"." | b"..");
            if plus && !self.plus(parent, &node.fd, name, reply)? {
                continue;
            }
            reply.u64(if parent { node.key.1 } else { found.ino() });
            reply.u64(found.next_entry_cookie());
            reply.u32(u32::try_from(name.len()).expect("names are short"));
            reply.u32(found.file_type().as_raw_mode() >> 12);
            reply.bytes(name);
            reply.0.resize(reply.0.len().next_multiple_of(8), 0);
        }
        Ok(())
    }

    /// An entry's file; `false` when the entry is gone meanwhile.
    fn plus(&self, parent: bool, directory: &OwnedFd, name: &[u8], reply: &mut Reply<'_>) -> Result<bool, Errno> {
        if parent {
            // Without a number: the guest does not learn of it.
            entry(reply, 0, &stat(directory)?);
            return Ok(true);
        }
        match find(directory, name).and_then(|fd| self.tell(fd)) {
            Ok((number, stat)) => entry(reply, number, &stat),
            Err(Errno::NOENT) => return Ok(false),
            // It is there, and cannot be known now: it is looked up when it is wanted.
            Err(_) => reply.bytes(&[0; ENTRY]),
        }
        Ok(true)
    }

    pub(crate) fn fsyncdir(&self, arguments: &mut Arguments<'_>) -> Result<(), Errno> {
        let handle = self.table.handle(arguments.u64()?)?;
        let Handle::Directory(directory) = &*handle else {
            return Err(Errno::NOTDIR);
        };
        fsync(&*directory.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
