//! Reads and writes the guest's first disk past its page cache, for a given time.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use kvmlet_load::{Access, Done};
use rustix::fs::OFlags;

const DISK: &str = "/dev/vda";
/// What O_DIRECT wants of a buffer's address.
const ALIGNMENT: usize = 4096;

pub(crate) fn run(access: &Access) -> io::Result<Done> {
    let mut disk = OpenOptions::new()
        .read(true)
        .write(access.write)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(DISK)?;
    let blocks = disk.seek(SeekFrom::End(0))? / access.block as u64;
    if blocks == 0 {
        return Err(io::Error::other("the disk is smaller than a transfer"));
    }
    let next = AtomicU64::new(0);
    let begun = Instant::now();
    let transfers = thread::scope(|scope| {
        let threads: Vec<_> = (1..=access.threads as u64)
            .map(|seed| {
                let (disk, next) = (&disk, &next);
                scope.spawn(move || transfer(disk, access, blocks, next, seed, begun))
            })
            .collect();
        let done = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| io::Error::other("a thread panicked"))?);
        done.sum::<io::Result<u64>>()
    })?;
    Ok(Done {
        transfers,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

fn transfer(disk: &File, access: &Access, blocks: u64, next: &AtomicU64, seed: u64, begun: Instant) -> io::Result<u64> {
    let mut memory = vec![0; access.block + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let buffer = &mut memory[start..start + access.block];
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut transfers = 0;
    while begun.elapsed() < access.time {
        let block = if access.random {
            // Marsaglia's xorshift: spread, not secret.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % blocks
        } else {
            next.fetch_add(1, Ordering::Relaxed) % blocks
        };
        let offset = block * access.block as u64;
        if access.write {
            disk.write_all_at(buffer, offset)?;
        } else {
            disk.read_exact_at(buffer, offset)?;
        }
        transfers += 1;
    }
    Ok(transfers)
}
