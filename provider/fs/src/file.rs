//! The content of plain files, and their extended attributes. Nothing else is ever opened: a pipe could hold a thread, a device is the host's.

use std::{fs::File, os::fd::OwnedFd};

use rustix::{
    fs::{
        FallocateFlags, FileType, Mode, OFlags, SeekFrom, XattrFlags, copy_file_range, fallocate, fdatasync, fgetxattr, flistxattr,
        fremovexattr, fsetxattr, fsync, openat, seek,
    },
    io::{Errno, pread, pwrite},
};

use crate::{
    attributes::{entry, name},
    node::{find, make},
    owner::Acting,
    server::Server,
    table::{Handle, Node},
    wire::{Arguments, Header, MAX_IO, Reply},
};

/// What a guest may say about how a file is opened; the rest is its own kernel's affair.
const OPEN: OFlags = OFlags::RDONLY
    .union(OFlags::WRONLY)
    .union(OFlags::RDWR)
    .union(OFlags::APPEND)
    .union(OFlags::TRUNC)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC);
/// The one name space of attributes that are the file's users' own. The others mean something to the host.
const USER: &[u8] = b"user.";
/// Longest value or list of attributes that Linux has.
const MAX_XATTR: usize = 64 << 10;

fn flags(raw: u32) -> OFlags {
    OFlags::from_bits_retain(raw) & OPEN
}

fn writes(flags: OFlags) -> bool {
    flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC)
}

impl Server {
    /// Opens the content of what the guest knows.
    pub(crate) fn reopen(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, Errno> {
        match node.kind {
            FileType::RegularFile => {}
            FileType::Directory if !writes(flags) => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::NXIO),
        }
        openat(&self.descriptors, name(&node.fd), flags | OFlags::CLOEXEC, Mode::empty())
    }

    pub(crate) fn open(&self, header: &Header, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let node = self.table.node(header.node)?;
        let flags = flags(arguments.u32()?);
        if writes(flags) {
            self.writable()?;
        }
        if node.kind == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        let file = File::from(self.reopen(&node, flags)?);
        reply.opened(self.table.open(Handle::File(file))?);
        Ok(())
    }

    pub(crate) fn create(&self, header: &Header, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        self.writable()?;
        let directory = self.table.node(header.node)?;
        let (raw, mode) = (arguments.u32()?, arguments.u32()?);
        arguments.skip(8)?;
        let name = arguments.name()?;
        let flags = flags(raw);
        let made = {
            let _owner = Acting::as_user(header.uid, header.gid)?;
            make(&directory.fd, name, flags, Mode::from_raw_mode(mode & 0o7777))
        };
        let exclusive = OFlags::from_bits_retain(raw).contains(OFlags::EXCL);
        let (number, stat, file) = match made {
            Ok(file) => {
                // The name may be another's by now; the file is the one that was made.
                let known = openat(
                    &self.descriptors,
                    crate::attributes::name(&file),
                    OFlags::PATH | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                let (number, stat) = self.tell(known)?;
                (number, stat, file)
            }
            // Somebody else was faster.
            Err(Errno::EXIST) if !exclusive => {
                let (number, stat) = self.tell(find(&directory.fd, name)?)?;
                let node = self.table.node(number)?;
                let opened = match node.kind {
                    FileType::RegularFile => self.reopen(&node, flags),
                    _ => Err(Errno::EXIST),
                };
                (number, stat, opened.inspect_err(|_| self.table.forget(number, 1))?)
            }
            Err(error) => return Err(error),
        };
        let handle = self.table.open(Handle::File(file.into()));
        let handle = handle.inspect_err(|_| self.table.forget(number, 1))?;
        entry(reply, number, &stat);
        reply.opened(handle);
        Ok(())
    }

    pub(crate) fn read_file(&self, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (handle, offset, size) = (self.table.handle(arguments.u64()?)?, arguments.u64()?, arguments.u32()?);
        let Handle::File(file) = &*handle else { return Err(Errno::ISDIR) };
        let start = reply.0.len();
        reply.0.resize(start + (size as usize).min(MAX_IO), 0);
        let mut done = start;
        while done < reply.0.len() {
            match pread(file, &mut reply.0[done..], offset + (done - start) as u64) {
                Ok(0) => break,
                Ok(got) => done += got,
                Err(Errno::INTR) => {}
                // What was read before is an answer.
                Err(_) if done > start => break,
                Err(error) => return Err(error),
            }
        }
        reply.0.truncate(done);
        Ok(())
    }

    pub(crate) fn write_file(&self, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (handle, offset, size) = (self.table.handle(arguments.u64()?)?, arguments.u64()?, arguments.u32()?);
        arguments.skip(20)?;
        let Handle::File(file) = &*handle else { return Err(Errno::BADF) };
        let data = arguments.bytes(size as usize)?;
        let written = loop {
            match pwrite(file, data, offset) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        reply.count(written)
    }

    pub(crate) fn fsync(&self, arguments: &mut Arguments<'_>) -> Result<(), Errno> {
        let (handle, flags) = (self.table.handle(arguments.u64()?)?, arguments.u32()?);
        let Handle::File(file) = &*handle else { return Err(Errno::BADF) };
        if flags & 1 != 0 { fdatasync(file) } else { fsync(file) }
    }

    pub(crate) fn fallocate(&self, arguments: &mut Arguments<'_>) -> Result<(), Errno> {
        self.writable()?;
        let (handle, offset, length) = (self.table.handle(arguments.u64()?)?, arguments.u64()?, arguments.u64()?);
        let Handle::File(file) = &*handle else { return Err(Errno::BADF) };
        fallocate(file, FallocateFlags::from_bits_retain(arguments.u32()?), offset, length)
    }

    /// Only for data and holes; places are the guest's own.
    pub(crate) fn lseek(&self, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (handle, offset) = (self.table.handle(arguments.u64()?)?, arguments.u64()?);
        let Handle::File(file) = &*handle else { return Err(Errno::BADF) };
        let whence = match arguments.u32()? {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        reply.u64(seek(file, whence)?);
        Ok(())
    }

    pub(crate) fn copy_file_range(&self, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        self.writable()?;
        let (from, mut at) = (self.table.handle(arguments.u64()?)?, arguments.u64()?);
        arguments.skip(8)?;
        let (to, mut place) = (self.table.handle(arguments.u64()?)?, arguments.u64()?);
        let length = usize::try_from(arguments.u64()?).map_err(|_| Errno::INVAL)?;
        let (Handle::File(from), Handle::File(to)) = (&*from, &*to) else {
            return Err(Errno::BADF);
        };
        // In pieces: a thread is not held for as long as a guest likes.
        reply.count(copy_file_range(from, Some(&mut at), to, Some(&mut place), length.min(64 << 20))?)
    }

    /// A file whose attributes are read or changed.
    fn attributed(&self, header: &Header) -> Result<OwnedFd, Errno> {
        let node = self.table.node(header.node)?;
        match node.kind {
            FileType::RegularFile | FileType::Directory => self.reopen(&node, OFlags::RDONLY),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    pub(crate) fn setxattr(&self, header: &Header, arguments: &mut Arguments<'_>) -> Result<(), Errno> {
        self.writable()?;
        let (size, flags) = (arguments.u32()?, arguments.u32()?);
        let name = user(arguments.text()?)?;
        let value = arguments.bytes(size as usize)?;
        fsetxattr(self.attributed(header)?, name, value, XattrFlags::from_bits_retain(flags))
    }

    pub(crate) fn getxattr(&self, header: &Header, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let size = arguments.u32()?;
        arguments.skip(4)?;
        let name = user(arguments.text()?)?;
        let mut value = vec![0; MAX_XATTR];
        let length = fgetxattr(self.attributed(header)?, name, &mut value[..])?;
        sized(reply, size, &value[..length])
    }

    pub(crate) fn listxattr(&self, header: &Header, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let size = arguments.u32()?;
        arguments.skip(4)?;
        let mut list = vec![0; MAX_XATTR];
        let length = flistxattr(self.attributed(header)?, &mut list[..])?;
        let names = list[..length].split_inclusive(|byte| *byte == 0);
        let names: Vec<u8> = names.filter(|name| name.starts_with(USER)).flatten().copied().collect();
        sized(reply, size, &names)
    }

    pub(crate) fn removexattr(&self, header: &Header, arguments: &mut Arguments<'_>) -> Result<(), Errno> {
        self.writable()?;
        fremovexattr(self.attributed(header)?, user(arguments.text()?)?)
    }
}

fn user(name: &[u8]) -> Result<&[u8], Errno> {
    if name.starts_with(USER) { Ok(name) } else { Err(Errno::OPNOTSUPP) }
}

/// The value, or its length where no room is offered.
fn sized(reply: &mut Reply<'_>, room: u32, value: &[u8]) -> Result<(), Errno> {
    if room == 0 {
        return reply.count(value.len());
    }
    if value.len() > room as usize {
        return Err(Errno::RANGE);
    }
    reply.bytes(value);
    Ok(())
}
