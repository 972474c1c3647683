//! The node's certificates: the one it shows the API server and the one its port shows, had by CertificateSigningRequest and renewed before they
//! end, as the kubelet's (k8s.io/client-go/util/certificate, k8s.io/kubernetes/pkg/kubelet/certificate), or read from files that somebody else renews.
//!
//! [`plan`] decides, [`pair`] reads, [`files`] keeps, [`request`] asks, [`keeper`] does these in turn; [`client`] is what the API server's side
//! is used by; [`reload`] and [`authority`] look at files again.

pub mod authority;
pub mod client;
pub mod figures;
pub mod files;
pub mod keeper;
pub mod pair;
pub mod plan;
mod reload;
pub mod request;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod testing_api;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use jiff::Timestamp;
use kube::Client;
use kvmlet_server::ServingCertificate;

use self::{
    client::ClientHolder,
    figures::Figures,
    files::Directory,
    keeper::{Holder, Keeper, Teller},
    pair::Pair,
    plan::{Kind, Template},
    reload::Loaded,
};
use crate::config::Config;

/// A keeper that has not begun, what it keeps the certificate for, and the certificate that is there already.
struct Kept<H>(Keeper, H, Option<Pair>);

impl<H: Holder> Kept<H> {
    /// Uses what is there already, so that it is before anything else is.
    fn new(keeper: Keeper, holder: H, present: Option<Pair>) -> anyhow::Result<Self> {
        keeper.figures.managed(keeper.kind);
        if let Some(pair) = &present {
            let taken = holder.take(pair).map_err(anyhow::Error::msg);
            taken.with_context(|| format!("use the {}", keeper.kind))?;
        }
        Ok(Self(keeper, holder, present))
    }

    fn start(self, teller: Teller) {
        let Self(keeper, holder, present) = self;
        tokio::spawn(keeper.keep(holder, present, teller));
    }
}

/// The node's client, whose certificate is asked for and renewed once [`Self::keep`] is called.
pub struct NodeClient {
    /// The client; its requests wait until there is a certificate.
    pub client: Client,
    source: ClientSource,
}

enum ClientSource {
    /// What the kubeconfig has, without files that could change.
    Fixed,
    /// Files that the kubeconfig names.
    Files(Box<Loaded<Pair>>, Box<ClientHolder>),
    /// Requests.
    Asked(Box<Kept<ClientHolder>>),
}

impl NodeClient {
    /// As the configuration says: with what `kubeconfig` has, or with certificates by request.
    pub async fn open(config: &Config, figures: &Arc<Figures>) -> anyhow::Result<Self> {
        if !config.renews_client_certificate() && config.bootstrap_kubeconfig.is_none() {
            return Self::of_files(config).await;
        }
        let directory = Directory::new(config.pki_dir(), Kind::Client);
        // Nobody needs it any more once there is a certificate: it may be gone.
        let mut bootstrap = match &config.bootstrap_kubeconfig {
            Some(path) => Some(client::read(path).await),
            None => None,
        };
        let (base, kubeconfig) = match bootstrap {
            Some(read) if !config.kubeconfig.exists() => {
                let (base, first) = read?;
                let text = client::kubeconfig_of(&first, &directory.current()).context("use the kubeconfig of bootstrapKubeconfig")?;
                bootstrap = Some(Ok((base.clone(), first)));
                (base, Some((config.kubeconfig.clone(), text)))
            }
            _ => (client::read(&config.kubeconfig).await?.0, None),
        };
        let template = Template::client(&config.node_name);
        let candidates = vec![
            (directory.current().display().to_string(), directory.read().map_err(Into::into)),
            (config.kubeconfig.display().to_string(), client::own_pair(&base.auth_info)),
        ];
        let present = client::usable(candidates, &template, Timestamp::now());
        let first = match bootstrap {
            Some(Ok((first, _))) => first,
            Some(Err(error)) if present.is_none() => return Err(error),
            _ => base.clone(),
        };
        client::check_way(config, &first, present.as_ref())?;
        let (newest, client) = client::switched();
        let holder = ClientHolder {
            base,
            first,
            newest,
            kubeconfig,
        };
        let keeper = keeper(config, Kind::Client, template, config.renews_client_certificate(), figures);
        Ok(Self {
            client,
            source: ClientSource::Asked(Box::new(Kept::new(keeper, holder, present)?)),
        })
    }

    /// As the kubeconfig says, with the files that it names.
    async fn of_files(config: &Config) -> anyhow::Result<Self> {
        let (base, _) = client::read(&config.kubeconfig).await?;
        let user = &base.auth_info;
        let named = user.client_certificate_data.is_none() && user.client_key_data.is_none() && !client::has_other_credentials(user);
        let present = if named { client::own_pair(user)? } else { None };
        let Some(present) = present else {
            let client = client::of_kubeconfig(&config.kubeconfig).await?;
            return Ok(Self {
                client,
                source: ClientSource::Fixed,
            });
        };
        let (newest, client) = client::switched();
        let holder = ClientHolder {
            first: base.clone(),
            base,
            newest,
            kubeconfig: None,
        };
        holder.take(&present).map_err(anyhow::Error::msg)?;
        Ok(Self {
            client,
            source: ClientSource::Files(Box::new(Loaded::new("client certificate", present)), Box::new(holder)),
        })
    }

    /// Keeps the certificate from now on.
    pub fn keep(self, teller: Teller) {
        match self.source {
            ClientSource::Fixed => {}
            ClientSource::Files(loaded, holder) => {
                tokio::spawn(async move {
                    let read = || client::own_pair(&holder.base.auth_info).and_then(|pair| pair.context("its files are gone"));
                    let named = &holder.base.auth_info;
                    let files: Vec<_> = named.client_certificate.iter().chain(&named.client_key).collect();
                    loaded
                        .keep(&files, read, |pair| holder.take(pair).map_err(anyhow::Error::msg))
                        .await;
                });
            }
            ClientSource::Asked(kept) => kept.start(teller),
        }
    }
}

struct ServingHolder {
    client: Client,
    certificate: ServingCertificate,
}

impl Holder for ServingHolder {
    fn asker(&self, _: Option<&Pair>) -> kube::Result<Client> {
        Ok(self.client.clone())
    }

    fn take(&self, pair: &Pair) -> Result<(), String> {
        show(&self.certificate, pair).map_err(|error| error.to_string())
    }
}

/// What the node's port shows: files, or a certificate that is asked for and renewed once [`Self::keep`] is called. Until it is approved
/// handshakes fail, as the kubelet's.
pub struct PortCertificate {
    /// What the port shows.
    pub certificate: ServingCertificate,
    source: PortSource,
}

enum PortSource {
    /// Certificate and key.
    Files(Box<Loaded<Pair>>, [PathBuf; 2]),
    /// Requests.
    Asked(Box<Kept<ServingHolder>>),
}

/// Reads a certificate and its key.
fn pair_of_files([certificate, key]: &[PathBuf; 2]) -> anyhow::Result<Pair> {
    let text = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let pair = Pair::new(&text(certificate)?, &text(key)?);
    pair.with_context(|| format!("use {} and {}", certificate.display(), key.display()))
}

impl PortCertificate {
    /// As the configuration says.
    pub fn open(config: &Config, client: &Client, figures: &Arc<Figures>) -> anyhow::Result<Self> {
        let certificate = ServingCertificate::none();
        if let Some((certificate_file, key_file)) = config.tls.files() {
            let files = [certificate_file.to_owned(), key_file.to_owned()];
            let pair = pair_of_files(&files)?;
            show(&certificate, &pair)?;
            let source = PortSource::Files(Box::new(Loaded::new("serving certificate", pair)), files);
            return Ok(Self { certificate, source });
        }
        let template = Template::serving(&config.node_name, config.node_ip);
        let keeper = keeper(config, Kind::Serving, template, true, figures);
        let place = keeper.directory.current().display().to_string();
        let candidates = vec![(place, keeper.directory.read().map_err(Into::into))];
        let present = client::usable(candidates, &keeper.template, Timestamp::now());
        let holder = ServingHolder {
            client: client.clone(),
            certificate: certificate.clone(),
        };
        Ok(Self {
            certificate,
            source: PortSource::Asked(Box::new(Kept::new(keeper, holder, present)?)),
        })
    }

    /// Keeps the certificate from now on.
    pub fn keep(self, teller: Teller) {
        match self.source {
            PortSource::Files(loaded, files) => {
                let shown = self.certificate;
                tokio::spawn(async move { loaded.keep(&files, || pair_of_files(&files), |pair| show(&shown, pair)).await });
            }
            PortSource::Asked(kept) => kept.start(teller),
        }
    }
}

/// Shows this from now on, to connections to come.
fn show(shown: &ServingCertificate, pair: &Pair) -> anyhow::Result<()> {
    let (chain, key) = pair.der();
    Ok(shown.replace(chain, key)?)
}

fn keeper(config: &Config, kind: Kind, template: Template, renews: bool, figures: &Arc<Figures>) -> Keeper {
    Keeper {
        kind,
        template,
        directory: Directory::new(config.pki_dir(), kind),
        seconds: config.certificate_expiration_seconds,
        renews,
        figures: figures.clone(),
    }
}
