//! What can be wrong with a layer, before it is known whose layer it was.

use std::io;

use super::limits::Limit;

/// Why a layer was not converted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error("not a tar archive: {reason}")]
    NotATar { reason: String },
    #[error("cannot decompress: {reason}")]
    Corrupt { reason: String },
    #[error("the path {path:?} leaves the image")]
    EscapingPath { path: String },
    #[error("entry {path:?}: {reason}")]
    BadEntry { path: String, reason: String },
    #[error("more than {max} {limit}")]
    TooLarge { limit: Limit, max: u64 },
    #[error("digest mismatch: expected {expected}, got {actual}")]
    Digest { expected: String, actual: String },
    #[error("no space left on the device")]
    DiskFull,
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    /// The bytes stopped coming; why is known by who sends them.
    #[error("the layer's bytes ended early")]
    Source(#[source] io::Error),
}

impl LayerError {
    /// A failed write, where a full disk has a name of its own.
    pub(crate) fn write(error: io::Error) -> Self {
        if is_disk_full(&error) { Self::DiskFull } else { Self::Write(error) }
    }

    /// Whether the bytes themselves are at fault, so that a wrong digest would explain it.
    pub(super) fn blames_content(&self) -> bool {
        matches!(
            self,
            Self::NotATar { .. } | Self::Corrupt { .. } | Self::EscapingPath { .. } | Self::BadEntry { .. } | Self::Digest { .. }
        )
    }
}

/// Whether an error says that the disk, or the part of it we may use, is full.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
