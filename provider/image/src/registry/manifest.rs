//! Manifests and configurations, read for what a pull needs and checked for what it relies on.

use serde::Deserialize;

use crate::image::ImageConfig;
use crate::reference::is_sha256;

/// A pointer to content.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl Platform {
    fn matches(&self, architecture: &str) -> bool {
        self.os == "linux" && self.architecture == architecture
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.variant)
        }
    }
}

/// Why a document is of no use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ParseFailure {
    Invalid(String),
    Platform { available: String },
}

/// What a name's document turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Manifest {
    Image {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
    /// An index, resolved to the manifest for this platform.
    Index(Descriptor),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

fn invalid(reason: impl Into<String>) -> ParseFailure {
    ParseFailure::Invalid(reason.into())
}

fn checked(descriptor: Descriptor) -> Result<Descriptor, ParseFailure> {
    if is_sha256(&descriptor.digest) {
        Ok(descriptor)
    } else {
        Err(invalid(format!("unsupported digest {:?} in manifest", descriptor.digest)))
    }
}

impl Manifest {
    pub(crate) fn parse(document: &[u8], architecture: &str) -> Result<Self, ParseFailure> {
        let raw: RawManifest = serde_json::from_slice(document).map_err(|error| invalid(format!("malformed manifest: {error}")))?;
        if raw.schema_version != 2 {
            return Err(invalid(format!("unsupported manifest schema version {}", raw.schema_version)));
        }
        if let Some(manifests) = raw.manifests {
            let here = |descriptor: &&Descriptor| descriptor.platform.as_ref().is_some_and(|it| it.matches(architecture));
            return match manifests.iter().find(here) {
                Some(found) => Ok(Self::Index(checked(found.clone())?)),
                None => {
                    let platforms = manifests.iter().filter_map(|descriptor| descriptor.platform.as_ref());
                    let available: Vec<_> = platforms.map(Platform::to_string).collect();
                    Err(ParseFailure::Platform {
                        available: available.join(", "),
                    })
                }
            };
        }
        let (Some(config), Some(layers)) = (raw.config, raw.layers) else {
            return Err(invalid("the manifest is neither an image nor an index"));
        };
        if !matches!(
            &*config.media_type,
            "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" | ""
        ) {
            let kind = raw.artifact_type.unwrap_or_else(|| config.media_type.clone());
            return Err(invalid(format!("it is not a container image but {kind:?}")));
        }
        if let Some(odd) = layers.iter().find(|layer| !layer.media_type.contains("tar")) {
            return Err(invalid(format!("unsupported layer media type {:?}", odd.media_type)));
        }
        if let Some(sealed) = layers.iter().find(|layer| layer.media_type.ends_with("+encrypted")) {
            return Err(invalid(format!("layer {} is encrypted", sealed.digest)));
        }
        let layers = layers.into_iter().map(checked).collect::<Result<_, _>>()?;
        Ok(Self::Image {
            config: checked(config)?,
            layers,
        })
    }
}

/// What an image's configuration says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) image: ImageConfig,
    pub(crate) diff_ids: Vec<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    config: Option<ImageConfig>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

impl Config {
    pub(crate) fn parse(document: &[u8], layers: usize, architecture: &str) -> Result<Self, ParseFailure> {
        let raw: RawConfig =
            serde_json::from_slice(document).map_err(|error| invalid(format!("malformed image configuration: {error}")))?;
        let told = !raw.platform.architecture.is_empty();
        if told && !raw.platform.matches(architecture) {
            return Err(ParseFailure::Platform {
                available: raw.platform.to_string(),
            });
        }
        let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() != layers {
            return Err(invalid(format!(
                "mismatched image rootfs and manifest: {} diff ids, {layers} layers",
                diff_ids.len()
            )));
        }
        if let Some(odd) = diff_ids.iter().find(|diff_id| !is_sha256(diff_id)) {
            return Err(invalid(format!("unsupported diff id {odd:?} in image configuration")));
        }
        Ok(Self {
            image: raw.config.unwrap_or_default(),
            diff_ids,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: &str) -> String {
        format!("sha256:{}", of.repeat(64))
    }

    fn index(platforms: &[(&str, &str)]) -> Vec<u8> {
        let manifests: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(at, (os, architecture))| {
                serde_json::json!({"digest": digest(&at.to_string()), "size": 1,
                    "platform": {"os": os, "architecture": architecture}})
            })
            .collect();
        serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": manifests})).unwrap()
    }

    #[test]
    fn an_index_resolves_to_this_platform_or_names_the_others() {
        let document = index(&[("unknown", "unknown"), ("windows", "amd64"), ("linux", "arm64"), ("linux", "amd64")]);
        let Ok(Manifest::Index(found)) = Manifest::parse(&document, "amd64") else {
            panic!("no index")
        };
        assert_eq!(found.digest, digest("3"));
        let missing = ParseFailure::Platform {
            available: "windows/amd64, linux/arm64".to_owned(),
        };
        assert_eq!(
            Manifest::parse(&index(&[("windows", "amd64"), ("linux", "arm64")]), "amd64"),
            Err(missing)
        );
    }

    #[test]
    fn what_is_no_image_is_refused_in_words() {
        let chart = serde_json::json!({"schemaVersion": 2, "layers": [],
            "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest("a"), "size": 1}});
        let odd_digest = serde_json::json!({"schemaVersion": 2, "layers": [], "config": {"digest": "sha256:../../x", "size": 1}});
        for document in [&b"x"[..], b"{}", br#"{"schemaVersion":1}"#, br#"{"schemaVersion":2}"#] {
            assert!(matches!(Manifest::parse(document, "amd64"), Err(ParseFailure::Invalid(_))));
        }
        for document in [chart, odd_digest] {
            assert!(matches!(
                Manifest::parse(document.to_string().as_bytes(), "amd64"),
                Err(ParseFailure::Invalid(_))
            ));
        }
    }

    #[test]
    fn a_configuration_must_fit_its_manifest_and_this_machine() {
        let config = serde_json::json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [digest("a")]}});
        let config = config.to_string().into_bytes();
        assert_eq!(Config::parse(&config, 1, "amd64").unwrap().diff_ids, [digest("a")]);
        assert!(matches!(Config::parse(&config, 2, "amd64"), Err(ParseFailure::Invalid(_))));
        assert!(matches!(Config::parse(&config, 1, "arm64"), Err(ParseFailure::Platform { .. })));
    }
}
