//! Who has shown that it may have an image of a repository (KEP-2535): everybody, where the registry gave it without asking, or whoever has
//! credentials that the registry has accepted. Of credentials only a salted digest is kept. What is not known here is to be asked of the registry.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::keyring::Credential;

/// Of all images: a repository's name, then the image's id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Accesses(BTreeMap<String, BTreeMap<String, Access>>);

/// Of one image of one repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Access {
    everybody: bool,
    /// Random; empty while there is no proof.
    salt: String,
    /// Digests of credentials, with the salt.
    proofs: BTreeSet<String>,
}

impl Accesses {
    /// Whether one who has these credentials has had the image, or all have.
    pub(super) fn admit(&self, repository: &str, id: &str, credentials: &[Credential]) -> bool {
        let access = self.0.get(repository).and_then(|images| images.get(id));
        access.is_some_and(|access| {
            access.everybody
                || credentials
                    .iter()
                    .any(|credential| access.proofs.contains(&access.proof(credential)))
        })
    }

    /// The registry has given the image to one with this credential, or to one without any. Whether that is new.
    pub(super) fn note(&mut self, repository: &str, id: &str, credential: Option<&Credential>) -> bool {
        if self.admit(repository, id, credential.map(std::slice::from_ref).unwrap_or_default()) {
            return false;
        }
        let images = self.0.entry(repository.to_owned()).or_default();
        let access = images.entry(id.to_owned()).or_default();
        match credential {
            None => access.everybody = true,
            Some(credential) => {
                if access.salt.is_empty() {
                    access.salt = salt();
                }
                access.proofs.insert(access.proof(credential));
            }
        }
        true
    }

    /// Forgets images that are gone.
    pub(super) fn keep(&mut self, here: impl Fn(&str) -> bool) {
        self.0.retain(|_, images| {
            images.retain(|id, _| here(id));
            !images.is_empty()
        });
    }
}

impl Access {
    /// The user's name has its length before it, so that no other split of the same letters is the same.
    fn proof(&self, credential: &Credential) -> String {
        let mut digest = Sha256::new();
        digest.update(&self.salt);
        digest.update((credential.username.len() as u64).to_le_bytes());
        digest.update(&credential.username);
        digest.update(&credential.password);
        STANDARD.encode(digest.finalize())
    }
}

fn salt() -> String {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty()).unwrap_or(0);
    }
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, password: &str) -> Credential {
        Credential {
            username: name.into(),
            password: password.into(),
        }
    }

    #[test]
    fn an_image_is_had_by_who_has_proven_it_and_by_nobody_else() {
        let mut all = Accesses::default();
        let right = user("puller", "let-me-in");
        assert!(!all.admit("reg.io/app", "sha256:1", std::slice::from_ref(&right)));
        assert!(all.note("reg.io/app", "sha256:1", Some(&right)) && !all.note("reg.io/app", "sha256:1", Some(&right)));
        assert!(all.admit("reg.io/app", "sha256:1", &[user("other", "x"), right.clone()]));
        for credentials in [vec![], vec![user("puller", "guess")], vec![user("pullerlet", "-me-in")]] {
            assert!(!all.admit("reg.io/app", "sha256:1", &credentials), "{credentials:?}");
        }
        assert!(
            !all.admit("reg.io/other", "sha256:1", std::slice::from_ref(&right)),
            "another repository has to say so itself"
        );
        assert!(!all.admit("reg.io/app", "sha256:2", &[right]));
    }

    #[test]
    fn what_was_given_without_asking_is_everybodys() {
        let mut all = Accesses::default();
        all.note("reg.io/app", "sha256:1", None);
        assert!(all.admit("reg.io/app", "sha256:1", &[]) && all.admit("reg.io/app", "sha256:1", &[user("a", "b")]));
        all.keep(|id| id != "sha256:1");
        assert_eq!(all, Accesses::default());
    }

    #[test]
    fn no_password_is_written() {
        let mut all = Accesses::default();
        all.note("reg.io/app", "sha256:1", Some(&user("puller", "let-me-in")));
        let text = serde_json::to_string(&all).unwrap();
        assert!(!text.contains("puller") && !text.contains("let-me-in"), "{text}");
        assert!(
            serde_json::from_str::<Accesses>(&text)
                .unwrap()
                .admit("reg.io/app", "sha256:1", &[user("puller", "let-me-in")])
        );
    }
}
