//! Makes certificates and reads them (rcgen, x509-parser). Keys are never printed.

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::plan::{Facts, SKEW};

/// Why a certificate cannot be made or used. Nothing of a key is in it.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// By rcgen.
    #[error("make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// It is no X.509.
    #[error("read a certificate: {0}")]
    Read(String),
}

/// A certificate and its key, both PEM.
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// A new authority that counts for so long. Its name says when it was made, so that no two have the same.
pub fn authority(now: Timestamp, duration: SignedDuration) -> Result<Pair, MakeError> {
    let ends = now.saturating_add(duration).unwrap_or(Timestamp::MAX);
    let mut parameters = parameters(&format!("kvmlet-webhook-ca-{}", now.as_nanosecond()), now, ends);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    Ok(Pair {
        certificate: parameters.self_signed(&key)?.pem(),
        key: key.serialize_pem(),
    })
}

/// A serving certificate for these names, signed by an authority.
pub fn serving(authority: &Pair, names: &[String], now: Timestamp, ends: Timestamp) -> Result<Pair, MakeError> {
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.key)?)?;
    let mut parameters = parameters("kvmlet-webhook", now, ends);
    parameters.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    Ok(Pair {
        certificate: parameters.signed_by(&key, &issuer)?.pem(),
        key: key.serialize_pem(),
    })
}

fn parameters(name: &str, now: Timestamp, ends: Timestamp) -> CertificateParams {
    let epoch = date_time_ymd(1970, 1, 1);
    let seconds = |time: Timestamp| std::time::Duration::from_secs(time.as_second().unsigned_abs());
    let mut parameters = CertificateParams::default();
    parameters.not_before = epoch + seconds(now.saturating_sub(SKEW).unwrap_or(Timestamp::UNIX_EPOCH));
    parameters.not_after = epoch + seconds(ends);
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters
}

/// All certificates of a text; what is none is passed over.
pub fn read_all(pem: &[u8]) -> Vec<Facts> {
    CertificateDer::pem_slice_iter(pem)
        .filter_map(Result::ok)
        .filter_map(|der| facts(&der).ok())
        .collect()
}

/// The certificate of a pair, if the key is its own.
pub fn read_pair(certificate: &[u8], key: &[u8]) -> Option<Facts> {
    der(certificate, key)?;
    read_all(certificate).into_iter().next()
}

/// A pair for TLS, if the key is the certificate's own.
pub fn der(certificate: &[u8], key: &[u8]) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate).collect::<Result<_, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_slice(key).ok()?;
    let provider = rustls::crypto::ring::default_provider();
    rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider).ok()?;
    Some((chain, key))
}

fn facts(der: &CertificateDer<'_>) -> Result<Facts, MakeError> {
    let read = |text: String| MakeError::Read(text);
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| read(error.to_string()))?;
    let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|error| read(error.to_string()));
    let validity = certificate.validity();
    Ok(Facts {
        pem: pem(der),
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        begins: time(validity.not_before.timestamp())?,
        ends: time(validity.not_after.timestamp())?,
    })
}

/// One way of writing each certificate, so that texts can be compared.
fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap_or_default())
        .collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_serving_certificate_says_who_signed_it_and_how_long_it_counts() {
        let authority = authority(at(1_000_000), SignedDuration::from_hours(48)).unwrap();
        let serving = serving(&authority, &["w.n.svc".to_owned()], at(1_000_000), at(1_003_600)).unwrap();
        let ca = read_pair(authority.certificate.as_bytes(), authority.key.as_bytes()).unwrap();
        let leaf = read_pair(serving.certificate.as_bytes(), serving.key.as_bytes()).unwrap();
        assert_eq!((&leaf.issuer, &ca.issuer), (&ca.subject, &ca.subject));
        assert_eq!((leaf.begins, leaf.ends), (at(1_000_000) - SKEW, at(1_003_600)));
        assert_eq!(
            read_pair(serving.certificate.as_bytes(), authority.key.as_bytes()),
            None,
            "another one's key"
        );
    }

    #[test]
    fn a_client_that_knows_the_authority_takes_its_serving_certificate_for_its_names_alone() {
        use rustls::{RootCertStore, client::WebPkiServerVerifier, pki_types::ServerName, pki_types::UnixTime};
        let now = Timestamp::now();
        let [one, other] = [0, 1].map(|_| authority(now, SignedDuration::from_hours(1)).unwrap());
        let names = ["w.n.svc".to_owned()];
        let serving = serving(&one, &names, now, now + SignedDuration::from_mins(30)).unwrap();
        let (chain, _) = der(serving.certificate.as_bytes(), serving.key.as_bytes()).unwrap();
        let verify = |authority: &Pair, name: &'static str| {
            let mut roots = RootCertStore::empty();
            roots
                .add(CertificateDer::from_pem_slice(authority.certificate.as_bytes()).unwrap())
                .unwrap();
            let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
            let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
            use rustls::client::danger::ServerCertVerifier as _;
            let name = ServerName::try_from(name).unwrap();
            verifier.verify_server_cert(&chain[0], &[], &name, &[], UnixTime::now()).is_ok()
        };
        assert!(verify(&one, "w.n.svc"));
        assert!(!verify(&one, "w.other.svc") && !verify(&other, "w.n.svc"));
    }

    #[test]
    fn certificates_are_read_back_as_they_are_written_and_other_text_is_passed_over() {
        let [one, other] = [1_000, 2_000].map(|second| authority(at(1_000_000 + second), SignedDuration::from_hours(1)).unwrap());
        let text = format!("# old\n{}nonsense\n{}", one.certificate, other.certificate);
        let read = read_all(text.as_bytes());
        assert_eq!(read.len(), 2);
        let again: String = read.iter().map(|facts| facts.pem.as_str()).collect();
        assert_eq!(read_all(again.as_bytes()), read);
        assert_ne!(read[0].subject, read[1].subject);
        assert_eq!(read_all(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), []);
    }
}
