//! Owns starting the plugins: environment, standard input, deadline, and the error a plugin answers with.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command as Process;

use super::{Attachment, Command, ConfigList};
use crate::netns::is_namespace;

/// Where plugins find iptables and the like when the daemon itself was started without a PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a chain stopped.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// A configuration names no plugin.
    #[error("a plugin's configuration of network {network} has no type that is a file name")]
    NameType {
        /// The network.
        network: String,
    },
    /// No such program in the plugin directories.
    #[error("CNI plugin {plugin} is in none of {dirs:?}")]
    FindPlugin {
        /// The plugin's type.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// The program did not start, or its pipes broke.
    #[error("cannot run CNI plugin {plugin}")]
    RunPlugin {
        /// The plugin's type.
        plugin: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The plugin did not end in time and was killed.
    #[error("CNI plugin {plugin} did not finish {command} within {timeout:?}")]
    Deadline {
        /// The plugin's type.
        plugin: String,
        /// What it was asked.
        command: &'static str,
        /// The deadline.
        timeout: Duration,
    },
    /// The plugin refused, in its own words.
    #[error("CNI plugin {plugin} failed {command}: {message} (code {code})")]
    Refused {
        /// The plugin's type.
        plugin: String,
        /// What it was asked.
        command: &'static str,
        /// The specification's or the plugin's own number; 0 when it answered none.
        code: u32,
        /// Its message, with its details.
        message: String,
    },
    /// The answer is not JSON.
    #[error("CNI plugin {plugin} answered something that is no JSON")]
    ReadAnswer {
        /// The plugin's type.
        plugin: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The answer is no result of this version.
    #[error("the CNI result is not of version 1.0.0")]
    ReadResult(#[source] serde_json::Error),
    /// What is at the namespace's path cannot be told.
    #[error("cannot tell whether {netns} is a network namespace")]
    InspectNamespace {
        /// The path.
        netns: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A list without plugins, or a last plugin without an answer.
    #[error("network {network} gave no result")]
    NoResult {
        /// The network.
        network: String,
    },
}

/// The plugins of this host.
#[derive(Clone, Debug)]
pub struct Plugins {
    dirs: Vec<PathBuf>,
    timeout: Duration,
}

/// What a plugin writes when it fails.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Plugins {
    /// Plugins found in `dirs`, each given `timeout`.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>, timeout: Duration) -> Self {
        Self { dirs, timeout }
    }

    /// Attaches; the answer is the last plugin's raw result.
    ///
    /// # Errors
    ///
    /// When a plugin fails. Earlier plugins of the chain are not undone: the caller asks [`Plugins::del`].
    pub async fn add(&self, list: &ConfigList, attachment: &Attachment) -> Result<Value, CniError> {
        let mut result = None;
        for plugin in list.in_order(Command::Add) {
            let stdin = list.stdin_of(plugin, attachment, result.as_ref());
            result = self
                .run(Command::Add, list, plugin, attachment, Some(&attachment.netns), &stdin)
                .await?;
        }
        result.ok_or_else(|| CniError::NoResult {
            network: list.name.clone(),
        })
    }

    /// Asks each plugin whether the attachment is as `result` says.
    ///
    /// # Errors
    ///
    /// When a plugin finds it is not.
    pub async fn check(&self, list: &ConfigList, attachment: &Attachment, result: &Value) -> Result<(), CniError> {
        for plugin in list.in_order(Command::Check) {
            let stdin = list.stdin_of(plugin, attachment, Some(result));
            self.run(Command::Check, list, plugin, attachment, Some(&attachment.netns), &stdin)
                .await?;
        }
        Ok(())
    }

    /// Detaches, also what was attached in part (then there is no result) or whose namespace is gone or was never made.
    ///
    /// # Errors
    ///
    /// When a plugin fails; the plugins after it were not asked, and all may be asked again.
    pub async fn del(&self, list: &ConfigList, attachment: &Attachment, result: Option<&Value>) -> Result<(), CniError> {
        let netns = &attachment.netns;
        let bound = is_namespace(netns).map_err(|source| CniError::InspectNamespace {
            netns: netns.clone(),
            source,
        })?;
        let netns = bound.then_some(netns.as_path());
        for plugin in list.in_order(Command::Del) {
            let stdin = list.stdin_of(plugin, attachment, result);
            self.run(Command::Del, list, plugin, attachment, netns, &stdin).await?;
        }
        Ok(())
    }

    async fn run(
        &self,
        command: Command,
        list: &ConfigList,
        plugin: &Value,
        attachment: &Attachment,
        netns: Option<&Path>,
        stdin: &Value,
    ) -> Result<Option<Value>, CniError> {
        let name = plugin["type"]
            .as_str()
            .filter(|name| !name.is_empty() && !name.contains('/') && *name != "." && *name != "..")
            .ok_or_else(|| CniError::NameType {
                network: list.name.clone(),
            })?;
        let program = self
            .dirs
            .iter()
            .map(|dir| dir.join(name))
            .find(|path| path.is_file())
            .ok_or_else(|| CniError::FindPlugin {
                plugin: name.to_owned(),
                dirs: self.dirs.clone(),
            })?;
        let dirs: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();

        let mut process = Process::new(program);
        process
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned()))
            .env("CNI_COMMAND", command.as_str())
            .env("CNI_PATH", dirs.join(":"))
            .envs(attachment.environment(netns))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let output = tokio::time::timeout(self.timeout, talk(process, stdin.to_string()))
            .await
            .map_err(|_| CniError::Deadline {
                plugin: name.to_owned(),
                command: command.as_str(),
                timeout: self.timeout,
            })?
            .map_err(|source| CniError::RunPlugin {
                plugin: name.to_owned(),
                source,
            })?;
        read(name, command, &output)
    }
}

async fn talk(mut process: Process, stdin: String) -> io::Result<Output> {
    let mut child = process.spawn()?;
    let mut pipe = child.stdin.take().expect("standard input was asked to be a pipe");
    let write = async move {
        match pipe.write_all(stdin.as_bytes()).await {
            // A plugin may answer without reading; its answer says more than the broken pipe.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    };
    let (written, output) = tokio::join!(write, child.wait_with_output());
    written?;
    output
}

fn read(plugin: &str, command: Command, output: &Output) -> Result<Option<Value>, CniError> {
    if !output.status.success() {
        let refusal = serde_json::from_slice::<Refusal>(&output.stdout)
            .ok()
            .filter(|refusal| !refusal.msg.is_empty());
        let (code, message) = match refusal {
            Some(Refusal { code, msg, details }) if details.is_empty() => (code, msg),
            Some(Refusal { code, msg, details }) => (code, format!("{msg}: {details}")),
            None => {
                let stderr = String::from_utf8_lossy(&output.stderr);
                let said = stderr.trim();
                (
                    0,
                    if said.is_empty() {
                        output.status.to_string()
                    } else {
                        format!("{}: {said}", output.status)
                    },
                )
            }
        };
        return Err(CniError::Refused {
            plugin: plugin.to_owned(),
            command: command.as_str(),
            code,
            message,
        });
    }
    if command != Command::Add {
        return Ok(None);
    }
    serde_json::from_slice(&output.stdout)
        .map(Some)
        .map_err(|source| CniError::ReadAnswer {
            plugin: plugin.to_owned(),
            source,
        })
}
