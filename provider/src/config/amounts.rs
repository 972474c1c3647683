//! What the host keeps, and what pods get that say nothing.

use serde::Deserialize;

use crate::{desired::Amounts, quantity::Quantity};

/// What is kept for the host: capacity less this is allocatable.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Reserved {
    /// Kept for the host: capacity less this is allocatable. On a [shared host](shared-host.md) it is kept of the reservation.
    pub cpu: Quantity,
    /// The same for memory. The monitors, and what guests use beside their containers, are paid from it where pods' [RuntimeClass](burst.md#runtimeclass) does not count them.
    pub memory: Quantity,
    /// The same for the file system of `stateDir`.
    #[serde(rename = "ephemeralStorage")]
    pub ephemeral_storage: Quantity,
}

impl Reserved {
    /// As amounts.
    pub fn amounts(&self) -> Amounts {
        Amounts {
            cpu: self.cpu,
            memory: self.memory,
            storage: self.ephemeral_storage,
        }
    }
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PodDefaults {
    /// Least processors of a pod with a container without a CPU limit.
    pub cpu: Quantity,
    /// Memory of a container without a memory limit (or its request, where that is larger).
    pub memory: Quantity,
    /// Scratch disk of a pod without an ephemeral-storage limit; the file is sparse.
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
