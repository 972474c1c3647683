//! Kubernetes' own `[NodeConformance]` specifications, run against a cluster's nodes: which there are, which cannot apply and why, each in a
//! process of its own, several side by side, judged by the report that it writes.

mod inapplicable;
mod report;
mod spec;

use std::{
    fs,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

pub use spec::Spec;
use spec::Suite;

use crate::{Cluster, Host, progress::say};

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only those whose name contains this.
    pub filter: String,
    /// How many at once.
    pub jobs: usize,
    /// Those as well that wait for many minutes, as for a back-off to reach its limit.
    pub slow: bool,
}

/// How many did what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed by their own report.
    pub passed: usize,
    /// Did not, or wrote no report.
    pub failed: usize,
    /// Cannot apply, each with its reason.
    pub skipped: usize,
}

/// How long one may take. Several of them wait for five minutes for what does not come.
const LIMIT: Duration = Duration::from_secs(420);
/// The same of a slow one.
const SLOW_LIMIT: Duration = Duration::from_secs(2400);

/// All that apply, on all nodes of the cluster; says each one's outcome as it ends, and the reasons of those that do not apply first.
pub fn run(cluster: &Cluster, options: &Options) -> Result<Tally> {
    let suite = Suite::of(cluster)?;
    let all = suite.list()?;
    let chosen: Vec<_> = all.iter().filter(|spec| spec.0.contains(&options.filter)).collect();
    ensure!(
        !chosen.is_empty(),
        "none of {} specifications has {:?} in its name",
        all.len(),
        options.filter
    );
    let (mut applicable, mut skipped) = (Vec::new(), 0);
    for spec in chosen {
        if let Some(reason) = reason(spec, options) {
            println!("skipped {spec}: {reason}");
            skipped += 1;
        } else {
            applicable.push(spec.clone());
        }
    }
    // The longest first.
    applicable.sort_by_key(|spec| !spec.is_slow());
    let tally = suite.run_all(&applicable, options.jobs)?;
    Ok(Tally { skipped, ..tally })
}

fn reason(spec: &Spec, options: &Options) -> Option<&'static str> {
    let slow = (spec.is_slow() && !options.slow).then_some("waits for many minutes; --slow runs it");
    let alone = spec
        .is_alone()
        .then_some("nothing may run beside it ([Serial], [Disruptive]), and here others do");
    inapplicable::reason(spec).or(alone).or(slow)
}

/// These, so many at once, on nodes that carry no taint meanwhile.
pub fn run_all(cluster: &Cluster, specs: &[Spec], jobs: usize) -> Result<Tally> {
    Suite::of(cluster)?.run_all(specs, jobs)
}

impl Suite<'_> {
    fn run_all(&self, specs: &[Spec], jobs: usize) -> Result<Tally> {
        let cluster = self.cluster;
        let folder = cluster.state.logs().join("conformance");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let _untainted = cluster
            .hosts
            .iter()
            .map(|host| Untainted::new(cluster, host))
            .collect::<Result<Vec<_>>>()?;
        let (queue, tally) = (Mutex::new(specs.iter().enumerate()), Mutex::new(Tally::default()));
        let work = || {
            while let Some((index, spec)) = next(&queue) {
                say(format_args!("{}/{} {spec} ...", index + 1, specs.len()));
                let started = Instant::now();
                let limit = if spec.is_slow() { SLOW_LIMIT } else { LIMIT };
                let outcome = self.run(spec, &folder.join(index.to_string()), limit);
                let seconds = started.elapsed().as_secs_f64();
                let mut tally = tally.lock().expect("no holder panics");
                match outcome {
                    Ok(()) => {
                        tally.passed += 1;
                        println!("ok {spec} ({seconds:.1} s)");
                    }
                    Err(error) => {
                        tally.failed += 1;
                        println!("FAILED {spec} ({seconds:.1} s): {error:#}");
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..jobs.max(1) {
                scope.spawn(work);
            }
        });
        Ok(tally.into_inner().expect("no holder panics"))
    }
}

fn next<'a>(queue: &Mutex<impl Iterator<Item = (usize, &'a Spec)>>) -> Option<(usize, &'a Spec)> {
    queue.lock().expect("no holder panics").next()
}

/// A node without its taints, which the specifications do not tolerate; they come back with the end of this.
struct Untainted<'a> {
    cluster: &'a Cluster,
    name: &'a str,
    taints: serde_json::Value,
}

impl<'a> Untainted<'a> {
    fn new(cluster: &'a Cluster, host: &'a Host) -> Result<Self> {
        let node = cluster.kubectl_json(&["get", "node", &host.name])?;
        let without = Self {
            cluster,
            name: &host.name,
            taints: node["spec"]["taints"].clone(),
        };
        without.set(&json!([]))?;
        Ok(without)
    }

    fn set(&self, taints: &serde_json::Value) -> Result<()> {
        let patch = json!({"spec": {"taints": taints}}).to_string();
        self.cluster
            .kubectl(&["patch", "node", self.name, "--type=merge", "-p", &patch])
            .map(drop)
    }
}

impl Drop for Untainted<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.set(&self.taints) {
            say(format_args!("the taints of {} did not come back: {error:#}", self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_that_does_not_run_has_its_reason() {
        let of = |name: &str, slow| {
            let options = Options {
                filter: String::new(),
                jobs: 1,
                slow,
            };
            reason(&Spec(name.into()), &options).unwrap_or_default()
        };
        assert!(of("Pods should run [Serial] [NodeConformance]", true).contains("[Serial]"));
        assert!(of("Pods should run [Disruptive] [NodeConformance]", true).contains("[Disruptive]"));
        assert!(of("Pods should wait [Slow] [NodeConformance]", false).contains("--slow"));
        assert!(
            of("if pod uses host network [Serial]", false).contains("hostNetwork"),
            "what cannot be had at all comes first"
        );
        for name in ["Pods should run [NodeConformance]", "Pods should wait [Slow] [NodeConformance]"] {
            assert_eq!(of(name, true), "", "{name}");
        }
    }
}
