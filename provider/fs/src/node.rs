//! Names: found, made, moved, taken away. Each is one component in a directory that is open.

use std::{os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Statx, linkat, mkdirat, mknodat, openat2, readlinkat, renameat_with,
        symlinkat, unlinkat,
    },
    io::Errno,
};

use crate::{
    attributes::{self, entry, stat},
    owner::Acting,
    server::Server,
    wire::{Arguments, Header, Reply},
};

/// Nowhere but into the directory: no link is followed.
const WITHIN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// A file by its name in a directory, as it is: a link is the link.
pub(crate) fn find(directory: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(directory, path(name), flags, Mode::empty(), WITHIN)
}

/// A new plain file, opened; an error where there is something of the name.
pub(crate) fn make(directory: &OwnedFd, name: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(directory, path(name), flags, mode, WITHIN)
}

fn path(name: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(name))
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

impl Server {
    /// Tells the guest of a file, by a number that it has from here on.
    pub(crate) fn tell(&self, fd: OwnedFd) -> Result<(u64, Statx), Errno> {
        let stat = stat(&fd)?;
        Ok((self.table.learn(attributes::of(fd, &stat))?, stat))
    }

    fn tell_of(&self, directory: &OwnedFd, name: &[u8], reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (number, stat) = self.tell(find(directory, name)?)?;
        entry(reply, number, &stat);
        Ok(())
    }

    pub(crate) fn lookup(&self, header: &Header, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let directory = self.table.node(header.node)?;
        self.tell_of(&directory.fd, arguments.name()?, reply)
    }

    pub(crate) fn readlink(&self, header: &Header, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let target = readlinkat(&self.table.node(header.node)?.fd, "", Vec::new())?;
        reply.bytes(target.as_bytes());
        Ok(())
    }

    pub(crate) fn symlink(&self, header: &Header, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        self.writable()?;
        let directory = self.table.node(header.node)?;
        let (name, target) = (arguments.name()?, arguments.text()?);
        {
            let _owner = Acting::as_user(header.uid, header.gid)?;
            symlinkat(path(target), &directory.fd, path(name))?;
        }
        self.tell_of(&directory.fd, name, reply)
    }

    /// Plain files, pipes and sockets; a device would be the host's.
    pub(crate) fn mknod(&self, header: &Header, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        self.writable()?;
        let directory = self.table.node(header.node)?;
        let mode = arguments.u32()?;
        arguments.skip(12)?;
        let name = arguments.name()?;
        let kind = match FileType::from_raw_mode(mode) {
            kind @ (FileType::RegularFile | FileType::Fifo | FileType::Socket) => kind,
            _ => return Err(Errno::PERM),
        };
        {
            let _owner = Acting::as_user(header.uid, header.gid)?;
            mknodat(&directory.fd, path(name), kind, permissions(mode), 0)?;
        }
        self.tell_of(&directory.fd, name, reply)
    }

    pub(crate) fn mkdir(&self, header: &Header, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        self.writable()?;
        let directory = self.table.node(header.node)?;
        let mode = arguments.u32()?;
        arguments.skip(4)?;
        let name = arguments.name()?;
        {
            let _owner = Acting::as_user(header.uid, header.gid)?;
            mkdirat(&directory.fd, path(name), permissions(mode))?;
        }
        self.tell_of(&directory.fd, name, reply)
    }

    pub(crate) fn unlink(&self, header: &Header, arguments: &mut Arguments<'_>, directory: bool) -> Result<(), Errno> {
        self.writable()?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        unlinkat(&self.table.node(header.node)?.fd, path(arguments.name()?), flags)
    }

    /// FUSE_RENAME, and FUSE_RENAME2 `with_flags`. The kind that leaves a device behind (RENAME_WHITEOUT) is refused.
    pub(crate) fn rename(&self, header: &Header, arguments: &mut Arguments<'_>, with_flags: bool) -> Result<(), Errno> {
        self.writable()?;
        let from = self.table.node(header.node)?;
        let to = self.table.node(arguments.u64()?)?;
        let mut flags = RenameFlags::empty();
        if with_flags {
            flags = RenameFlags::from_bits_retain(arguments.u32()?);
            arguments.skip(4)?;
        }
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let (old, new) = (arguments.name()?, arguments.name()?);
        renameat_with(&from.fd, path(old), &to.fd, path(new), flags)
    }

    pub(crate) fn link(&self, header: &Header, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        self.writable()?;
        let directory = self.table.node(header.node)?;
        let file = self.table.node(arguments.u64()?)?;
        let name = arguments.name()?;
        linkat(&file.fd, "", &directory.fd, path(name), AtFlags::EMPTY_PATH)?;
        self.tell_of(&directory.fd, name, reply)
    }
}
