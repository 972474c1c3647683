//! Image names as users write them, made canonical: `nginx` is `docker.io/library/nginx:latest`. The grammar is the distribution project's
//! (github.com/distribution/reference), read by hand: as one regular expression it took 12 MB of memory.

use std::fmt;
use std::str::FromStr;

use crate::error::PullError;

/// The registry of names that name none.
const HUB: &str = "docker.io";
/// Longest repository and tag, in bytes.
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

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
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (name, None),
        };
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match rest[last..].split_once(':') {
            Some((component, tag)) => (&rest[..last + component.len()], Some(tag)),
            None => (rest, None),
        };
        let (registry, path) = match path.split_once('/') {
            Some((first, rest)) if first == "localhost" || first.contains(|c: char| matches!(c, '.' | ':') || c.is_ascii_uppercase()) => {
                (first, rest)
            }
            _ => (HUB, path),
        };
        let registry = if registry == "index.docker.io" { HUB } else { registry };
        let repository = if registry == HUB && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if repository.len() > MAX_REPOSITORY {
            return Err(invalid(format!(
                "repository name must not be more than {MAX_REPOSITORY} characters"
            )));
        }
        if !is_registry(registry) || !path.split('/').all(is_component) || !tag.is_none_or(is_tag) {
            return Err(invalid("invalid reference format".to_owned()));
        }
        let version = match (digest, tag) {
            (Some(digest), _) if is_sha256(digest) => Version::Digest(digest.to_owned()),
            (Some(_), _) => return Err(invalid("only sha256 digests in lower case are supported".to_owned())),
            (None, tag) => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            version,
        })
    }
}

/// Whether this is a host name or address, with a port or without.
fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    let label = |label: &str| {
        let plain = label.chars().all(|c| alphanumeric(c) || c == '-');
        plain && label.starts_with(alphanumeric) && label.ends_with(alphanumeric)
    };
    host.split('.').all(label) && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether this is a part of a repository's path: small letters and digits, with `.`, `_`, `__` or dashes between them.
fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let joins = |between: &str| matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-');
    text.starts_with(alphanumeric) && text.ends_with(alphanumeric) && text.split(alphanumeric).all(joins)
}

fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= MAX_TAG && text.starts_with(word) && text.chars().all(|c| word(c) || matches!(c, '.' | '-'))
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
            ("Host/app", "Host/app:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("reg.example:5000/a/b/c:v1", "reg.example:5000/a/b/c:v1".to_owned()),
            ("localhost:5000", "docker.io/library/localhost:5000".to_owned()),
            ("localhost:5000/a", "localhost:5000/a:latest".to_owned()),
            ("10.0.0.1/a--b.c_d__e/f", "10.0.0.1/a--b.c_d__e/f:latest".to_owned()),
            ("Reg.example/a:_V.1-x", "Reg.example/a:_V.1-x".to_owned()),
            (&format!("nginx@{digest}"), format!("docker.io/library/nginx@{digest}")),
            (&format!("nginx:1@{digest}"), format!("docker.io/library/nginx@{digest}")),
        ] {
            assert_eq!(name.parse::<ImageReference>().unwrap().to_string(), want);
        }
    }

    #[test]
    fn names_that_are_none_are_refused_by_name() {
        let (long, tag) = (format!("a/{}", "b".repeat(254)), format!("a:{}", "b".repeat(129)));
        for name in [
            "",
            "NGINX",
            "a//b",
            "nginx:",
            "nginx@sha256:12",
            "nginx@",
            "http://nginx",
            "a b",
            "-x",
            "x-",
            "a._b",
            "a___b",
            "/a",
            "a/",
            "a/B",
            "a:b:c",
            "a:-b",
            "a:\u{e9}",
            "\u{e9}",
            "reg.example:/a",
            "reg.example:x/a",
            "reg..example/a",
            "-reg.example/a",
            "../a",
            &long,
            &tag,
        ] {
            let error = name.parse::<ImageReference>().unwrap_err();
            assert_eq!(error.waiting_reason(), "InvalidImageName", "{name}");
        }
    }
}
