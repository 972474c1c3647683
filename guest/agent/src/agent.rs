//! The agent's state: the pod and its containers. Owns their table, the generation, and the dispatch of requests.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvmlet_protocol::{
    ContainerState, ContainerStatus, ErrorKind, ExitStatus, Extras, Failure, LayerFigures, Renewal, Request, Resources, Response,
    SandboxSpec, StorageFigures, TEMPLATE_WORD,
};

use crate::container::{self, Container, Wanted};
use crate::device::Images;
use crate::failure::{Attempt, fail};
use crate::filter;
use crate::setup::Sandbox;
use crate::{attach, bus, cgroup, renew, resize, stats, watchdog};

/// How long a watch waits for a change: each of a node's pods costs its daemon something that often.
const WATCH: Duration = Duration::from_secs(240);

/// All the agent knows.
#[derive(Default)]
pub(crate) struct Agent {
    /// Prepared once.
    sandbox: Mutex<Option<Arc<Sandbox>>>,
    /// Mounted when asked for.
    images: Mutex<Images>,
    table: Mutex<Table>,
    changed: Condvar,
    /// It is a template's, whose copies have the same random numbers until they are renewed.
    template: AtomicBool,
}

#[derive(Default)]
struct Table {
    changes: u64,
    /// Identifiers of containers that are being started or removed.
    busy: BTreeSet<String>,
    /// In order of their start.
    containers: Vec<Entry>,
}

struct Entry {
    container: Arc<Container>,
    state: ContainerState,
}

impl Table {
    fn find(&self, id: &str) -> Option<&Entry> {
        self.containers.iter().find(|e| e.container.spec.id == id)
    }

    fn list(&self) -> Response {
        let status = |e: &Entry| ContainerStatus {
            id: e.container.spec.id.clone(),
            state: e.state.clone(),
        };
        Response::Containers {
            generation: self.changes + 1,
            containers: self.containers.iter().map(status).collect(),
        }
    }
}

fn started(container: Arc<Container>) -> Response {
    Response::Started { pid: container.pid }
}

fn file(bytes: Vec<u8>) -> Response {
    Response::File(bytes.into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Of a guest whose kernel was given this command line.
    pub(crate) fn new(command_line: &str) -> Self {
        let template = command_line.split_whitespace().any(|word| word == TEMPLATE_WORD);
        Self {
            template: template.into(),
            ..Self::default()
        }
    }

    /// Refuses what must not be asked of a copy before it is one of its own.
    pub(crate) fn admit(&self, request: &Request) -> Result<(), Failure> {
        if self.template.load(Ordering::Acquire) && !matches!(request, Request::Renew(_) | Request::PowerOff) {
            return Err(fail(
                ErrorKind::Conflict,
                "this machine is a template, or a copy of one that was not renewed yet",
            ));
        }
        Ok(())
    }

    fn renew(&self, renewal: &Renewal) -> Result<(), Failure> {
        renew::renew(renewal)?;
        self.template.store(false, Ordering::Release);
        Ok(())
    }

    /// Answers every request but those that change the connection or end the machine.
    pub(crate) fn answer(self: &Arc<Self>, request: Request) -> Response {
        let result = match request {
            Request::Setup(spec) => self.setup(spec).map(|()| Response::Done),
            Request::PutVolume { volume, content } => self
                .sandbox()
                .and_then(|s| s.volumes.put(&volume, &content))
                .map(|()| Response::Done),
            Request::Start(spec) => self.start(Wanted::new(*spec, Extras::default())).map(started),
            Request::StartWith { container, extras } => self.start(Wanted::new(*container, extras)).map(started),
            Request::StartAs { container, extras, filter } => {
                let filter = filter.map(|filter| filter::compile(&filter)).transpose();
                let wanted = filter.map(|filter| Wanted {
                    filter,
                    ..Wanted::new(*container, extras)
                });
                wanted.and_then(|wanted| self.start(wanted)).map(|container| Response::StartedAs {
                    pid: container.pid,
                    user: container.user.clone(),
                })
            }
            Request::Signal { container, signal, all } => self
                .running(&container)
                .and_then(|c| c.signal(signal, all))
                .map(|()| Response::Done),
            Request::List => Ok(lock(&self.table).list()),
            Request::Watch { seen } => Ok(self.watch(seen)),
            Request::Remove { container } => self.remove(&container).map(|()| Response::Done),
            Request::Renew(renewal) => self.renew(&renewal).map(|()| Response::Done),
            Request::Attached { device } => self.attached(device).map(|()| Response::Done),
            Request::Detaching { device } => bus::detaching(device, &mut lock(&self.images)).map(|()| Response::Done),
            Request::Usage { volumes, above } => self.sandbox().and_then(|s| s.volumes.usage(&volumes, above)).map(Response::Usage),
            Request::Storage { volumes } => self.storage(&volumes).map(|storage| Response::Storage(Box::new(storage))),
            Request::ReadFile { volume, path } => self.sandbox().and_then(|s| s.volumes.read(&volume, &path)).map(file),
            Request::Resize { cpus, containers } => self.resize(cpus, containers).map(|()| Response::Done),
            Request::LimitPod(limits) => cgroup::limit_pod(&limits).map(|()| Response::Done),
            Request::Stats => Ok(Response::Stats(stats::read(&self.containers()))),
            Request::Figures => Ok(Response::Figures(Box::new(stats::figures(&self.containers())))),
            Request::Exec(_) | Request::Attach(_) | Request::Forward { .. } | Request::PowerOff => {
                Err(fail(ErrorKind::Internal, "this request needs its connection"))
            }
        };
        result.unwrap_or_else(Response::Failed)
    }

    fn setup(&self, spec: SandboxSpec) -> Result<(), Failure> {
        let mut sandbox = lock(&self.sandbox);
        match sandbox.as_ref() {
            // The time goes on between two askings.
            Some(present)
                if present.spec
                    == (SandboxSpec {
                        time: present.spec.time,
                        ..spec.clone()
                    }) =>
            {
                Ok(())
            }
            Some(_) => Err(fail(ErrorKind::Conflict, "the pod was set up differently before")),
            None => {
                *sandbox = Some(Arc::new(Sandbox::prepare(spec, &mut lock(&self.images))?));
                Ok(())
            }
        }
    }

    /// A machine that is a copy has its watchdog from then on.
    fn attached(self: &Arc<Self>, device: u8) -> Result<(), Failure> {
        bus::attached(device)?;
        if bus::is_watchdog(device) {
            watchdog::start(Arc::clone(self)).attempt("feed the watchdog")?;
        }
        Ok(())
    }

    fn sandbox(&self) -> Result<Arc<Sandbox>, Failure> {
        lock(&self.sandbox)
            .clone()
            .ok_or_else(|| fail(ErrorKind::Conflict, "the pod is not set up yet"))
    }

    /// What volumes and containers' layers hold. A container that goes meanwhile is left out.
    fn storage(&self, volumes: &[String]) -> Result<StorageFigures, Failure> {
        let volumes = self.sandbox()?.volumes.storage(volumes)?;
        let of = |container: Arc<Container>| {
            Some(LayerFigures {
                id: container.spec.id.clone(),
                name: container.spec.name.clone(),
                layer: stats::directory(&container.layer()).ok()?,
            })
        };
        let containers = self.containers().into_iter().filter_map(of).collect();
        Ok(StorageFigures { volumes, containers })
    }

    fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.table).containers.iter().map(|e| Arc::clone(&e.container)).collect()
    }

    /// Comes back when the table can be had, as every request needs it.
    pub(crate) fn is_free(&self) {
        drop(lock(&self.table));
    }

    /// The container, when it has not ended.
    pub(crate) fn running(&self, id: &str) -> Result<Arc<Container>, Failure> {
        let table = lock(&self.table);
        match table.find(id) {
            Some(Entry {
                container,
                state: ContainerState::Running { .. },
            }) => Ok(Arc::clone(container)),
            Some(_) => Err(fail(ErrorKind::NoSuchContainer, "the container has ended")),
            None => Err(fail(ErrorKind::NoSuchContainer, format!("there is no container {id}"))),
        }
    }

    /// A container that has ended meanwhile needs no limits.
    fn resize(&self, cpus: u8, containers: Vec<(String, Resources)>) -> Result<(), Failure> {
        let running = containers
            .into_iter()
            .filter_map(|(id, limits)| Some((self.running(&id).ok()?, limits)));
        resize::resize(cpus, &running.collect::<Vec<_>>())
    }

    fn start(self: &Arc<Self>, wanted: Wanted) -> Result<Arc<Container>, Failure> {
        let sandbox = self.sandbox()?;
        let id = wanted.spec.id.clone();
        // A host that ended before it was answered asks once more, perhaps while the first request is being read or obeyed.
        let mut table = lock(&self.table);
        while !table.busy.insert(id.clone()) {
            table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        let present = table.find(&id).map(|entry| Arc::clone(&entry.container));
        drop(table);
        let result = present.map_or_else(|| self.start_occupied(&sandbox, wanted), Ok);
        lock(&self.table).busy.remove(&id);
        self.changed.notify_all();
        result
    }

    fn start_occupied(self: &Arc<Self>, sandbox: &Sandbox, wanted: Wanted) -> Result<Arc<Container>, Failure> {
        let target = wanted.extras.processes_of.as_deref().map(|id| self.running(id)).transpose()?;
        let image = lock(&self.images).mount(&wanted.spec.root.device, &sandbox.spec.pmems)?;
        let (container, ended) = container::start(sandbox, image, wanted, target.as_deref())?;
        let container = Arc::new(container);
        {
            let mut table = lock(&self.table);
            let state = ContainerState::Running {
                pid: container.pid,
                started: container.started,
            };
            table.containers.push(Entry {
                container: Arc::clone(&container),
                state,
            });
            table.changes += 1;
        }
        self.changed.notify_all();
        let agent = Arc::clone(self);
        let watched = Arc::clone(&container);
        let wait = move || agent.exited(&watched, watched.wait(&ended));
        if let Err(e) = std::thread::Builder::new().name("waiter".into()).stack_size(64 << 10).spawn(wait) {
            // Nobody would ever learn its end.
            drop(container.signal(libc::SIGKILL, true));
            lock(&self.table).containers.retain(|e| e.container.spec.id != container.spec.id);
            container.remove()?;
            return Err(fail(ErrorKind::NoSpace, format!("watch the container: {e}")));
        }
        Ok(container)
    }

    fn exited(&self, container: &Container, status: ExitStatus) {
        let mut table = lock(&self.table);
        if let Some(entry) = table.containers.iter_mut().find(|e| e.container.spec.id == container.spec.id) {
            entry.state = ContainerState::Exited(status);
        }
        table.changes += 1;
        drop(table);
        attach::end(&container.spec.id);
        self.changed.notify_all();
    }

    fn watch(&self, seen: u64) -> Response {
        let deadline = Instant::now() + WATCH;
        let mut table = lock(&self.table);
        while table.changes + 1 == seen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            table = self.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        table.list()
    }

    fn remove(&self, id: &str) -> Result<(), Failure> {
        let mut found = None;
        self.occupy(id, |table| match table.find(id) {
            Some(Entry {
                container,
                state: ContainerState::Exited(_),
            }) => {
                found = Some(Arc::clone(container));
                Ok(())
            }
            Some(_) => Err(fail(ErrorKind::Conflict, "the container has not ended")),
            None => Err(fail(ErrorKind::NoSuchContainer, format!("there is no container {id}"))),
        })?;
        let result = found.map_or(Ok(()), |container| container.remove());
        let mut table = lock(&self.table);
        table.busy.remove(id);
        if result.is_ok() {
            table.containers.retain(|e| e.container.spec.id != id);
            table.changes += 1;
        }
        drop(table);
        self.changed.notify_all();
        result
    }

    /// Marks an identifier as being worked on, when `check` agrees and nobody else works on it.
    fn occupy(&self, id: &str, check: impl FnOnce(&Table) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut table = lock(&self.table);
        check(&table)?;
        if table.busy.insert(id.to_owned()) {
            Ok(())
        } else {
            Err(fail(ErrorKind::Conflict, "the container is being started or removed"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_was_not_renewed_answers_nothing_else() {
        let renewal = Renewal {
            entropy: Vec::new(),
            time: 0,
            cpus: 1,
            memory: 0,
            devices: Vec::new(),
        };
        let copy = Agent::new("quiet maxcpus=1 kvmlet.template\n");
        assert_eq!(copy.admit(&Request::Renew(renewal)), Ok(()));
        assert_eq!(copy.admit(&Request::PowerOff), Ok(()));
        for request in [Request::List, Request::Attached { device: 18 }, Request::Forward { port: 1 }] {
            assert_eq!(copy.admit(&request).unwrap_err().kind, ErrorKind::Conflict, "{request:?}");
        }
        assert_eq!(Agent::new("quiet not.kvmlet.template").admit(&Request::List), Ok(()));
    }
}
