//! The cluster's identities: authorities, certificates, keys and kubeconfigs, written once when a cluster is made.
//! They are worth nothing outside the cluster's namespace and live as long as it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::Host;
use crate::paths::{APART, API_PORT, API_SERVICE, COUNTED, GATEWAY, State, WORKER, host_address, host_name, write};

/// The name of the cluster's authority.
const AUTHORITY: &str = "kubernetes-ca";

/// A certificate with its key, PEM.
#[derive(Debug)]
pub struct Identity {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

/// Signs identities.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

fn parameters(organization: Option<&str>, name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    if let Some(organization) = organization {
        parameters.distinguished_name.push(DnType::OrganizationName, organization);
    }
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = date_time_ymd(2120, 1, 1);
    parameters
}

fn sign(mut parameters: CertificateParams, usage: ExtendedKeyUsagePurpose, issuer: &Issuer<'_, KeyPair>) -> Result<Identity> {
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![usage];
    let key = KeyPair::generate().context("generate a key")?;
    let cert = parameters.signed_by(&key, issuer).context("sign a certificate")?;
    Ok(Identity {
        cert: cert.pem(),
        key: key.serialize_pem(),
    })
}

impl Authority {
    /// A fresh one.
    pub fn new(name: &str) -> Result<Self> {
        let mut parameters = parameters(None, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().context("generate a key")?;
        Ok(Self(
            CertifiedIssuer::self_signed(parameters, key).with_context(|| format!("sign {name}"))?,
        ))
    }

    /// Its own certificate, PEM.
    pub fn certificate(&self) -> String {
        self.0.pem()
    }

    /// For one who calls.
    pub fn client(&self, organization: Option<&str>, name: &str) -> Result<Identity> {
        sign(parameters(organization, name), ExtendedKeyUsagePurpose::ClientAuth, &self.0)
    }

    /// For one who is called, at these names and addresses.
    pub fn server(&self, organization: Option<&str>, name: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Identity> {
        let mut parameters = parameters(organization, name);
        for name in names {
            parameters
                .subject_alt_names
                .push(SanType::DnsName((*name).try_into().context("a DNS name")?));
        }
        parameters
            .subject_alt_names
            .extend(addresses.iter().copied().map(SanType::IpAddress));
        sign(parameters, ExtendedKeyUsagePurpose::ServerAuth, &self.0)
    }

    /// A kubeconfig for a client of the API server.
    pub fn kubeconfig(&self, identity: &Identity) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: kvmlet\n\
             contexts: [{{name: kvmlet, context: {{cluster: kvmlet, user: kvmlet}}}}]\n\
             clusters: [{{name: kvmlet, cluster: {{server: \"https://{GATEWAY}:{API_PORT}\", certificate-authority-data: {}}}}}]\n\
             users: [{{name: kvmlet, user: {{client-certificate-data: {}, client-key-data: {}}}}}]\n",
            STANDARD.encode(self.certificate()),
            STANDARD.encode(&identity.cert),
            STANDARD.encode(&identity.key),
        )
    }
}

/// A node's client and serving certificate by the cluster's authority that have lived for ten hours and have one left: they are due.
pub fn nearly_over(state: &State, host: &Host) -> Result<[Identity; 2]> {
    let folder = state.pki();
    let key = fs::read_to_string(folder.join("ca.key")).context("read ca.key")?;
    let authority = Issuer::new(parameters(None, AUTHORITY), KeyPair::from_pem(&key).context("use ca.key")?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
    let at = |time: Duration| date_time_ymd(1970, 1, 1) + time;
    let user = format!("system:node:{}", host.name);
    let mut server = parameters(Some("system:nodes"), &user);
    server
        .subject_alt_names
        .push(SanType::DnsName(host.name.as_str().try_into().context("a DNS name")?));
    server.subject_alt_names.push(SanType::IpAddress(host.address.into()));
    let signed = |mut parameters: CertificateParams, usage| {
        parameters.not_before = at(now.saturating_sub(Duration::from_secs(10 * 3600)));
        parameters.not_after = at(now + Duration::from_secs(3600));
        sign(parameters, usage, &authority)
    };
    Ok([
        signed(parameters(Some("system:nodes"), &user), ExtendedKeyUsagePurpose::ClientAuth)?,
        signed(server, ExtendedKeyUsagePurpose::ServerAuth)?,
    ])
}

fn store(folder: &Path, name: &str, identity: &Identity) -> Result<()> {
    write(&folder.join(format!("{name}.crt")), &identity.cert)?;
    write(&folder.join(format!("{name}.key")), &identity.key)
}

/// Makes all identities of a cluster with `hosts` hosts.
pub fn make(state: &State, hosts: usize) -> Result<()> {
    let folder = state.pki();
    let ca = Authority::new(AUTHORITY)?;
    write(&folder.join("ca.crt"), ca.certificate())?;
    write(&folder.join("ca.key"), ca.0.key().serialize_pem())?;

    // The aggregator must not trust the authority of ordinary clients.
    let front_proxy = Authority::new("front-proxy-ca")?;
    write(&folder.join("front-proxy-ca.crt"), front_proxy.certificate())?;
    store(&folder, "front-proxy-client", &front_proxy.client(None, "front-proxy-client")?)?;

    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    let service: IpAddr = API_SERVICE.parse().expect("a constant address");
    let addresses = [service, Ipv4Addr::LOCALHOST.into(), GATEWAY.into()];
    store(&folder, "apiserver", &ca.server(None, "kube-apiserver", &names, &addresses)?)?;
    store(
        &folder,
        "apiserver-kubelet-client",
        &ca.client(None, "kube-apiserver-kubelet-client")?,
    )?;

    let accounts = KeyPair::generate().context("generate a key")?;
    write(&folder.join("sa.key"), accounts.serialize_pem())?;
    write(&folder.join("sa.pub"), accounts.public_key_pem())?;

    let admin = ca.client(Some("system:masters"), "kubernetes-admin")?;
    store(&folder, "admin", &admin)?;
    write(&state.kubeconfig(), ca.kubeconfig(&admin))?;
    for name in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        let identity = ca.client(None, &format!("system:{name}"))?;
        write(&folder.join(format!("{name}.kubeconfig")), ca.kubeconfig(&identity))?;
    }
    // What these may do is in the project's manifests.
    for (user, file) in [("kvmlet:network", "routes"), ("kvmlet:shared", "shared")] {
        let identity = ca.client(None, user)?;
        write(&folder.join(format!("{file}.kubeconfig")), ca.kubeconfig(&identity))?;
    }
    // On its host's address it is called by the certificate of that.
    let worker = ca.client(Some("system:nodes"), &format!("system:node:{WORKER}"))?;
    write(&folder.join(format!("{WORKER}.kubeconfig")), ca.kubeconfig(&worker))?;
    for index in (1..=hosts).chain([COUNTED, APART]) {
        let name = host_name(index);
        let user = format!("system:node:{name}");
        let client = ca.client(Some("system:nodes"), &user)?;
        write(&folder.join(format!("{name}.kubeconfig")), ca.kubeconfig(&client))?;
        let addresses = [host_address(index).into(), Ipv4Addr::LOCALHOST.into()];
        store(&folder, &name, &ca.server(Some("system:nodes"), &user, &[&name], &addresses)?)?;
    }
    Ok(())
}
