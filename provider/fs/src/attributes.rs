//! Files as FUSE describes them, and what can be changed of that.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, Statx, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, chmodat, chownat, fstatvfs,
        ftruncate, statx, utimensat,
    },
    io::Errno,
};

use crate::{
    server::Server,
    table::{Handle, Node},
    wire::{Arguments, Header, Reply},
};

/// How long a guest believes what it was told, nanoseconds: others change the same files, and shall not be missed for long.
const BELIEVED: u32 = 100_000_000;

const FLAGS: AtFlags = AtFlags::EMPTY_PATH.union(AtFlags::SYMLINK_NOFOLLOW).union(AtFlags::NO_AUTOMOUNT);

/// What the kernel says of an open file.
pub(crate) fn stat(fd: impl AsFd) -> Result<Statx, Errno> {
    statx(fd, "", FLAGS, StatxFlags::BASIC_STATS)
}

/// A file as the table keeps it.
pub(crate) fn node(fd: OwnedFd) -> Result<Node, Errno> {
    let stat = stat(&fd)?;
    Ok(of(fd, &stat))
}

pub(crate) fn of(fd: OwnedFd, stat: &Statx) -> Node {
    Node {
        fd,
        kind: FileType::from_raw_mode(stat.stx_mode.into()),
        key: (u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor), stat.stx_ino),
    }
}

/// `struct fuse_attr`.
fn write(reply: &mut Reply<'_>, stat: &Statx) {
    for value in [stat.stx_ino, stat.stx_size, stat.stx_blocks] {
        reply.u64(value);
    }
    let times = [stat.stx_atime, stat.stx_mtime, stat.stx_ctime];
    for time in times {
        reply.u64(time.tv_sec.cast_unsigned());
    }
    for time in times {
        reply.u32(time.tv_nsec);
    }
    // Device numbers are the guest's to make up: no device is served.
    for value in [
        stat.stx_mode.into(),
        stat.stx_nlink,
        stat.stx_uid,
        stat.stx_gid,
        0,
        stat.stx_blksize,
        0,
    ] {
        reply.u32(value);
    }
}

/// `struct fuse_entry_out`: a file by its number.
pub(crate) fn entry(reply: &mut Reply<'_>, number: u64, stat: &Statx) {
    for value in [number, 0, 0, 0] {
        reply.u64(value);
    }
    reply.u32(BELIEVED);
    reply.u32(BELIEVED);
    write(reply, stat);
}

/// `struct fuse_attr_out`.
fn attributes(reply: &mut Reply<'_>, stat: &Statx) {
    reply.u64(0);
    reply.u32(BELIEVED);
    reply.u32(0);
    write(reply, stat);
}

/// What FUSE_SETATTR sets, bit by bit.
const MODE: u32 = 1;
const UID: u32 = 1 << 1;
const GID: u32 = 1 << 2;
const SIZE: u32 = 1 << 3;
const ATIME: u32 = 1 << 4;
const MTIME: u32 = 1 << 5;
const HANDLE: u32 = 1 << 6;
const ATIME_NOW: u32 = 1 << 7;
const MTIME_NOW: u32 = 1 << 8;

impl Server {
    pub(crate) fn getattr(&self, header: &Header, reply: &mut Reply<'_>) -> Result<(), Errno> {
        attributes(reply, &stat(&self.table.node(header.node)?.fd)?);
        Ok(())
    }

    pub(crate) fn setattr(&self, header: &Header, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        self.writable()?;
        let node = self.table.node(header.node)?;
        let valid = arguments.u32()?;
        arguments.skip(4)?;
        let (handle, size) = (arguments.u64()?, arguments.u64()?);
        arguments.skip(8)?;
        let seconds = [arguments.u64()?, arguments.u64()?, arguments.u64()?];
        let nanoseconds = [arguments.u32()?, arguments.u32()?, arguments.u32()?];
        let mode = arguments.u32()?;
        arguments.skip(4)?;
        let (uid, gid) = (arguments.u32()?, arguments.u32()?);
        let has = |bit: u32| valid & bit != 0;
        // The owner first: a change of it takes the set-user-id bits away that the mode may bring.
        if has(UID | GID) {
            let none = |id: u32| if id == u32::MAX { Err(Errno::INVAL) } else { Ok(id) };
            let uid = has(UID).then(|| none(uid)).transpose()?.map(Uid::from_raw);
            let gid = has(GID).then(|| none(gid)).transpose()?.map(Gid::from_raw);
            chownat(&node.fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if has(MODE) {
            if node.kind == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            let mode = Mode::from_raw_mode(mode & 0o7777);
            chmodat(&self.descriptors, name(&node.fd), mode, AtFlags::empty())?;
        }
        if has(SIZE) {
            match has(HANDLE).then(|| self.table.handle(handle)).transpose()?.as_deref() {
                Some(Handle::File(file)) => ftruncate(file, size)?,
                Some(Handle::Directory(_)) => return Err(Errno::ISDIR),
                None => ftruncate(self.reopen(&node, rustix::fs::OFlags::WRONLY)?, size)?,
            }
        }
        if has(ATIME | MTIME) {
            let time = |set: bool, now: bool, index: usize| Timespec {
                tv_sec: if set { seconds[index].cast_signed() } else { 0 },
                tv_nsec: match (set, now) {
                    (false, _) => UTIME_OMIT,
                    (true, true) => UTIME_NOW,
                    (true, false) => nanoseconds[index].min(999_999_999).into(),
                },
            };
            let times = Timestamps {
                last_access: time(has(ATIME), has(ATIME_NOW), 0),
                last_modification: time(has(MTIME), has(MTIME_NOW), 1),
            };
            utimensat(&node.fd, "", &times, AtFlags::EMPTY_PATH)?;
        }
        attributes(reply, &stat(&node.fd)?);
        Ok(())
    }

    /// `struct fuse_kstatfs`.
    pub(crate) fn statfs(&self, header: &Header, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let all = fstatvfs(&self.table.node(header.node)?.fd)?;
        for value in [all.f_blocks, all.f_bfree, all.f_bavail, all.f_files, all.f_ffree] {
            reply.u64(value);
        }
        for value in [all.f_bsize, all.f_namemax, all.f_frsize, 0] {
            reply.u32(u32::try_from(value).unwrap_or(u32::MAX));
        }
        reply.bytes(&[0; 24]);
        Ok(())
    }
}

/// A descriptor's name in the directory of descriptors.
pub(crate) fn name(fd: &OwnedFd) -> String {
    fd.as_raw_fd().to_string()
}
