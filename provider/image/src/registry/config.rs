//! The configuration of registries, and the endpoints that follow from it for one image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::OpenError;
use crate::reference::ImageReference;

/// Settings per registry, by the name images use (`docker.io`, `registry.example:5000`); `*` is for all others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegistryConfig {
    /// The settings.
    pub hosts: BTreeMap<String, RegistryHost>,
}

/// Settings of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryHost {
    /// Tried in order, before the registry itself.
    pub mirrors: Vec<Mirror>,
    /// The registry itself speaks HTTP without TLS. Loopback addresses always do.
    pub plain_http: bool,
    /// Accept any certificate of the registry itself.
    pub skip_verify: bool,
    /// Never ask the registry itself.
    pub mirrors_only: bool,
}

/// A place that has the same images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Mirror {
    /// `http://host[:port][/prefix]` or `https://…`; the prefix goes before the repository.
    pub endpoint: String,
    /// Accept any certificate.
    pub skip_verify: bool,
    /// Send the pull secrets of the mirrored registry to this mirror. Without it, mirrors are asked anonymously.
    pub send_credentials: bool,
}

/// One place to ask.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) plain_http: bool,
    pub(crate) skip_verify: bool,
    /// Goes before the repository, with its slash at the end; empty for most.
    pub(crate) prefix: String,
    pub(crate) mirror: bool,
    pub(crate) send_credentials: bool,
}

impl Mirror {
    fn endpoint(&self) -> Result<Endpoint, &'static str> {
        let (plain_http, rest) = match (self.endpoint.strip_prefix("http://"), self.endpoint.strip_prefix("https://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err("begins neither with http:// nor with https://"),
        };
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte)) {
            return Err("has no valid host");
        }
        if !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte)) {
            return Err("has no valid path");
        }
        Ok(Endpoint {
            host: host.to_owned(),
            plain_http,
            skip_verify: self.skip_verify,
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            mirror: true,
            send_credentials: self.send_credentials,
        })
    }
}

impl RegistryConfig {
    /// Checks what can be checked without a network.
    pub fn validate(&self) -> Result<(), OpenError> {
        for (registry, host) in &self.hosts {
            let bad = |reason: String| OpenError::Registry {
                registry: registry.clone(),
                reason,
            };
            for mirror in &host.mirrors {
                mirror
                    .endpoint()
                    .map_err(|reason| bad(format!("mirror {:?} {reason}", mirror.endpoint)))?;
            }
            if host.mirrors_only && host.mirrors.is_empty() {
                return Err(bad("mirrorsOnly without a mirror".to_owned()));
            }
        }
        Ok(())
    }

    /// Where to ask for an image, best first.
    pub(crate) fn endpoints(&self, image: &ImageReference) -> Vec<Endpoint> {
        let registry = image.registry();
        let default = RegistryHost::default();
        let host = self.hosts.get(registry).or_else(|| self.hosts.get("*")).unwrap_or(&default);
        let mut endpoints: Vec<_> = host.mirrors.iter().filter_map(|mirror| mirror.endpoint().ok()).collect();
        if !host.mirrors_only {
            let own = if registry == "docker.io" {
                "registry-1.docker.io"
            } else {
                registry
            };
            let name = own.rsplit_once(':').map_or(own, |(name, _)| name);
            endpoints.push(Endpoint {
                host: own.to_owned(),
                plain_http: host.plain_http || name == "localhost" || name.starts_with("127."),
                skip_verify: host.skip_verify,
                prefix: String::new(),
                mirror: false,
                send_credentials: true,
            });
        }
        endpoints
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.plain_http { "http" } else { "https" };
        write!(f, "{scheme}://{}", self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(config: &RegistryConfig, image: &str) -> Vec<String> {
        config
            .endpoints(&image.parse().unwrap())
            .iter()
            .map(|endpoint| format!("{endpoint}/{}", endpoint.prefix))
            .collect()
    }

    #[test]
    fn mirrors_come_first_in_order_and_the_registry_last() {
        let config: RegistryConfig = serde_json::from_str(
            r#"{"docker.io":{"mirrors":[{"endpoint":"http://10.0.0.1:5000"},{"endpoint":"https://m.example/hub/"}]},
                "*":{"mirrors":[{"endpoint":"http://all"}],"mirrorsOnly":true}}"#,
        )
        .unwrap();
        config.validate().unwrap();
        assert_eq!(
            hosts(&config, "nginx"),
            ["http://10.0.0.1:5000/", "https://m.example/hub/", "https://registry-1.docker.io/"]
        );
        assert_eq!(hosts(&config, "quay.example/a"), ["http://all/"]);
        assert_eq!(hosts(&RegistryConfig::default(), "127.0.0.1:5000/a"), ["http://127.0.0.1:5000/"]);
    }

    #[test]
    fn endpoints_that_make_no_sense_are_named() {
        for endpoint in ["ftp://x", "http://", "x:5000", "https://a b", "http://u:p@h"] {
            let mirror = Mirror {
                endpoint: endpoint.to_owned(),
                ..Mirror::default()
            };
            let host = RegistryHost {
                mirrors: vec![mirror],
                ..RegistryHost::default()
            };
            let config = RegistryConfig {
                hosts: BTreeMap::from([("docker.io".to_owned(), host)]),
            };
            assert!(config.validate().unwrap_err().to_string().contains(endpoint), "{endpoint}");
        }
        assert!(serde_json::from_str::<RegistryConfig>(r#"{"a":{"mirror":[]}}"#).is_err());
    }
}
