//! The canary: a machine as a pod's, of the node's own kernel and initramfs, in the jail, that has to say hello. It has a scratch disk, whose making is a
//! check of its own, and no network. For its time it has a directory in the state directory, a control group and the last of the machines' users; all of it goes with it.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kvmlet_machine::Program;
use kvmlet_provider::{
    act::chain,
    agent::Agent,
    cgroup::{self, IoLimits},
    config::Config,
    lower,
    machine::{self, Launch},
    scratch, template,
};
use rustix::fs::{FlockOperation, flock};
use vmm_lib::{
    spec::{DiskFormat, MachineSpec},
    virtio::block::Block,
};

use crate::{Check, NEEDED};

/// The check's name, and its control group's beside the pods'.
pub const NAME: &str = "canary";
/// The name of the check that makes its disk.
pub const DISK: &str = "scratch-disk";
/// Bytes of its disk: the file system's least, and room for its own data.
const DISK_SIZE: u64 = 64 << 20;
/// How long its guest may take to say hello.
pub const LIMIT: Duration = Duration::from_secs(120);
/// After this long, and then again, somebody who waits is told that it goes on.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of the longest file that its process may write if it has no disk: a log.
const FILE_SIZE: u64 = 16 << 20;
/// Checks without which booting one says nothing new, besides [`NEEDED`].
const ALSO_NEEDED: [&str; 5] = ["architecture", "privileges", "namespaces", "seccomp", "machine-program"];

/// Makes a scratch disk in this format and boots a canary with it, if the checks before let one boot: a check each. `tell` is called now and then with how long it takes already; when `stop` comes to its end
/// first, the canary is ended. Dropped half-way it leaves its machine to the next canary, which ends it.
pub async fn boot(
    config: &Config,
    program: &Path,
    before: &[Check],
    format: DiskFormat,
    tell: impl Fn(Duration),
    stop: impl Future<Output = ()>,
) -> Vec<Check> {
    let needed = |check: &&Check| NEEDED.contains(&check.name) || ALSO_NEEDED.contains(&check.name);
    let failed: Vec<_> = before
        .iter()
        .filter(needed)
        .filter(|check| !check.passed)
        .map(|check| check.name)
        .collect();
    if !failed.is_empty() {
        return vec![Check::new(
            NAME,
            Err(format!("no machine was booted: mend {} first", failed.join(", "))),
        )];
    }
    match Place::take(&config.state_dir) {
        Ok(place) => {
            let disk = make(&place.machine(), format);
            let has_disk = disk.is_ok().then_some(format);
            let canary = try_it(config, program, place, has_disk, tell, stop).await;
            vec![Check::new(DISK, disk), Check::new(NAME, canary)]
        }
        Err(why) => vec![Check::new(NAME, Err(why))],
    }
}

/// Makes its disk as a pod's is made, from a template, and has the machine monitor read what it is.
fn make(directory: &Path, format: DiskFormat) -> Result<String, String> {
    let disk = lower::scratch_path(directory);
    let made = scratch::template(directory, DISK_SIZE, format).and_then(|template| scratch::copy(&template, &disk));
    made.map_err(|error| {
        format!(
            "{}: install e2fsprogs, or give stateDir a file system that can hold it",
            chain(&error)
        )
    })?;
    let name = match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    let opened = File::options().read(true).write(true).open(&disk);
    let file = opened.map_err(|error| format!("open {}: {error}", disk.display()))?;
    let length = file
        .metadata()
        .map_err(|error| format!("look at {}: {error}", disk.display()))?
        .len();
    let read = match format {
        DiskFormat::Raw => Block::new(lower::SCRATCH, vec![(file, 0, length)], false),
        DiskFormat::Qcow2 => Block::qcow2(lower::SCRATCH, file, false),
    };
    read.map_err(|error| format!("a scratch disk of the format {name} was made and cannot be read: {}", chain(&error)))?;
    Ok(format!("scratch disks of the format {name} can be made"))
}

/// Whether somebody else's canary is under way on this host: then the next one has to wait.
pub fn is_under_way(state_dir: &Path) -> bool {
    let lock = File::open(state_dir.join(NAME));
    lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err())
}

async fn try_it(
    config: &Config,
    program: &Path,
    place: Place,
    disk: Option<DiskFormat>,
    tell: impl Fn(Duration),
    stop: impl Future<Output = ()>,
) -> Result<String, String> {
    let outcome = run(config, program, (place.machine(), disk), tell, stop).await;
    let said = outcome.as_ref().err().and_then(|_| last_line(&place.machine().join("machine.log")));
    let cleared = place.clear();
    let found = outcome.map_err(|why| match said {
        Some(said) => format!("{why}. Its process said: {said}"),
        None => why,
    })?;
    cleared.map(|()| found)
}

/// Boots it in a directory, and ends it.
async fn run(
    config: &Config,
    program: &Path,
    place: (PathBuf, Option<DiskFormat>),
    tell: impl Fn(Duration),
    stop: impl Future<Output = ()>,
) -> Result<String, String> {
    let begun = Instant::now();
    let guest = format!(
        "--kernel {} --initramfs {}",
        config.guest.kernel.display(),
        config.guest.initramfs.display()
    );
    let silent = |why: String| Err(format!("{why}. See its console: `kvmlet vm --probe --serial {guest}`"));
    let launching = Launching::new(config, program, place)?;
    let started = tokio::task::spawn_blocking(move || launching.start()).await;
    let running = started
        .unwrap_or_else(|error| Err(error.to_string()))
        .map_err(|error| format!("its machine does not start: {error}"))?;
    let outcome = tokio::select! {
        answer = Agent::await_boot(&running.vsock, LIMIT) => match answer {
            Ok(agent) => Ok(format!(
                "a machine booted Linux {} and its agent answered after {:.1} s",
                agent.welcome().kernel,
                begun.elapsed().as_secs_f64()
            )),
            Err(error) => silent(format!("its guest did not say hello within {} s: {}", LIMIT.as_secs(), chain(&error))),
        },
        why = running.exited() => silent(format!("its machine ended before its agent answered: {why}")),
        () = stop => Err("it was interrupted".into()),
        never = keep_telling(begun, tell) => match never {},
    };
    running.kill("the canary is done").await;
    running.ended().await;
    outcome
}

async fn keep_telling(begun: Instant, tell: impl Fn(Duration)) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(PATIENCE).await;
        tell(begun.elapsed());
    }
}

/// A canary that is about to be.
struct Launching {
    program: Program,
    io: IoLimits,
    uid: u32,
    directory: PathBuf,
    launch: Launch,
}

impl Launching {
    fn new(config: &Config, program: &Path, (directory, disk): (PathBuf, Option<DiskFormat>)) -> Result<Self, String> {
        let vsock = directory.join("vsock.sock");
        let disks = disk.map(|format| lower::scratch_disk(&directory, DISK_SIZE, format));
        Ok(Self {
            program: Program::open(program).map_err(|error| format!("open {}: {error}", program.display()))?,
            io: IoLimits::of_node(config).map_err(|error| chain(&error))?,
            // A daemon beside gives out the lowest that is free.
            uid: config.machine_uids.range().end - 1,
            directory,
            launch: Launch {
                cpus: 1,
                spec: MachineSpec {
                    name: NAME.into(),
                    comb: None,
                    disks: disks.into_iter().collect(),
                    ..template::original(&config.guest, &config.machines, &vsock)
                },
                tap: Vec::new(),
                shared: Vec::new(),
                file_size: disk.map_or(FILE_SIZE, |format| scratch::most(DISK_SIZE, format)),
                template: false,
            },
        })
    }

    fn start(self) -> Result<machine::Running, String> {
        // Where it fails the check of control groups has said so, and the machine is in this process's own.
        let _ = cgroup::prepare();
        machine::start(&self.program, &self.io, self.uid, (NAME, &self.directory), self.launch)
    }
}

/// Where a canary keeps its files, for one at a time on a host.
struct Place {
    directory: PathBuf,
    /// The first directory that was made for it, to be removed with it.
    made: Option<PathBuf>,
    _lock: File,
}

impl Place {
    fn take(state_dir: &Path) -> Result<Self, String> {
        let directory = state_dir.join(NAME);
        let io = |what: &str, error: io::Error| format!("{what} {}: {error}", directory.display());
        let made = directory.ancestors().take_while(|path| !path.exists()).last().map(Path::to_owned);
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&directory).map_err(|error| io("make", error))?;
        let lock = File::open(&directory).map_err(|error| io("open", error))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| format!("another canary is under way in {}: ask again when it is done", directory.display()))?;
        let place = Self {
            directory,
            made,
            _lock: lock,
        };
        // One that was left half-way.
        machine::clear(NAME, &place.machine())?;
        let made = private.create(place.machine());
        made.map_err(|error| format!("make {}: {error}", place.machine().display()))?;
        Ok(place)
    }

    fn machine(&self) -> PathBuf {
        self.directory.join("machine")
    }

    /// Takes away what was made.
    fn clear(self) -> Result<(), String> {
        machine::clear(NAME, &self.machine())?;
        let mut directory = self.directory.as_path();
        let last = self.made.as_deref().unwrap_or(directory);
        loop {
            // Others may have begun to use what was made for the canary.
            if fs::remove_dir(directory).is_err() || directory == last {
                return Ok(());
            }
            match directory.parent() {
                Some(parent) => directory = parent,
                None => return Ok(()),
            }
        }
    }
}

fn last_line(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    text.lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_for_one_canary_and_leaves_nothing_that_was_made_for_it() {
        let root = tempfile::tempdir().unwrap();
        let state_dir = root.path().join("var/kvmlet");
        let place = Place::take(&state_dir).unwrap();
        let refusal = Place::take(&state_dir).err().unwrap();
        assert!(refusal.contains("another canary"), "{refusal}");
        assert!(is_under_way(&state_dir));
        place.clear().unwrap();
        assert!(!is_under_way(&state_dir));
        assert!(!root.path().join("var").exists());
    }

    #[test]
    fn a_state_directory_that_was_there_stays() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::take(root.path()).unwrap();
        fs::write(place.machine().join("machine.log"), "one\n two \n\n").unwrap();
        assert_eq!(last_line(&place.machine().join("machine.log")).as_deref(), Some(" two "));
        place.clear().unwrap();
        assert!(root.path().exists() && fs::read_dir(root.path()).unwrap().next().is_none());
    }

    #[tokio::test]
    async fn nothing_is_booted_on_a_host_that_cannot() {
        let config = Config::parse(
            Path::new("test"),
            "{apiVersion: kvmlet.io/v1alpha1, kind: KvmletConfiguration, nodeName: n, nodeIP: 192.0.2.1, kubeconfig: /k, stateDir: /nonexistent/state, \
             tls: {certFile: /c, keyFile: /k, clientCAFile: /a}}",
        )
        .unwrap();
        let before = [
            Check::new("kvm-device", Err("there is no /dev/kvm".into())),
            Check::new("tun", Err("there is none".into())),
        ];
        let checks = boot(
            &config,
            Path::new("/nonexistent"),
            &before,
            DiskFormat::Raw,
            |_| {},
            std::future::pending(),
        )
        .await;
        let canary = Check::new(NAME, Err("no machine was booted: mend kvm-device first".into()));
        assert_eq!(checks, [canary]);
    }

    #[test]
    fn a_scratch_disk_is_made_in_the_format_that_is_asked_for_and_its_failure_says_what_to_do() {
        for (format, magic) in [(DiskFormat::Raw, [0; 4]), (DiskFormat::Qcow2, *b"QFI\xfb")] {
            let root = tempfile::tempdir().unwrap();
            let said = make(root.path(), format).unwrap();
            assert!(said.contains(if format == DiskFormat::Raw { "raw" } else { "qcow2" }), "{said}");
            let made = fs::read(lower::scratch_path(root.path())).unwrap();
            assert_eq!(made[..4], magic);
            let refused = make(Path::new("/proc/none"), format).unwrap_err();
            assert!(refused.contains("/proc/none") && refused.contains("stateDir"), "{refused}");
        }
    }
}
