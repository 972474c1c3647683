//! The node's client of the API server. With certificates by request its identity changes while it is used: each identity gets a client of
//! kube's, with connections of its own, and requests go through the newest. What is under way, a watch above all, ends where it began: its
//! connection closes with its last answer. So no connection is cut, and none is used with a certificate that was replaced.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use kube::{
    Client, Config as KubeConfig,
    client::Body,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use tokio::sync::watch;
use tracing::warn;

use super::{
    files::write_privately,
    keeper::Holder,
    pair::Pair,
    plan::{Template, flaw},
};

/// How long connecting to the API server may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// What a kubeconfig says of its present context.
pub(super) async fn read(path: &Path) -> anyhow::Result<(KubeConfig, Kubeconfig)> {
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("read the kubeconfig {}", path.display()))?;
    let mut config = KubeConfig::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default())
        .await
        .with_context(|| format!("use the kubeconfig {}", path.display()))?;
    config.connect_timeout = Some(CONNECT_TIME);
    Ok((config, kubeconfig))
}

/// A client as a kubeconfig says, for as long as its credentials last.
pub async fn of_kubeconfig(path: &Path) -> anyhow::Result<Client> {
    let (config, _) = read(path).await?;
    Client::try_from(config).with_context(|| format!("use the credentials of {}", path.display()))
}

/// A client with this certificate.
pub(super) fn with_pair(base: &KubeConfig, pair: &Pair) -> kube::Result<Client> {
    let mut config = base.clone();
    config.auth_info = AuthInfo {
        client_certificate_data: Some(STANDARD.encode(&pair.certificate)),
        client_key_data: Some(SecretString::from(STANDARD.encode(&pair.key))),
        ..AuthInfo::default()
    };
    Client::try_from(config)
}

/// The certificate that a kubeconfig names itself, if it does and it can be read.
pub(super) fn own_pair(user: &AuthInfo) -> anyhow::Result<Option<Pair>> {
    let part = |data: Option<&str>, file: Option<&String>| -> anyhow::Result<Option<String>> {
        let bytes = match (data, file) {
            (Some(data), _) => STANDARD.decode(data).context("decode its base64")?,
            (None, Some(path)) => match fs::read(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                bytes => bytes.with_context(|| format!("read {path}"))?,
            },
            (None, None) => return Ok(None),
        };
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    };
    let key = user.client_key_data.as_ref().map(|key| key.expose_secret());
    let certificate = part(user.client_certificate_data.as_deref(), user.client_certificate.as_ref())?;
    match (certificate, part(key, user.client_key.as_ref())?) {
        (Some(certificate), Some(key)) => Ok(Some(Pair::new(&certificate, &key)?)),
        _ => Ok(None),
    }
}

/// Whether a kubeconfig's user can be anybody without a certificate.
pub(super) fn has_other_credentials(user: &AuthInfo) -> bool {
    user.token.is_some() || user.token_file.is_some() || user.exec.is_some() || user.auth_provider.is_some() || user.username.is_some()
}

/// The first certificate of these that will do; why others will not is logged.
pub(super) fn usable(candidates: Vec<(String, anyhow::Result<Option<Pair>>)>, template: &Template, now: Timestamp) -> Option<Pair> {
    candidates.into_iter().find_map(|(place, pair)| match pair {
        Ok(pair) => pair.filter(|pair| match flaw(&pair.facts, template, now) {
            Some(flaw) => {
                warn!("the certificate of {place} will not do: {flaw}");
                false
            }
            None => true,
        }),
        Err(error) => {
            warn!("the certificate of {place} cannot be used: {error:#}");
            None
        }
    })
}

/// The kubeconfig of a node that has its certificate: the cluster of the one it began with, and the file that is always the newest. As the kubelet
/// writes it (pkg/kubelet/certificate/bootstrap).
pub(super) fn kubeconfig_of(bootstrap: &Kubeconfig, certificate: &Path) -> anyhow::Result<String> {
    let context = bootstrap.current_context.as_ref().context("it has no current context")?;
    let named = bootstrap
        .contexts
        .iter()
        .find(|one| one.name == *context)
        .and_then(|one| one.context.as_ref());
    let named = named.context("its current context is not there")?;
    let cluster = bootstrap
        .clusters
        .iter()
        .find(|one| one.name == named.cluster)
        .and_then(|one| one.cluster.as_ref());
    let written = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "default-context",
        "contexts": [{"name": "default-context", "context": {"cluster": "default-cluster", "user": "default-auth"}}],
        "clusters": [{"name": "default-cluster", "cluster": cluster.context("its cluster is not there")?}],
        "users": [{"name": "default-auth", "user": {"client-certificate": certificate, "client-key": certificate}}],
    });
    Ok(serde_json::to_string_pretty(&written)? + "\n")
}

/// Where new identities go, and the client whose requests have the newest. They wait until there is a first one.
pub(super) fn switched() -> (watch::Sender<Option<Client>>, Client) {
    let (sender, receiver) = watch::channel(None::<Client>);
    let service = tower::service_fn(move |request: hyper::Request<Body>| {
        let mut receiver = receiver.clone();
        async move {
            let newest = receiver.wait_for(Option::is_some).await.ok().and_then(|newest| newest.clone());
            match newest {
                Some(client) => client.send(request).await,
                None => Err(kube::Error::Service("there will be no client certificate".into())),
            }
        }
    });
    (sender, Client::new(service, "default"))
}

/// What the client certificate is for.
pub(super) struct ClientHolder {
    /// The API server, without an identity.
    pub(super) base: KubeConfig,
    /// Who asks while there is no certificate.
    pub(super) first: KubeConfig,
    /// Where identities go.
    pub(super) newest: watch::Sender<Option<Client>>,
    /// The kubeconfig that is written with the first certificate, if there is none.
    pub(super) kubeconfig: Option<(PathBuf, String)>,
}

impl Holder for ClientHolder {
    /// The certificate itself while it counts, as the kubelet: a bootstrap token is often long gone.
    fn asker(&self, present: Option<&Pair>) -> kube::Result<Client> {
        match present {
            Some(pair) if pair.facts.ends > Timestamp::now() => with_pair(&self.base, pair),
            _ => Client::try_from(self.first.clone()),
        }
    }

    fn take(&self, pair: &Pair) -> Result<(), String> {
        let client = with_pair(&self.base, pair).map_err(|error| error.to_string())?;
        self.newest.send_replace(Some(client));
        if let Some((path, text)) = self.kubeconfig.as_ref().filter(|(path, _)| !path.exists()) {
            write_privately(path, text.as_bytes()).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// Without a usable certificate there must be another way to one.
pub(super) fn check_way(config: &crate::config::Config, first: &KubeConfig, present: Option<&Pair>) -> anyhow::Result<()> {
    if present.is_none() && config.bootstrap_kubeconfig.is_none() && !has_other_credentials(&first.auth_info) {
        bail!(
            "there is no usable client certificate in {} or {}, and no bootstrapKubeconfig to ask for one with",
            config.pki_dir().display(),
            config.kubeconfig.display()
        );
    }
    Ok(())
}
