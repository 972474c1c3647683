//! Registries, and limits on images.

use serde::Deserialize;

use crate::quantity::Quantity;

/// A registry.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Registry {
    /// Asked in order before the registry itself: `http://10.0.0.1:5000`. Pull secrets are not sent to mirrors.
    pub mirrors: Vec<String>,
    /// The registry itself speaks plain HTTP.
    pub insecure: bool,
}

/// Limits on images.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ImageGc {
    /// Images that no pod needs are removed when so much of their disk is in use, those first that have been idle the longest; 100 means
    /// never.
    pub high_threshold_percent: u8,
    /// Down to this.
    pub low_threshold_percent: u8,
    /// But none that has been idle for less.
    pub min_age_seconds: u32,
    /// An image that no pod has needed for so long goes however much of the disk is free, more than `minAgeSeconds`; 0 for never. It counts from
    /// the daemon's start at the earliest.
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
