//! A certificate and its key, read from PEM and known to belong together. The key is never printed.

use std::{net::IpAddr, sync::LazyLock};

use jiff::Timestamp;
use rustls::{
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::plan::Facts;

/// Checks keys.
static PROVIDER: LazyLock<CryptoProvider> = LazyLock::new(rustls::crypto::ring::default_provider);

/// A certificate chain, the leaf first, and the leaf's key.
pub struct Pair {
    /// What the leaf says.
    pub facts: Facts,
    /// The chain, PEM.
    pub certificate: String,
    /// The key, PEM.
    pub(super) key: String,
    chain: Vec<CertificateDer<'static>>,
    private: PrivateKeyDer<'static>,
}

/// The same certificate: its key is no other.
impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.certificate == other.certificate
    }
}

/// Why certificate and key cannot be used. Nothing of the key is in it.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// There is none.
    #[error("there is no certificate")]
    NoCertificate,
    /// A section is not PEM, or there is no key.
    #[error("read the {0}: it is missing or no PEM")]
    Pem(&'static str),
    /// The leaf is not X.509.
    #[error("read the certificate: {0}")]
    Certificate(String),
    /// The key is of another certificate or of no known kind.
    #[error("the key is not the certificate's: {0}")]
    Key(rustls::Error),
}

impl Pair {
    /// Reads a certificate chain and a key; either text may hold both.
    pub fn new(certificate: &str, key: &str) -> Result<Self, PairError> {
        let certificate = sections(certificate, |label| label == "CERTIFICATE");
        let key = sections(key, |label| label.ends_with("PRIVATE KEY"));
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| PairError::Pem("certificate"))?;
        let leaf = chain.first().ok_or(PairError::NoCertificate)?;
        let facts = facts(leaf).map_err(PairError::Certificate)?;
        let private = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| PairError::Pem("key"))?;
        CertifiedKey::from_der(chain.clone(), private.clone_key(), &PROVIDER).map_err(PairError::Key)?;
        Ok(Self {
            facts,
            certificate,
            key,
            chain,
            private,
        })
    }

    /// Both, as they are in one file.
    pub fn file(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }

    /// The chain, and the key.
    pub fn der(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain.clone(), self.private.clone_key())
    }
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pair {{ {:?} }}", self.facts)
    }
}

/// The sections whose label is wanted, as they are.
fn sections(text: &str, wanted: impl Fn(&str) -> bool) -> String {
    let label = |line: &str, edge: &str| -> Option<String> { Some(line.strip_prefix(edge)?.strip_suffix("-----")?.to_owned()) };
    let (mut found, mut inside) = (String::new(), false);
    for line in text.lines().map(str::trim) {
        inside |= label(line, "-----BEGIN ").is_some_and(|label| wanted(&label));
        if inside {
            found.push_str(line);
            found.push('\n');
        }
        inside &= label(line, "-----END ").is_none();
    }
    found
}

fn facts(leaf: &CertificateDer<'_>) -> Result<Facts, String> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
    let subject = certificate.subject();
    let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|error| error.to_string());
    let validity = certificate.validity();
    let mut facts = Facts {
        user: subject
            .iter_common_name()
            .find_map(|name| name.as_str().ok())
            .unwrap_or_default()
            .into(),
        groups: subject
            .iter_organization()
            .filter_map(|name| name.as_str().ok())
            .map(Into::into)
            .collect(),
        names: Default::default(),
        addresses: Default::default(),
        begins: time(validity.not_before.timestamp())?,
        ends: time(validity.not_after.timestamp())?,
    };
    let places = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    for place in places.iter().flat_map(|places| &places.value.general_names) {
        match place {
            GeneralName::DNSName(name) => _ = facts.names.insert((*name).to_owned()),
            GeneralName::IPAddress(bytes) => facts.addresses.extend(address(bytes)),
            _ => {}
        }
    }
    Ok(facts)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            plan::{Template, flaw},
            testing::Authority,
        },
        *,
    };

    #[test]
    fn a_certificate_says_who_where_and_how_long() {
        let authority = Authority::new();
        let template = Template::serving("n", "10.0.0.1".parse().unwrap());
        let pair = authority.pair(&template, 100, 300);
        assert_eq!(pair.facts.user, "system:node:n");
        assert_eq!(pair.facts.groups, ["system:nodes"]);
        assert_eq!((&pair.facts.names, &pair.facts.addresses), (&template.names, &template.addresses));
        assert_eq!((pair.facts.begins.as_second(), pair.facts.ends.as_second()), (100, 300));
        assert_eq!(flaw(&pair.facts, &template, Timestamp::from_second(200).unwrap()), None);
    }

    #[test]
    fn a_pair_is_what_its_file_says_and_other_text_in_it_does_no_harm() {
        let authority = Authority::new();
        let pair = authority.pair(&Template::client("n"), 0, 100);
        let file = format!("subject=n\n{}\n{}\nbye", pair.key, pair.certificate);
        let read = Pair::new(&file, &file).unwrap();
        assert_eq!((read.facts, read.certificate, read.key), (pair.facts, pair.certificate, pair.key));
    }

    #[test]
    fn a_key_of_another_certificate_and_half_a_pair_are_refused() {
        let authority = Authority::new();
        let [one, other] = [0, 1].map(|_| authority.pair(&Template::client("n"), 0, 100));
        assert!(matches!(Pair::new(&one.certificate, &other.key), Err(PairError::Key(_))));
        assert!(matches!(Pair::new(&one.key, &one.key), Err(PairError::NoCertificate)));
        assert!(matches!(Pair::new(&one.certificate, ""), Err(PairError::Pem("key"))));
        let torn = &one.certificate[..one.certificate.len() / 2];
        assert!(Pair::new(torn, &one.key).is_err());
    }

    #[test]
    fn a_key_is_never_printed() {
        let pair = Authority::new().pair(&Template::client("n"), 0, 100);
        let secret = pair.key.lines().nth(1).unwrap();
        assert!(!format!("{pair:?}").contains(secret));
    }
}
