//! Keeps one certificate: uses what is on disk, asks for the first, renews it before it ends, tries again after failures for ever.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube::Client;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    figures::Figures,
    files::Directory,
    pair::Pair,
    plan::{Kind, Template, due, wait},
    request::{RequestError, obtain},
};
use crate::{
    act::chain,
    events::{Note, Recorder},
    random,
};

/// The longest single sleep: the host's clock may be set meanwhile, or the host be suspended.
const LOOK: Duration = Duration::from_secs(60);
/// Between two renewals, however short the life is that the signer gives.
const PAUSE: Duration = Duration::from_secs(30);

/// What a certificate is for.
pub trait Holder: Send + Sync + 'static {
    /// Who asks for the next one, `present` being the one until now.
    fn asker(&self, present: Option<&Pair>) -> kube::Result<Client>;
    /// Uses it from now on, for connections to come.
    fn take(&self, pair: &Pair) -> Result<(), String>;
}

/// Whom failures are told.
#[derive(Clone)]
pub struct Teller {
    /// Writes events.
    pub recorder: Recorder,
    /// The node's name.
    pub node: String,
}

impl Teller {
    fn tell(&self, note: Note) {
        self.recorder.node(&self.node, note);
    }
}

/// Keeps one certificate.
#[derive(Debug)]
pub struct Keeper {
    /// Which.
    pub kind: Kind,
    /// What it has to say.
    pub template: Template,
    /// Where it is.
    pub directory: Directory,
    /// How long it shall live, in seconds; its signer decides.
    pub seconds: Option<i32>,
    /// Whether it is renewed.
    pub renews: bool,
    /// What is counted.
    pub figures: Arc<Figures>,
}

impl Keeper {
    /// Never returns if it renews; else with the first certificate there is. `present` has been taken already.
    pub async fn keep(self, holder: impl Holder, mut present: Option<Pair>, teller: Teller) {
        loop {
            if let Some(pair) = &present {
                self.figures.holds(self.kind, pair.facts.ends);
                if !self.renews {
                    return;
                }
                sleep_until(due(&pair.facts, drawn())).await;
            }
            let pair = self.renew(&holder, present.as_ref(), &teller).await;
            // One that cannot be kept is of use until this process ends.
            if let Err(error) = self.directory.write(&pair, Timestamp::now()) {
                warn!("keep the new {}: {error}", self.kind);
                teller.tell(Note::warning(
                    "CertificateNotKept",
                    None,
                    format!("The new {} cannot be kept: {error}", self.kind),
                ));
            }
            match holder.take(&pair) {
                Ok(()) => info!(until = %pair.facts.ends, "the node has a new {}", self.kind),
                Err(error) => warn!("use the new {}: {error}", self.kind),
            }
            self.figures.holds(self.kind, pair.facts.ends);
            present = Some(pair);
            sleep(PAUSE).await;
        }
    }

    /// The next certificate. The first failure in a row is told, and that somebody has to approve a request; all are logged.
    async fn renew(&self, holder: &impl Holder, present: Option<&Pair>, teller: &Teller) -> Pair {
        let (reason, late) = match self.kind {
            Kind::Client => ("ClientCertificateNotRenewed", "ClientCertificateNotApproved"),
            Kind::Serving => ("ServingCertificateNotRenewed", "ServingCertificateNotApproved"),
        };
        let told = AtomicBool::new(false);
        let mut failures = 0;
        loop {
            let late = || {
                if !told.swap(true, Ordering::Relaxed) {
                    let text = format!(
                        "The {} waits for its approval (kubectl get csr --field-selector spec.signerName={})",
                        self.kind,
                        self.kind.signer()
                    );
                    teller.tell(Note::warning(late, None, text));
                }
            };
            let asked = match holder.asker(present) {
                Ok(client) => obtain(client, self.kind, &self.template, self.seconds, late).await,
                Err(error) => Err(RequestError::Create(Box::new(error))),
            };
            let error = match asked {
                Ok(pair) => return pair,
                Err(error) => error,
            };
            failures += 1;
            self.figures.failed(self.kind);
            let (wait, why) = (wait(failures), chain(&error));
            warn!("no new {}: {why}; trying again in {wait:?}", self.kind);
            if failures == 1 {
                teller.tell(Note::warning(reason, None, format!("There is no new {}: {why}", self.kind)));
            }
            sleep(wait).await;
        }
    }
}

async fn sleep_until(time: Timestamp) {
    loop {
        let left = time.duration_since(Timestamp::now());
        if left <= SignedDuration::ZERO {
            return;
        }
        sleep(left.unsigned_abs().min(LOOK)).await;
    }
}

/// A number from 0 to 1; the middle if the kernel gives none.
fn drawn() -> f64 {
    random::bytes().map_or(0.5, |bytes| f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX))
}
