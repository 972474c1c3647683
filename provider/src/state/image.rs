//! Where an image that a pod needs stands on this node.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// An image that a pod needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageState {
    /// Not looked at yet.
    Wanted,
    /// Not to be had.
    Failed {
        /// `ErrImagePull`, `InvalidImageName`, `ErrImageNeverPull`.
        reason: String,
        /// For people.
        message: String,
        /// When it failed.
        at: Timestamp,
        /// Next attempt.
        not_before: Timestamp,
        /// Attempts that failed.
        attempts: u32,
    },
    /// Here.
    Ready(ImageFacts),
}

/// What a pod needs to know of its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// As the pod asked, with registry and tag written out.
    pub reference: String,
    /// `registry/name@sha256:…` (status.imageID).
    pub digest: String,
    /// What the store knows it by: the digest of its configuration.
    pub id: String,
    /// Bytes.
    pub size: u64,
}

impl ImageState {
    /// What the store knows an image by that is here.
    pub fn id(&self) -> Option<&str> {
        if let Self::Ready(facts) = self { Some(&facts.id) } else { None }
    }
}
