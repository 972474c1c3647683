//! Running a short foreground command of this machine and reading its answer. Long-lived processes are [`crate::process`]'s.

use std::{
    ffi::OsStr,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

/// The text of standard output.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// Runs to the end with standard input empty; a failure carries what the command said on standard error.
pub fn run(command: &mut Command) -> Result<Output> {
    let name = describe(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}: {}", output.status, text(&output.stderr));
    }
    Ok(output)
}

/// Runs `program` with `arguments`, for its effect.
pub fn call<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<()> {
    run(Command::new(program).args(arguments)).map(drop)
}

/// Runs a build whose progress (standard error) the person sees; the last line of its standard output is the answer.
pub fn last_line(command: &mut Command) -> Result<String> {
    let name = describe(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}", output.status);
    }
    text(&output.stdout)
        .lines()
        .last()
        .map(str::to_owned)
        .with_context(|| format!("{name} printed no path"))
}

fn describe(command: &Command) -> String {
    let arguments = command.get_args().map(|argument| argument.to_string_lossy());
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(arguments);
    words.join(" ")
}
