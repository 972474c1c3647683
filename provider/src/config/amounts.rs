//! What the host keeps, and what pods get that say nothing.

use serde::Deserialize;

use crate::quantity::Quantity;

/// What is kept for the host: capacity less this is allocatable.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Reserved {
    /// Processors.
    pub cpu: Quantity,
    /// Bytes.
    pub memory: Quantity,
    /// Bytes of the file system of the state directory.
    #[serde(rename = "ephemeralStorage")]
    pub ephemeral_storage: Quantity,
}

impl Default for Reserved {
    fn default() -> Self {
        Self {
            cpu: Quantity::millis(0),
            memory: Quantity::bytes(512 << 20),
            ephemeral_storage: Quantity::bytes(1 << 30),
        }
    }
}

/// The class of a pod that sets no limits.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PodDefaults {
    /// Memory for each container without a limit.
    pub memory: Quantity,
    /// Processors of a pod without a CPU limit, at least the sum of requests.
    pub cpu: Quantity,
    /// Size of the scratch disk without an ephemeral-storage limit (sparse).
    pub ephemeral_storage: Quantity,
}

impl Default for PodDefaults {
    fn default() -> Self {
        Self {
            memory: Quantity::bytes(256 << 20),
            cpu: Quantity::millis(1000),
            ephemeral_storage: Quantity::bytes(4 << 30),
        }
    }
}
