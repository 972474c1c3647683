//! What pods of different owners may share of the host's memory.

use serde::Deserialize;

/// Among which pods the pages of a file are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
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
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SharingPolicy {
    /// Of images, which guests read in place.
    pub images: Sharing,
    /// Of the template that machines are copies of; with `none` machines boot.
    pub templates: Sharing,
}
