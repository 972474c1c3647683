//! Pull secrets: `.dockerconfigjson` and `.dockercfg`, and which of their entries are for an image, matched as the kubelet does.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use crate::reference::ImageReference;

/// A user of a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// The user's name.
    pub username: String,
    /// The user's password or token.
    pub password: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Why a pull secret is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// It is no JSON of the documented form.
    #[error("malformed pull secret: {0}")]
    Malformed(String),
    /// An entry's `auth` is not base64 of `user:password`.
    #[error("malformed auth of {0:?} in pull secret")]
    Auth(String),
}

/// The credentials of all pull secrets of a pod.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    /// The most specific place first.
    entries: Vec<(Place, Credential)>,
}

/// Where a credential is for: parts of a host name, each a glob, a port, and the beginning of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    text: String,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    auth: Option<String>,
}

impl Keyring {
    /// Adds a secret of type `kubernetes.io/dockerconfigjson`: its key `.dockerconfigjson`.
    pub fn add_docker_config_json(&mut self, data: &[u8]) -> Result<(), KeyringError> {
        let config: DockerConfig = serde_json::from_slice(data).map_err(|error| KeyringError::Malformed(error.to_string()))?;
        self.add(config.auths)
    }

    /// Adds a secret of type `kubernetes.io/dockercfg`: its key `.dockercfg`.
    pub fn add_docker_cfg(&mut self, data: &[u8]) -> Result<(), KeyringError> {
        self.add(serde_json::from_slice(data).map_err(|error| KeyringError::Malformed(error.to_string()))?)
    }

    /// The credentials for an image in the order to try them. Anonymous access, tried last, is not among them.
    pub fn lookup(&self, image: &ImageReference) -> Vec<Credential> {
        let name = image.name();
        let mut found: Vec<Credential> = Vec::new();
        for (place, credential) in &self.entries {
            if place.matches(&name) && !found.contains(credential) {
                found.push(credential.clone());
            }
        }
        // The hub's credentials are kept under the name it had first.
        if found.is_empty() && image.registry() == "docker.io" {
            let hub = self.entries.iter().filter(|(place, _)| place.text == "index.docker.io");
            found.extend(hub.map(|(_, credential)| credential.clone()));
        }
        found
    }

    fn add(&mut self, auths: BTreeMap<String, Entry>) -> Result<(), KeyringError> {
        for (place, entry) in auths {
            let credential = entry.credential().ok_or_else(|| KeyringError::Auth(place.clone()))?;
            if let Some(credential) = credential {
                self.entries.push((Place::new(&place), credential));
            }
        }
        self.entries.sort_by(|(one, _), (other, _)| other.cmp(one));
        Ok(())
    }
}

impl Entry {
    /// None if malformed; some none if there is nothing in it.
    fn credential(self) -> Option<Option<Credential>> {
        if let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) {
            let auth = auth.trim();
            let decoded = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).ok()?;
            let decoded = String::from_utf8(decoded).ok()?;
            let (username, password) = decoded.split_once(':')?;
            // Older docker padded with NUL.
            let password = password.trim_end_matches('\0').to_owned();
            return Some(Some(Credential {
                username: username.to_owned(),
                password,
            }));
        }
        let credential = self.username.filter(|name| !name.is_empty()).map(|username| Credential {
            username,
            password: self.password.unwrap_or_default(),
        });
        Some(credential)
    }
}

impl Place {
    fn new(key: &str) -> Self {
        let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let (host, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        // API versions in a path mean the whole host.
        let path = if path.starts_with("/v1/") || path.starts_with("/v2/") {
            &path[3..]
        } else {
            path
        };
        let path = if path == "/" { "" } else { path };
        Self {
            text: format!("{host}{path}"),
        }
    }

    fn matches(&self, image: &str) -> bool {
        let split = |text: &str| -> (String, String) {
            text.find('/').map_or((text.to_owned(), String::new()), |slash| {
                (text[..slash].to_owned(), text[slash..].to_owned())
            })
        };
        let (host, path) = split(&self.text);
        let (image_host, image_path) = split(image);
        let (name, port) = host.rsplit_once(':').unwrap_or((&host, ""));
        let (image_name, image_port) = image_host.rsplit_once(':').unwrap_or((&image_host, ""));
        port == image_port
            && image_path.starts_with(&path)
            && name.split('.').count() == image_name.split('.').count()
            && name
                .split('.')
                .zip(image_name.split('.'))
                .all(|(glob, part)| glob_matches(glob.as_bytes(), part.as_bytes()))
    }
}

/// `*`, `?` and `[a-z]`, as Go's path.Match has them, within one part of a host name.
fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    match (glob.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => glob_matches(&glob[1..], text) || (!text.is_empty() && glob_matches(glob, &text[1..])),
        (Some(b'?'), Some(_)) => glob_matches(&glob[1..], &text[1..]),
        (Some(b'['), Some(byte)) => {
            let Some(end) = glob.iter().position(|byte| *byte == b']') else {
                return false;
            };
            let class = &glob[1..end];
            let (negated, class) = class.strip_prefix(b"^").map_or((false, class), |class| (true, class));
            let mut found = false;
            let mut rest = class;
            while let Some(low) = rest.first() {
                let range = rest.len() >= 3 && rest[1] == b'-';
                let high = if range { rest[2] } else { *low };
                found |= (*low..=high).contains(byte);
                rest = &rest[if range { 3 } else { 1 }..];
            }
            found != negated && glob_matches(&glob[end + 1..], &text[1..])
        }
        (Some(want), Some(byte)) => want == byte && glob_matches(&glob[1..], &text[1..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(keyring: &Keyring, image: &str) -> Vec<String> {
        keyring
            .lookup(&image.parse().unwrap())
            .into_iter()
            .map(|credential| credential.username)
            .collect()
    }

    fn keyring(places: &[&str]) -> Keyring {
        let auths: serde_json::Map<_, _> = places
            .iter()
            .map(|place| ((*place).to_owned(), serde_json::json!({"username": place, "password": "p"})))
            .collect();
        let mut keyring = Keyring::default();
        keyring
            .add_docker_config_json(serde_json::json!({"auths": auths}).to_string().as_bytes())
            .unwrap();
        keyring
    }

    #[test]
    fn places_match_by_host_port_glob_and_path() {
        let all = [
            "reg.io",
            "reg.io/team",
            "reg.io:5000",
            "*.reg.io",
            "https://reg.io/v2/",
            "other[0-9].io",
        ];
        let keyring = keyring(&all);
        assert_eq!(users(&keyring, "reg.io/team/app"), ["reg.io/team", "https://reg.io/v2/", "reg.io"]);
        assert_eq!(users(&keyring, "reg.io:5000/a"), ["reg.io:5000"]);
        assert_eq!(users(&keyring, "eu.reg.io/a"), ["*.reg.io"]);
        assert_eq!(users(&keyring, "a.eu.reg.io/a"), [""; 0]);
        assert_eq!(users(&keyring, "other7.io/a"), ["other[0-9].io"]);
        assert_eq!(users(&keyring, "nginx"), [""; 0]);
    }

    #[test]
    fn the_hub_is_found_under_its_old_name() {
        let keyring = keyring(&["https://index.docker.io/v1/"]);
        assert_eq!(users(&keyring, "nginx"), ["https://index.docker.io/v1/"]);
        assert_eq!(users(&keyring, "quay.io/nginx"), [""; 0]);
    }

    #[test]
    fn auth_is_decoded_and_malformed_secrets_are_errors() {
        let mut keyring = Keyring::default();
        keyring.add_docker_cfg(br#"{"reg.io":{"auth":"dTpwOnE=","email":"x"}}"#).unwrap();
        let found = keyring.lookup(&"reg.io/a".parse().unwrap());
        assert_eq!(
            found,
            [Credential {
                username: "u".to_owned(),
                password: "p:q".to_owned()
            }]
        );
        assert!(!format!("{found:?}").contains("p:q"));
        assert!(matches!(
            keyring.add_docker_cfg(br#"{"reg.io":{"auth":"!"}}"#),
            Err(KeyringError::Auth(_))
        ));
        assert!(matches!(keyring.add_docker_config_json(b"x"), Err(KeyringError::Malformed(_))));
    }
}
