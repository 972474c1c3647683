//! The last step of a pull: the layers' trees merged, the image's metadata and record written, its names noted.

use sha2::{Digest, Sha256};

use crate::erofs::Encoder;
use crate::error::PullError;
use crate::image::PulledImage;
use crate::layer::{LayerIndex, Limit};
use crate::merge::{MergeError, merge};
use crate::reference::ImageReference;
use crate::registry::Config;
use crate::store::{ImageRecord, ImageStore, Inner, LayerRecord, blocking};

impl ImageStore {
    /// Merges the layers, writes the image's metadata and record, and notes its names.
    pub(crate) async fn compose(
        &self,
        image: &ImageReference,
        digest: &str,
        id: &str,
        config: Config,
        indexes: Vec<LayerIndex>,
    ) -> Result<PulledImage, PullError> {
        let flight = self.inner.flights.enter(id).await;
        let inner = self.inner.clone();
        let (image, digest, id) = (image.clone(), digest.to_owned(), id.to_owned());
        blocking(move || {
            let _flight = flight;
            let name = image.to_string();
            let known = inner.catalog().image(&id).cloned();
            let record = match known {
                Some(record) => record,
                None => inner.merge_image(&name, &id, config, &indexes)?,
            };
            let added = inner.catalog().add(&inner.disk, &image, &digest, record.clone());
            added.map_err(|error| PullError::store(&name, inner.disk.dir().to_path_buf(), &error))?;
            Ok(inner.image(&name, &digest, &record))
        })
        .await
    }
}

impl ImageStore {
    /// The image that this repository has given under this digest before, now noted under the name it was asked for by. Another repository
    /// has to give all of an image once: a digest alone proves nothing of what one may see.
    pub(crate) async fn known(&self, image: &ImageReference, digest: &str) -> Result<Option<PulledImage>, PullError> {
        let inner = self.inner.clone();
        let (image, digest) = (image.clone(), digest.to_owned());
        blocking(move || {
            let name = image.to_string();
            let mut catalog = inner.catalog();
            let Some(record) = catalog.named(&image.with_digest(&digest)).cloned() else {
                return Ok(None);
            };
            let added = catalog.add(&inner.disk, &image, &digest, record.clone());
            drop(catalog);
            added.map_err(|error| PullError::store(&name, inner.disk.dir().to_path_buf(), &error))?;
            Ok(Some(inner.image(&name, &digest, &record)))
        })
        .await
    }
}

impl Inner {
    fn merge_image(&self, name: &str, id: &str, config: Config, indexes: &[LayerIndex]) -> Result<ImageRecord, PullError> {
        let limits = &self.config.limits;
        let too_large = |limit, max| PullError::TooLarge {
            image: name.to_owned(),
            what: "the image".to_owned(),
            limit,
            max,
        };
        let total: u64 = indexes.iter().map(|index| index.tar_len).sum();
        if total > limits.image_bytes {
            return Err(too_large(Limit::ImageBytes, limits.image_bytes));
        }
        // A layer that comes twice has its data once.
        let mut extents: Vec<(&str, u64)> = Vec::new();
        let mut parts = Vec::new();
        for (diff_id, index) in config.diff_ids.iter().zip(indexes) {
            let extent = extents.iter().position(|(known, _)| known == diff_id).unwrap_or_else(|| {
                extents.push((diff_id, index.data_len));
                extents.len() - 1
            });
            parts.push((index, extent));
        }
        let tree = merge(parts, limits.image_entries).map_err(|error| match error {
            MergeError::TooManyEntries { max } => too_large(Limit::ImageEntries, max),
            MergeError::BadEntry { .. } => PullError::BadEntry {
                image: name.to_owned(),
                what: "its layers do not fit".to_owned(),
                reason: error.to_string(),
            },
        })?;
        let lengths: Vec<u64> = extents.iter().map(|(_, length)| *length).collect();
        let encoder = Encoder::new(&tree, &lengths).map_err(|error| PullError::InvalidImage {
            image: name.to_owned(),
            reason: error.to_string(),
        })?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&Sha256::digest(id.as_bytes())[..16]);
        let written = self.disk.write_meta(id, &encoder, uuid);
        written.map_err(|error| PullError::store(name, self.disk.dir().to_path_buf(), &error))?;
        let layers = config.diff_ids.iter().zip(indexes).map(|(diff_id, index)| LayerRecord {
            diff_id: diff_id.clone(),
            data_len: index.data_len,
            tar_len: index.tar_len,
        });
        Ok(ImageRecord {
            id: id.to_owned(),
            layers: layers.collect(),
            config: config.image,
            meta_len: encoder.meta_len(),
        })
    }
}
