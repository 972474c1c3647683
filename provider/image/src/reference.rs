//! Image names as users write them, made canonical: `nginx` is `docker.io/library/nginx:latest`.

use std::fmt;
use std::str::FromStr;

use oci_client::Reference;

use crate::error::PullError;

/// A parsed image name. A digest wins over a tag beside it, as everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageReference {
    registry: String,
    repository: String,
    version: Version,
}

/// Which of a repository's images is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    Tag(String),
    Digest(String),
}

impl ImageReference {
    /// The registry's name, such as `docker.io`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in its registry, such as `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, where no digest is given.
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }

    /// The digest, if one is given.
    pub fn digest(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(digest),
        }
    }

    /// Registry and repository, without tag or digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    pub(crate) fn version(&self) -> &Version {
        &self.version
    }

    /// The canonical name of the image with this digest in the same repository.
    pub(crate) fn with_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry, self.repository),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

impl FromStr for ImageReference {
    type Err = PullError;

    fn from_str(name: &str) -> Result<Self, PullError> {
        let invalid = |reason: String| PullError::InvalidImageName {
            name: name.to_owned(),
            reason,
        };
        let parsed: Reference = name.parse().map_err(|error: oci_client::ParseError| invalid(error.to_string()))?;
        let version = match (parsed.digest(), parsed.tag()) {
            (Some(digest), _) if is_sha256(digest) => Version::Digest(digest.to_owned()),
            (Some(_), _) => return Err(invalid("only sha256 digests in lower case are supported".to_owned())),
            (None, tag) => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self {
            registry: parsed.registry().to_owned(),
            repository: parsed.repository().to_owned(),
            version,
        })
    }
}

/// Whether this is a digest we compute ourselves; its hex part is then safe in a file name.
pub(crate) fn is_sha256(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_canonical_as_docker_has_them() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (name, want) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.25", "docker.io/library/nginx:1.25".to_owned()),
            ("user/app", "docker.io/user/app:latest".to_owned()),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("reg.example:5000/a/b/c:v1", "reg.example:5000/a/b/c:v1".to_owned()),
            (&format!("nginx@{digest}"), format!("docker.io/library/nginx@{digest}")),
            (&format!("nginx:1@{digest}"), format!("docker.io/library/nginx@{digest}")),
        ] {
            assert_eq!(name.parse::<ImageReference>().unwrap().to_string(), want);
        }
    }

    #[test]
    fn names_that_are_none_are_refused_by_name() {
        for name in ["", "NGINX", "a//b", "nginx:", "nginx@sha256:12", "http://nginx", "a b", "-x"] {
            let error = name.parse::<ImageReference>().unwrap_err();
            assert_eq!(error.waiting_reason(), "InvalidImageName", "{name}");
        }
    }
}
