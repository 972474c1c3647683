//! What the documents tell their readers to type, run as it stands there.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::Test;
use crate::{
    Cluster, helm,
    paths::{manifest, repository},
    registry,
};

pub(super) const TESTS: &[Test] = &[Test {
    name: "a reader of the README who types its commands gets a pod by selector and one by nodeName",
    hosts: 2,
    kvmlet: true,
    run: first_pods,
}];

/// The lines of a document's block of commands that begins so, without what they say behind a `#`.
fn lines(document: &str, begins: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(repository().join(document)).with_context(|| format!("read {document}"))?;
    let block = text.split("```sh\n").skip(1).find(|block| block.starts_with(begins));
    let block = block.and_then(|block| block.split("```").next());
    let block = block.with_context(|| format!("{document} has no commands that begin with {begins:?}"))?;
    let typed = block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
    Ok(typed.filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Types them one after the other; what each said.
pub(super) fn follow(cluster: &Cluster, document: &str, begins: &str) -> Result<Vec<String>> {
    let typed = lines(document, begins)?;
    typed.iter().map(|line| run(cluster, line)).collect()
}

fn run(cluster: &Cluster, line: &str) -> Result<String> {
    // Readers are in the repository, and have a registry of their own.
    let in_repository = |word: &str| match word.strip_prefix("manifests") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => manifest(rest.trim_start_matches('/')),
        _ => word.replace("REGISTRY", &registry::public()),
    };
    let words: Vec<String> = line.split_whitespace().map(in_repository).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.split_first() {
        Some((&("k" | "kubectl"), rest)) => cluster.kubectl(rest),
        Some((&"helm", rest)) => helm::run(cluster, rest),
        _ => bail!("{line:?} is no command for kubectl or helm"),
    }
}

fn first_pods(cluster: &Cluster) -> Result<()> {
    let said = follow(cluster, "README.md", "k apply -f manifests/examples/selector.yaml")?;
    ensure!(said[2].contains("kvmlet"), "a guest's kernel calls itself {:?}", said[2]);
    let said = follow(cluster, "README.md", "k apply -f manifests/examples/node-name.yaml")?;
    ensure!(said[2].contains("kvmlet"), "a guest's kernel calls itself {:?}", said[2]);
    cluster.kubectl(&["delete", "pod", "hello", "here", "--timeout=110s"]).map(drop)
}
