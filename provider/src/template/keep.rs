//! The node's template: found or made in the background, given to whoever starts a machine, thrown away when a copy fails or what it depends
//! on has changed. There is one at a time, of [`MEMORY`] and a little state.
//!
//! ```text
//! STATE/templates/KEY/{state,memory}      a template that is whole: renamed to its key when all is written
//! STATE/templates/making/                 one that is being made, with its machine's directory
//! ```

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use kvmlet_protocol::{DEVICES_VERSION, WATCHDOG_VERSION};
use tokio::sync::Notify;
use tracing::{info, warn};
use vmm_lib::{snapshot, spec::MachineSpec};

use super::{MEMORY, WORKING_SET, copy, key::key, observe::observe, original, requests};
use crate::{
    act::chain,
    agent::Agent,
    config::Config,
    context::Context,
    lower,
    machine::{self, Launch},
};

/// How long a template's guest may boot.
const BOOT_TIME: Duration = Duration::from_secs(180);
/// For the guest to give back what booting it took.
const SETTLE: Duration = Duration::from_secs(2);
/// Once a template could not be made it is tried again after the first of these, then after twice as long each time, up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// Copies that fail one after the other before there are no more.
const FAILURES: u32 = 3;
/// Bytes of the state, at most.
const STATE: u64 = 16 << 20;
/// Its control group.
const NAME: &str = "template";

/// How a machine starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// As a copy of the template of this number.
    Copy(u64),
    /// By booting, for this reason.
    Boot(String),
}

impl Start {
    /// As the pod's owner reads it.
    pub fn told(&self, took: Duration) -> String {
        let seconds = took.as_secs_f64();
        match self {
            Self::Copy(_) => format!("Machine started as a copy of the node's template in {seconds:.2} s"),
            Self::Boot(why) => format!("Machine booted in {seconds:.2} s ({why})"),
        }
    }
}

/// The node's template, or why there is none.
pub struct Templates {
    directory: PathBuf,
    state: Mutex<State>,
    wanted: Notify,
}

struct State {
    template: Result<Template, String>,
    /// Of the template, or of the last attempt to have one: each has another.
    number: u64,
    /// Copies, of one template each, that failed with none between them that worked.
    failures: u32,
}

struct Template {
    directory: PathBuf,
    /// What it was made of, as it was then.
    of: Vec<(PathBuf, Option<Stamp>)>,
}

/// Tells a file that was replaced or written.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(u64, u64, u64, i64, i64);

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let is = fs::metadata(path).ok()?;
        Some(Self(is.dev(), is.ino(), is.len(), is.ctime(), is.ctime_nsec()))
    }
}

impl Templates {
    /// Without a template yet.
    pub fn new(config: &Config) -> Self {
        let why = never(config).unwrap_or("the node's template is not made yet");
        Self {
            directory: config.state_dir.join("templates"),
            state: Mutex::new(State {
                template: Err(why.into()),
                number: 0,
                failures: 0,
            }),
            wanted: Notify::new(),
        }
    }

    /// Where the machine of a template that is being made keeps its files.
    pub fn machine_dir(&self) -> PathBuf {
        self.directory.join("making").join("machine")
    }

    /// The machine as a copy of the template, if there is one and the machine fits.
    pub fn offer(&self, spec: MachineSpec) -> (MachineSpec, Start) {
        let mut state = self.state.lock().expect("no holder panics");
        let stale = state.template.as_ref().is_ok_and(Template::is_stale);
        if stale {
            state.template = Err("the guest was replaced: the node's template is made anew".into());
            self.wanted.notify_one();
        }
        match &state.template {
            Err(why) => (spec, Start::Boot(why.clone())),
            Ok(template) => match copy(spec, &template.directory) {
                Ok(spec) => (spec, Start::Copy(state.number)),
                Err((spec, why)) => (*spec, Start::Boot(why.into())),
            },
        }
    }

    /// A copy runs.
    pub fn worked(&self) {
        self.state.lock().expect("no holder panics").failures = 0;
    }

    /// A copy of the template of this number did not come up: the template is thrown away.
    pub fn failed(&self, number: u64, why: &str) {
        let mut state = self.state.lock().expect("no holder panics");
        warn!(why, number, "a copy of the node's template did not come up");
        if number != state.number || state.template.is_err() {
            return;
        }
        state.failures += 1;
        let what = if state.failures < FAILURES {
            self.wanted.notify_one();
            format!("a copy of the node's template did not come up ({why}), another is being made")
        } else {
            format!("copies of {FAILURES} templates did not come up, the last: {why}")
        };
        if let Ok(template) = std::mem::replace(&mut state.template, Err(what)) {
            let _ = fs::remove_dir_all(template.directory);
        }
    }

    /// Finds or makes a template whenever one is wanted, for ever.
    pub async fn keep(&self, context: &Arc<Context>) {
        if never(&context.config).is_some() {
            return;
        }
        let mut missed = 0;
        loop {
            let found = self.have(context).await;
            if let Err(why) = &found {
                warn!(why, "there is no template: machines are booted");
            }
            missed = if found.is_err() { missed + 1 } else { 0 };
            self.put(found);
            if missed > 0 {
                let _ = tokio::time::timeout(again(missed), self.wanted.notified()).await;
            } else {
                self.wanted.notified().await;
            }
        }
    }

    /// What copies are of from now on, or why there are none. Those of the one before may still fail: they are told apart by its number.
    fn put(&self, found: Result<Template, String>) {
        let mut state = self.state.lock().expect("no holder panics");
        state.number += 1;
        state.template = found.map_err(|why| format!("the node's template could not be made: {why}"));
    }

    async fn have(&self, context: &Arc<Context>) -> Result<Template, String> {
        let (config, program) = (context.config.clone(), context.program.path().to_owned());
        let of = [&config.guest.kernel, &config.guest.initramfs]
            .map(|path| (path.clone(), Stamp::of(path)))
            .into();
        let key = blocking(move || key(&config.guest, &config.machines, &program)).await?;
        let directory = self.directory.join(&key);
        let looked_at = directory.clone();
        if !blocking(move || Ok(is_whole(&looked_at))).await? {
            self.make(context, &directory).await?;
        }
        self.clear(Some(&key)).map_err(|error| format!("remove old templates: {error}"))?;
        info!(key, "the node's template is there");
        Ok(Template { directory, of })
    }

    async fn make(&self, context: &Arc<Context>, directory: &Path) -> Result<(), String> {
        let begun = Instant::now();
        let (machine, made) = (self.machine_dir(), self.directory.join("making"));
        machine::destroy_in(context, NAME, machine.clone()).await?;
        let io = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        self.clear(None).map_err(io("remove old templates"))?;
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&machine).map_err(io("make a directory for the template"))?;
        let booted = self.boot(context, &machine, &made).await;
        machine::destroy_in(context, NAME, machine.clone()).await?;
        booted?;
        private.create(&machine).map_err(io("make a directory for a copy"))?;
        let tried = self.try_out(context, &machine, &made).await;
        machine::destroy_in(context, NAME, machine).await?;
        tried.map_err(|why| format!("a first copy: {why}"))?;
        fs::rename(&made, directory).map_err(io("name the template"))?;
        info!(ms = begun.elapsed().as_millis(), "a template was made");
        Ok(())
    }

    /// Boots the machine and has it written.
    async fn boot(&self, context: &Arc<Context>, machine: &Path, made: &Path) -> Result<(), String> {
        let create = |name: &str| {
            let mut options = fs::File::options();
            options.read(true).write(true).create_new(true).mode(0o600);
            options
                .open(made.join(name))
                .map_err(|error| format!("make the file {name}: {error}"))
        };
        let (state, memory) = (create("state")?, create("memory")?);
        let launch = Launch {
            cpus: 1,
            spec: original(&context.config.guest, &context.config.machines, &machine.join("vsock.sock")),
            tap: Vec::new(),
            shared: Vec::new(),
            file_size: MEMORY + STATE,
            template: true,
        };
        let _boot = context.boots.acquire().await.map_err(|error| error.to_string())?;
        let running = machine::launch(context, NAME, machine.into(), launch).await?;
        let answered = async {
            let agent = Agent::await_boot(&running.vsock, BOOT_TIME).await.map_err(|error| chain(&error))?;
            let watched = context.config.machines.watchdog_seconds > 0;
            let (version, needed) = (agent.welcome().version, if watched { WATCHDOG_VERSION } else { DEVICES_VERSION });
            if version < needed {
                return Err(format!(
                    "the guest's agent speaks version {version} of the protocol, and {needed} is needed"
                ));
            }
            drop(agent);
            tokio::time::sleep(SETTLE).await;
            Ok(())
        };
        tokio::select! {
            result = answered => result?,
            why = running.exited() => return Err(format!("its machine ended: {why}")),
        }
        // At which it ends.
        running.snapshot(state, memory).await
    }

    /// Starts a first copy, as large as a pod's by default, and takes down what it touches.
    async fn try_out(&self, context: &Arc<Context>, machine: &Path, made: &Path) -> Result<(), String> {
        let (vsock, machines) = (machine.join("vsock.sock"), &context.config.machines);
        let asked = MachineSpec {
            comb: None,
            memory: MEMORY + (256 << 20),
            watchdog: lower::watchdog(machines),
            ..original(&context.config.guest, machines, &vsock)
        };
        let mut spec = copy(asked, made).map_err(|(_, why)| why.to_owned())?;
        if let Some(restore) = &mut spec.restore {
            restore.working_set = None;
        }
        let launch = Launch {
            cpus: 1,
            spec: spec.clone(),
            tap: Vec::new(),
            shared: Vec::new(),
            file_size: STATE,
            template: false,
        };
        let _boot = context.boots.acquire().await.map_err(|error| error.to_string())?;
        let running = machine::launch(context, NAME, machine.into(), launch).await?;
        let answered = async {
            let mut agent = Agent::await_boot(&running.vsock, BOOT_TIME).await.map_err(|error| chain(&error))?;
            for request in requests(&spec, 1).map_err(|error| format!("read random bytes: {error}"))? {
                agent.command(&request).await.map_err(|error| chain(&error))?;
            }
            let (pid, memory, file) = (running.pid(), made.join("memory"), made.join(WORKING_SET));
            blocking(move || {
                let set = observe(pid, &memory).map_err(|error| format!("see what it touches: {error}"))?;
                let text = serde_json::to_vec(&set).expect("numbers can be written");
                fs::write(file, text).map_err(|error| format!("write what it touches: {error}"))
            })
            .await
        };
        tokio::select! {
            result = answered => result,
            why = running.exited() => Err(format!("its machine ended: {why}")),
        }
    }

    /// Removes all that is there but the template of this key.
    fn clear(&self, key: Option<&str>) -> io::Result<()> {
        match fs::read_dir(&self.directory) {
            Ok(entries) => entries
                .flatten()
                .filter(|entry| key.is_none_or(|key| entry.file_name() != key))
                .try_for_each(|entry| fs::remove_dir_all(entry.path())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Template {
    fn is_stale(&self) -> bool {
        self.of.iter().any(|(path, stamp)| Stamp::of(path) != *stamp)
    }
}

/// Why a node of this configuration has no template.
pub(super) fn never(config: &Config) -> Option<&'static str> {
    let reasons = [
        (!config.machines.templates, "machines.templates is off"),
        (config.guest.serial, "guest.serial is on"),
    ];
    reasons.into_iter().find_map(|(so, why)| so.then_some(why))
}

/// Whether a template that was made before is what was written then.
fn is_whole(directory: &Path) -> bool {
    let open = |name: &str| fs::File::open(directory.join(name));
    let (Ok(state), Ok(memory), Ok(_)) = (open("state"), open("memory"), open(WORKING_SET)) else {
        return false;
    };
    let checked = snapshot::check(&state, &memory);
    if let Err(error) = &checked {
        warn!(error = chain(error), "the template on the disk is not used");
    }
    checked.is_ok()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}

/// How long to wait after so many that could not be made.
fn again(missed: u32) -> Duration {
    let (first, most) = AGAIN;
    first.saturating_mul(1 << (missed.saturating_sub(1)).min(16)).min(most)
}

#[cfg(test)]
mod tests;
