//! The end-to-end tests and what runs them: one cluster for all, one line a test, a dump for each that fails. A test is a
//! plain function whose name is a sentence; it leaves nothing behind and does not count on another having run. The webhook alone stays for the
//! next test that needs it.

mod admission;
mod attach;
mod attached;
mod bad_host;
mod bad_image;
mod bad_pod;
mod bandwidth;
mod by_hand;
mod certificates;
mod changed_image;
mod chart;
mod copies;
mod copy;
mod daemon;
mod daemon_sets;
mod debug;
mod disks;
mod elastic;
mod exec;
mod exits;
mod figures;
mod follow;
mod guide;
mod hooks;
mod host_path;
mod image_volumes;
mod images;
pub(crate) mod in_place;
mod injected;
mod installer;
mod jail;
mod leader;
mod logs;
mod machines;
mod memory;
mod monitoring;
mod node;
mod operate;
mod operate_seen;
mod outage;
mod package;
mod pod_resources;
mod pods;
mod port_forward;
mod preflight;
mod pressure;
mod probes;
mod profiles;
mod random;
mod reserved;
mod resize;
mod resize_pods;
mod restarts;
mod rig;
mod rights;
mod runtime;
mod scheduling;
mod scratch_format;
mod security;
mod shared;
mod snapshots;
mod specs;
mod survival;
mod switched_off;
mod templates;
mod traces;
mod two_hosts;
mod volumes;
mod workload;

use std::{
    any::Any,
    collections::VecDeque,
    ops::AddAssign,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Error, Result, anyhow};

use crate::{
    Cluster, artifacts,
    cluster::LANE,
    dump,
    paths::{APART, host_name, write},
    process::Process,
    progress::say,
};

/// A test.
#[derive(Debug)]
pub struct Test {
    /// What is true if it passes.
    pub name: &'static str,
    /// How many hosts it needs. With one, it sees a cluster of one host and others run beside it; with more, it has the whole cluster for itself.
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

/// Tests that run only by their name: they, or what they need to be built, take too long for each run of all.
const BY_NAME: [&[Test]; 3] = [shared::TESTS, installer::TESTS, copy::LONG_TESTS];

/// The tests whose name contains `filter`, in order; with an empty one all but those that run by their name.
pub fn select(filter: &str) -> Vec<&'static Test> {
    let by_name = BY_NAME.into_iter().flatten().filter(|_| !filter.is_empty());
    all().chain(by_name).filter(|test| test.name.contains(filter)).collect()
}

/// Tests, and what builds what they need besides a cluster.
type Need = (&'static [Test], fn() -> Result<PathBuf>);
const NEEDS: [Need; 11] = [
    (specs::TESTS, artifacts::specs),
    (package::TESTS, artifacts::systemd_host_image),
    (shared::TESTS, artifacts::systemd_host_image),
    (shared::TESTS, artifacts::kubelet),
    (shared::TESTS, artifacts::counting_qemu),
    (installer::TESTS, artifacts::systemd_host_image),
    (installer::TESTS, artifacts::kubelet),
    (installer::TESTS, artifacts::counting_qemu),
    (monitoring::TESTS, artifacts::prometheus),
    (chart::TESTS, artifacts::helm),
    (traces::TESTS, artifacts::collector),
];

/// Tests with the admission webhook: it is installed for the first of them that runs, and goes with the last.
const WITH_WEBHOOK: [&[Test]; 4] = [admission::TESTS, injected::TESTS, leader::TESTS, profiles::SENT];

fn is_one_of(test: &Test, those: &[Test]) -> bool {
    those.iter().any(|one| one.name == test.name)
}

/// Builds what some of these tests need besides a cluster, before there is one.
pub fn build(tests: &[&'static Test]) -> Result<()> {
    for (those, build) in NEEDS {
        if tests.iter().any(|test| is_one_of(test, those)) {
            build()?;
        }
    }
    Ok(())
}

fn all() -> impl Iterator<Item = &'static Test> {
    [
        rig::TESTS,
        // The longest of one host: nobody waits for it if it is begun first.
        package::TESTS,
        two_hosts::TESTS,
        elastic::TESTS,
        reserved::TESTS,
        scheduling::TESTS,
        admission::TESTS,
        injected::TESTS,
        leader::TESTS,
        profiles::SENT,
        profiles::TESTS,
        chart::TESTS,
        guide::TESTS,
        node::TESTS,
        pods::TESTS,
        restarts::TESTS,
        probes::TESTS,
        hooks::TESTS,
        security::TESTS,
        volumes::TESTS,
        follow::TESTS,
        host_path::TESTS,
        images::TESTS,
        changed_image::TESTS,
        image_volumes::TESTS,
        in_place::TESTS,
        bandwidth::TESTS,
        disks::TESTS,
        logs::TESTS,
        machines::TESTS,
        daemon_sets::TESTS,
        memory::TESTS,
        pod_resources::TESTS,
        resize::TESTS,
        resize_pods::TESTS,
        pressure::TESTS,
        exec::TESTS,
        attached::TESTS,
        debug::TESTS,
        copy::TESTS,
        port_forward::TESTS,
        figures::TESTS,
        rights::TESTS,
        monitoring::TESTS,
        traces::TESTS,
        certificates::TESTS,
        exits::TESTS,
        by_hand::TESTS,
        operate::TESTS,
        attach::TESTS,
        snapshots::TESTS,
        copies::TESTS,
        templates::TESTS,
        jail::TESTS,
        survival::TESTS,
        random::TESTS,
        outage::TESTS,
        specs::TESTS,
        bad_host::TESTS,
        preflight::TESTS,
        runtime::TESTS,
        bad_pod::TESTS,
        bad_image::TESTS,
    ]
    .into_iter()
    .flatten()
}

/// Runs the tests: first those of the rig itself, then, side by side on each host, those that need one host, then those that need the whole
/// cluster for themselves.
pub fn run(cluster: &Cluster, tests: &[&'static Test]) -> Summary {
    let (rig, others): (Vec<_>, Vec<_>) = tests.iter().copied().partition(|test| !test.kvmlet);
    let (lanes, whole): (Vec<_>, Vec<_>) = others.into_iter().partition(|test| test.hosts == 1);
    let run = Run {
        queue: Mutex::default(),
        all: tests.len(),
        begun: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
        report: Mutex::default(),
    };
    let mut summary = Summary::default();
    summary += run.work(cluster, rig);
    match (0..cluster.hosts.len()).map(|host| cluster.lane(host)).collect::<Result<Vec<_>>>() {
        Err(error) => println!("no lanes: {error:#}"),
        Ok(hosts) => {
            *lock(&run.queue) = lanes.into();
            thread::scope(|scope| {
                let workers: Vec<_> = hosts.iter().map(|lane| scope.spawn(|| run.drain(lane))).collect();
                for worker in workers {
                    summary += worker.join().expect("a lane catches its tests' panics");
                }
            });
        }
    }
    summary += run.work(cluster, whole);
    // Whatever was not come to did not pass.
    summary.failed = tests.len() - summary.passed;
    summary
}

/// What the lanes share.
struct Run {
    queue: Mutex<VecDeque<&'static Test>>,
    all: usize,
    begun: AtomicUsize,
    /// The cluster has lost a part; nothing can be shown any more.
    lost: AtomicBool,
    /// One report at a time.
    report: Mutex<()>,
}

impl Run {
    fn work(&self, cluster: &Cluster, tests: Vec<&'static Test>) -> Summary {
        *lock(&self.queue) = tests.into();
        self.drain(cluster)
    }

    fn drain(&self, cluster: &Cluster) -> Summary {
        let mut summary = Summary::default();
        while !self.lost.load(Ordering::Relaxed) {
            let Some(test) = lock(&self.queue).pop_front() else { break };
            let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
            say(format_args!("{number}/{} {} ...", self.all, test.name));
            let started = Instant::now();
            let result = catch_unwind(AssertUnwindSafe(|| self.show(cluster, test))).unwrap_or_else(|panic| Err(anyhow!(said(&*panic))));
            let seconds = started.elapsed().as_secs_f64();
            match result {
                Ok(()) => {
                    summary.passed += 1;
                    println!("ok {} ({seconds:.1} s)", test.name);
                }
                Err(error) => {
                    summary.failed += 1;
                    let _one = lock(&self.report);
                    println!("FAILED {} ({seconds:.1} s): {error:#}", test.name);
                    self.look(cluster, test);
                }
            }
        }
        summary
    }

    /// Runs a test, and takes away what it has in common with tests before it and not with the next.
    fn show(&self, cluster: &Cluster, test: &Test) -> Result<()> {
        (test.run)(cluster)?;
        let next = lock(&self.queue).front().copied();
        let stays = next.is_some_and(|next| WITH_WEBHOOK.iter().any(|those| is_one_of(next, those)));
        if stays { Ok(()) } else { admission::remove(cluster) }
    }

    fn look(&self, cluster: &Cluster, test: &Test) {
        if let Some(lost) = lost(cluster) {
            self.lost.store(true, Ordering::Relaxed);
            println!("the cluster has lost a part; tests that have not begun cannot run and count as failed: {lost:#}");
            report(cluster, test);
            return;
        }
        report(cluster, test);
        if let Err(error) = clear(cluster) {
            println!("its pods are still there: {error:#}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process of the cluster that has ended, as an emulated host whose kernel panicked. The host of one test is that test's.
fn lost(cluster: &Cluster) -> Option<Error> {
    let processes = Process::recorded(&cluster.state).ok()?;
    let mut common = processes.iter().filter(|process| process.name != host_name(APART));
    common.find_map(|process| {
        let error = process.check(&cluster.state).err()?;
        Some(match cluster.hosts.iter().find(|host| host.name == process.name) {
            Some(host) => error.context(format!("its console's end:\n{}\n", host.console(40))),
            None => error,
        })
    })
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
    let lane = format!("{LANE}={}", cluster.host(0)?.name);
    let namespaces = cluster.kubectl(&["get", "namespaces", "-l", &lane, "-o", "jsonpath={.items[*].metadata.name}"])?;
    for name in namespaces.split_whitespace() {
        let force = ["--force", "--grace-period=0", "--timeout=60s"];
        cluster.kubectl(&[&["delete", "pods", "--all", "-n", name], &force[..]].concat())?;
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
