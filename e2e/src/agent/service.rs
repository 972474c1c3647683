//! Long-lived programs on a host: started, watched and ended only when asked; nothing is started again by itself.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::wire::{ServiceState, ServiceStatus};

/// All services of a host, by name.
#[derive(Debug, Clone, Default)]
pub(super) struct Services(Arc<(Mutex<HashMap<String, ServiceStatus>>, Condvar)>);

impl Services {
    fn table(&self) -> MutexGuard<'_, HashMap<String, ServiceStatus>> {
        // Every change is one insertion, so the table is whole even after a panic.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self, name: &str) -> ServiceStatus {
        let unknown = ServiceStatus {
            pid: None,
            state: ServiceState::Unknown,
        };
        self.table().get(name).cloned().unwrap_or(unknown)
    }

    pub(super) fn start(&self, name: &str, argv: &[String], env: &[(String, String)], log: &str) -> io::Result<ServiceStatus> {
        let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("a service without a command"))?;
        let mut table = self.table();
        if table.get(name).is_some_and(|status| status.state == ServiceState::Running) {
            return Err(io::Error::other(format!("{name} runs already")));
        }
        if let Some(folder) = Path::new(log).parent() {
            std::fs::create_dir_all(folder)?;
        }
        let output = File::options().create(true).append(true).open(log)?;
        let errors = output.try_clone()?;
        let mut command = Command::new(program);
        command.args(arguments).envs(env.iter().map(|(key, value)| (key, value)));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()?;
        let pid = Some(child.id());
        let status = ServiceStatus {
            pid,
            state: ServiceState::Running,
        };
        table.insert(name.to_owned(), status.clone());
        drop(table);
        let (services, name) = (self.clone(), name.to_owned());
        thread::spawn(move || {
            let state = match child.wait() {
                Ok(status) => status
                    .code()
                    .map_or_else(|| ServiceState::Signaled(status.signal().unwrap_or(0)), ServiceState::Exited),
                Err(_) => ServiceState::Unknown,
            };
            services.table().insert(name, ServiceStatus { pid, state });
            services.0.1.notify_all();
        });
        Ok(status)
    }

    pub(super) fn stop(&self, name: &str, signal: i32, wait: Duration) -> io::Result<ServiceStatus> {
        let table = self.table();
        let Some(ServiceStatus {
            pid: Some(pid),
            state: ServiceState::Running,
        }) = table.get(name)
        else {
            return Ok(table.get(name).cloned().unwrap_or(ServiceStatus {
                pid: None,
                state: ServiceState::Unknown,
            }));
        };
        let pid = i32::try_from(*pid).map_err(io::Error::other)?;
        kill(Pid::from_raw(pid), Signal::try_from(signal)?)?;
        let running = |table: &mut HashMap<_, ServiceStatus>| table.get(name).is_some_and(|status| status.state == ServiceState::Running);
        let waited = self.0.1.wait_timeout_while(table, wait, running);
        let (table, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{name} did not end within {} s", wait.as_secs()),
            ));
        }
        Ok(table.get(name).cloned().expect("services are never removed"))
    }
}
