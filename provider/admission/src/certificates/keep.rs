//! Follows the Secret, shows what is in it, and, in the replica that leads, writes what is to be changed. Writes carry the version that was read,
//! so of two that both believe to lead one fails and looks again.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{WatchStreamExt as _, watcher},
};
use kvmlet_server::ServingCertificate;
use tokio::{sync::watch, time::MissedTickBehavior};
use tracing::{info, warn};

use super::{
    config::CertConfig,
    make::{self, MakeError},
    plan::{Step, next},
    stored,
};

/// How often is looked whether something is due.
const PERIOD: Duration = Duration::from_secs(10);

/// More steps than any state needs.
const MOST_STEPS: usize = 6;

/// The upkeep of the certificates.
pub struct Keeper {
    /// The API server.
    pub client: Client,
    /// Where the Secret is.
    pub namespace: String,
    /// Its name.
    pub secret: String,
    /// The MutatingWebhookConfiguration's name.
    pub configuration: String,
    /// The names of the serving certificate.
    pub names: Vec<String>,
    /// How long certificates live; nothing is made before it is known.
    pub config: watch::Receiver<Option<CertConfig>>,
    /// What is shown.
    pub shown: ServingCertificate,
    /// Whether this replica leads.
    pub leads: watch::Receiver<bool>,
}

#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("{0}")]
    Api(Box<kube::Error>),
    #[error(transparent)]
    Make(#[from] MakeError),
}

impl From<kube::Error> for StepError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl Keeper {
    /// Follows and keeps for ever.
    pub async fn keep(mut self) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut versions = pin!(watcher::watch_object(secrets, &self.secret).default_backoff());
        let mut every = tokio::time::interval(PERIOD);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(version) = versions.next() => match version {
                    Ok(Some(secret)) => self.show(&secret),
                    Ok(None) => {}
                    Err(error) => warn!(%error, "watch the certificates' Secret"),
                },
                Ok(()) = self.leads.changed() => {}
                Ok(()) = self.config.changed() => {}
                _ = every.tick() => {}
            }
            let config = *self.config.borrow();
            if *self.leads.borrow()
                && let Some(config) = config
                && let Err(error) = self.take_steps(&config).await
            {
                warn!(%error, "certificates: trying again in {PERIOD:?}");
            }
        }
    }

    /// Shows what the Secret holds from now on, if it can be shown.
    fn show(&self, secret: &Secret) {
        let (certificate, key) = stored::serving(secret);
        let Some((chain, key)) = make::der(certificate, key) else { return };
        if self.shown.present().is_some_and(|shown| shown.cert == chain) {
            return;
        }
        match self.shown.replace(chain, key) {
            Ok(()) => info!("a new serving certificate is shown from now on"),
            Err(error) => warn!(%error, "the Secret's serving certificate cannot be shown: the old one stays"),
        }
    }

    /// Takes steps until nothing is to be done, each from what is there by then.
    async fn take_steps(&self, config: &CertConfig) -> Result<(), StepError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        for _ in 0..MOST_STEPS {
            let Some(mut configuration) = configurations.get_opt(&self.configuration).await? else {
                warn!(
                    name = self.configuration,
                    "there is no such MutatingWebhookConfiguration, so no pod comes here"
                );
                return Ok(());
            };
            let mut secret = secrets.get_opt(&self.secret).await?.unwrap_or_default();
            let now = Timestamp::now();
            let Some(step) = next(&stored::state(&secret, &configuration), config, now) else {
                break;
            };
            match step {
                Step::Tell(all) => {
                    info!(authorities = all.len(), "telling the API server");
                    stored::tell(&mut configuration, &all);
                    configurations
                        .replace(&self.configuration, &PostParams::default(), &configuration)
                        .await?;
                    continue;
                }
                Step::NewAuthority { earlier } => {
                    info!(earlier = earlier.len(), "making a new authority");
                    stored::set_authority(&mut secret, make::authority(now, config.ca.duration)?, &earlier);
                }
                Step::NewServing { ends } => {
                    info!(%ends, "making a new serving certificate");
                    let made = make::serving(&stored::authority(&secret), &self.names, now, ends)?;
                    stored::set_serving(&mut secret, made);
                }
            }
            self.write(&secrets, secret).await?;
        }
        Ok(())
    }

    async fn write(&self, secrets: &Api<Secret>, mut secret: Secret) -> kube::Result<()> {
        if secret.metadata.resource_version.is_some() {
            secrets.replace(&self.secret, &PostParams::default(), &secret).await?;
        } else {
            secret.metadata.name = Some(self.secret.clone());
            secrets.create(&PostParams::default(), &secret).await?;
        }
        Ok(())
    }
}
