//! Owns network namespaces bound to names in a directory, as `ip netns` does, and visits to them.
//!
//! A visit runs on a thread of its own, which ends with it: no thread of the daemon's runtime ever changes its namespace.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

/// What the visits' threads have run so far, nanoseconds.
static SPENT: AtomicU64 = AtomicU64::new(0);

/// The namespace of the calling thread.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Why a namespace could not be made, visited or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The directory of names.
    #[error("cannot prepare the namespace directory {path}")]
    PrepareDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A new namespace, or its name.
    #[error("cannot make the network namespace {path}")]
    Create {
        /// Where it should be bound.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Entering one.
    #[error("cannot enter the network namespace {path}")]
    Enter {
        /// Where it is bound.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Removing one.
    #[error("cannot remove the network namespace {path}")]
    Remove {
        /// Where it is bound.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread for a visit.
    #[error("cannot start a thread to visit a network namespace")]
    StartThread(#[source] io::Error),
    /// The visit took too long; its thread ends when the kernel lets it.
    #[error("the visit of a network namespace did not end within {0:?}")]
    Deadline(Duration),
    /// The visiting thread died.
    #[error("the thread that visited a network namespace panicked")]
    ThreadDied,
}

/// A directory of named namespaces.
#[derive(Clone, Debug)]
pub struct Namespaces {
    dir: PathBuf,
    timeout: Duration,
}

impl Namespaces {
    /// Names in `dir`; every visit ends within `timeout`.
    #[must_use]
    pub fn new(dir: PathBuf, timeout: Duration) -> Self {
        Self { dir, timeout }
    }

    /// Where the namespace `name` is bound.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes a namespace without IPv6 on its interfaces: its kernel must not speak beside the guest, whose hardware
    /// address it shares.
    ///
    /// # Errors
    ///
    /// When the name is taken or the kernel refuses.
    pub async fn create(&self, name: &str) -> Result<PathBuf, NetnsError> {
        let (dir, path) = (self.dir.clone(), self.path(name));
        self.on_thread(move || {
            prepare(&dir).map_err(|source| NetnsError::PrepareDirectory { path: dir, source })?;
            create_at(&path).map_err(|source| NetnsError::Create {
                path: path.clone(),
                source,
            })?;
            Ok(path)
        })
        .await
    }

    /// Runs `work` on a thread inside the namespace.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered, or as `work` answers.
    pub async fn visit<T, E>(&self, name: &str, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<NetnsError> + Send + 'static,
    {
        let path = self.path(name);
        self.on_thread(move || {
            File::open(&path)
                .and_then(|namespace| Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?))
                .map_err(|source| NetnsError::Enter { path, source })?;
            work()
        })
        .await
    }

    /// Unbinds the namespace; what lies in it goes when nothing holds it any more. Nothing there is success.
    ///
    /// # Errors
    ///
    /// When the mount or its file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), NetnsError> {
        let path = self.path(name);
        remove_at(&path).map_err(|source| NetnsError::Remove { path, source })
    }

    /// All names that start with `prefix`.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read; a missing one is empty.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>, NetnsError> {
        names_in(&self.dir, prefix).map_err(|source| NetnsError::PrepareDirectory {
            path: self.dir.clone(),
            source,
        })
    }

    async fn on_thread<T, E>(&self, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<NetnsError> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                let done = work();
                // All that this thread ever ran: it ends here.
                SPENT.fetch_add(of_this_thread(), Ordering::Relaxed);
                // Nobody listens when the visitor was cancelled; what was done stays to be torn down.
                let _cancelled = sender.send(done);
            })
            .map_err(NetnsError::StartThread)?;
        match tokio::time::timeout(self.timeout, receiver).await {
            Err(_) => Err(NetnsError::Deadline(self.timeout).into()),
            Ok(Err(_)) => Err(NetnsError::ThreadDied.into()),
            Ok(Ok(result)) => result,
        }
    }
}

/// Processor time that went into making namespaces and into visits to them, with all that was done there (a pod's tap, the redirects between it and the
/// pod's interface), since this process began: nanoseconds of the threads that did it.
#[must_use]
pub fn spent() -> u64 {
    SPENT.load(Ordering::Relaxed)
}

/// Nanoseconds; none where the kernel does not tell.
fn of_this_thread() -> u64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(0, |now| {
        let [seconds, nanoseconds] = [now.tv_sec(), now.tv_nsec()].map(|part| u64::try_from(part).unwrap_or_default());
        seconds * 1_000_000_000 + nanoseconds
    })
}

/// Makes the directory a shared mount, so that names made here are seen, and vanish, in other mount namespaces too.
fn prepare(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    // Two visitors at once would mount it twice.
    let directory =
        nix::fcntl::Flock::lock(File::open(dir)?, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
    let share = || mount(None::<&str>, dir, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Err(Errno::EINVAL) => {
            mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
            share()?;
        }
        other => other?,
    }
    drop(directory);
    Ok(())
}

fn create_at(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
    let made = unshare(CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .and_then(|()| silence_ipv6())
        .and_then(|()| Ok(mount(Some(OWN_NAMESPACE), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?));
    if made.is_err() {
        fs::remove_file(path)?;
    }
    made
}

/// Interfaces made later in the calling thread's namespace get no IPv6 address and send no router solicitation.
fn silence_ipv6() -> io::Result<()> {
    for which in ["all", "default"] {
        match fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1") {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Whether a namespace is bound there. A creation that was cut off leaves a plain file, which plugins take for a namespace and fail on for ever.
pub(crate) fn is_namespace(path: &Path) -> io::Result<bool> {
    match statfs(path) {
        Ok(found) => Ok(found.filesystem_type() == NSFS_MAGIC),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn remove_at(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not a mount (a file left by half a creation), or no file.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn names_in(dir: &Path, prefix: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string()
            && name.starts_with(prefix)
        {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn half_a_creation_is_no_namespace_and_is_removed_like_one() {
        let dir = tempfile::tempdir().unwrap();
        let namespaces = Namespaces::new(dir.path().join("netns"), Duration::from_secs(20));
        let before = spent();
        namespaces.create("bound").await.unwrap();
        assert!(spent() > before, "what its making cost is counted");
        // As a daemon that was killed leaves it.
        fs::write(namespaces.path("half"), "").unwrap();
        let names = ["bound", "half", "never"];
        assert_eq!(
            names.map(|name| is_namespace(&namespaces.path(name)).unwrap()),
            [true, false, false]
        );
        for name in names {
            namespaces.remove(name).unwrap();
        }
        assert_eq!(names.map(|name| namespaces.path(name).exists()), [false; 3]);
        umount2(dir.path().join("netns").as_path(), MntFlags::MNT_DETACH).unwrap();
    }
}
