//! What an image is to those who run it: a configuration and a device.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

/// An image of the store, ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledImage {
    /// The canonical name it was asked for by, with tag or digest.
    pub reference: String,
    /// Digest of what the name meant at the registry: the index of a multi-platform image, else the manifest.
    pub digest: String,
    /// Name with that digest, a container status's `imageID`: `docker.io/library/nginx@sha256:…`.
    pub image_id: String,
    /// Digest of the configuration, which identifies the content.
    pub id: String,
    /// Bytes of its layers when decompressed.
    pub size: u64,
    /// What to run and how.
    pub config: ImageConfig,
    /// The root file system.
    pub device: ImageDevice,
}

/// A read-only EROFS device, the concatenation of parts of immutable files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDevice {
    /// In order; every length is a multiple of 2 MiB.
    pub extents: Vec<Extent>,
    /// Sum of the lengths.
    pub size: u64,
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The file, absolute.
    pub path: PathBuf,
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// The image's settings, as its author made them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// Program and first arguments.
    #[serde(deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program where there is no entrypoint.
    #[serde(deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    /// `NAME=value` each.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Empty means `/`.
    #[serde(deserialize_with = "nullable")]
    pub working_dir: String,
    /// `user[:group]`, names or numbers; empty means root.
    #[serde(deserialize_with = "nullable")]
    pub user: String,
    /// Name or number of the signal that asks it to end.
    #[serde(deserialize_with = "nullable")]
    pub stop_signal: String,
    /// Paths that its author wants outside of the image.
    #[serde(deserialize_with = "keys", serialize_with = "as_keys")]
    pub volumes: Vec<String>,
    /// `port/protocol` each.
    #[serde(deserialize_with = "keys", serialize_with = "as_keys")]
    pub exposed_ports: Vec<String>,
    /// Labels of the image.
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
}

/// Go writes null for what is empty.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Sets are kept as objects with empty values.
fn keys<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let object: BTreeMap<String, serde::de::IgnoredAny> = nullable(from)?;
    Ok(object.into_keys().collect())
}

fn as_keys<S: serde::Serializer>(names: &[String], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(names.iter().map(|name| (name, BTreeMap::<String, String>::new())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_missing_keys_are_empty_and_the_rest_survives_a_round_trip() {
        let text = r#"{"Entrypoint":null,"Cmd":["sh"],"Env":["A=b"],"Volumes":{"/data":{}},"ExposedPorts":{"80/tcp":{}},"Other":1}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.cmd, ["sh"]);
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert!(config.entrypoint.is_empty() && config.user.is_empty());
        let again: ImageConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }
}
