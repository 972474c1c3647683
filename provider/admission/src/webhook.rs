//! The whole webhook: configuration, and what runs together until it is told to stop.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use kvmlet_server::ServingCertificate;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    certificates::{CertConfig, Conflicts, Keeper},
    decide::Unfit,
    lease::Election,
    namespaces::Watched,
    overflow, profile, runtime, server,
};

/// How long new connections are still taken after the order to stop: until then they may be sent here.
const LINGER: Duration = Duration::from_secs(5);

/// The webhook's configuration, kind `KvmletWebhookConfiguration` of `kvmlet.io/v1alpha1`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// `kvmlet.io/v1alpha1`.
    pub api_version: String,
    /// `KvmletWebhookConfiguration`.
    pub kind: String,
    /// How long its certificates live.
    #[serde(default)]
    pub cert_config: CertConfig,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration")]
    Read(#[from] std::io::Error),
    /// It is no such configuration.
    #[error("{0}")]
    Text(String),
    /// Rules are broken.
    #[error(transparent)]
    Conflicts(#[from] Conflicts),
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&std::fs::read_to_string(path)?)
    }

    /// Reads and checks a text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_saphyr::from_str(text).map_err(|error| ConfigError::Text(error.to_string()))?;
        if config.api_version != "kvmlet.io/v1alpha1" || config.kind != "KvmletWebhookConfiguration" {
            let Self { api_version, kind, .. } = config;
            return Err(ConfigError::Text(format!(
                "it is {kind} of {api_version}, and must be KvmletWebhookConfiguration of kvmlet.io/v1alpha1"
            )));
        }
        config.cert_config.check()?;
        Ok(config)
    }
}

/// What the webhook is made of.
pub struct Webhook {
    /// The API server. Its default namespace is where Lease and Secret are.
    pub client: Client,
    /// Where it listens.
    pub address: SocketAddr,
    /// The name of its Service, Lease and MutatingWebhookConfiguration, and the beginning of its Secret's.
    pub name: String,
    /// This replica's name.
    pub me: String,
    /// How certificates live, unless a KvmletRuntime says otherwise.
    pub certificates: CertConfig,
    /// Which pods cannot go.
    pub unfit: Unfit,
}

impl Webhook {
    /// Answers reviews until `stop` is ready; an error if it cannot listen.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> std::io::Result<()> {
        let namespace = self.client.default_namespace().to_owned();
        let shown = ServingCertificate::none();
        let namespaces = Arc::new(Watched::start(self.client.clone()));
        let profiles = profile::follow::follow(self.client.clone(), namespace.clone());
        let (ending, ended) = (CancellationToken::new(), CancellationToken::new());
        let router = server::router(namespaces, profiles.clone(), shown.clone(), self.unfit);
        let router = server::ends_connections(router, ending.clone());
        let listener = server::bind(self.address, router, shown.clone()).await?;
        let (leads, leading) = watch::channel(false);
        let (tell, config) = watch::channel(None);
        let keeper = Keeper {
            client: self.client.clone(),
            secret: format!("{}-certificates", self.name),
            configuration: self.name.clone(),
            names: vec![format!("{}.{namespace}.svc", self.name)],
            config,
            shown,
            leads: leading.clone(),
            namespace: namespace.clone(),
        };
        let certificates = runtime::keep::Certificates {
            own: self.certificates,
            tell,
        };
        let election = Election {
            leases: Api::<Lease>::namespaced(self.client.clone(), &namespace),
            name: self.name.clone(),
            me: self.me,
            leads,
        };
        let serving = tokio::spawn(listener.serve(ended.clone().cancelled_owned()));
        let electing = tokio::spawn(election.run(ending.clone().cancelled_owned()));
        info!(address = %self.address, namespace, "the webhook is up");
        tokio::select! {
            () = keeper.keep() => {}
            () = overflow::keep(self.client.clone(), leading.clone(), profiles, self.unfit) => {}
            () = runtime::keep::keep(self.client, leading, certificates) => {}
            () = stop => {}
        }
        ending.cancel();
        // Another replica leads from now on; reviews come here until the Service's endpoints have changed everywhere.
        let _ = electing.await;
        tokio::time::sleep(LINGER).await;
        ended.cancel();
        let _ = serving.await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kvmlet.io/v1alpha1\nkind: KvmletWebhookConfiguration\n";

    #[test]
    fn a_configuration_says_how_long_certificates_live_and_nothing_else() {
        assert_eq!(Config::parse(HEAD).unwrap().cert_config, CertConfig::default());
        let said = |rest: &str| Config::parse(&format!("{HEAD}{rest}")).unwrap_err().to_string();
        assert!(said("port: 1").contains("port"));
        assert_eq!(
            said("certConfig: {ca: {duration: 12h, renewBefore: 13h}}"),
            "certConfig: ca.duration is smaller than ca.renewBefore; ca.duration is smaller than server.duration"
        );
        let other = Config::parse("apiVersion: v1\nkind: ConfigMap\n").unwrap_err().to_string();
        assert!(other.starts_with("it is ConfigMap of v1"), "{other}");
    }
}
