//! One container, seen from the agent: what its helper is told, its end, its removal.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use kvmlet_protocol::{ContainerSpec, ErrorKind, ExitStatus, Extras, Failure, Identity, LogStream, Process};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup::Cgroup;
use crate::device::SCRATCH;
use crate::failure::{Attempt, fail};
use crate::filter::Compiled;
use crate::reaper::{Child, Ended, now};
use crate::setup::{ETC, Sandbox};
use crate::spawn::{self, Bind, Place, Plan, Processes, Root, Streams};
use crate::stdin::Stdin;
use crate::{logs, sys};

/// Small files of each container.
const FILES: &str = "/run/kvmlet/containers";
/// The longest termination message.
const MESSAGE: usize = 4096;
/// How long an exit waits for the output to be acknowledged.
const DRAIN: Duration = Duration::from_secs(2);

/// A container that is asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// What it shall be.
    pub(crate) spec: ContainerSpec,
    /// What it shall have besides.
    pub(crate) extras: Extras,
    /// What system calls it may make, where that is not the default.
    pub(crate) filter: Option<Compiled>,
}

impl Wanted {
    /// One that may make the system calls of the default.
    pub(crate) fn new(spec: ContainerSpec, extras: Extras) -> Self {
        Self {
            spec,
            extras,
            filter: None,
        }
    }
}

/// A container that was started.
#[derive(Debug)]
pub(crate) struct Container {
    /// What it shall be.
    pub(crate) spec: ContainerSpec,
    /// What it has besides.
    pub(crate) extras: Extras,
    /// What system calls it may make, where that is not the default.
    pub(crate) filter: Option<Compiled>,
    /// Who its first process is.
    pub(crate) user: Identity,
    /// Its first process.
    pub(crate) pid: u32,
    /// When that became its program, nanoseconds since 1970.
    pub(crate) started: u64,
    /// Its control group.
    pub(crate) cgroup: Cgroup,
    pidfd: OwnedFd,
    places: Places,
    /// Its standard input, where it has one.
    pub(crate) stdin: Option<Stdin>,
    /// Its terminal, where it has one.
    pub(crate) terminal: Option<File>,
}

/// Its directories in the guest.
#[derive(Debug)]
struct Places {
    files: PathBuf,
    layer: PathBuf,
}

impl Places {
    fn of(id: &str) -> Self {
        Self {
            files: Path::new(FILES).join(id),
            layer: Path::new(SCRATCH).join("containers").join(id),
        }
    }

    /// An empty layer whose root looks like the image's, and an empty termination message.
    fn create(&self, image: &Path) -> io::Result<()> {
        let (upper, like) = (self.layer.join("upper"), fs::metadata(image)?);
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(self.layer.join("work"))?;
        chown(&upper, Some(like.uid()), Some(like.gid()))?;
        fs::set_permissions(&upper, Permissions::from_mode(like.mode() & 0o7777))?;
        fs::create_dir_all(&self.files)?;
        fs::write(self.message(), "")?;
        fs::set_permissions(self.message(), Permissions::from_mode(0o666))
    }

    fn message(&self) -> PathBuf {
        self.files.join("termination-log")
    }

    fn remove(&self) -> io::Result<()> {
        for directory in [&self.layer, &self.files] {
            match fs::remove_dir_all(directory) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Container {
    /// Where what it writes is.
    pub(crate) fn layer(&self) -> PathBuf {
        self.places.layer.join("upper")
    }
}

/// Starts a container; what was made for one that cannot start is removed again.
/// `target` is the container whose process name space it shares.
pub(crate) fn start(
    sandbox: &Sandbox,
    image: PathBuf,
    wanted: Wanted,
    target: Option<&Container>,
) -> Result<(Container, Receiver<Ended>), Failure> {
    let spec = &wanted.spec;
    let plain = (1..=64).contains(&spec.id.len()) && spec.id.bytes().all(|b| b.is_ascii_alphanumeric());
    if !plain {
        return Err(fail(
            ErrorKind::BadContainer,
            format!("{:?} is not a container's identifier", spec.id),
        ));
    }
    let places = Places::of(&spec.id);
    places.create(&image).attempt("create the container's writable layer")?;
    let result = Cgroup::create(&spec.id, &spec.resources).and_then(|cgroup| {
        let begun = begin(sandbox, image, &wanted, target, &places, &cgroup).inspect_err(|_| drop(cgroup.remove()))?;
        Ok((cgroup, begun))
    });
    match result {
        Ok((cgroup, begun)) => {
            let Begun {
                child,
                user,
                stdin,
                terminal,
            } = begun;
            let Child { pid, pidfd, ended } = child;
            let Wanted { spec, extras, filter } = wanted;
            Ok((
                Container {
                    spec,
                    extras,
                    filter,
                    user,
                    pid,
                    started: now(),
                    cgroup,
                    pidfd,
                    places,
                    stdin,
                    terminal,
                },
                ended,
            ))
        }
        Err(failure) => {
            // The failure itself is what its owner must read.
            drop(places.remove());
            Err(failure)
        }
    }
}

struct Begun {
    child: Child,
    user: Identity,
    stdin: Option<Stdin>,
    terminal: Option<File>,
}

fn begin(
    sandbox: &Sandbox,
    image: PathBuf,
    wanted: &Wanted,
    target: Option<&Container>,
    places: &Places,
    cgroup: &Cgroup,
) -> Result<Begun, Failure> {
    let Wanted { spec, extras, filter } = wanted;
    let root = Root {
        lower: image,
        upper: places.layer.clone(),
        read_only: spec.root.read_only,
        privileged: extras.privileged,
        unmasked: extras.unmasked,
        binds: binds(sandbox, spec, places)?,
    };
    let plan = |process: Process| Plan {
        process,
        strict_groups: extras.strict_groups,
        filter: filter.clone(),
        cgroup: cgroup.path().to_owned(),
        place: Place::Fresh {
            root,
            terminal: extras.terminal,
        },
    };
    let shared = sandbox.holder.as_ref().map_or(Processes::Fresh, |holder| holder.processes());
    let processes = target.map_or(shared, |target| Processes::Of(target.pidfd.as_fd()));
    let (begun, sources) = if extras.terminal {
        on_terminal(spec, plan, processes)?
    } else {
        on_pipes(spec, extras.stdin_once, plan, processes)?
    };
    if let Err(e) = logs::collect(&spec.id, sources) {
        drop(sys::pidfd_send_signal(&begun.child.pidfd, libc::SIGKILL));
        logs::forget(&spec.id);
        return Err(e).attempt("read the container's output");
    }
    Ok(begun)
}

type Sources = Vec<(LogStream, File)>;

fn on_pipes(
    spec: &ContainerSpec,
    once: bool,
    plan: impl FnOnce(Process) -> Plan,
    processes: Processes<'_>,
) -> Result<(Begun, Sources), Failure> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).attempt("create a pipe");
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let (stdin_end, stdin) = if spec.stdin {
        let (end, ours) = pipe()?;
        rustix::io::ioctl_fionbio(&ours, true).attempt("prepare standard input")?;
        (Stdio::from(end), Some(Stdin::new(ours.into(), once)))
    } else {
        (Stdio::null(), None)
    };
    let streams = Streams {
        stdin: stdin_end,
        stdout: stdout_end.into(),
        stderr: stderr_end.into(),
    };
    let (child, user) = spawn::launch(&plan(spec.process.clone()), processes, streams)?;
    let begun = Begun {
        child,
        user,
        stdin,
        terminal: None,
    };
    Ok((begun, vec![(LogStream::Stdout, stdout.into()), (LogStream::Stderr, stderr.into())]))
}

/// The terminal is made by the helper, in the container's own devpts, so that its name means something there.
fn on_terminal(spec: &ContainerSpec, plan: impl FnOnce(Process) -> Plan, processes: Processes<'_>) -> Result<(Begun, Sources), Failure> {
    let mut process = spec.process.clone();
    if !process.env.iter().any(|(name, _)| name == "TERM") {
        process.env.push(("TERM".into(), "xterm".into()));
    }
    let (child, user, terminal) = spawn::launch_on_terminal(&plan(process), processes)?;
    let terminal = File::from(terminal);
    rustix::io::ioctl_fionbio(&terminal, true).attempt("prepare the terminal")?;
    let again = || terminal.try_clone().attempt("prepare the terminal");
    let stdin = if spec.stdin { Some(Stdin::new(again()?, false)) } else { None };
    let sources = vec![(LogStream::Stdout, again()?)];
    let begun = Begun {
        child,
        user,
        stdin,
        terminal: Some(terminal),
    };
    Ok((begun, sources))
}

/// The pod's files first, so that a volume may take their place; then the volumes; the termination message last.
fn binds(sandbox: &Sandbox, spec: &ContainerSpec, places: &Places) -> Result<Vec<Bind>, Failure> {
    let mut binds = Vec::new();
    for name in ["hosts", "hostname", "resolv.conf"] {
        let destination = format!("/etc/{name}");
        if !spec.mounts.iter().any(|m| m.destination == destination) {
            let source = Path::new(ETC).join(name);
            binds.push(Bind {
                source,
                sub_path: String::new(),
                destination,
                read_only: false,
                image: false,
            });
        }
    }
    for mount in &spec.mounts {
        let volume = sandbox.volumes.get(&mount.volume)?;
        if mount.sub_path.split('/').any(|part| part == "..") {
            return Err(fail(
                ErrorKind::BadContainer,
                format!("subPath {:?} must not contain \"..\"", mount.sub_path),
            ));
        }
        binds.push(Bind {
            source: volume.path.clone(),
            sub_path: mount.sub_path.clone(),
            destination: mount.destination.clone(),
            read_only: mount.read_only || volume.host_only || volume.image,
            image: volume.image,
        });
    }
    if !spec.termination_message_path.is_empty() {
        let destination = spec.termination_message_path.clone();
        binds.push(Bind {
            source: places.message(),
            sub_path: String::new(),
            destination,
            read_only: false,
            image: false,
        });
    }
    Ok(binds)
}

impl Container {
    /// Its first process, as a descriptor.
    pub(crate) fn process(&self) -> impl AsFd + '_ {
        self.pidfd.as_fd()
    }

    /// Sends a signal to its first process, or to all.
    pub(crate) fn signal(&self, signal: i32, all: bool) -> Result<(), Failure> {
        let result = match (all, signal) {
            (false, _) => sys::pidfd_send_signal(&self.pidfd, signal),
            (true, libc::SIGKILL) => self.cgroup.kill(),
            (true, _) => self.signal_all(signal),
        };
        match result {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Err(fail(ErrorKind::NoSuchContainer, "the container has ended")),
            result => result.attempt(format_args!("send signal {signal}")),
        }
    }

    fn signal_all(&self, signal: i32) -> io::Result<()> {
        use rustix::process::{Pid, PidfdFlags, pidfd_open};
        for pid in self.cgroup.processes()?.into_iter().filter_map(Pid::from_raw) {
            // Those that ended meanwhile need no signal.
            if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
                match sys::pidfd_send_signal(&process, signal) {
                    Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Waits for its end, and until its output is with the host or [`DRAIN`] has passed.
    pub(crate) fn wait(&self, ended: &Receiver<Ended>) -> ExitStatus {
        // The reaper never drops a sender unused, as it takes it out of its table only to use it.
        let ended = ended.recv().unwrap_or_else(|_| Ended {
            code: 255,
            signal: 0,
            at: now(),
        });
        // Others in a shared process name space would live on and hold the pipes.
        drop(self.cgroup.kill());
        let oom_killed = self.cgroup.out_of_memory();
        logs::drain(&self.spec.id, DRAIN);
        ExitStatus {
            code: ended.code,
            signal: ended.signal,
            oom_killed,
            started: self.started.min(ended.at),
            finished: ended.at,
            message: self.message(ended.code),
        }
    }

    fn message(&self, code: i32) -> String {
        let written = last_bytes(&self.places.message(), MESSAGE).unwrap_or_default();
        if written.is_empty() && code != 0 && self.spec.termination_message_from_log {
            return logs::tail(&self.spec.id);
        }
        written
    }

    /// Removes its processes, control group, layer and files.
    pub(crate) fn remove(&self) -> Result<(), Failure> {
        self.cgroup.remove().attempt("remove the container's cgroup")?;
        logs::forget(&self.spec.id);
        self.places.remove().attempt("remove the container's writable layer")
    }
}

/// The end of a file, as text of at most `most` bytes.
fn last_bytes(path: &Path, most: usize) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most as u64)))?;
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // Bytes that are no text became longer.
    let start = (text.len().saturating_sub(most)..=text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len());
    Ok(text[start..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::last_bytes;

    #[test]
    fn a_termination_message_is_the_end_of_its_file_and_never_longer_than_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        std::fs::write(&path, "0123456789").unwrap();
        assert_eq!(last_bytes(&path, 4).unwrap(), "6789");
        assert_eq!(last_bytes(&path, 40).unwrap(), "0123456789");
        std::fs::write(&path, [b"ab".as_slice(), &[0xff; 8]].concat()).unwrap();
        assert!(last_bytes(&path, 8).unwrap().len() <= 8);
    }
}
