//! What the daemon tells the service manager that started it (sd_notify(3)): that it is ready, what it does, that it ends, and that it is alive.
//! Without `NOTIFY_SOCKET` in its environment nothing is told, without `WATCHDOG_USEC` nobody waits for a sign of life.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

/// Signs of life in the time after which the manager would end the daemon (sd_watchdog_enabled(3) recommends two).
const SIGNS: u32 = 3;
/// For how long the manager shall wait for the next word of a daemon that takes its time to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Characters of a status.
const LINE: usize = 400;

/// The node can be used: it is registered, its port answers, and it has taken up the pods that it had.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What `systemctl status` shows.
pub(crate) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The daemon ends because it was asked to.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("ending; machines go on")]);
}

/// The daemon ends because it was asked to, and takes its time: the manager shall wait for it at least until it is told again.
pub(crate) fn leaving(status: &str) {
    // A manager shows one line, and takes datagrams of some length only.
    let words: String = status.chars().take(LINE).collect();
    let patience = u32::try_from(PATIENCE.as_micros()).expect("a minute is no long time");
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status(&format!("leaving: {words}")),
        NotifyState::ExtendTimeoutUsec(patience),
    ]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "tell the service manager (NOTIFY_SOCKET)");
    }
}

/// Gives signs of life for ever, each once `alive` has come to its end: where that hangs, the manager ends the daemon and starts another.
pub(crate) async fn live(alive: impl AsyncFn()) {
    let Some(patience) = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero()) else {
        return std::future::pending().await;
    };
    let mut every = interval(patience / SIGNS);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        alive().await;
        tell(&[NotifyState::Watchdog]);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::ErrorKind,
        os::unix::net::UnixDatagram,
        process::{Command, Stdio},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// Says what the child of a test does: an environment is a process's own, and no test may change the one of all.
    const ROLE: &str = "KVMLET_TEST_ROLE";
    /// The longest that a child may take on a busy machine.
    const LONGEST: Duration = Duration::from_secs(60);

    /// What a process of this role tells a manager that waits so many microseconds for signs of life, message by message.
    fn told(role: &str, watchdog: Option<&str>) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LONGEST)).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "systemd::tests::in_a_process_of_its_own"]);
        child.env(ROLE, role).env("NOTIFY_SOCKET", &path).env_remove("WATCHDOG_USEC");
        if let Some(time) = watchdog {
            child.env("WATCHDOG_USEC", time);
        }
        let status = child.stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{status}");
        socket.set_nonblocking(true).unwrap();
        let mut messages = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match socket.recv(&mut buffer) {
                Ok(length) => messages.push(String::from_utf8(buffer[..length].to_vec()).unwrap()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return messages,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Not a test by itself: what the processes of the others do.
    #[tokio::test]
    async fn in_a_process_of_its_own() {
        match std::env::var(ROLE).as_deref() {
            Ok("whole") => {
                status("registering");
                ready("serves");
                leaving("web is ending");
                stopping();
            }
            // Lives for two signs, and then hangs.
            Ok("hangs") => {
                let (signs, hung) = (AtomicUsize::new(0), tokio::sync::Notify::new());
                let alive = async || {
                    if signs.fetch_add(1, Ordering::Relaxed) == 2 {
                        hung.notify_one();
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = live(alive) => {}
                    () = hung.notified() => {}
                }
            }
            Ok("unwatched") => tokio::select! {
                biased;
                () = live(async || {}) => {}
                () = std::future::ready(()) => {}
            },
            _ => {}
        }
    }

    #[test]
    fn a_manager_hears_of_the_start_the_readiness_and_the_end() {
        assert_eq!(
            told("whole", None),
            [
                "STATUS=registering\n",
                "READY=1\nSTATUS=serves\n",
                "STOPPING=1\nSTATUS=leaving: web is ending\nEXTEND_TIMEOUT_USEC=60000000\n",
                "STOPPING=1\nSTATUS=ending; machines go on\n"
            ]
        );
    }

    #[test]
    fn a_daemon_that_hangs_gives_no_sign_of_life() {
        assert_eq!(told("hangs", Some("30000")), ["WATCHDOG=1\n", "WATCHDOG=1\n"]);
    }

    #[test]
    fn a_manager_that_does_not_wait_gets_no_sign_of_life() {
        assert_eq!(told("unwatched", None), [""; 0]);
        assert_eq!(told("unwatched", Some("0")), [""; 0]);
    }

    #[test]
    fn nothing_is_told_where_nobody_listens() {
        // As in the environment of these tests.
        assert_eq!(std::env::var_os("NOTIFY_SOCKET"), None);
        ready("serves");
    }
}
