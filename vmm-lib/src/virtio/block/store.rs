//! Where a disk's bytes are: in files as they are, or in an image of a format.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Mutex;

use super::extents::{Direction, Extents};
use super::qcow2::{Qcow2, Qcow2Error};
use super::together::Transfer;
use crate::lock::lock;
use crate::virtio::chain::Segments;

/// The bytes of a disk.
#[derive(Debug)]
pub(super) enum Store {
    /// Extents of files.
    Raw(Extents),
    /// An image, which only the disk's thread uses while there is one.
    Qcow2 { size: u64, image: Box<Mutex<Qcow2>> },
}

impl Store {
    pub(super) fn qcow2(file: File, writable: bool) -> Result<Self, Qcow2Error> {
        let image = Qcow2::open(file, writable)?;
        Ok(Self::Qcow2 {
            size: image.size(),
            image: Box::new(Mutex::new(image)),
        })
    }

    /// Whether transfers go by a ring, several at once.
    pub(super) fn has_ring(&self) -> bool {
        matches!(self, Self::Raw(extents) if extents.has_ring())
    }

    /// Carries out several transfers at once, where there is a ring.
    pub(super) fn transfer_together(&self, transfers: &mut [Transfer<'_, '_>]) -> io::Result<()> {
        match self {
            Self::Raw(extents) => extents.transfer_together(transfers),
            Self::Qcow2 { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Raw(extents) => extents.size(),
            Self::Qcow2 { size, .. } => *size,
        }
    }

    /// Whether bytes can be given back, and cleared.
    pub(super) fn zeroes(&self) -> bool {
        match self {
            Self::Raw(extents) => extents.single(),
            Self::Qcow2 { .. } => true,
        }
    }

    pub(super) fn transfer(&self, direction: Direction, memory: &Segments<'_>, range: Range<usize>, position: u64) -> io::Result<()> {
        match self {
            Self::Raw(extents) => extents.transfer(direction, memory, range, position),
            Self::Qcow2 { image, .. } => lock(image).transfer(direction, memory, range, position),
        }
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        match self {
            Self::Raw(extents) => extents.flush(),
            Self::Qcow2 { image, .. } => lock(image).flush(),
        }
    }

    pub(super) fn discard(&self, position: u64, length: u64) -> io::Result<()> {
        match self {
            Self::Raw(extents) => extents.discard(position, length),
            Self::Qcow2 { image, .. } => lock(image).discard(position, length),
        }
    }

    pub(super) fn zero(&self, position: u64, length: u64, unmap: bool) -> io::Result<()> {
        match self {
            Self::Raw(extents) => extents.zero(position, length, unmap),
            Self::Qcow2 { image, .. } => lock(image).zero(position, length, unmap),
        }
    }

    /// Nothing is left in memory that belongs into a file, though it may not last there yet.
    pub(super) fn settle(&self) -> io::Result<()> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Qcow2 { image, .. } => lock(image).settle(),
        }
    }
}
