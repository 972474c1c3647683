//! A pull from name to device: endpoints and credentials in turn, layers side by side, then the merged metadata.

mod failure;
mod layer;

use std::path::Path;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use self::{
    failure::{Failure, verdict},
    layer::Fetch,
};
use crate::error::PullError;
use crate::image::PulledImage;
use crate::keyring::Credential;
use crate::layer::{LayerIndex, Limit, sha256_text};
use crate::layout::Layout;
use crate::reference::ImageReference;
use crate::registry::{Config, Descriptor, Endpoint, FetchError, Manifest, ParseFailure, Source};
use crate::store::ImageStore;

/// Largest manifest or configuration: what registries accept.
const DOCUMENT_MAX: u64 = 8 << 20;

/// What a pull tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullProgress {
    /// The name was resolved.
    Resolved {
        /// The digest it means.
        digest: String,
        /// Layers of the image.
        layers: usize,
        /// Bytes of them to transfer, of which some may be here already.
        bytes: u64,
    },
    /// More of a layer came.
    Layer {
        /// Its place in the image.
        layer: usize,
        /// Bytes that came.
        received: u64,
        /// Bytes that will come.
        total: u64,
    },
    /// A layer is here.
    LayerDone {
        /// Its place in the image.
        layer: usize,
        /// It was here before.
        cached: bool,
    },
}

/// Where documents and layers come from.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    Registry(Source),
    Layout(Layout),
}

impl ImageStore {
    /// Fetches an image, as far as it is not here yet, and notes it under its name. The registry is always asked, so that the
    /// credentials are proved anew. Anonymous access is tried after all `credentials`.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: &[Credential],
        progress: impl Fn(PullProgress) + Send + Sync,
    ) -> Result<PulledImage, PullError> {
        let image: ImageReference = reference.parse()?;
        let mut failures = Vec::new();
        for endpoint in self.inner.registries.endpoints(&image) {
            match self.pull_from(&image, &endpoint, credentials, &progress).await {
                Ok(pulled) => return Ok(pulled),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Fetch { what, error }) => {
                    tracing::debug!(%image, %endpoint, what, %error, "endpoint failed");
                    failures.push((what, error));
                }
            }
        }
        Err(verdict(&image.to_string(), failures))
    }

    /// Takes an image from an OCI image layout on disk, as if it had been pulled by this name. For a layout of several images,
    /// the tag is looked for among their `org.opencontainers.image.ref.name`.
    pub async fn import(&self, reference: &str, layout: &Path) -> Result<PulledImage, PullError> {
        let image: ImageReference = reference.parse()?;
        let origin = Origin::Layout(Layout::new(layout, image.tag()));
        let imported = self.fetch(&image, &origin, &|_| {}).await.map_err(|failure| match failure {
            Failure::Final(error) => error,
            Failure::Fetch { what, error } => verdict(&image.to_string(), vec![(what, error)]),
        })?;
        // Whoever puts an image into the store gives it to all.
        let noted = self.given(&image, &imported.id, None).await;
        noted.map_err(|error| PullError::store(&image.to_string(), self.dir().to_path_buf(), &error))?;
        Ok(imported)
    }

    async fn pull_from(
        &self,
        image: &ImageReference,
        endpoint: &Endpoint,
        credentials: &[Credential],
        progress: &(impl Fn(PullProgress) + Send + Sync),
    ) -> Result<PulledImage, Failure> {
        let credentials = if endpoint.send_credentials { credentials } else { &[] };
        let mut refused = None;
        for credential in credentials.iter().map(Some).chain([None]) {
            let source = self.inner.registries.source(endpoint, image, credential);
            let source = source.map_err(|error| Failure::Fetch {
                what: "manifest".to_owned(),
                error,
            })?;
            match self.fetch(image, &Origin::Registry(source), progress).await {
                // What one user may not see is hidden from it, or refused; another may.
                Err(
                    failure @ Failure::Fetch {
                        error: FetchError::Unauthorized(_) | FetchError::NotFound(_),
                        ..
                    },
                ) => {
                    refused.get_or_insert(failure);
                }
                Ok(pulled) => {
                    let noted = self.given(image, &pulled.id, credential).await;
                    let dir = || self.dir().to_path_buf();
                    noted.map_err(|error| Failure::Final(PullError::store(&image.to_string(), dir(), &error)))?;
                    return Ok(pulled);
                }
                failed => return failed,
            }
        }
        Err(refused.expect("anonymous access at least was tried"))
    }

    /// The whole of an image from one origin.
    async fn fetch(
        &self,
        image: &ImageReference,
        origin: &Origin,
        progress: &(impl Fn(PullProgress) + Send + Sync),
    ) -> Result<PulledImage, Failure> {
        let name = image.to_string();
        let architecture = &self.inner.config.architecture;
        let parse_failure = |failure| match failure {
            ParseFailure::Invalid(reason) => PullError::InvalidImage {
                image: name.clone(),
                reason,
            },
            ParseFailure::Platform { available } => PullError::NoMatchingPlatform {
                image: name.clone(),
                wanted: format!("linux/{architecture}"),
                available,
            },
        };
        let final_parse = |failure| Failure::Final(parse_failure(failure));

        let document = origin.document(image.digest()).await?;
        let digest = sha256_text(&Sha256::digest(&document));
        if let Some(known) = self.known(image, &digest).await.map_err(Failure::Final)? {
            return Ok(known);
        }
        let mut manifest = Manifest::parse(&document, architecture).map_err(final_parse)?;
        if let Manifest::Index(found) = &manifest {
            let document = origin.document(Some(&found.digest)).await?;
            manifest = Manifest::parse(&document, architecture).map_err(final_parse)?;
        }
        let Manifest::Image { config: config_at, layers } = manifest else {
            return Err(final_parse(ParseFailure::Invalid("an index within an index".to_owned())));
        };
        let limits = &self.inner.config.limits;
        let too_large = |limit, max| {
            Failure::Final(PullError::TooLarge {
                image: name.clone(),
                what: "the image".to_owned(),
                limit,
                max,
            })
        };
        if layers.len() > limits.layers {
            return Err(too_large(Limit::Layers, limits.layers as u64));
        }
        if config_at.size > DOCUMENT_MAX {
            return Err(too_large(Limit::Document, DOCUMENT_MAX));
        }
        let config = origin.config(&config_at).await?;
        let config = Config::parse(&config, layers.len(), architecture).map_err(final_parse)?;
        let bytes = layers.iter().map(|layer| layer.size).sum();
        progress(PullProgress::Resolved {
            digest: digest.clone(),
            layers: layers.len(),
            bytes,
        });

        let _pin = self.inner.pin(&config.diff_ids);
        let (working, mut ended) = mpsc::channel(1);
        let fetch = Fetch {
            store: self,
            image: &name,
            origin,
            progress,
            working,
        };
        let layers = layers.iter().zip(&config.diff_ids).enumerate();
        let fetches: Vec<_> = layers.map(|(at, (layer, diff_id))| fetch.layer(at, layer, diff_id)).collect();
        let indexes: Result<Vec<LayerIndex>, _> = futures_util::stream::iter(fetches)
            .buffered(self.inner.config.concurrent_layers.max(1))
            .try_collect()
            .await;
        drop(fetch);
        let None = ended.recv().await;
        self.compose(image, &digest, &config_at.digest, config, indexes?)
            .await
            .map_err(Failure::Final)
    }
}

impl Origin {
    async fn document(&self, digest: Option<&str>) -> Result<Bytes, Failure> {
        let what = || "manifest".to_owned();
        let document = match self {
            Self::Registry(source) => source.document(digest).await,
            Self::Layout(layout) => layout.document(digest),
        };
        let document = document.map_err(|error| Failure::Fetch { what: what(), error })?;
        let actual = sha256_text(&Sha256::digest(&document));
        match digest {
            Some(expected) if expected != actual => {
                let error = FetchError::Digest {
                    expected: expected.to_owned(),
                    actual,
                };
                Err(Failure::Fetch { what: what(), error })
            }
            _ => Ok(document),
        }
    }

    async fn config(&self, at: &Descriptor) -> Result<Vec<u8>, Failure> {
        let config = match self {
            Self::Registry(source) => source.small_blob(at).await,
            Self::Layout(layout) => layout.read(&at.digest),
        };
        config.map_err(|error| Failure::Fetch {
            what: "configuration".to_owned(),
            error,
        })
    }
}
