//! The program of machines, `kvmlet-machine`, which lies beside this one.

use std::{convert::Infallible, env, ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::Context as _;

const NAME: &str = "kvmlet-machine";

/// Where it is.
pub(crate) fn path() -> anyhow::Result<PathBuf> {
    Ok(env::current_exe().context("find this program")?.with_file_name(NAME))
}

/// Becomes it.
pub(crate) fn become_it(arguments: &[OsString]) -> anyhow::Result<Infallible> {
    let path = path()?;
    let error = Command::new(&path).arg("vm").args(arguments).exec();
    Err(error).with_context(|| format!("run {}, which belongs beside this program", path.display()))
}
