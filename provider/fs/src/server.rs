//! The conversation: a few threads that read a request each, do it, and answer. A message that is none ends it, as the device on the other
//! side never sends one; so does the end of the stream, which is the machine's end.

use std::{
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use rustix::io::Errno;

use crate::{
    attributes,
    table::Table,
    wire::{Arguments, HEADER, Header, MAX_IO, MAX_REQUEST, REPLY, Reply},
};

/// The protocol's version: 7, and the last of its changes that is known here.
const VERSION: (u32, u32) = (7, 38);
/// ASYNC_READ, ATOMIC_O_TRUNC, BIG_WRITES, AUTO_INVAL_DATA, DO_READDIRPLUS, READDIRPLUS_AUTO, ASYNC_DIO, PARALLEL_DIROPS, MAX_PAGES.
const FEATURES: u32 = 1 | 1 << 3 | 1 << 5 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 18 | 1 << 22;
/// Requests that the guest may have under way in the background.
const BACKGROUND: u16 = 64;

/// How much one guest may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Files that it knows: a descriptor each.
    pub nodes: usize,
    /// Files that it has open: a descriptor each.
    pub handles: usize,
    /// Threads that serve it.
    pub threads: usize,
}

/// Why a directory is not served any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The directory cannot be looked at.
    #[error("look at the shared directory")]
    Root(#[source] io::Error),
    /// The socket failed.
    #[error("talk with the machine")]
    Socket(#[source] io::Error),
    /// A message that no device sends.
    #[error("the machine sent a message of {0} bytes")]
    Message(usize),
    /// The host gave no thread.
    #[error("start a thread")]
    Thread(#[source] io::Error),
}

/// A directory, served.
#[derive(Debug)]
pub struct Server {
    pub(crate) table: Table,
    /// Directory of this process's open descriptors, by which what is named can be opened; a mount of its own, with nothing above.
    pub(crate) descriptors: OwnedFd,
    pub(crate) read_only: bool,
    limits: Limits,
    reading: Mutex<UnixStream>,
    writing: Mutex<UnixStream>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Serves `root` (opened with O_PATH). `descriptors` is `/proc/self/fd`.
    pub fn new(root: OwnedFd, descriptors: OwnedFd, read_only: bool, limits: Limits, socket: UnixStream) -> Result<Self, ServeError> {
        let root = attributes::node(root).map_err(|error| ServeError::Root(error.into()))?;
        let writing = socket.try_clone().map_err(ServeError::Socket)?;
        Ok(Self {
            table: Table::new(root, limits.nodes, limits.handles),
            descriptors,
            read_only,
            limits,
            reading: Mutex::new(socket),
            writing: Mutex::new(writing),
        })
    }

    /// Serves until the other side closes the socket. Files are created with exactly the mode that the guest says: the caller's umask
    /// must be 0.
    pub fn serve(&self) -> Result<(), ServeError> {
        thread::scope(|scope| {
            let mut threads = Vec::new();
            for number in 0..self.limits.threads {
                let builder = thread::Builder::new().name(format!("fs{number}")).stack_size(256 << 10);
                let thread = builder.spawn_scoped(scope, || {
                    // One that gives up takes the others with it.
                    self.work()
                        .inspect_err(|_| drop(lock(&self.writing).shutdown(std::net::Shutdown::Both)))
                });
                threads.push(thread.map_err(ServeError::Thread).inspect_err(|_| {
                    let _ = lock(&self.writing).shutdown(std::net::Shutdown::Both);
                })?);
            }
            let ends = threads.into_iter().map(|thread| match thread.join() {
                Ok(end) => end,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            // All are joined before the first error is given.
            ends.collect::<Vec<_>>().into_iter().collect()
        })
    }

    fn work(&self) -> Result<(), ServeError> {
        let (mut request, mut reply) = (Vec::new(), Vec::new());
        while self.next(&mut request)? {
            self.answer(&request, &mut reply);
            lock(&self.writing).write_all(&reply).map_err(ServeError::Socket)?;
        }
        Ok(())
    }

    /// Reads the next request that is answered; `false` at the end of the stream. What the guest forgets is forgotten before another thread
    /// reads what it asks next, which may need the room.
    fn next(&self, request: &mut Vec<u8>) -> Result<bool, ServeError> {
        let mut stream = lock(&self.reading);
        while Self::read(&mut stream, request)? {
            let mut arguments = Arguments(request);
            let header = Header::read(&mut arguments).expect("a request has a header");
            // Whatever these say, nobody waits for an answer.
            let _ = match header.opcode {
                2 => arguments.u64().map(|times| self.table.forget(header.node, times)),
                42 => self.forget_many(&mut arguments),
                _ => return Ok(true),
            };
        }
        Ok(false)
    }

    /// Reads a whole request; `false` at the end of the stream.
    fn read(stream: &mut UnixStream, request: &mut Vec<u8>) -> Result<bool, ServeError> {
        let mut length = [0; 4];
        match stream.read_exact(&mut length) {
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => return Ok(false),
            other => other.map_err(ServeError::Socket)?,
        }
        let size = u32::from_le_bytes(length) as usize;
        if !(HEADER..=MAX_REQUEST).contains(&size) {
            return Err(ServeError::Message(size));
        }
        request.clear();
        request.extend_from_slice(&length);
        request.resize(size, 0);
        match stream.read_exact(&mut request[4..]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => Ok(false),
            other => other.map(|()| true).map_err(ServeError::Socket),
        }
    }

    /// Does what a request asks.
    fn answer(&self, request: &[u8], reply: &mut Vec<u8>) {
        let mut arguments = Arguments(request);
        let header = Header::read(&mut arguments).expect("a request has a header");
        reply.clear();
        reply.resize(REPLY, 0);
        let error = match self.act(&header, &mut arguments, &mut Reply(reply)) {
            Ok(()) => 0,
            Err(error) => {
                reply.truncate(REPLY);
                -error.raw_os_error()
            }
        };
        let length = u32::try_from(reply.len()).expect("answers are bounded");
        reply[..4].copy_from_slice(&length.to_le_bytes());
        reply[4..8].copy_from_slice(&error.to_le_bytes());
        reply[8..16].copy_from_slice(&header.unique.to_le_bytes());
    }

    fn act(&self, header: &Header, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        match header.opcode {
            1 => self.lookup(header, arguments, reply),
            3 => self.getattr(header, reply),
            4 => self.setattr(header, arguments, reply),
            5 => self.readlink(header, reply),
            6 => self.symlink(header, arguments, reply),
            8 => self.mknod(header, arguments, reply),
            9 => self.mkdir(header, arguments, reply),
            10 => self.unlink(header, arguments, false),
            11 => self.unlink(header, arguments, true),
            12 => self.rename(header, arguments, false),
            13 => self.link(header, arguments, reply),
            14 => self.open(header, arguments, reply),
            15 => self.read_file(arguments, reply),
            16 => self.write_file(arguments, reply),
            17 => self.statfs(header, reply),
            18 | 29 => self.table.close(arguments.u64()?),
            20 => self.fsync(arguments),
            21 => self.setxattr(header, arguments),
            22 => self.getxattr(header, arguments, reply),
            23 => self.listxattr(header, arguments, reply),
            24 => self.removexattr(header, arguments),
            // What is written is with the kernel already.
            25 => Ok(()),
            26 => self.init(arguments, reply),
            27 => self.opendir(header, reply),
            28 => self.readdir(header, arguments, reply, false),
            30 => self.fsyncdir(arguments),
            35 => self.create(header, arguments, reply),
            38 => {
                self.table.clear();
                Ok(())
            }
            43 => self.fallocate(arguments),
            44 => self.readdir(header, arguments, reply, true),
            45 => self.rename(header, arguments, true),
            46 => self.lseek(arguments, reply),
            47 => self.copy_file_range(arguments, reply),
            // The guest's kernel does without, or does it itself.
            _ => Err(Errno::NOSYS),
        }
    }

    /// A guest may begin anew: it knows nothing then.
    fn init(&self, arguments: &mut Arguments<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let (major, _minor, readahead, offered) = (arguments.u32()?, arguments.u32()?, arguments.u32()?, arguments.u32()?);
        if major < VERSION.0 {
            return Err(Errno::PROTO);
        }
        self.table.clear();
        reply.u32(VERSION.0);
        reply.u32(VERSION.1);
        reply.u32(readahead);
        reply.u32(offered & FEATURES);
        reply.u16(BACKGROUND);
        reply.u16(BACKGROUND / 4 * 3);
        reply.u32(MAX_IO as u32);
        // Times are exact to the nanosecond.
        reply.u32(1);
        reply.u16((MAX_IO / 4096) as u16);
        reply.u16(0);
        reply.bytes(&[0; 32]);
        Ok(())
    }

    fn forget_many(&self, arguments: &mut Arguments<'_>) -> Result<(), Errno> {
        let count = arguments.u32()?;
        arguments.skip(4)?;
        for _ in 0..count {
            let number = arguments.u64()?;
            self.table.forget(number, arguments.u64()?);
        }
        Ok(())
    }

    /// Refuses to change anything where nothing may be changed. The mount refuses it, too.
    pub(crate) fn writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }
}
