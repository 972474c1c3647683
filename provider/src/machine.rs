//! A pod's machine process, from the daemon's side: started, adopted, watched, ended. Blocking calls run on threads for that.

mod budgets;

use std::{
    collections::HashMap,
    fs::{self, File},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use kvmlet_machine::{self as process, Adoption, ExitRecord, Found, Machine, Program, Start, jail::Jail};
use kvmlet_protocol::Request;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use vmm_lib::{exit::MachineExit, spec::MachineSpec};

use crate::{
    act::chain,
    agent::Agent,
    cgroup::{self, IoLimits},
    context::Context,
    figures::on_machines,
    host_path::Shared,
};

/// What a system call filter ends a process with.
const SIGSYS: i32 = 31;
/// How long a killed process may take to be gone.
const KILL_TIME: Duration = Duration::from_secs(30);
/// Until a machine's process is asked again for what it tells, after its connection was cut.
const AGAIN: Duration = Duration::from_millis(200);

/// A machine that runs.
#[derive(Clone)]
pub struct Running {
    /// Name of its control group.
    group: Arc<str>,
    machine: Arc<Machine>,
    /// Where its guest is reached.
    pub vsock: PathBuf,
    /// Ends what watches it.
    pub token: CancellationToken,
    /// Its process has ended.
    gone: CancellationToken,
    /// Which log each of its containers writes: directory and number.
    pub logs: Arc<Mutex<HashMap<String, (PathBuf, u32)>>>,
    /// Why this daemon ended it, if it did.
    reason: Arc<Mutex<Option<&'static str>>>,
}

/// Where a pod's machine keeps its files.
pub fn directory(context: &Context, uid: &str) -> PathBuf {
    context.store.machine_dir(uid)
}

/// A machine to be started.
pub struct Launch {
    /// What it is. Its tap is descriptor 0, further queues of it and then the sockets of what is shared follow.
    pub spec: MachineSpec,
    /// Its network: the tap's queues, if it has one.
    pub tap: Vec<OwnedFd>,
    /// Processors that its guest uses; it may have more.
    pub cpus: u8,
    /// What is shared with it.
    pub shared: Vec<Shared>,
    /// Length in bytes of the longest file that its own process may write.
    pub file_size: u64,
    /// A snapshot of it shall be taken.
    pub template: bool,
}

/// Starts a machine that keeps its files in `dir`, and the processes of what is shared with it, in the control group `name`.
pub async fn launch(context: &Arc<Context>, name: &str, dir: PathBuf, launch: Launch) -> Result<Running, String> {
    let (context, name) = (context.clone(), name.to_owned());
    blocking(move || {
        let uid = context.uids.claim(&dir).map_err(|e| e.to_string())?;
        start(&context.program, &context.io, uid, (&name, &dir), launch)
    })
    .await
}

/// The same for whoever has no pods: by this program, held to these limits, as this user. Blocks until the process listens.
///
/// # Errors
/// In words for people, when the host refuses a step or the process refuses its order.
pub fn start(program: &Program, io: &IoLimits, uid: u32, (name, dir): (&str, &Path), launch: Launch) -> Result<Running, String> {
    let Launch {
        spec,
        tap,
        cpus,
        shared,
        file_size,
        template,
    } = launch;
    let jail = Jail { uid, file_size };
    for socket in ["vsock.sock", "control.sock", "exit.json"] {
        let _ = fs::remove_file(dir.join(socket));
    }
    let spawned = process::spawn(dir, jail.uid, program).map_err(|e| chain(&e))?;
    match cgroup::confine(name, spawned.pid(), (&spec, cpus), process::threads(&spec), io) {
        Ok(missing) if missing.is_empty() => {}
        Ok(missing) => debug!(?missing, "the host's cgroup v2 lacks controllers"),
        Err(error) if !io.files().is_empty() => return Err(format!("hold the machine to machines.io: {error}")),
        Err(error) => debug!(%error, "the machine process stays in the daemon's control group"),
    }
    let order = Start {
        version: process::VERSION,
        spec,
        jail,
        template,
        log_filter: "info".into(),
    };
    let mut passed = tap;
    for share in &shared {
        passed.push(serve(program, name, dir, &order, share)?);
    }
    let machine = spawned.start(&order, &passed).map_err(|e| chain(&e))?;
    Ok(Running::new(machine, dir, name))
}

/// Starts the process that serves what is shared: with the machine's user, in its control group, until its process is gone.
fn serve(program: &Program, uid: &str, dir: &Path, order: &Start, shared: &Shared) -> Result<OwnedFd, String> {
    let share = process::Share {
        version: process::VERSION,
        uid: order.jail.uid,
        read_only: shared.read_only,
        log_filter: order.log_filter.clone(),
    };
    let join = |pid| {
        if let Err(error) = cgroup::join(uid, pid) {
            debug!(%error, "the process of a shared directory stays in the daemon's control group");
        }
    };
    process::spawn_share(dir, &share, shared.what.as_fd(), program, join)
        .map_err(|error| format!("share {}: {}", shared.path.display(), chain(&error)))
}

/// Finds a pod's machine again; the error says what became of it.
pub async fn adopt(context: &Arc<Context>, uid: &str) -> Result<Running, String> {
    let dir = directory(context, uid);
    let uid = uid.to_owned();
    blocking(move || match process::adopt(&dir).map_err(|e| chain(&e))? {
        Adoption::Running(machine) => Ok(Running::new(machine, &dir, &uid)),
        Adoption::Unresponsive(machine, error) => {
            end(&machine)?;
            Err(format!("its process did not answer: {}", chain(&error)))
        }
        Adoption::Ended(record) => Err(describe(record.as_ref(), None, cgroup::is_out_of_memory(&uid))),
        Adoption::Never => Err("it was never started".into()),
    })
    .await
}

/// Asks the guest to power itself off, then waits at most `limit` for it.
pub async fn power_off(running: Running, limit: Duration) {
    let asked = async {
        if let Ok(mut agent) = Agent::connect(&running.vsock).await {
            let _ = agent.command(&Request::PowerOff).await;
        }
        running.ended().await;
    };
    let _ = tokio::time::timeout(limit, asked).await;
}

/// Ends a pod's machine process and leaves its files.
pub async fn stop(context: &Arc<Context>, uid: &str) -> Result<(), String> {
    let dir = directory(context, uid);
    blocking(move || end_in(&dir)).await
}

/// Ends whatever machine process a pod has, and removes its files. Idempotent.
pub async fn destroy(context: &Arc<Context>, uid: &str) -> Result<(), String> {
    destroy_in(context, uid, directory(context, uid)).await
}

/// The same for a machine that [`launch`] has started.
pub async fn destroy_in(context: &Arc<Context>, name: &str, dir: PathBuf) -> Result<(), String> {
    let (name, context) = (name.to_owned(), context.clone());
    blocking(move || {
        clear(&name, &dir)?;
        context.uids.release(&dir);
        Ok(())
    })
    .await
}

/// The same for a machine that [`start`] has started. Blocks until its process is gone.
///
/// # Errors
/// In words for people, when the process does not end or its files stay.
pub fn clear(name: &str, dir: &Path) -> Result<(), String> {
    if dir.exists() {
        end_in(dir)?;
        fs::remove_dir_all(dir).map_err(|e| format!("remove {}: {e}", dir.display()))?;
    }
    if let Err(error) = cgroup::remove(name) {
        debug!(%error, "remove the machine's control group");
    }
    Ok(())
}

/// Ends the machine whose directory this is, if its process still runs; its files stay. The process is asked nothing: one that stands still
/// would not answer. Blocks until it is gone.
///
/// # Errors
/// In words for people, when the process does not end.
pub fn end_in(dir: &Path) -> Result<(), String> {
    match process::find(dir).map_err(|e| chain(&e))? {
        Found::Alive(machine) => end(&machine),
        Found::Ended(_) | Found::Never => Ok(()),
    }
}

fn end(machine: &Machine) -> Result<(), String> {
    let what = |error| format!("end machine process {}: {}", machine.pid(), chain(&error));
    machine.kill_process().map_err(what)?;
    if !machine.wait(Some(KILL_TIME)).map_err(what)? {
        return Err(format!("machine process {} does not end after SIGKILL", machine.pid()));
    }
    machine.reap();
    Ok(())
}

/// The end in words of a machine whose process is gone; `record` is what it left, `name` its control group's.
pub fn ending(name: &str, record: Option<&ExitRecord>) -> String {
    describe(record, None, cgroup::is_out_of_memory(name))
}

/// Its end in words for the pod's owner.
fn describe(record: Option<&ExitRecord>, signal: Option<i32>, out_of_memory: bool) -> String {
    match record.map(|r| &r.report.exit) {
        None if out_of_memory => "the host ended its process, whose control group had no memory left (memory.max)".into(),
        None => match signal {
            Some(SIGSYS) => "its process made a system call that its jail forbids (SIGSYS)".into(),
            Some(signal) => format!("its process was killed by signal {signal}"),
            None => "its process was killed".into(),
        },
        Some(MachineExit::PoweredOff) => "the guest powered itself off".into(),
        Some(MachineExit::Reset) => "the guest reset itself (its kernel panics so)".into(),
        Some(MachineExit::Stopped) => "the machine was stopped".into(),
        Some(MachineExit::Watchdog { .. }) => "the guest hung: its kernel or agent left its watchdog unfed".into(),
        Some(MachineExit::TripleFault) => "the guest triple-faulted".into(),
        Some(MachineExit::Crashed { reason } | MachineExit::MemoryFault { reason }) => format!("the guest crashed: {reason}"),
        Some(MachineExit::Error { what }) => format!("the machine failed: {what}"),
    }
}

impl Running {
    fn new(machine: Machine, dir: &Path, group: &str) -> Self {
        let running = Self {
            group: group.into(),
            machine: Arc::new(machine),
            vsock: dir.join("vsock.sock"),
            token: CancellationToken::new(),
            gone: CancellationToken::new(),
            logs: Arc::default(),
            reason: Arc::default(),
        };
        let (machine, gone) = (running.machine.clone(), running.gone.clone());
        // A thread of its own: a pidfd in the event loop would need unsafe code.
        let watch = std::thread::Builder::new()
            .name("machine end".into())
            .stack_size(64 << 10)
            .spawn(move || {
                while !machine.wait(None).unwrap_or(true) {}
                machine.reap();
                gone.cancel();
            });
        if let Err(error) = watch {
            warn!(%error, "watch a machine process");
        }
        running
    }

    /// Asks something of the machine's process, on a connection of its own.
    pub async fn with_control<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut process::Control) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let machine = self.machine.clone();
        blocking(move || ask(&mut machine.control().map_err(|e| chain(&e))?)).await
    }

    /// The process, as this daemon knows it.
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// Waits for the process's end.
    pub async fn ended(&self) {
        self.gone.cancelled().await;
    }

    /// Waits for the process's end and says why it came.
    pub async fn exited(&self) -> String {
        self.ended().await;
        if let Some(reason) = *self.reason.lock().expect("no holder panics") {
            return reason.to_owned();
        }
        describe(
            self.machine.exit_record().ok().flatten().as_ref(),
            self.machine.signal(),
            cgroup::is_out_of_memory(&self.group),
        )
    }

    /// Ends the process at once, for this reason.
    pub async fn kill(&self, reason: &'static str) {
        *self.reason.lock().expect("no holder panics") = Some(reason);
        let machine = self.machine.clone();
        if let Err(error) = blocking(move || machine.kill_process().map_err(|e| chain(&e))).await {
            warn!(error, "kill a machine process");
        }
    }

    /// Passes an open log file for a container.
    pub async fn log_file(&self, container: &str, file: File, budget: u64) -> Result<(), String> {
        let (machine, container) = (self.machine.clone(), container.to_owned());
        blocking(move || {
            let mut control = machine.control().map_err(|e| chain(&e))?;
            control.log_file(&container, file.as_fd(), budget).map_err(|e| chain(&e))
        })
        .await
    }

    /// Has a snapshot written into two files, at which the machine ends.
    pub async fn snapshot(&self, state: File, memory: File) -> Result<(), String> {
        let machine = self.machine.clone();
        blocking(move || {
            let mut control = machine.control().map_err(|e| chain(&e))?;
            control.snapshot(state.as_fd(), memory.as_fd()).map_err(|e| chain(&e))
        })
        .await
    }

    /// Forgets the log of a container that is removed.
    pub async fn close_log(&self, container: &str) {
        self.logs.lock().expect("no holder panics").remove(container);
        let (machine, container) = (self.machine.clone(), container.to_owned());
        let _ = blocking(move || machine.control().and_then(|mut c| c.close_log(&container)).map_err(|e| chain(&e))).await;
    }

    /// Containers whose log's budget is spent, as it happens, until the machine is gone.
    pub fn spent_budgets(&self) -> mpsc::Receiver<String> {
        let (sender, receiver) = mpsc::channel(16);
        let running = self.clone();
        tokio::spawn(async move {
            let telling = async {
                while !running.gone.is_cancelled() && !sender.is_closed() {
                    if let Err(error) = budgets::tell(&running.machine, &sender).await {
                        debug!(error, "follow the budgets of a machine's logs; trying again");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            };
            tokio::select! {
                () = telling => {}
                () = running.token.cancelled() => {}
            }
        });
        receiver
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(|| on_machines(work)).await.map_err(|e| e.to_string())?
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, os::unix::net::UnixListener, process::Command};

    use super::*;

    #[test]
    fn a_machine_is_ended_without_being_asked() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        // Fields are counted from the name in parentheses, which is the second.
        let start_time = stat[stat.rfind(')').unwrap()..].split_ascii_whitespace().nth(20).unwrap();
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let record = format!(
            "{{\"version\": 1, \"pid\": {}, \"startTime\": {start_time}, \"bootId\": \"{}\"}}",
            child.id(),
            boot_id.trim()
        );
        fs::write(dir.path().join("machine.json"), record).unwrap();
        let control = UnixListener::bind(dir.path().join("control.sock")).unwrap();
        control.set_nonblocking(true).unwrap();
        assert!(matches!(process::find(dir.path()), Ok(Found::Alive(_))));
        end_in(dir.path()).unwrap();
        assert_eq!(control.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(matches!(process::find(dir.path()), Ok(Found::Ended(None))));
        // Reaped already.
        let _ = child.wait();
    }

    #[test]
    fn the_owner_reads_what_ended_a_machine_that_left_no_record() {
        assert_eq!(describe(None, Some(9), false), "its process was killed by signal 9");
        assert!(describe(None, Some(SIGSYS), false).contains("jail forbids"));
        assert_eq!(describe(None, None, false), "its process was killed");
        assert!(describe(None, Some(9), true).contains("no memory left"));
    }
}
