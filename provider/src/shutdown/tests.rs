//! Debian's own systemd-logind, on a bus of its own (dbus-daemon), with a systemd that starts nothing: so a shutdown that logind carries out
//! ends there. Needs root, as logind does.

use std::{
    fs,
    io::Error,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use zbus::{Connection, OwnedObjectPath, connection::Builder};

use super::logind::Logind;

/// How long programs may take to come up, on a machine that has other work to do.
const PATIENCE: Duration = Duration::from_secs(60);
const LOGIND: (&str, &str) = ("org.freedesktop.login1", "/org/freedesktop/login1");
const MANAGER: &str = "org.freedesktop.login1.Manager";
/// Programs find only what they make themselves in /run.
const OWN_RUN: &str =
    "mount -t tmpfs none /run && mkdir -p /run/systemd/inhibit /run/systemd/seats /run/systemd/users /run/systemd/sessions && exec ";

/// A bus and a logind.
struct Seat {
    directory: PathBuf,
    programs: Vec<Child>,
}

impl Seat {
    fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("kvmlet-logind-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let mut seat = Self {
            directory,
            programs: Vec::new(),
        };
        let settings = format!(
            "<busconfig><type>custom</type><listen>{}</listen><policy context='default'><allow send_destination='*' eavesdrop='true'/>\
             <allow eavesdrop='true'/><allow own='*'/></policy></busconfig>",
            seat.address()
        );
        let file = seat.directory.join("bus.conf");
        fs::write(&file, settings).expect("the bus's settings");
        seat.run(&format!("dbus-daemon --nofork --config-file={}", file.display()));
        seat
    }

    fn address(&self) -> String {
        format!("unix:path={}/bus", self.directory.display())
    }

    fn run(&mut self, program: &str) {
        let script = format!("{OWN_RUN}{program}");
        let child = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", &script])
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
            .stdin(Stdio::null())
            .spawn();
        self.programs.push(child.expect("unshare is there"));
    }

    /// A connection, and another one with a systemd that says what it shall start.
    async fn connect(&mut self) -> (Connection, Connection, mpsc::UnboundedReceiver<String>) {
        let address = self.address();
        let bus = until(|| async { Builder::address(&*address).build().await.ok() }).await;
        let (asked, starts) = mpsc::unbounded_channel();
        let systemd = Builder::address(&*address)
            .name("org.freedesktop.systemd1")
            .serve_at("/org/freedesktop/systemd1", Systemd(asked))
            .serve_at("/org/freedesktop/systemd1/unit/poweroff_2etarget", Target)
            .build()
            .await
            .expect("a systemd");
        self.run("/lib/systemd/systemd-logind");
        (bus, systemd, starts)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        for program in &mut self.programs {
            let _: Result<(), Error> = program.kill().and_then(|()| program.wait().map(drop));
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The unit that a shutdown is.
struct Target;

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl Target {
    #[zbus(property)]
    fn load_state(&self) -> String {
        "loaded".into()
    }
}

/// What logind asks of systemd.
struct Systemd(mpsc::UnboundedSender<String>);

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn subscribe(&self) {}

    fn start_unit(&self, name: String, _mode: String) -> zbus::fdo::Result<OwnedObjectPath> {
        let _ = self.0.send(name);
        Err(zbus::fdo::Error::Failed("nothing is started here".into()))
    }
}

/// Tries until there is something.
async fn until<T, F: Future<Output = Option<T>>>(attempt: impl Fn() -> F) -> T {
    let tries = async {
        loop {
            if let Some(found) = attempt().await {
                return found;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, tries).await.expect("it comes up")
}

#[tokio::test]
async fn a_shutdown_is_heard_of_and_waits_until_the_lock_is_given_back() {
    let mut seat = Seat::start();
    let (bus, _systemd, mut starts) = seat.connect().await;
    let mut logind = until(|| async { Logind::on(&bus).await.ok() }).await;
    until(|| async { logind.allow(Duration::from_secs(1)).await.ok() }).await;
    let lock = logind.inhibit().await.expect("a lock");

    let ask = |method: &'static str| bus.call_method(Some(LOGIND.0), LOGIND.1, Some(MANAGER), method, &(false,));
    ask("PowerOff").await.expect("it shuts down");
    assert_eq!(timeout(PATIENCE, logind.next()).await.expect("in time"), Some(true));
    assert!(logind.inhibit().await.is_err(), "who comes now is too late");
    assert!(starts.try_recv().is_err(), "nobody is waited for");
    drop(lock);
    let started = timeout(PATIENCE, starts.recv()).await.expect("in time");
    assert_eq!(started.as_deref(), Some("poweroff.target"));
    // Nothing was started, so it is off.
    assert_eq!(timeout(PATIENCE, logind.next()).await.expect("in time"), Some(false));
    logind.inhibit().await.expect("a lock for the next one");
}
