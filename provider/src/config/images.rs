//! Registries, and limits on images.

use serde::Deserialize;

use crate::quantity::Quantity;

/// A registry.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Registry {
    /// Asked in order before the registry itself, as `http://10.0.0.1:5000`.
    pub mirrors: Vec<String>,
    /// The registry itself speaks plain HTTP.
    pub insecure: bool,
}

/// Limits on images.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Images {
    /// Uncompressed bytes of one layer.
    pub max_layer_size: Quantity,
    /// Files of one layer.
    pub max_layer_files: u64,
    /// When images that no pod needs are removed.
    pub gc: ImageGc,
}

/// When images that no pod needs are removed (the kubelet's imageGCHighThresholdPercent, imageGCLowThresholdPercent, imageMinimumGCAge, imageMaximumGCAge).
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ImageGc {
    /// Per cent of their disk that are in use when it begins; 100 means never.
    pub high_threshold_percent: u8,
    /// Per cent down to which it goes on.
    pub low_threshold_percent: u8,
    /// Seconds that an image must have been idle for.
    pub min_age_seconds: u32,
    /// Seconds after which an idle image goes, however much of the disk is free; 0 for never.
    pub max_age_seconds: u32,
}

impl Default for ImageGc {
    fn default() -> Self {
        Self {
            high_threshold_percent: 85,
            low_threshold_percent: 80,
            min_age_seconds: 120,
            max_age_seconds: 0,
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self {
            max_layer_size: Quantity::bytes(32 << 30),
            max_layer_files: 2_000_000,
            gc: ImageGc::default(),
        }
    }
}
