//! systemd-logind over the system's D-Bus (org.freedesktop.login1; systemd.io, "Inhibitor Locks"): a lock that delays a shutdown, and the
//! word that there is one.

use std::{fs, io, path::Path, time::Duration};

use futures_util::StreamExt;
use tokio::time::sleep;
use zbus::{Connection, OwnedFd};

/// Where logind reads how long a lock may delay a shutdown, and our file there.
pub const SETTINGS: &str = "/etc/systemd/logind.conf.d/99-kvmlet.conf";
/// How often it is asked whether it has read that.
const ATTEMPTS: u32 = 5;
/// What makes logind read its settings (signal(7)).
const SIGHUP: i32 = 1;

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;

    /// Microseconds.
    #[zbus(property(emits_changed_signal = "false"), name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max(&self) -> zbus::Result<u64>;

    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Units {
    fn kill_unit(&self, name: &str, who: &str, signal: i32) -> zbus::Result<()>;
}

/// Why a shutdown is not waited for.
#[derive(Debug, thiserror::Error)]
pub enum LogindError {
    /// The bus or logind does not answer, or refuses.
    #[error("{0} at systemd-logind")]
    Bus(&'static str, #[source] zbus::Error),
    /// How long a lock may last could not be written.
    #[error("write {SETTINGS}")]
    Settings(#[source] io::Error),
    /// It was written, and logind has not taken it.
    #[error("logind delays a shutdown by {allowed:?} at the most, and {wanted:?} are needed (InhibitDelayMaxSec in logind.conf)")]
    TooShort {
        /// What it allows.
        allowed: Duration,
        /// What shutdownGracePeriod asks for.
        wanted: Duration,
    },
}

/// A connection to logind that hears of shutdowns.
pub struct Logind {
    manager: ManagerProxy<'static>,
    news: PrepareForShutdownStream,
}

/// Delays a shutdown as long as it is kept.
#[derive(Debug)]
pub struct Lock {
    _held: OwnedFd,
}

impl Logind {
    /// Connects to the system's bus; from then on no shutdown is missed.
    ///
    /// # Errors
    /// When there is no bus, or nobody who would tell.
    pub async fn connect() -> Result<Self, LogindError> {
        let bus = Connection::system()
            .await
            .map_err(|error| LogindError::Bus("connect to the bus", error))?;
        Self::on(&bus).await
    }

    pub(super) async fn on(bus: &Connection) -> Result<Self, LogindError> {
        let manager = ManagerProxy::new(bus)
            .await
            .map_err(|error| LogindError::Bus("find the manager", error))?;
        let news = manager.receive_prepare_for_shutdown().await;
        let news = news.map_err(|error| LogindError::Bus("listen for shutdowns", error))?;
        Ok(Self { manager, news })
    }

    /// Has logind allow a delay of so long, where it allows less: by a file of settings, as the kubelet does.
    ///
    /// # Errors
    /// When it does not.
    pub async fn allow(&self, wanted: Duration) -> Result<(), LogindError> {
        let mut allowed = self.allowed().await?;
        if wanted <= allowed {
            return Ok(());
        }
        write_settings(Path::new(SETTINGS), wanted).map_err(LogindError::Settings)?;
        let units = UnitsProxy::new(self.manager.inner().connection()).await;
        let reload = async { units?.kill_unit("systemd-logind.service", "all", SIGHUP).await };
        reload.await.map_err(|error| LogindError::Bus("have settings read", error))?;
        for attempt in 0..ATTEMPTS {
            sleep(Duration::from_millis(100) * 2u32.pow(attempt)).await;
            allowed = self.allowed().await?;
            if wanted <= allowed {
                return Ok(());
            }
        }
        Err(LogindError::TooShort { allowed, wanted })
    }

    async fn allowed(&self) -> Result<Duration, LogindError> {
        let delay = self.manager.inhibit_delay_max().await;
        delay
            .map(Duration::from_micros)
            .map_err(|error| LogindError::Bus("ask how long a shutdown may be delayed", error))
    }

    /// Takes a lock.
    ///
    /// # Errors
    /// When logind does not give one, as while the host shuts down.
    pub async fn inhibit(&self) -> Result<Lock, LogindError> {
        let why = "Pods of this node are ended before";
        let held = self.manager.inhibit("shutdown", "kvmlet", why, "delay").await;
        held.map(|held| Lock { _held: held })
            .map_err(|error| LogindError::Bus("delay shutdowns", error))
    }

    /// The next news: a shutdown begins (true), or was called off. `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<bool> {
        loop {
            // What has another form is not logind's.
            if let Ok(news) = self.news.next().await?.args() {
                return Some(news.start);
            }
        }
    }
}

fn write_settings(path: &Path, wanted: Duration) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let text = format!(
        "# kvmlet's, for shutdownGracePeriod of its configuration\n[Login]\nInhibitDelayMaxSec={}\n",
        wanted.as_secs()
    );
    fs::write(path, text)
}
