//! Some of Kubernetes' own specifications of a node, those that are quick and each of another part; `make conformance` runs all.

use anyhow::{Result, ensure};

use super::Test;
use crate::{
    Cluster,
    conformance::{self, Spec},
};

pub(super) const TESTS: &[Test] = &[Test {
    name: "thirty of Kubernetes' own specifications of a node pass here",
    hosts: 2,
    kvmlet: true,
    run: specifications,
}];

/// Side by side, as each of them waits more than it works. Their limits are real time, made for nodes with room (a hook's grace, a log's first lines): with
/// six at once on two processors that emulate, two runs missed one each.
const JOBS: usize = 4;

/// Their names, a line each; those that wait longest come first.
const SPECS: &str = include_str!("specs.txt");

fn specifications(cluster: &Cluster) -> Result<()> {
    let specs: Vec<_> = SPECS.lines().map(|name| Spec(name.to_owned())).collect();
    let tally = conformance::run_all(cluster, &specs, JOBS)?;
    ensure!(tally.failed == 0, "{} of {} failed", tally.failed, specs.len());
    Ok(())
}
