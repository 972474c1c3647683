//! What an image may at most cost a host: the bounds that make a decompression bomb an error.

use serde::{Deserialize, Serialize};

/// Bounds on what one image may contain. The defaults let every ordinary image pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Bytes of one layer when decompressed.
    pub layer_bytes: u64,
    /// Bytes of all layers of an image when decompressed.
    pub image_bytes: u64,
    /// Files, directories and links of one layer.
    pub layer_entries: u64,
    /// Files, directories and links of one image, with directories that are only named in paths.
    pub image_entries: u64,
    /// Bytes of names, link targets and attributes of one layer.
    pub layer_metadata_bytes: u64,
    /// Bytes of one path.
    pub path_bytes: usize,
    /// Decompressed bytes a compressed byte may become, looked at from one GiB of decompressed bytes on.
    pub ratio: u64,
    /// Layers of one image.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 32 << 30,
            image_bytes: 64 << 30,
            layer_entries: 1_000_000,
            image_entries: 2_000_000,
            layer_metadata_bytes: 256 << 20,
            path_bytes: 4096,
            // Deflate cannot exceed 1032; what does is a bomb.
            ratio: 1100,
            layers: 512,
        }
    }
}

/// Which bound was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// [`Limits::layer_bytes`].
    LayerBytes,
    /// [`Limits::image_bytes`].
    ImageBytes,
    /// [`Limits::layer_entries`].
    LayerEntries,
    /// [`Limits::image_entries`].
    ImageEntries,
    /// [`Limits::layer_metadata_bytes`].
    LayerMetadataBytes,
    /// [`Limits::path_bytes`].
    PathBytes,
    /// [`Limits::ratio`].
    Ratio,
    /// [`Limits::layers`].
    Layers,
    /// The manifest or the configuration of the image is larger than any real one.
    Document,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LayerBytes => "decompressed bytes of a layer",
            Self::ImageBytes => "decompressed bytes of an image",
            Self::LayerEntries => "files in a layer",
            Self::ImageEntries => "files in an image",
            Self::LayerMetadataBytes => "bytes of names and attributes in a layer",
            Self::PathBytes => "bytes of a path",
            Self::Ratio => "compression ratio",
            Self::Layers => "layers of an image",
            Self::Document => "bytes of a manifest or configuration",
        })
    }
}
