//! How little it takes to use this library. What it shall never need, looked up in the workspace's lock file: whatever it depends on, and whatever that does, in tests too.

use std::collections::{BTreeMap, BTreeSet};

/// Beginnings of names: async runtimes, Kubernetes, and the rest of this workspace.
const NEVER: &[&str] = &["tokio", "async-std", "smol", "mio", "hyper", "kube", "k8s-openapi", "kvmlet"];

/// Names of packages to the names of what they depend on; versions side by side are one.
fn packages(lock: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut packages: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in lock.split("[[package]]\n").skip(1) {
        let name = package.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
        let dependencies = package.lines().filter_map(|line| line.strip_prefix(" \"")?.strip_suffix("\","));
        let names = dependencies.filter_map(|dependency| dependency.split(' ').next());
        packages.entry(name.expect("a package has a name")).or_default().extend(names);
    }
    packages
}

/// A package with all that it needs.
fn closure<'a>(packages: &BTreeMap<&'a str, BTreeSet<&'a str>>, of: &'a str) -> BTreeSet<&'a str> {
    let (mut found, mut waiting) = (BTreeSet::new(), vec![of]);
    while let Some(name) = waiting.pop() {
        if found.insert(name) {
            waiting.extend(packages.get(name).into_iter().flatten());
        }
    }
    found
}

#[test]
fn this_library_needs_neither_an_async_runtime_nor_kubernetes() {
    let packages = packages(include_str!("../../Cargo.lock"));
    let needed = closure(&packages, "vmm-lib");
    assert!(needed.contains("kvm-ioctls") && needed.contains("serde_derive"), "{needed:?}");
    let wrong: Vec<_> = needed
        .iter()
        .filter(|name| NEVER.iter().any(|never| name.starts_with(never)))
        .collect();
    assert!(wrong.is_empty(), "vmm-lib needs {wrong:?}");
    // The same question about a package that does need them.
    assert!(closure(&packages, "kvmlet").iter().any(|name| name.starts_with("tokio")));
}

#[test]
fn an_example_boots_a_kernel_in_under_sixty_lines() {
    let example = include_str!("../examples/boot.rs");
    let lines = example.lines().count();
    assert!(example.contains(".build()") && example.contains(".run()"), "it boots one");
    assert!(lines < 60, "it has {lines}");
}
