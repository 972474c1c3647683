//! Snapshots: a machine's state in one small file, its memory in another, and a machine made of both. Knows the form of the files; what
//! is in them is gathered by [`take`] and put back by the [`Builder`](crate::Builder).
//!
//! ```text
//! state    magic, 8 bytes | version, u32 | length of the body, u64 | CRC32C of the body, u32 | body (postcard)      all little-endian
//! memory   RAM below the hole, then RAM above it; pages that are all zero are holes of the file
//! ```
//! Of a machine whose specification has a `dirtyLog` a snapshot may have only what was written since the last one, its base, which the state names:
//! its memory file has these pages and no others, one behind the other. [`merge`] makes both one that is whole; no machine is made of a part.
//!
//! A snapshot is taken up whole or not at all: form, version and checksum are checked before a machine is made, and a host that is not as
//! it was (processor, KVM) is refused. What the files say is still not trusted: it is a guest's, checked as a guest's.

pub(crate) mod memory;
mod merge;
mod prefetch;
pub(crate) mod restore;
mod take;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use crate::arch::board::BoardState;
use crate::arch::cpuid::Leaf;
use crate::arch::processor::ProcessorState;
use crate::pci::state::FunctionState;
use crate::serial::PortState;
pub use merge::{MergeError, merge};
pub use prefetch::WorkingSet;
pub(crate) use take::{Extent, Source, take};
pub use take::{SnapshotError, SnapshotFiles};

const MAGIC: [u8; 8] = *b"kvmsnap\n";
/// The only form that is read and written.
const VERSION: u32 = 3;
const HEADER: usize = 24;
/// Largest body, bytes: 64 processors and 32 functions need far less.
const MAX_BODY: u64 = 16 << 20;

/// Why a snapshot could not be taken up.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A file could not be read.
    #[error("read the {0}")]
    Read(&'static str, #[source] io::Error),
    /// The state is of something else.
    #[error("the state is not that of a machine")]
    Magic,
    /// The state has another form.
    #[error("the state has version {0}, and this library reads {VERSION}")]
    Version(u32),
    /// The state ends too early, or goes on behind its end.
    #[error("the state has {has} bytes and says {says}")]
    Length {
        /// Bytes that there are.
        has: u64,
        /// Bytes that there should be.
        says: u64,
    },
    /// The bytes are not those that were written.
    #[error("the {0} is not what was written: its checksum differs")]
    Checksum(&'static str),
    /// The checksum is right and the content is not.
    #[error("understand the state")]
    Content(#[source] postcard::Error),
    /// The host's processor or KVM is another than when the snapshot was taken: this differs.
    #[error("the host's processor or KVM has changed since the snapshot was taken: {0}")]
    Host(String),
    /// It has only what was written since another one.
    #[error("the snapshot has only what was written since {0} was taken: it is to be merged with that one first")]
    Partial(Identity),
    /// The state names pages that there are not.
    #[error("the state names pages that the machine does not have")]
    Runs,
    /// The machine is another.
    #[error("{what} of the machine is {wanted}, and the snapshot's is {has}")]
    Shape {
        /// What differs.
        what: &'static str,
        /// The machine's.
        wanted: String,
        /// The snapshot's.
        has: String,
    },
    /// KVM refused a step.
    #[error("{0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// A device of the snapshot cannot go on as a device of the machine.
    #[error("device {0}: {1}")]
    Device(usize, String),
}

/// The name of a snapshot, which no other one has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity(pub(crate) [u8; 16]);

impl Identity {
    /// A new one.
    pub(crate) fn new() -> io::Result<Self> {
        let mut bytes = [0; 16];
        // Up to 256 bytes come whole.
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Which pages the memory file has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pages {
    /// All.
    All,
    /// Those that were written since `base` was taken: so many that were not, then so many that were, and so on.
    Since { base: Identity, runs: Vec<(u64, u64)> },
}

/// What a machine is besides its memory.
#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) identity: Identity,
    pub(crate) pages: Pages,
    /// Bytes of RAM.
    pub(crate) memory: u64,
    /// CRC32C of the memory file, holes included.
    pub(crate) memory_checksum: u32,
    /// Start of the 64-bit window: where it lies follows from all that lies before it.
    pub(crate) window: u64,
    /// Processors that the tables tell of.
    pub(crate) possible_cpus: u8,
    /// CPUID of the first processor.
    pub(crate) cpuid: Vec<Leaf>,
    pub(crate) processors: Vec<ProcessorState>,
    pub(crate) board: BoardState,
    pub(crate) functions: Vec<FunctionState>,
    /// COM1, if there is one.
    pub(crate) serial: Option<PortState>,
}

impl State {
    /// Writes it whole.
    pub(crate) fn write(&self, mut to: &File) -> io::Result<()> {
        let body = postcard::to_allocvec(self).map_err(io::Error::other)?;
        if body.len() as u64 > MAX_BODY {
            // Only pages that were written far apart can be so many.
            return Err(io::Error::other("it names too many pages: a whole snapshot names none"));
        }
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(crc32c::crc32c(&body).to_le_bytes());
        bytes.extend(body);
        to.write_all(&bytes)
    }

    /// Reads it whole, from where the file stands to its end.
    pub(crate) fn read(from: &File) -> Result<Self, RestoreError> {
        let mut bytes = Vec::new();
        from.take(HEADER as u64 + MAX_BODY + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| RestoreError::Read("state", source))?;
        Self::parse(&bytes)
    }

    /// Whether the memory file is as long as it should be.
    pub(crate) fn check_length(&self, memory: &File, length: u64) -> Result<(), RestoreError> {
        let has = memory.metadata().map_err(|source| RestoreError::Read("memory", source))?.len();
        same("memory, bytes,", &length, &has)
    }

    /// Whether a machine can be made of it, without another snapshot.
    pub(crate) fn check_whole(&self) -> Result<(), RestoreError> {
        match &self.pages {
            Pages::All => Ok(()),
            Pages::Since { base, .. } => Err(RestoreError::Partial(*base)),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, RestoreError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(RestoreError::Magic);
        }
        let has = bytes.len() as u64;
        let Some((header, body)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(RestoreError::Length { has, says: HEADER as u64 });
        };
        let [.., v0, v1, v2, v3, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3] = *header;
        let version = u32::from_le_bytes([v0, v1, v2, v3]);
        if version != VERSION {
            return Err(RestoreError::Version(version));
        }
        let length = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        if body.len() as u64 != length {
            let says = length.saturating_add(HEADER as u64);
            return Err(RestoreError::Length { has, says });
        }
        if crc32c::crc32c(body) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(RestoreError::Checksum("state"));
        }
        match postcard::take_from_bytes(body).map_err(RestoreError::Content)? {
            (state, []) => Ok(state),
            (_, _) => Err(RestoreError::Content(postcard::Error::DeserializeBadEncoding)),
        }
    }
}

/// Reads both files of a snapshot to see that they are what was written. On which host they can be taken up is not looked at.
pub fn check(state: &File, memory: &File) -> Result<(), RestoreError> {
    let state = State::read(state)?;
    let length = match &state.pages {
        Pages::All => state.memory,
        Pages::Since { runs, .. } => memory::length(&merge::unpack(runs, state.memory)?),
    };
    state.check_length(memory, length)?;
    memory::verify(memory, length, state.memory_checksum)
}

/// Two things that must be alike.
pub(crate) fn same<T: PartialEq + ToString>(what: &'static str, wanted: &T, has: &T) -> Result<(), RestoreError> {
    if wanted == has {
        return Ok(());
    }
    Err(RestoreError::Shape {
        what,
        wanted: wanted.to_string(),
        has: has.to_string(),
    })
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz {
    //! State files out of a fuzzer's bytes.

    use super::*;

    /// Any bytes as a file, and as a body whose header is right: refused, or a state that is written as it was read.
    pub fn snapshot(data: &[u8]) {
        let _ = State::parse(data);
        let mut file = MAGIC.to_vec();
        file.extend(VERSION.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        file.extend(crc32c::crc32c(data).to_le_bytes());
        file.extend(data);
        let Ok(state) = State::parse(&file) else { return };
        if let Pages::Since { runs, .. } = &state.pages
            && let Ok(read) = merge::unpack(runs, state.memory)
        {
            assert!(memory::length(&read) <= state.memory);
            assert!(read.iter().all(|run| run.start < run.end));
            assert!(read.is_sorted_by(|one, next| one.end <= next.start));
            assert_eq!(merge::pack(&read), *runs);
        }
        let body = postcard::to_allocvec(&state).expect("what was read can be written");
        let again: State = postcard::from_bytes(&body).expect("and read again");
        assert_eq!((again.identity, again.pages), (state.identity, state.pages));
        assert_eq!((again.functions, again.serial), (state.functions, state.serial));
    }
}
