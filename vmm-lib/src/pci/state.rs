//! What a function is, as plain data: registers of its configuration space, of MSI-X and of its transport.

use serde::{Deserialize, Serialize};

use crate::virtio::common::RegistersState;

/// A function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FunctionState {
    /// All of its configuration space.
    pub(crate) config: Vec<u8>,
    /// None for the host bridge.
    pub(crate) transport: Option<TransportState>,
}

/// A virtio transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TransportState {
    /// The MSI-X table.
    pub(crate) vectors: Vec<VectorState>,
    pub(crate) status: u8,
    pub(crate) registers: RegistersState,
    /// What the device itself has to keep, in a form of its own.
    pub(crate) device: Vec<u8>,
}

/// An entry of an MSI-X table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VectorState {
    pub(crate) address: u64,
    pub(crate) data: u32,
    pub(crate) masked: bool,
}
