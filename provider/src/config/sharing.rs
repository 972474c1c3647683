//! What pods of different owners may share of the host's memory.

use serde::Deserialize;

/// Among which pods the pages of a file are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Serialize))]
#[serde(rename_all = "camelCase")]
pub enum Sharing {
    /// All pods of the host.
    #[default]
    Host,
    /// Those of one namespace.
    Namespace,
    /// None: each pod has pages of its own.
    None,
}

/// The policy of a node. Whoever reads the same pages as somebody else can find out, by the time that it takes, what the other one reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SharingPolicy {
    /// Whose pods have the same pages of an image in the host's memory: `host`, all; `namespace`, those of one namespace; `none`, no two.
    /// Otherwise its files are copied, under `stateDir/copies` for as long as the namespace has a pod here, or beside the machine; a file
    /// system with reflinks (XFS, Btrfs) keeps their bytes once.
    pub images: Sharing,
    /// The same of the template's memory; with `none` machines boot, and so does one for which the template cannot be copied (event
    /// `MachineStarted`).
    pub templates: Sharing,
}
