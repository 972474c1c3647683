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

use anyhow::{Result, anyhow};

use crate::{Cluster, dump, paths::write};

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

/// Tests that nobody has seen pass yet: `make test` says that it leaves them out, a filter runs them. What passes is taken off this list.
const DRAFTS: &[&str] = &[
    "pods on two hosts are spread by the scheduler, reach each other by address and answer one service together",
    "a host port leads to its pod from everywhere, is taken once a host, and is closed when the pod is gone",
    "restartPolicy decides whether a container that ends runs again, with the kubelet's waits and phases",
    "config maps, secrets, the downward API and projections are files with the right modes, items and content",
    "a second pod of the same image pulls and converts nothing",
    "a large image of many layers runs as it was built",
    "kubectl logs obeys each of its flags",
    "logs are CRI files that are rotated by size, and a follower loses no line of them",
    "attach and port-forward are refused with a reason",
    "what is deleted or made anew while the daemon is dead is so after its start",
    "a daemon killed at any moment leaves whole pods or none",
    "a container whose log is full waits for the dead daemon and loses no line",
    "an API server that is away for a minute takes no pod with it",
    "a Node that somebody deletes is made again with its pods and addresses",
    "a guest that crashes or whose process is killed is made anew, and its neighbour does not notice",
    "a pod larger than the host is refused by name of what it lacks",
    "two pods of the same name in turn are two pods",
    "an image that cannot be had or trusted is refused with its reason, and leaves nothing on the host",
    "links of an image that lead out of it stay within it",
    "a full disk while pulling is told, leaves nothing half-made, and is tried again",
];

/// The tests to run, in order: with a filter all whose name contains it, without one all but the drafts; and the drafts left out.
pub fn select(filter: &str) -> (Vec<&'static Test>, Vec<&'static Test>) {
    let all = all().filter(|test| test.name.contains(filter));
    all.partition(|test| !filter.is_empty() || !DRAFTS.contains(&test.name))
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
                if let Err(error) = clear(cluster) {
                    println!("its pods are still there: {error:#}");
                }
            }
        }
    }
    summary
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
