//! One specification: its name, the list of all, and a run of one.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::report::{self, Report};
use crate::{Cluster, artifacts, process::tail};

/// The name of a specification, as Ginkgo puts it together: containers from the outside, then its own words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Spec(pub String);

impl Spec {
    /// Whether it says of itself that it takes minutes.
    pub fn is_slow(&self) -> bool {
        self.0.contains("[Slow]")
    }

    /// Whether it says of itself that nothing may run beside it.
    pub fn is_alone(&self) -> bool {
        ["[Serial]", "[Disruptive]"].iter().any(|word| self.0.contains(word))
    }

    /// What Ginkgo's `focus` must be for this one alone. The suite's name stands before a specification's.
    fn focus(&self) -> String {
        let mut focus = String::from("suite ");
        for c in self.0.chars() {
            if !c.is_alphanumeric() && c.is_ascii() && c != ' ' {
                focus.push('\\');
            }
            focus.push(c);
        }
        focus + "$"
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// The program that holds them, and whose nodes it looks at.
#[derive(Debug)]
pub(super) struct Suite<'a> {
    pub(super) cluster: &'a Cluster,
    program: PathBuf,
}

impl<'a> Suite<'a> {
    /// Builds the program, where it is not there yet.
    pub(super) fn of(cluster: &'a Cluster) -> Result<Self> {
        let program = artifacts::specs()?;
        Ok(Self { cluster, program })
    }

    /// All that a conforming node has to pass, by name.
    pub(super) fn list(&self) -> Result<Vec<Spec>> {
        let folder = self.cluster.state.logs().join("conformance/list");
        let arguments = ["--ginkgo.dry-run", r"--ginkgo.focus=\[NodeConformance\]"];
        let mut specs = report::ran(&self.ask(&arguments, &folder, Duration::from_secs(120))?);
        specs.sort();
        Ok(specs)
    }

    /// Runs one; its report and what it said stay in `folder`.
    pub(super) fn run(&self, spec: &Spec, folder: &Path, limit: Duration) -> Result<()> {
        let focus = format!("--ginkgo.focus={}", spec.focus());
        report::verdict(&self.ask(&[&focus], folder, limit)?)
    }

    /// Starts the program and reads its report. Its exit code says nothing: it is 0 where nothing ran.
    fn ask(&self, arguments: &[&str], folder: &Path, limit: Duration) -> Result<Report> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let (log, file) = (folder.join("log"), folder.join("report.json"));
        let output = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = self.cluster.inside("timeout");
        command
            .args(["-k", "5", &limit.as_secs().to_string()])
            .arg(&self.program)
            .current_dir(folder);
        command.args(["--provider=skeleton", "--ginkgo.no-color"]).args(arguments);
        command.arg("--kubeconfig").arg(self.cluster.state.kubeconfig());
        command.arg("--ginkgo.json-report").arg(&file);
        command
            .stdin(Stdio::null())
            .stderr(output.try_clone().context("share a log")?)
            .stdout(output);
        let status = command.status().context("run e2e.test")?;
        match fs::read(&file) {
            Ok(bytes) => report::read(&bytes),
            Err(_) => bail!("no report ({status}); the end of {}:\n{}", log.display(), tail(&log, 15)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_focus_means_one_name_alone() {
        let spec = Spec("[sig-node] Pods should run (root,0644) a.b [NodeConformance]".into());
        assert_eq!(
            spec.focus(),
            r"suite \[sig\-node\] Pods should run \(root\,0644\) a\.b \[NodeConformance\]$"
        );
    }
}
