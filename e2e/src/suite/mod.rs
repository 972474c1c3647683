//! The end-to-end tests and what runs them: one cluster for all, one line a test, a dump for each that fails. A test is a
//! plain function whose name is a sentence; it leaves nothing behind and does not count on another having run.

mod bad_host;
mod bad_image;
mod bad_pod;
mod daemon;
mod exec;
mod exits;
mod images;
mod logs;
mod node;
mod outage;
mod pods;
mod restarts;
mod rig;
mod survival;
mod two_hosts;
mod volumes;
mod workload;

use std::{
    any::Any,
    ops::AddAssign,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use anyhow::{Error, Result, anyhow};

use crate::{Cluster, dump, paths::write, process::Process};

/// A test.
#[derive(Debug)]
pub struct Test {
    /// What is true if it passes.
    pub name: &'static str,
    /// How many hosts it needs.
    pub hosts: usize,
    /// Whether it needs kvmlet on the hosts.
    pub kvmlet: bool,
    /// Shows it.
    pub run: fn(&Cluster) -> Result<()>,
}

/// How many did what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Showed what they say.
    pub passed: usize,
    /// Did not.
    pub failed: usize,
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// The tests whose name contains `filter`, in order.
pub fn select(filter: &str) -> Vec<&'static Test> {
    all().filter(|test| test.name.contains(filter)).collect()
}

fn all() -> impl Iterator<Item = &'static Test> {
    [
        rig::TESTS,
        two_hosts::TESTS,
        node::TESTS,
        pods::TESTS,
        restarts::TESTS,
        volumes::TESTS,
        images::TESTS,
        logs::TESTS,
        exec::TESTS,
        exits::TESTS,
        survival::TESTS,
        outage::TESTS,
        bad_host::TESTS,
        bad_pod::TESTS,
        bad_image::TESTS,
    ]
    .into_iter()
    .flatten()
}

/// Runs tests one after another: hosts are slow enough without company.
pub fn run(cluster: &Cluster, tests: &[&Test]) -> Summary {
    let mut summary = Summary::default();
    for (index, test) in tests.iter().enumerate() {
        eprintln!(
            "[{:6.1} s] {}/{} {} ...",
            crate::progress::elapsed(),
            index + 1,
            tests.len(),
            test.name
        );
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| (test.run)(cluster))).unwrap_or_else(|panic| Err(anyhow!(said(&*panic))));
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                summary.passed += 1;
                println!("ok {} ({seconds:.1} s)", test.name);
            }
            Err(error) => {
                summary.failed += 1;
                println!("FAILED {} ({seconds:.1} s): {error:#}", test.name);
                report(cluster, test);
                if let Some(lost) = lost(cluster) {
                    let left = tests.len() - index - 1;
                    println!("the cluster has lost a part; the {left} tests left cannot run and count as failed: {lost:#}");
                    summary.failed += left;
                    return summary;
                }
                if let Err(error) = clear(cluster) {
                    println!("its pods are still there: {error:#}");
                }
            }
        }
    }
    summary
}

/// A process of the cluster that has ended, as an emulated host whose kernel panicked.
fn lost(cluster: &Cluster) -> Option<Error> {
    let processes = Process::recorded(&cluster.state).ok()?;
    processes.iter().find_map(|process| process.check(&cluster.state).err())
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    text.unwrap_or_else(|| "it panicked".into())
}

/// A test that fails leaves its pods for the dump; the next test must not meet them.
fn clear(cluster: &Cluster) -> Result<()> {
    let namespaces = cluster.kubectl(&["get", "namespaces", "-o", "jsonpath={.items[*].metadata.name}"])?;
    for name in namespaces
        .split(' ')
        .filter(|name| *name != "default" && !name.starts_with("kube-"))
    {
        cluster.kubectl(&[
            "delete",
            "pods",
            "--all",
            "-n",
            name,
            "--force",
            "--grace-period=0",
            "--timeout=60s",
        ])?;
        cluster.delete_namespace(name)?;
    }
    Ok(())
}

/// The dump goes to a file and, as a log is all that some readers have, to the terminal.
fn report(cluster: &Cluster, test: &Test) {
    let text = dump::cluster(cluster);
    let slug: String = test.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let file = cluster.state.logs().join(format!("failed-{slug}.txt"));
    match write(&file, &text) {
        Ok(()) => println!("everything about it is in {}; its end:", file.display()),
        Err(error) => println!("its dump could not be kept: {error:#}"),
    }
    println!("{}", crate::process::last_lines(&text, 150));
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_tests_say_the_same() {
        let all: Vec<_> = all().collect();
        let names: HashSet<_> = all.iter().map(|test| test.name).collect();
        assert_eq!(names.len(), all.len());
    }
}
