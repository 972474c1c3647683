//! Why an image could not be had, in words for the pod's status.

use std::io;
use std::path::PathBuf;

use crate::layer::{LayerError, Limit, is_disk_full};

/// Why a pull failed. `Display` is complete: it is what a user reads in the pod's status and events.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name is no image name.
    #[error("couldn't parse image name {name:?}: {reason}")]
    InvalidImageName {
        /// What was given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry knows no such image, or misses a part of it.
    #[error("failed to pull image {image:?}: not found: {detail}")]
    NotFound {
        /// The image, canonical.
        image: String,
        /// What each endpoint said.
        detail: String,
    },
    /// No credential was good enough.
    #[error("failed to pull image {image:?}: pull access denied, repository does not exist or may require authorization: {detail}")]
    Unauthorized {
        /// The image, canonical.
        image: String,
        /// What each endpoint said.
        detail: String,
    },
    /// No endpoint answered as a registry does.
    #[error("failed to pull image {image:?}: registry is unavailable: {detail}")]
    Unreachable {
        /// The image, canonical.
        image: String,
        /// What each endpoint said.
        detail: String,
    },
    /// What came is not what its digest says.
    #[error("failed to pull image {image:?}: {what}: digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// The image, canonical.
        image: String,
        /// Which part of it.
        what: String,
        /// The digest asked for.
        expected: String,
        /// The digest of what came.
        actual: String,
    },
    /// A layer is no tar archive, or cannot be decompressed.
    #[error("failed to unpack image {image:?}: layer {layer}: not a tar archive: {reason}")]
    NotATar {
        /// The image, canonical.
        image: String,
        /// The layer's digest.
        layer: String,
        /// Where the reader stumbled.
        reason: String,
    },
    /// A layer names a path outside the image.
    #[error("failed to unpack image {image:?}: layer {layer}: the path {path:?} leaves the image")]
    EscapingPath {
        /// The image, canonical.
        image: String,
        /// The layer's digest.
        layer: String,
        /// The path as the layer has it.
        path: String,
    },
    /// A layer has an entry that no file system of ours can hold.
    #[error("failed to unpack image {image:?}: {what}: {reason}")]
    BadEntry {
        /// The image, canonical.
        image: String,
        /// Which part of the image.
        what: String,
        /// The entry and what is wrong with it.
        reason: String,
    },
    /// The image exceeds a bound of [`crate::Limits`].
    #[error("failed to unpack image {image:?}: {what}: too large: more than {max} {limit}")]
    TooLarge {
        /// The image, canonical.
        image: String,
        /// Which part of the image.
        what: String,
        /// The bound.
        limit: Limit,
        /// Its value.
        max: u64,
    },
    /// The image is for other machines.
    #[error("failed to pull image {image:?}: no match for platform in manifest: {wanted} is not among {available}")]
    NoMatchingPlatform {
        /// The image, canonical.
        image: String,
        /// The platform of this host.
        wanted: String,
        /// The platforms it is for.
        available: String,
    },
    /// The manifest or configuration makes no sense, or is of a kind that is no container image.
    #[error("failed to pull image {image:?}: {reason}")]
    InvalidImage {
        /// The image, canonical.
        image: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image store's disk is full; nothing half-made is left on it.
    #[error("failed to pull image {image:?}: no space left on the image store's device ({})", .store.display())]
    DiskFull {
        /// The image, canonical.
        image: String,
        /// The store's directory.
        store: PathBuf,
    },
    /// The image store cannot be read or written.
    #[error("failed to pull image {image:?}: the image store {} failed: {reason}", .store.display())]
    Store {
        /// The image, canonical.
        image: String,
        /// The store's directory.
        store: PathBuf,
        /// What failed.
        reason: String,
    },
}

impl PullError {
    /// The reason of a container that waits for this image.
    pub fn waiting_reason(&self) -> &'static str {
        match self {
            Self::InvalidImageName { .. } => "InvalidImageName",
            Self::Unreachable { .. } => "RegistryUnavailable",
            _ => "ErrImagePull",
        }
    }

    /// A failed operation on the store's files.
    pub(crate) fn store(image: &str, store: PathBuf, error: &StoreError) -> Self {
        let image = image.to_owned();
        if is_disk_full(&error.source) {
            Self::DiskFull { image, store }
        } else {
            Self::Store {
                image,
                store,
                reason: format!("{error}: {}", error.source),
            }
        }
    }

    /// A failed conversion of the layer with this digest.
    pub(crate) fn layer(image: &str, layer: &str, store: PathBuf, error: LayerError) -> Self {
        let image = image.to_owned();
        let layer = layer.to_owned();
        let what = format!("layer {layer}");
        match error {
            LayerError::NotATar { reason } => Self::NotATar { image, layer, reason },
            LayerError::Corrupt { reason } => Self::NotATar {
                image,
                layer,
                reason: format!("cannot decompress it: {reason}"),
            },
            LayerError::EscapingPath { path } => Self::EscapingPath { image, layer, path },
            LayerError::BadEntry { path, reason } => Self::BadEntry {
                image,
                what,
                reason: format!("entry {path:?}: {reason}"),
            },
            LayerError::TooLarge { limit, max } => Self::TooLarge { image, what, limit, max },
            LayerError::Digest { expected, actual } => Self::DigestMismatch {
                image,
                what,
                expected,
                actual,
            },
            LayerError::DiskFull => Self::DiskFull { image, store },
            LayerError::Write(error) => Self::Store {
                image,
                store,
                reason: format!("cannot write {what}: {error}"),
            },
            LayerError::Source(error) => Self::Unreachable {
                image,
                detail: format!("{what}: {error}"),
            },
        }
    }
}

/// A failed operation on the store's files.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", .path.display())]
pub struct StoreError {
    /// What was attempted.
    pub action: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl StoreError {
    pub(crate) fn on(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { action, path, source }
    }
}

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or directory of the store is unusable.
    #[error("cannot open the image store")]
    Files(#[from] StoreError),
    /// Another process has it open.
    #[error("the image store {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The configuration of a registry makes no sense.
    #[error("registry {registry:?}: {reason}")]
    Registry {
        /// The key in the configuration.
        registry: String,
        /// What is wrong.
        reason: String,
    },
    /// `rustls::crypto::CryptoProvider::install_default` was not called.
    #[error("no TLS provider is installed in this process")]
    NoTlsProvider,
}
