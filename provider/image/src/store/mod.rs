//! The image store of a host: layers by diffID, images by configuration digest, names that mean them.
//!
//! ```text
//! lock                  held while the store is open
//! tmp/                  what is being written; emptied at open
//! layers/<hex>.data     files of a layer, immutable       layers/<hex>.index   its tree, renamed into place last
//! images/<hex>.meta     merged metadata, immutable        images/<hex>.json    the record, renamed into place last
//! names.json            which name means which image
//! access.json           who has shown that it may have which image
//! ```
//! Files come into being by rename after fsync and are only ever unlinked: machines keep them open or mapped.

mod access;
mod disk;
mod flight;
mod look;
mod records;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub(crate) use disk::Disk;
pub(crate) use flight::Flights;
pub use look::{Stored, holder, look};
use records::Catalog;
pub(crate) use records::{ImageRecord, LayerRecord};

use crate::error::{OpenError, StoreError};
use crate::image::{Extent, ImageDevice, PulledImage};
use crate::keyring::Credential;
use crate::layer::Limits;
use crate::reference::ImageReference;
use crate::registry::{Registries, RegistryConfig};

/// How a store fetches and what it accepts.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Mirrors and other settings of registries.
    pub registries: RegistryConfig,
    /// What an image may at most cost.
    pub limits: Limits,
    /// Layers of one image that are fetched at a time.
    pub concurrent_layers: usize,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long a registry may be silent.
    pub read_timeout: Duration,
    /// Failures in a row, without a byte gained, after which a transfer is given up.
    pub attempts: u32,
    /// The architecture of images, as OCI names it.
    pub architecture: String,
}

impl Default for StoreConfig {
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            registries: RegistryConfig::default(),
            limits: Limits::default(),
            concurrent_layers: 3,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            attempts: 5,
            architecture: architecture.to_owned(),
        }
    }
}

/// What [`ImageStore::gc`] took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images that had no name any more.
    pub images: usize,
    /// Layers that no image had any more.
    pub layers: usize,
    /// Bytes of disk given back, once no machine has the files open.
    pub bytes: u64,
}

/// The image store. Cheap to clone; one process at a time has a directory open.
#[derive(Debug, Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) disk: Arc<Disk>,
    pub(crate) registries: Registries,
    pub(crate) flights: Flights,
    catalog: Mutex<Catalog>,
}

impl ImageStore {
    /// Opens the store in `dir`, making it if need be; removes what an earlier process left half-made. Blocks briefly.
    pub fn open(dir: impl AsRef<Path>, config: StoreConfig) -> Result<Self, OpenError> {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(OpenError::NoTlsProvider);
        }
        let registries = Registries::new(&config)?;
        let disk = Disk::open(dir.as_ref())?;
        let catalog = Catalog::load(&disk)?;
        let inner = Inner {
            config,
            disk: Arc::new(disk),
            registries,
            flights: Flights::default(),
            catalog: Mutex::new(catalog),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The image a name means here, if it was pulled: by tag, by digest, or by the image's own id (`sha256:…`).
    pub fn get(&self, reference: &str) -> Option<PulledImage> {
        let catalog = self.inner.catalog();
        if let Some(record) = catalog.images.get(reference) {
            let name = catalog.names.iter().find(|(_, name)| name.image == reference);
            return Some(match name {
                Some((name, meaning)) => self.inner.image(name, &meaning.digest, record),
                None => self.inner.image(reference, reference, record),
            });
        }
        let reference: ImageReference = reference.parse().ok()?;
        let name = catalog.names.get(&reference.to_string())?;
        let record = catalog.images.get(&name.image)?;
        Some(self.inner.image(&reference.to_string(), &name.digest, record))
    }

    /// Every image under every name it has.
    pub fn list(&self) -> Vec<PulledImage> {
        let catalog = self.inner.catalog();
        let images = catalog.names.iter().filter_map(|(reference, name)| {
            catalog
                .images
                .get(&name.image)
                .map(|record| self.inner.image(reference, &name.digest, record))
        });
        images.collect()
    }

    /// Whether one who has these credentials may use the image that a name means here without the registry being asked: it has given it to
    /// everybody, or to one with the same credentials.
    pub fn may_use(&self, reference: &str, credentials: &[Credential]) -> bool {
        let Ok(reference) = reference.parse::<ImageReference>() else {
            return false;
        };
        let catalog = self.inner.catalog();
        let image = catalog.names.get(&reference.to_string()).map(|name| &name.image);
        image.is_some_and(|id| catalog.accesses.admit(&reference.name(), id, credentials))
    }

    /// Notes that a registry has given an image to one with this credential, or to one with none.
    pub(crate) async fn given(&self, image: &ImageReference, id: &str, credential: Option<&Credential>) -> Result<(), StoreError> {
        let (inner, repository, id, credential) = (self.inner.clone(), image.name(), id.to_owned(), credential.cloned());
        blocking(move || inner.catalog().given(&inner.disk, &repository, &id, credential.as_ref())).await
    }

    /// Bytes of files that all images have, what several of them share once.
    pub fn bytes(&self) -> u64 {
        let catalog = self.inner.catalog();
        let layers = catalog.images.values().flat_map(|image| &image.layers);
        let layers: HashMap<_, _> = layers.map(|layer| (&layer.diff_id, layer.data_len)).collect();
        let metadata = catalog.images.values().map(|image| image.meta_len);
        layers.into_values().chain(metadata).sum()
    }

    /// Forgets a name, and the image with its last name; an image's id forgets it under all names. Layers stay until
    /// [`ImageStore::gc`]. The answer is whether there was such a name.
    pub async fn remove(&self, reference: &str) -> Result<bool, StoreError> {
        let inner = self.inner.clone();
        let reference = reference.to_owned();
        blocking(move || inner.catalog().remove(&inner.disk, &reference)).await
    }

    /// Removes images that no name means and layers that no image has, but nothing that belongs to the images `in_use` (ids) or
    /// to a pull under way.
    pub async fn gc(&self, in_use: &[String]) -> Result<Collected, StoreError> {
        let inner = self.inner.clone();
        let in_use = in_use.to_vec();
        blocking(move || inner.catalog().gc(&inner.disk, &in_use)).await
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        self.inner.disk.dir()
    }
}

impl Inner {
    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().expect("nobody panics while holding the catalogue")
    }

    /// Keeps layers from being collected until the guard goes.
    pub(crate) fn pin(self: &Arc<Self>, diff_ids: &[String]) -> Pin {
        self.catalog().pin(diff_ids);
        Pin {
            inner: self.clone(),
            diff_ids: diff_ids.to_vec(),
        }
    }

    /// A record as its users see it.
    pub(crate) fn image(&self, reference: &str, digest: &str, record: &ImageRecord) -> PulledImage {
        let meta = (self.disk.meta_path(&record.id), record.meta_len);
        let mut extents: Vec<Extent> = Vec::new();
        let layers = record
            .layers
            .iter()
            .map(|layer| (self.disk.data_path(&layer.diff_id), layer.data_len));
        for (path, length) in std::iter::once(meta).chain(layers) {
            // A layer that comes twice has its data once.
            if length > 0 && !extents.iter().any(|extent| extent.path == path) {
                extents.push(Extent { path, offset: 0, length });
            }
        }
        let size = extents.iter().map(|extent| extent.length).sum();
        let name = reference
            .parse()
            .map_or_else(|_| digest.to_owned(), |name: ImageReference| name.with_digest(digest));
        PulledImage {
            reference: reference.to_owned(),
            digest: digest.to_owned(),
            image_id: name,
            id: record.id.clone(),
            size: record.layers.iter().map(|layer| layer.tar_len).sum(),
            config: record.config.clone(),
            device: ImageDevice { extents, size },
        }
    }
}

/// Layers that a pull needs and no image has yet.
pub(crate) struct Pin {
    inner: Arc<Inner>,
    diff_ids: Vec<String>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.inner.catalog().unpin(&self.diff_ids);
    }
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The file of a digest, without its algorithm.
fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn with_suffix(dir: PathBuf, digest: &str, suffix: &str) -> PathBuf {
    dir.join(format!("{}.{suffix}", hex(digest)))
}
