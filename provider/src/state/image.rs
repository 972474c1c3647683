//! Where an image that a pod needs stands on this node.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Machine, PodState};

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
    /// Why it is not to be had: reason and message of who waits for it.
    pub fn failure(&self) -> Option<(&str, &str)> {
        match self {
            Self::Failed { reason, message, .. } => Some((reason, message)),
            Self::Wanted | Self::Ready(_) => None,
        }
    }

    /// What the store knows an image by that is here.
    pub fn id(&self) -> Option<&str> {
        if let Self::Ready(facts) = self { Some(&facts.id) } else { None }
    }
}

impl PodState {
    /// The images of the pod's machine by their identifiers, each once, in the order of their devices: those it was made with or, where there is
    /// none, those it would be made with. Others come later, as ephemeral containers' and changed ones do.
    pub fn device_images(&self) -> Vec<String> {
        if !matches!(self.machine, Machine::None { .. }) && !self.machine_images.is_empty() {
            return self.machine_images.clone();
        }
        self.needed_images(false)
    }

    /// Identifiers of the images that containers and volumes are of, each once; with or without those of ephemeral containers.
    pub fn needed_images(&self, ephemeral: bool) -> Vec<String> {
        let others = self.ephemeral.iter().filter(|_| ephemeral);
        let mut ids: Vec<String> = Vec::new();
        let containers = self.containers.iter().chain(others).map(|c| &c.image);
        for id in containers.chain(&self.volume_images).filter_map(ImageState::id) {
            if !ids.iter().any(|known| known == id) {
                ids.push(id.to_owned());
            }
        }
        ids
    }

    /// Whether all images are here that its machine is made with.
    pub fn has_images(&self) -> bool {
        let mut all = self.containers.iter().map(|c| &c.image).chain(&self.volume_images);
        all.all(|image| image.id().is_some())
    }
}
