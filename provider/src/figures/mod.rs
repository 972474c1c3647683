//! What pods, their machines and the node use, as the kubelet's pages show it: read when somebody asks, at most once a second, by one
//! reader at a time. Pods' figures are their guests' own; what a machine costs the host besides is told apart (`kvmlet_machine_*`). A guest
//! that does not answer is left out, and holds nobody up for longer than [`PATIENCE`].
//!
//! ```text
//!  guests (collect) ┐
//!  host (host) ─────┴▶ Snapshot (model) ─▶ pages, each a pure function: resource, cadvisor, summary, own
//!  guests (stored) ──▶ what lies in volumes and containers, for summary alone
//! ```

mod cadvisor;
mod certificates;
mod collect;
mod configz;
mod host;
mod kubelet;
mod lap;
mod meters;
mod model;
mod own;
mod requests;
mod resource;
mod spent;
mod startup;
mod stored;
mod summary;
mod text;
mod usage;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kvmlet_server::{Figures, FiguresPage};
use tokio::sync::Mutex;

pub use self::host::{HostLoad, load, processor_time};
pub use self::lap::{Lap, turn};
pub use self::meters::{Meters, Phase};
pub use self::model::MachineFigures;
use self::model::Snapshot;
pub use self::requests::counted;
pub use self::startup::{Course, Startup};
use self::stored::Looks;
pub use self::usage::{PodUsage, usage};
pub(crate) use self::{
    collect::ask,
    host::size_of_files,
    spent::{on_images, on_machines},
};
use crate::{context::Context, driver::View, kubelet::Pods};

/// How long one reading serves.
const FRESH: Duration = Duration::from_secs(1);
/// How old a reading may be that a rate is reckoned from.
const COMPARABLE: Duration = Duration::from_secs(300);
/// How long a guest may take to answer, or a look at its volumes be waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// The last readings.
#[derive(Debug, Default)]
pub struct Readings(Mutex<Vec<Arc<Snapshot>>>, Arc<Looks>);

/// Two readings: the last, and the one before it, for rates.
#[derive(Debug)]
struct Pair {
    now: Arc<Snapshot>,
    before: Option<Arc<Snapshot>>,
}

impl Readings {
    /// What pods have stored that are `wanted`. A look that takes long goes on by itself; until it ends, the one before it serves.
    async fn stored(&self, pods: &Pods, wanted: fn(&View) -> bool) -> stored::All {
        let (looks, pods) = (self.1.clone(), pods.clone());
        let renewed = tokio::spawn(async move { looks.renew(&pods, wanted).await });
        let _ = tokio::time::timeout(PATIENCE, renewed).await;
        self.1.all()
    }

    /// A reading that is fresh. Who asks while one is made waits for it.
    async fn fresh(&self, context: &Arc<Context>, pods: &Pods) -> Pair {
        let mut kept = self.0.lock().await;
        let age = |snapshot: &Snapshot| Duration::try_from(Timestamp::now().duration_since(snapshot.at)).unwrap_or(Duration::MAX);
        if kept.last().is_none_or(|last| age(last) > FRESH) {
            let now = Arc::new(collect::collect(context, pods).await);
            kept.push(now);
            let surplus = kept.len().saturating_sub(2);
            kept.drain(..surplus);
        }
        let now = kept.last().expect("one was just made").clone();
        let before = kept.iter().rev().nth(1).filter(|before| age(before) <= COMPARABLE).cloned();
        Pair { now, before }
    }
}

/// A page of figures.
pub async fn page(context: &Arc<Context>, pods: &Pods, page: FiguresPage) -> Result<Figures, String> {
    let read = || context.readings.fresh(context, pods);
    let stored = |wanted| context.readings.stored(pods, wanted);
    let families = match page {
        FiguresPage::Resource => resource::families(&read().await.now),
        FiguresPage::Cadvisor => {
            let (pair, stored) = tokio::join!(read(), stored(|_| true));
            cadvisor::families(&pair.now, &stored)
        }
        FiguresPage::Probes => context.meters.probes(),
        FiguresPage::Metrics => {
            let (pair, stored) = tokio::join!(read(), stored(stored::has_claims));
            let mut families = own::families(context, &own::Counts::of(pods), &pair.now);
            families.extend(own::of_claims(&pair.now, &stored));
            families
        }
        FiguresPage::Summary { only_cpu_and_memory } => {
            let stored = match only_cpu_and_memory {
                true => None,
                false => Some(stored(|_| true).await),
            };
            return Ok(Figures::Json(summary::summary(&read().await, stored.as_ref())));
        }
        FiguresPage::Configz => return Ok(Figures::Json(configz::configz(&context.config))),
    };
    text::encode(families).map(Figures::Text)
}
