//! What the store knows: a record per image, and one list of names. Kept in memory, written through.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Collected, access::Accesses, disk::Disk, hex};
use crate::error::StoreError;
use crate::image::ImageConfig;
use crate::keyring::Credential;
use crate::reference::ImageReference;

/// A layer as an image has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: String,
    pub(crate) data_len: u64,
    pub(crate) tar_len: u64,
}

/// An image by the digest of its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: String,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<LayerRecord>,
    pub(crate) meta_len: u64,
}

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    /// The image's id.
    pub(crate) image: String,
    /// The digest the registry gave for the name.
    pub(crate) digest: String,
}

/// All images, names and pins.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(super) images: BTreeMap<String, ImageRecord>,
    pub(super) names: BTreeMap<String, NameRecord>,
    pub(super) accesses: Accesses,
    pins: HashMap<String, usize>,
}

impl Catalog {
    /// Reads what is on disk; an image that is not whole is forgotten.
    pub(super) fn load(disk: &Disk) -> Result<Self, StoreError> {
        let mut this = Self::default();
        for name in disk.names("images", ".json")? {
            let id = format!("sha256:{name}");
            match Self::load_image(disk, &id) {
                Some(record) => drop(this.images.insert(id, record)),
                None => {
                    tracing::warn!(image = id, "forgetting an image whose files are not whole");
                    disk.remove(&disk.record_path(&id))?;
                    disk.remove(&disk.meta_path(&id))?;
                }
            }
        }
        let names = std::fs::read(disk.names_path()).ok();
        this.names = names.and_then(|names| serde_json::from_slice(&names).ok()).unwrap_or_default();
        this.names.retain(|_, name| this.images.contains_key(&name.image));
        let accesses = std::fs::read(disk.access_path()).ok();
        this.accesses = accesses.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        this.accesses.keep(|id| this.images.contains_key(id));
        Ok(this)
    }

    fn load_image(disk: &Disk, id: &str) -> Option<ImageRecord> {
        let record: ImageRecord = serde_json::from_slice(&std::fs::read(disk.record_path(id)).ok()?).ok()?;
        let len = |path| std::fs::metadata(path).ok().map(|data| data.len());
        let layers = record
            .layers
            .iter()
            .all(|layer| len(disk.data_path(&layer.diff_id)) == Some(layer.data_len) && disk.index_path(&layer.diff_id).exists());
        (record.id == id && layers && len(disk.meta_path(id)) == Some(record.meta_len)).then_some(record)
    }

    /// An image's record.
    pub(crate) fn image(&self, id: &str) -> Option<&ImageRecord> {
        self.images.get(id)
    }

    /// The record of the image that a name means.
    pub(crate) fn named(&self, reference: &str) -> Option<&ImageRecord> {
        self.images.get(&self.names.get(reference)?.image)
    }

    /// Notes an image under the name it was asked for by, and under its digest.
    pub(crate) fn add(&mut self, disk: &Disk, reference: &ImageReference, digest: &str, record: ImageRecord) -> Result<(), StoreError> {
        let id = record.id.clone();
        if self.images.get(&id) != Some(&record) {
            let json = serde_json::to_vec_pretty(&record).expect("plain data always serialises");
            disk.write(&disk.record_path(&id), &json)?;
            self.images.insert(id.clone(), record);
        }
        let meaning = NameRecord {
            image: id,
            digest: digest.to_owned(),
        };
        let mut names = self.names.clone();
        names.insert(reference.to_string(), meaning.clone());
        names.insert(reference.with_digest(digest), meaning);
        self.rename(disk, names)
    }

    /// Notes who was given an image, on disk first.
    pub(super) fn given(&mut self, disk: &Disk, repository: &str, id: &str, credential: Option<&Credential>) -> Result<(), StoreError> {
        let mut accesses = self.accesses.clone();
        accesses.keep(|id| self.images.contains_key(id));
        if accesses.note(repository, id, credential) {
            let json = serde_json::to_vec_pretty(&accesses).expect("plain data always serialises");
            disk.write(&disk.access_path(), &json)?;
            self.accesses = accesses;
        }
        Ok(())
    }

    /// Replaces the list of names, on disk first.
    fn rename(&mut self, disk: &Disk, names: BTreeMap<String, NameRecord>) -> Result<(), StoreError> {
        if names != self.names {
            let json = serde_json::to_vec_pretty(&names).expect("plain data always serialises");
            disk.write(&disk.names_path(), &json)?;
            self.names = names;
        }
        Ok(())
    }

    /// Forgets a name or an image.
    pub(super) fn remove(&mut self, disk: &Disk, reference: &str) -> Result<bool, StoreError> {
        let mut names = self.names.clone();
        let id = if self.images.contains_key(reference) {
            names.retain(|_, name| name.image != reference);
            reference.to_owned()
        } else {
            let Ok(reference) = reference.parse::<ImageReference>() else {
                return Ok(false);
            };
            let Some(name) = names.remove(&reference.to_string()) else {
                return Ok(false);
            };
            // The name by digest came with the tag and goes with the last one.
            let tagged = names
                .iter()
                .any(|(other, meaning)| meaning.image == name.image && !other.contains('@'));
            if !tagged && reference.digest().is_none() {
                names.retain(|_, meaning| meaning.image != name.image);
            }
            name.image
        };
        self.rename(disk, names)?;
        if !self.names.values().any(|name| name.image == id) {
            self.forget(disk, &id)?;
        }
        Ok(true)
    }

    /// Removes an image's own files, the record first: without it the rest is swept at the next start.
    fn forget(&mut self, disk: &Disk, id: &str) -> Result<u64, StoreError> {
        let freed = disk.remove(&disk.record_path(id))?;
        self.images.remove(id);
        Ok(freed + disk.remove(&disk.meta_path(id))?)
    }

    /// Removes what nothing refers to.
    pub(super) fn gc(&mut self, disk: &Disk, in_use: &[String]) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        let named: HashSet<&String> = self.names.values().map(|name| &name.image).collect();
        let unnamed = self.images.keys().filter(|id| !named.contains(id) && !in_use.contains(id));
        for id in unnamed.cloned().collect::<Vec<_>>() {
            collected.bytes += self.forget(disk, &id)?;
            collected.images += 1;
        }
        let layers = self
            .images
            .values()
            .flat_map(|image| &image.layers)
            .map(|layer| layer.diff_id.as_str());
        let kept: HashSet<&str> = layers.chain(self.pins.keys().map(String::as_str)).map(hex).collect();
        for name in disk.names("layers", ".index")? {
            if !kept.contains(name.as_str()) {
                // The index first: data without one is swept at the next start.
                collected.bytes += disk.remove(&disk.index_path(&name))?;
                collected.bytes += disk.remove(&disk.data_path(&name))?;
                collected.layers += 1;
            }
        }
        Ok(collected)
    }

    pub(super) fn pin(&mut self, diff_ids: &[String]) {
        for diff_id in diff_ids {
            *self.pins.entry(diff_id.clone()).or_default() += 1;
        }
    }

    pub(super) fn unpin(&mut self, diff_ids: &[String]) {
        for diff_id in diff_ids {
            if let Some(count) = self.pins.get_mut(diff_id) {
                *count -= 1;
                if *count == 0 {
                    self.pins.remove(diff_id);
                }
            }
        }
    }
}
