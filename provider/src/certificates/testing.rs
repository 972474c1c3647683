//! An authority for tests.

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    SerialNumber, date_time_ymd,
};

use super::{
    pair::Pair,
    plan::{NODES, Template},
};

/// Signs what it is asked to.
pub(super) struct Authority {
    pub(super) certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

fn set_times(parameters: &mut CertificateParams, begins: i64, ends: i64) {
    let epoch = date_time_ymd(1970, 1, 1);
    parameters.not_before = epoch + std::time::Duration::from_secs(begins.unsigned_abs());
    parameters.not_after = epoch + std::time::Duration::from_secs(ends.unsigned_abs());
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            certificate: parameters.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(parameters, key),
        }
    }

    /// A certificate as the template says, between two seconds since 1970.
    pub(super) fn pair(&self, template: &Template, begins: i64, ends: i64) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::OrganizationName, NODES);
        parameters.distinguished_name.push(DnType::CommonName, &template.user);
        parameters.serial_number = Some(SerialNumber::from(begins.unsigned_abs()));
        for name in &template.names {
            parameters
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into().unwrap()));
        }
        parameters
            .subject_alt_names
            .extend(template.addresses.iter().copied().map(SanType::IpAddress));
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        set_times(&mut parameters, begins, ends);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap().pem();
        Pair::new(&certificate, &key.serialize_pem()).unwrap()
    }

    /// One that counts from now on, for so many seconds.
    pub(super) fn fresh(&self, template: &Template, seconds: i64) -> Pair {
        let now = Timestamp::now().as_second();
        self.pair(template, now, now + seconds)
    }

    /// What a signer answers a request (PEM) with, for so many seconds.
    pub(super) fn sign(&self, request: &str, seconds: i64) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
        let now = Timestamp::now().as_second();
        set_times(&mut request.params, now, now + seconds);
        request.signed_by(&self.issuer).unwrap().pem()
    }
}
