//! The host's systemd, over its D-Bus (org.freedesktop.systemd1(5)).

use std::{io, os::fd::AsFd as _, path::Path, time::Duration};

use anyhow::{Context as _, anyhow, ensure};
use futures_util::StreamExt as _;
use zbus::{Connection, Fd, ObjectPath, OwnedObjectPath, Variant, connection::Builder};

use super::{decide::Unit, unit};

/// Where the host's bus is, also in the pod: the folder is mounted, as the socket is made anew with its daemon.
const BUS: &str = "unix:path=/run/dbus/system_bus_socket";
/// A second start or stop of a unit takes the place of the first.
const REPLACE: &str = "replace";
/// How a job ends that did what it was for.
const DONE: &str = "done";

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Systemd {
    fn subscribe(&self) -> zbus::Result<()>;
    fn reload(&self) -> zbus::Result<()>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn enable_unit_files(&self, files: &[&str], runtime: bool, force: bool) -> zbus::Result<(bool, Vec<(String, String, String)>)>;
    fn disable_unit_files(&self, files: &[&str], runtime: bool) -> zbus::Result<Vec<(String, String, String)>>;
    #[allow(clippy::type_complexity, reason = "a list of units that come along, of which there are none")]
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        others: &[(&str, &[(&str, Variant<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;

    #[zbus(property(emits_changed_signal = "false"))]
    fn architecture(&self) -> zbus::Result<String>;

    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: ObjectPath<'_>, unit: &str, result: &str) -> zbus::Result<()>;
}

#[zbus::proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait SystemdUnit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn load_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn sub_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn fragment_path(&self) -> zbus::Result<String>;
}

#[zbus::proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
trait SystemdService {
    #[zbus(property(emits_changed_signal = "false"))]
    fn status_text(&self) -> zbus::Result<String>;
}

/// The host's systemd.
pub(super) struct Manager {
    bus: Connection,
    systemd: SystemdProxy<'static>,
}

/// What systemd knows of kvmlet's unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    /// `loaded`, `not-found`, `masked`.
    load: String,
    /// `active`, `activating`, `inactive`, `failed`, …
    pub(super) active: String,
    /// `running`, `auto-restart`, …
    sub: String,
    /// The unit's file; empty without one.
    pub(super) file: String,
    /// The daemon's own words.
    status: String,
}

impl State {
    /// Whether the daemon has said that it is ready.
    pub(super) fn is_ready(&self) -> bool {
        self.active == "active"
    }

    /// Whether it runs, is about to, or is between two attempts.
    pub(super) fn runs(&self) -> bool {
        matches!(&*self.active, "active" | "activating" | "reloading")
    }

    /// Whether its file is where this command writes it; a mask is there, too, and no file.
    pub(super) fn is_in_our_place(&self) -> bool {
        self.load != "masked" && Path::new(&self.file) == Path::new(unit::FOLDER).join(unit::NAME)
    }

    /// Whose it is; `text` is its file's, where it is where this command writes it.
    pub(super) fn unit(&self, text: Option<String>) -> Unit {
        match (&*self.load, text) {
            ("masked", _) => Unit::Masked,
            (_, Some(text)) if unit::is_ours(&text) => Unit::Ours(text),
            (_, Some(_)) => Unit::Foreign(self.file.clone()),
            (_, None) if self.file.is_empty() => Unit::None,
            (_, None) => Unit::Foreign(self.file.clone()),
        }
    }

    /// For a log.
    pub(super) fn words(&self) -> String {
        let Self { active, sub, status, .. } = self;
        match status.is_empty() {
            true => format!("{} is {active} ({sub})", unit::NAME),
            false => format!("{} is {active} ({sub}): {status}", unit::NAME),
        }
    }
}

impl Manager {
    /// Connects to it.
    pub(super) async fn connect() -> anyhow::Result<Self> {
        Self::at(BUS).await.with_context(|| {
            format!("no systemd answers at {BUS}: a host has to have booted systemd and D-Bus, and the pod its /run/dbus (as root, and not confined by AppArmor or SELinux)")
        })
    }

    async fn at(address: &str) -> zbus::Result<Self> {
        let bus = Builder::address(address).build().await?;
        let systemd = SystemdProxy::new(&bus).await?;
        // Who asks nothing else hears nothing of jobs; and who is no systemd does not know it.
        systemd.subscribe().await?;
        Ok(Self { bus, systemd })
    }

    /// In its words: `x86-64`.
    pub(super) async fn architecture(&self) -> anyhow::Result<String> {
        self.systemd.architecture().await.context("ask systemd for the host's architecture")
    }

    /// What it knows of kvmlet's unit.
    pub(super) async fn state(&self) -> anyhow::Result<State> {
        let state = async {
            let path = self.systemd.load_unit(unit::NAME).await?;
            let unit = SystemdUnitProxy::builder(&self.bus).path(path.clone()).build().await?;
            let service = SystemdServiceProxy::builder(&self.bus).path(path).build().await?;
            zbus::Result::Ok(State {
                load: unit.load_state().await?,
                active: unit.active_state().await?,
                sub: unit.sub_state().await?,
                file: unit.fragment_path().await?,
                // Nobody has words where there is no service.
                status: service.status_text().await.unwrap_or_default(),
            })
        };
        state.await.with_context(|| format!("ask systemd for {}", unit::NAME))
    }

    /// Has it read the units' files.
    pub(super) async fn reload(&self) -> anyhow::Result<()> {
        self.systemd.reload().await.context("systemctl daemon-reload")
    }

    /// Has kvmlet's unit started with the host from now on.
    pub(super) async fn enable(&self) -> anyhow::Result<()> {
        let enabled = self.systemd.enable_unit_files(&[unit::NAME], false, false).await;
        enabled.map(drop).with_context(|| format!("systemctl enable {}", unit::NAME))
    }

    /// The opposite.
    pub(super) async fn disable(&self) -> anyhow::Result<()> {
        let disabled = self.systemd.disable_unit_files(&[unit::NAME], false).await;
        disabled.map(drop).with_context(|| format!("systemctl disable {}", unit::NAME))
    }

    /// Has kvmlet's unit started; it may take as long as the API server is away, and is not waited for.
    pub(super) async fn start(&self) -> anyhow::Result<()> {
        let job = self.systemd.start_unit(unit::NAME, REPLACE).await;
        job.map(drop).with_context(|| format!("systemctl start {}", unit::NAME))
    }

    /// Has the daemon started anew, whether it runs or not; it is not waited for.
    pub(super) async fn restart(&self) -> anyhow::Result<()> {
        let job = self.systemd.restart_unit(unit::NAME, REPLACE).await;
        job.map(drop).with_context(|| format!("systemctl restart {}", unit::NAME))
    }

    /// Stops kvmlet's unit and waits for it, also for a drain.
    pub(super) async fn stop(&self) -> anyhow::Result<()> {
        let what = || format!("systemctl stop {}", unit::NAME);
        let mut jobs = self.systemd.receive_job_removed().await.with_context(what)?;
        let job = self.systemd.stop_unit(unit::NAME, REPLACE).await.with_context(what)?;
        let result = ends(&mut jobs, &job).await.with_context(what)?;
        ensure!(result == DONE, "{}: the job is {result}", what());
        Ok(())
    }

    /// Has it forget that kvmlet's unit failed. Of one that it does not know there is nothing to forget.
    pub(super) async fn forget(&self) {
        let _ = self.systemd.reset_failed_unit(unit::NAME).await;
    }

    /// Runs a program on the host as a unit of its own, for `patience` at the most, and waits for its end. What it says comes to this
    /// process's standard error. Where the program is not there nothing is run, and nothing is wrong.
    pub(super) async fn run(&self, name: &str, argv: &[&str], patience: Option<Duration>) -> anyhow::Result<()> {
        let what = argv.join(" ");
        let stderr = io::stderr();
        let fd = || Variant::Fd(Fd::from(stderr.as_fd()));
        let patience = patience.map_or(u64::MAX, |patience| u64::try_from(patience.as_micros()).unwrap_or(u64::MAX));
        let properties = [
            ("Description", Variant::new(format!("kvmlet's installer: {what}"))),
            ("Type", Variant::new("oneshot")),
            ("CollectMode", Variant::new("inactive-or-failed")),
            ("TimeoutStartUSec", Variant::new(patience)),
            ("StandardOutputFileDescriptor", fd()),
            ("StandardErrorFileDescriptor", fd()),
            ("Conditions", Variant::new(vec![("ConditionPathExists", false, false, argv[0])])),
            ("ExecStart", Variant::new(vec![(argv[0], argv.to_vec(), false)])),
        ];
        let run = async {
            let mut jobs = self.systemd.receive_job_removed().await?;
            let job = self.systemd.start_transient_unit(name, REPLACE, &properties, &[]).await?;
            anyhow::Ok(ends(&mut jobs, &job).await?)
        };
        let result = run.await.with_context(|| format!("run {what} on the host as {name}"))?;
        ensure!(result == DONE, "{what} on the host: {result}; what it said stands before this");
        Ok(())
    }
}

/// How this job ends: `done`, `failed`, `timeout`, `canceled`, `dependency`, `skipped`.
async fn ends(jobs: &mut JobRemovedStream, job: &OwnedObjectPath) -> anyhow::Result<String> {
    while let Some(signal) = jobs.next().await {
        let removed = signal.args()?;
        if removed.job.as_str() == job.as_str() {
            return Ok(removed.result.to_owned());
        }
    }
    Err(anyhow!("the connection to the host's bus has ended"))
}
