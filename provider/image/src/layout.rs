//! An OCI image layout on disk as the origin of an image.

use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;

use crate::reference::is_sha256;
use crate::registry::FetchError;

/// A directory with `index.json` and `blobs/sha256`.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
    tag: Option<String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

impl Layout {
    pub(crate) fn new(dir: &Path, tag: Option<&str>) -> Self {
        Self {
            dir: dir.to_path_buf(),
            tag: tag.map(str::to_owned),
        }
    }

    /// A manifest by its digest, or the one the tag means, or the only one.
    pub(crate) fn document(&self, digest: Option<&str>) -> Result<Bytes, FetchError> {
        if let Some(digest) = digest {
            return self.read(digest).map(Bytes::from);
        }
        let path = self.dir.join("index.json");
        let missing = |reason: String| FetchError::NotFound(format!("{}: {reason}", path.display()));
        let index = std::fs::read(&path).map_err(|error| missing(error.to_string()))?;
        let index: Index = serde_json::from_slice(&index).map_err(|error| FetchError::Protocol(error.to_string()))?;
        let tagged = |entry: &&Entry| entry.annotations.get("org.opencontainers.image.ref.name") == self.tag.as_ref();
        let found = match &index.manifests[..] {
            [only] => Some(only),
            several => several.iter().find(tagged),
        };
        self.read(&found.ok_or_else(|| missing("no image of this tag".to_owned()))?.digest)
            .map(Bytes::from)
    }

    pub(crate) fn read(&self, digest: &str) -> Result<Vec<u8>, FetchError> {
        let path = self.path(digest)?;
        std::fs::read(&path).map_err(|error| FetchError::NotFound(format!("{}: {error}", path.display())))
    }

    pub(crate) fn open(&self, digest: &str) -> Result<File, FetchError> {
        let path = self.path(digest)?;
        File::open(&path).map_err(|error| FetchError::NotFound(format!("{}: {error}", path.display())))
    }

    fn path(&self, digest: &str) -> Result<PathBuf, FetchError> {
        match digest.strip_prefix("sha256:") {
            Some(hex) if is_sha256(digest) => Ok(self.dir.join("blobs/sha256").join(hex)),
            _ => Err(FetchError::Protocol(format!("unsupported digest {digest:?}"))),
        }
    }
}
