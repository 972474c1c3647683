//! One request of a virtio-blk driver (virtio 1.2, 5.2.6): header, data, status. Refuses by status what the device cannot do, and by
//! an error what is no request at all.

use std::io;

use super::{MAX_ZERO_SECTORS, SECTOR, extents::Direction, store::Store, together::Transfer};
use crate::virtio::chain::{Chain, ChainError};

const HEADER: usize = 16;
const SEGMENT: usize = 16;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
/// The `unmap` flag of a write-zeroes segment.
const UNMAP: u32 = 1;

/// The last byte of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Why a request did not succeed, although it is one.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The device does not do that.
    Unsupported,
    /// Outside the disk, not in sectors, more than announced, or written to a read-only disk.
    Bounds,
    /// The host's file failed.
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What requests are carried out on.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) store: Store,
    pub(super) serial: [u8; 20],
    pub(super) read_only: bool,
    /// DISCARD and WRITE_ZEROES are offered.
    pub(super) zeroes: bool,
}

/// What became of a request.
#[derive(Debug)]
pub(super) struct Served {
    /// The bytes that the used ring shall name.
    pub(super) used: u32,
    /// The bytes that it moved, or would have.
    pub(super) moved: u64,
    /// Why it was refused.
    pub(super) refusal: Option<Refusal>,
}

/// What a request asks for, read once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    kind: u32,
    sector: u64,
    /// Bytes that may be written before the status.
    input: usize,
}

impl Header {
    /// Reads it.
    pub(super) fn read(chain: &Chain<'_>) -> Result<Self, ChainError> {
        let mut header = [0u8; HEADER];
        chain.readable.read(0, &mut header)?;
        let input = chain.writable.len().checked_sub(1).ok_or(ChainError::TooShort)?;
        let (kind, _, sector) = words(&header);
        Ok(Self { kind, sector, input })
    }

    /// What it moves, if it moves something and may: to be carried out together with that of others.
    pub(super) fn transfer<'c, 'm>(&self, disk: &Disk, chain: &'c Chain<'m>) -> Option<Transfer<'c, 'm>> {
        let (direction, memory, range) = match self.kind {
            IN => (Direction::FromDisk, &chain.writable, 0..self.input),
            OUT if !disk.read_only => (Direction::ToDisk, &chain.readable, HEADER..chain.readable.len()),
            _ => return None,
        };
        let position = place(disk, self.sector, range.len() as u64).ok()?;
        Some(Transfer::new(direction, memory, range, position))
    }
}

/// Carries out one request, but for a transfer that was `moved` already, and writes its status.
pub(super) fn serve(disk: &Disk, chain: &Chain<'_>, header: Header, moved: Option<io::Result<()>>) -> Result<Served, ChainError> {
    let Header { kind, input, .. } = header;
    let mut cleared = 0;
    let outcome = match (kind, moved) {
        (IN | OUT, Some(moved)) => moved.map(|()| if kind == IN { input } else { 0 }).map_err(Refusal::Io),
        (_, _) => carry_out(disk, chain, header, &mut cleared)?,
    };
    let (status, written, refusal) = match outcome {
        Ok(written) => (Status::Ok, written, None),
        Err(Refusal::Unsupported) => (Status::Unsupported, 0, Some(Refusal::Unsupported)),
        Err(other) => (Status::IoError, 0, Some(other)),
    };
    chain.writable.write(input, &[status as u8])?;
    // The length counts bytes from the start of the writable part: with the status at its end, all of it, if the data was written.
    let used = if written == input { input + 1 } else { written };
    Ok(Served {
        used: u32::try_from(used).unwrap_or(u32::MAX),
        moved: match kind {
            IN => input as u64,
            OUT => (chain.readable.len() - HEADER) as u64,
            WRITE_ZEROES => cleared,
            _ => 0,
        },
        refusal,
    })
}

/// Carries out one request; the bytes that it wrote for the driver, or why it did not succeed.
fn carry_out(disk: &Disk, chain: &Chain<'_>, header: Header, cleared: &mut u64) -> Result<Result<usize, Refusal>, ChainError> {
    let Header { kind, sector, input } = header;
    Ok(match kind {
        IN => input_data(disk, chain, sector, input),
        OUT => output_data(disk, chain, sector).map(|()| 0),
        FLUSH if disk.read_only => Ok(0),
        FLUSH => disk.store.flush().map(|()| 0).map_err(Refusal::Io),
        GET_ID => {
            let length = input.min(disk.serial.len());
            chain.writable.write(0, &disk.serial[..length])?;
            Ok(length)
        }
        DISCARD | WRITE_ZEROES if disk.zeroes => zero(disk, chain, kind)?.map(|length| {
            *cleared = length;
            0
        }),
        _ => Err(Refusal::Unsupported),
    })
}

fn input_data(disk: &Disk, chain: &Chain<'_>, sector: u64, length: usize) -> Result<usize, Refusal> {
    let position = place(disk, sector, length as u64)?;
    disk.store.transfer(Direction::FromDisk, &chain.writable, 0..length, position)?;
    Ok(length)
}

fn output_data(disk: &Disk, chain: &Chain<'_>, sector: u64) -> Result<(), Refusal> {
    if disk.read_only {
        return Err(Refusal::Bounds);
    }
    let position = place(disk, sector, (chain.readable.len() - HEADER) as u64)?;
    Ok(disk
        .store
        .transfer(Direction::ToDisk, &chain.readable, HEADER..chain.readable.len(), position)?)
}

/// Where `length` bytes from `sector` on lie, if the disk has them.
fn place(disk: &Disk, sector: u64, length: u64) -> Result<u64, Refusal> {
    let position = sector.checked_mul(SECTOR).ok_or(Refusal::Bounds)?;
    let end = position.checked_add(length).ok_or(Refusal::Bounds)?;
    if length.is_multiple_of(SECTOR) && end <= disk.store.size() {
        Ok(position)
    } else {
        Err(Refusal::Bounds)
    }
}

/// The bytes that were cleared.
fn zero(disk: &Disk, chain: &Chain<'_>, kind: u32) -> Result<Result<u64, Refusal>, ChainError> {
    // max_discard_seg and max_write_zeroes_seg are 1.
    if chain.readable.len() != HEADER + SEGMENT {
        return Ok(Err(Refusal::Unsupported));
    }
    let mut segment = [0u8; SEGMENT];
    chain.readable.read(HEADER, &mut segment)?;
    let sector = u64::from_le_bytes(segment[..8].try_into().expect("eight of sixteen"));
    let sectors = u32::from_le_bytes(segment[8..12].try_into().expect("four of sixteen"));
    let flags = u32::from_le_bytes(segment[12..].try_into().expect("four of sixteen"));
    Ok((|| {
        if flags & !UNMAP != 0 || (kind == DISCARD && flags != 0) {
            return Err(Refusal::Unsupported);
        }
        // As announced: a thread that clears terabytes would not hear of a reset.
        if sectors > MAX_ZERO_SECTORS {
            return Err(Refusal::Bounds);
        }
        let length = u64::from(sectors) * SECTOR;
        let position = place(disk, sector, length)?;
        if disk.read_only {
            return Err(Refusal::Bounds);
        }
        match kind {
            _ if length == 0 => {}
            DISCARD => disk.store.discard(position, length)?,
            _ => disk.store.zero(position, length, flags & UNMAP != 0)?,
        }
        Ok(length)
    })())
}

/// The header's type, reserved word and sector.
fn words(header: &[u8; HEADER]) -> (u32, u32, u64) {
    let [a, b, c, d, e, f, g, h, sector @ ..] = *header;
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
        u64::from_le_bytes(sector),
    )
}
