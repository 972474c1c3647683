//! A ring of the kernel's (io_uring) for one disk, which can do four things to the files that were given to it at its beginning, and nothing else:
//! what is asked for through it passes no system call filter, so the kernel is told first what it may be asked for
//! (`IORING_REGISTER_RESTRICTIONS`), before the ring is enabled, and can never be told otherwise.
//!
//! Requests go together and are waited for together: when a call returns, the kernel has nothing of it left.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};

use super::extents::Direction;
use crate::spec::RING_WORKERS;

/// Most requests at a time.
pub(super) const DEPTH: usize = 32;
/// Most threads of the kernel's for it: for files, and for what may wait for ever, of which there is nothing here.
const WORKERS: [u32; 2] = [RING_WORKERS - 1, 1];
/// All that the kernel will do for a disk.
const ALLOWED: [u8; 4] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// One request, to a file by its number.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request<'r> {
    /// Between memory and the file; answers how many bytes were moved.
    Move {
        direction: Direction,
        file: u32,
        memory: &'r [libc::iovec],
        offset: u64,
    },
    /// Makes what was written last.
    Sync { file: u32 },
    /// fallocate(2).
    Allocate { file: u32, mode: i32, offset: u64, length: u64 },
}

/// The ring.
pub(super) struct Uring {
    ring: IoUring,
    /// The kernel would not take any more.
    broken: bool,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Uring(broken: {})", self.broken)
    }
}

impl Uring {
    /// Makes one for these files; the error names the step that this kernel does not know or does not allow.
    pub(super) fn new<'f>(files: impl Iterator<Item = &'f File>) -> Result<Self, (&'static str, io::Error)> {
        let step = |what: &'static str| move |error| (what, error);
        let ring = IoUring::builder().setup_r_disabled().build(DEPTH as u32);
        let ring = ring.map_err(step("make a ring (io_uring_setup, Linux 5.10; kernel.io_uring_disabled)"))?;
        // The kernel's own threads for it count as this process's; before Linux 5.15 nobody can say how many.
        let _ = ring.submitter().register_iowq_max_workers(&mut WORKERS.clone());
        let files: Vec<_> = files.map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&files).map_err(step("give the ring its files"))?;
        let fixed = Flags::FIXED_FILE.bits();
        let mut restrictions: Vec<_> = ALLOWED.into_iter().map(Restriction::sqe_op).collect();
        restrictions.extend([Restriction::sqe_flags_allowed(fixed), Restriction::sqe_flags_required(fixed)]);
        let restricted = ring.submitter().register_restrictions(&mut restrictions);
        restricted.map_err(step("restrict the ring (IORING_REGISTER_RESTRICTIONS)"))?;
        ring.submitter().register_enable_rings().map_err(step("enable the ring"))?;
        Ok(Self { ring, broken: false })
    }

    /// Carries out up to [`DEPTH`] requests; their results in order.
    pub(super) fn run(&mut self, requests: &[Request<'_>]) -> io::Result<Vec<io::Result<usize>>> {
        let entries: Vec<_> = requests.iter().map(entry).collect();
        self.run_entries(&entries)
    }

    /// Of entries that name memory, all of it is there until this returns: see [`Request`], which alone makes them.
    fn run_entries(&mut self, entries: &[Entry]) -> io::Result<Vec<io::Result<usize>>> {
        if self.broken || entries.len() > DEPTH {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        for (index, entry) in entries.iter().enumerate() {
            let entry = entry.clone().user_data(index as u64);
            // SAFETY: what the entry names (iovecs, and the memory in them: guest memory that its VolatileSlice keeps mapped, or a static that is
            // only read) is borrowed by the caller until this function returns, which is when the kernel has answered or refused each of them.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            pushed.expect("the queue is empty between two calls, and as long as this");
        }
        let (mut results, mut done) = (entries.iter().map(|_| None).collect::<Vec<_>>(), 0);
        let mut failed = None;
        while done < entries.len() {
            if failed.is_none()
                && let Err(error) = self.ring.submit_and_wait(entries.len() - done)
                && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
            {
                failed = Some(error);
                self.broken = true;
            }
            for answer in self.ring.completion() {
                let result = usize::try_from(answer.result()).map_err(|_| io::Error::from_raw_os_error(-answer.result()));
                if let Some(place) = results.get_mut(answer.user_data() as usize) {
                    done += usize::from(place.replace(result).is_none());
                }
            }
            if failed.is_some() {
                // What it took comes back without its being asked; what it did not take never goes, as nobody calls it again.
                if done + self.ring.submission().len() >= entries.len() {
                    break;
                }
                std::thread::yield_now();
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(results.into_iter().flatten().collect()),
        }
    }
}

fn entry(request: &Request<'_>) -> Entry {
    match *request {
        Request::Move {
            direction,
            file,
            memory,
            offset,
        } => {
            let (first, count) = (memory.as_ptr(), memory.len() as u32);
            match direction {
                Direction::FromDisk => opcode::Readv::new(Fixed(file), first, count).offset(offset).build(),
                Direction::ToDisk => opcode::Writev::new(Fixed(file), first, count).offset(offset).build(),
            }
        }
        Request::Sync { file } => opcode::Fsync::new(Fixed(file)).flags(FsyncFlags::DATASYNC).build(),
        Request::Allocate {
            file,
            mode,
            offset,
            length,
        } => opcode::Fallocate::new(Fixed(file), length).offset(offset).mode(mode).build(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use io_uring::types::Fd;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn refused(ring: &mut Uring, entry: Entry) -> bool {
        let results = ring.run_entries(&[entry]).expect("the ring works");
        matches!(&results[..], [Err(error)] if error.raw_os_error() == Some(libc::EACCES))
    }

    #[test]
    fn a_ring_does_four_things_to_its_files_and_nothing_else() {
        let (one, other) = (file(&[1; 4096]), file(&[2; 4096]));
        let mut ring = Uring::new([&one].into_iter()).expect("this kernel has rings");
        let mut bytes = [0u8; 16];
        let memory = [libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        }];
        let (first, length) = (memory.as_ptr(), 16);
        let read = opcode::Readv::new(Fixed(0), first, 1).build();
        assert_eq!(ring.run_entries(&[read]).unwrap().remove(0).unwrap(), 16);
        assert_eq!(bytes, [1; 16]);
        let path = c"/dev/null".as_ptr();
        for entry in [
            // A file that is not its own, open in this process.
            opcode::Readv::new(Fd(other.as_raw_fd()), first, 1).build(),
            opcode::Writev::new(Fd(other.as_raw_fd()), first, 1).build(),
            // Other operations.
            opcode::Nop::new().build(),
            opcode::Read::new(Fixed(0), bytes.as_mut_ptr(), length).build(),
            opcode::OpenAt::new(Fd(libc::AT_FDCWD), path).build(),
            opcode::OpenAt::new(Fd(libc::AT_FDCWD), path).build().flags(Flags::FIXED_FILE),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0)
                .build()
                .flags(Flags::FIXED_FILE),
            opcode::Close::new(Fd(other.as_raw_fd())).build(),
            // Flags that chain requests.
            opcode::Readv::new(Fixed(0), first, 1).build().flags(Flags::ASYNC),
        ] {
            assert!(refused(&mut ring, entry.clone()), "{entry:?}");
        }
        let mut more = [Restriction::sqe_op(opcode::OpenAt::CODE)];
        for registered in [
            ring.ring.submitter().register_restrictions(&mut more),
            ring.ring.submitter().register_files_update(0, &[other.as_raw_fd()]).map(drop),
            ring.ring.submitter().unregister_files(),
        ] {
            let error = registered.expect_err("nothing is registered any more").raw_os_error();
            assert!(matches!(error, Some(libc::EACCES | libc::EBADFD)), "{error:?}");
        }
    }

    #[test]
    fn results_come_in_the_order_of_requests_whatever_fails_among_them() {
        let (one, other) = (file(&[1; 4096]), File::open("/dev/null").unwrap());
        let mut ring = Uring::new([&one, &other].into_iter()).expect("this kernel has rings");
        let sync = |file| Request::Sync { file };
        let requests: Vec<_> = (0..DEPTH as u32).map(|index| sync(index % 3)).collect();
        let results = ring.run(&requests).expect("the ring works");
        for (index, result) in results.iter().enumerate() {
            let error = result.as_ref().err().and_then(io::Error::raw_os_error);
            // A file, something that cannot be synced, and no file at all.
            assert_eq!(error, [None, Some(libc::EINVAL), Some(libc::EBADF)][index % 3], "{index}");
        }
        let hole = Request::Allocate {
            file: 0,
            mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            offset: 0,
            length: 4096,
        };
        assert!(ring.run(&[hole]).expect("the ring works").remove(0).is_ok());
        let mut bytes = [9; 8];
        one.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 8]);
    }
}
