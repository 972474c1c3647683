//! Pods' machines as copies of a template that the node makes for itself: seen by their owner, each a machine of its own.

use std::{collections::BTreeSet, env};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    daemon::restart,
    workload::{PATIENCE, Place, STAY, line, pod, sh, with, within},
};
use crate::{Cluster, Host, host_config::SHARED, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "pods are copies of the node's template, as large as they asked to be, and their events say so",
        hosts: 1,
        kvmlet: true,
        run: copies,
    },
    Test {
        name: "a pod with more images than copies of the node's template have places for, and directories of the host, is a copy all the same",
        hosts: 1,
        kvmlet: true,
        run: surplus,
    },
    Test {
        name: "no two copies have a random number, a boot id, an address or a TCP sequence in common, and their clocks are right",
        hosts: 1,
        kvmlet: true,
        run: own,
    },
    Test {
        name: "a template that is not what was written is thrown away, its pods boot and say why, and another is made",
        hosts: 1,
        kvmlet: true,
        run: spoiled,
    },
];

/// Where templates are.
const TEMPLATES: &str = "/var/lib/kvmlet/templates";

/// Waits until the node has a template; its directory.
pub(super) fn template(host: &Host) -> Result<String> {
    wait_for("the node to have a template", PATIENCE, || {
        let found = host.sh(&format!("cd {TEMPLATES} 2>/dev/null && ls | grep -v making || true"))?;
        Ok((!found.trim().is_empty()).then(|| found.trim().to_owned()))
    })
}

/// What a pod's owner was told of its machine's start.
fn told(place: &Place<'_>, pod: &str) -> Result<String> {
    let mut events = place.events(pod)?.into_iter();
    let started = events.find(|(_, reason, _, _)| reason == "MachineStarted");
    started
        .map(|(.., message)| message)
        .with_context(|| format!("no event of {pod}'s machine"))
}

/// Starts a pod after another, of names that begin so, until one's machine is a copy.
pub(super) fn until_a_copy(place: &Place<'_>, name: &str) -> Result<()> {
    let mut number = 0;
    wait_for("a pod to be a copy", PATIENCE, || {
        number += 1;
        let name = &format!("{name}-{number}");
        place.create(&[pod(name, sh(STAY))])?;
        place.until_ready(name)?;
        place.until_event(name, "MachineStarted", "Machine ")?;
        place.kubectl(&["delete", "pod", name])?;
        Ok(told(place, name)?.contains("as a copy").then_some(()))
    })
}

fn copies(cluster: &Cluster) -> Result<()> {
    template(cluster.host(0)?)?;
    within(cluster, "templates-copies", |place| {
        let sized = |name: &str, memory: &str, cpu: &str| {
            let limits = json!({"limits": {"memory": memory, "cpu": cpu}, "requests": {"memory": "16Mi", "cpu": "10m"}});
            let security = json!({"capabilities": {"add": ["SYSLOG"]}});
            pod(name, with(sh(STAY), &[("/resources", limits), ("/securityContext", security)]))
        };
        let asking = |name: &str, template: &str| {
            with(
                pod(name, sh(STAY)),
                &[("/metadata/annotations", json!({"kvmlet.io/template": template}))],
            )
        };
        place.create(&[
            sized("small", "32Mi", "1"),
            sized("large", "700Mi", "2"),
            asking("booted", "none"),
            asking("refused", "mine"),
        ])?;
        place.until_ready("booted")?;
        place.until_event("booted", "MachineStarted", "s (the pod's kvmlet.io/template is \"none\")")?;
        let refused = place.until_phase("refused", "Failed")?;
        ensure!(refused["status"]["reason"] == "InvalidTemplate", "{}", refused["status"]);
        for (name, megabytes, processors) in [("small", 90..140, "1"), ("large", 740..800, "2")] {
            place.until_ready(name)?;
            place.until_event(name, "MachineStarted", "as a copy of the node's template in ")?;
            let has = place.exec(
                name,
                "awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo; grep -c ^processor /proc/cpuinfo",
            )?;
            let (memory, cpus) = has.split_once('\n').context("two lines")?;
            ensure!(
                megabytes.contains(&memory.trim().parse::<u64>()?) && cpus.trim() == processors,
                "{name} has {has}"
            );
        }
        // What came by virtio-mem is memory like any other.
        place.exec(
            "large",
            "dd if=/dev/zero of=/dev/shm/much bs=1M count=300 2>/dev/null || dd if=/dev/zero of=/tmp/much bs=1M count=300 2>/dev/null",
        )?;
        let log = place.exec("small", "dmesg")?;
        ensure!(
            log.contains("virtual machine fork"),
            "the kernel was not told that it is a copy: {log}"
        );
        Ok(())
    })
}

/// Images of the same files that differ in how they are run. With that of the container and one more they are 10, of which 8 have places.
const USERS: [&str; 8] = ["latest", "number", "group", "numbers", "root", "stop", "plain", "workdir"];

fn surplus(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    template(host)?;
    let shared = format!("{SHARED}/surplus");
    host.sh(&format!(
        "rm -rf {shared}; mkdir -p {shared}/a {shared}/b; echo of-a > {shared}/a/file; echo of-b > {shared}/b/file"
    ))?;
    within(cluster, "templates-surplus", |place| {
        let image =
            |(name, reference): (String, String)| json!({"name": name, "image": {"reference": reference, "pullPolicy": "IfNotPresent"}});
        let directory = |name: &str| json!({"name": name, "hostPath": {"path": format!("{shared}/{name}"), "type": "Directory"}});
        let users = USERS.map(|tag| (tag.to_owned(), format!("users:{tag}")));
        let images = users.into_iter().chain([("nginx".to_owned(), "nginx".to_owned())]);
        let mut volumes: Vec<Value> = images.map(image).collect();
        volumes.extend(["a", "b"].map(directory));
        let names = volumes.iter().filter_map(|volume| volume["name"].as_str());
        let mounts: Vec<Value> = names.map(|name| json!({"name": name, "mountPath": format!("/v/{name}")})).collect();
        let script = "cd /v; echo users=$(grep -l 'An app' */etc/passwd | wc -l); echo nginx=$(head -n 1 nginx/etc/nginx/nginx.conf)
            echo shared=$(cat a/file b/file); echo from-pod > a/made; ls /sys/class/block; ";
        let main = with(sh(&format!("{script}{STAY}")), &[("/volumeMounts", json!(mounts))]);
        place.create(&[with(pod("much", main), &[("/spec/volumes", json!(volumes))])])?;
        place.until_ready("much")?;
        place.until_event("much", "MachineStarted", "as a copy of the node's template in ")?;
        place.until_says("much", "pmem9")?;
        let said = place.kubectl(&["logs", "much"])?;
        for (key, value) in [("users", "8"), ("nginx", "worker_processes 1;"), ("shared", "of-a of-b")] {
            ensure!(line(&said, key)? == value, "{key} is not {value:?}: {said}");
        }
        ensure!(host.sh(&format!("cat {shared}/a/made"))?.trim() == "from-pod");
        Ok(())
    })?;
    host.sh(&format!("rm -r {shared}")).map(drop)
}

/// What a copy says of itself: one line each, none of which another may say.
const IDENTITY: &str = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid
    cat /sys/class/net/eth0/address; hostname; mktemp -u XXXXXXXXXXXXXXXX";

/// How many copies: `COPIES=1000` makes as many.
fn number() -> Result<usize> {
    env::var("COPIES").map_or(Ok(16), |text| text.parse().context("COPIES is no number"))
}

fn own(cluster: &Cluster) -> Result<()> {
    let (host, number) = (cluster.host(0)?, number()?);
    template(host)?;
    within(cluster, "templates-own", |place| {
        // As many as start at once: more only wait for one another's guests.
        let together = number.min(6);
        let mut seen = BTreeSet::new();
        let mut made = 0;
        while made < number {
            let names: Vec<String> = (made..number.min(made + together)).map(|index| format!("copy-{index}")).collect();
            let limits = json!({"limits": {"memory": "16Mi"}, "requests": {"cpu": "10m"}});
            let connect = format!("nc -w 1 {} 10250 </dev/null 2>/dev/null", host.address);
            let script = format!("{IDENTITY}; {connect}; echo told; exec sleep 3600");
            let own = |name: &String| {
                let main = with(sh(&script), &[("/resources", limits.clone())]);
                with(pod(name, main), &[("/metadata/labels", json!({"set": "copies"}))])
            };
            let pods: Vec<Value> = names.iter().map(own).collect();
            let watched = Watched::begin(host)?;
            place.create(&pods)?;
            for (name, line) in said(place, names.len())? {
                ensure!(seen.insert(line.clone()), "{name} says {line}, as another copy did");
            }
            let events = place.kubectl(&[
                "get",
                "events",
                "--field-selector=reason=MachineStarted",
                "-o=jsonpath={range .items[*]}{.message}{'\\n'}{end}",
            ])?;
            let copies = events.lines().filter(|message| message.contains("as a copy")).count();
            ensure!(copies == made + names.len(), "{copies} machines were started as copies: {events}");
            for (source, sequence) in watched.end()? {
                ensure!(
                    seen.insert(sequence.clone()),
                    "{source} began with sequence number {sequence}, as another copy did"
                );
            }
            clock(place, host, &names[0])?;
            made += names.len();
            place.kubectl(&["delete", "pods", "--all", "--timeout=170s"])?;
            if number > together {
                eprintln!("  {made} of {number} copies, {} things said, each once", seen.len());
            }
        }
        ensure!(seen.len() == 7 * number, "{} things were said by {number} copies", seen.len());
        Ok(())
    })
}

/// What so many copies say of themselves, with their names, once all have.
fn said(place: &Place<'_>, number: usize) -> Result<Vec<(String, String)>> {
    let logs = ["logs", "--selector=set=copies", "--prefix", "--tail=-1", "--max-log-requests=100"];
    wait_for("all copies to have told", PATIENCE, || {
        let text = place.kubectl(&logs)?;
        let lines: Vec<_> = text.lines().filter_map(|line| line.split_once("] ")).collect();
        let (told, said): (Vec<_>, Vec<_>) = lines.into_iter().partition(|(_, line)| *line == "told");
        let own = |(name, line): (&str, &str)| (name.to_owned(), line.to_owned());
        Ok((told.len() == number).then(|| said.into_iter().map(own).collect()))
    })
}

/// What TCP connections of pods to their host begin with.
struct Watched<'a>(&'a Host);

impl<'a> Watched<'a> {
    const FILE: &'static str = "/tmp/sequences";

    fn begin(host: &'a Host) -> Result<Self> {
        // The rig's own program, whose child the shell is.
        host.sh(&format!(
            "/proc/$PPID/exe watch-sequences >{file} 2>&1 & echo $! >{file}.pid",
            file = Self::FILE
        ))?;
        Ok(Self(host))
    }

    /// Source and sequence number of each connection, once: it is seen on each interface that it passes, and again if it is repeated.
    fn end(self) -> Result<BTreeSet<(String, String)>> {
        let seen = self.0.sh(&format!(
            "kill $(cat {file}.pid); grep '^10.244' {file} || true; rm {file} {file}.pid",
            file = Self::FILE
        ))?;
        Ok(seen
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(source, sequence)| (source.into(), sequence.into()))
            .collect())
    }
}

/// A copy's clock is its host's: a reading of it lies between two of the host's, give or take 50 ms.
fn clock(place: &Place<'_>, host: &Host, name: &str) -> Result<()> {
    let now = || -> Result<f64> { Ok(host.sh("date +%s.%N")?.trim().parse()?) };
    let before = now()?;
    // Two clocks of a process: the time of day when the machine's uptime was read.
    let there: f64 = place
        .exec(
            name,
            "adjtimex | awk '/time.tv_sec/ {s = $NF} /time.tv_usec/ {u = $NF} END {printf \"%.6f\", s + u / 1e6}'",
        )?
        .trim()
        .parse()?;
    let after = now()?;
    ensure!(
        (before - 0.05..=after + 0.05).contains(&there),
        "{name}'s clock says {there} between {before} and {after}"
    );
    Ok(())
}

fn spoiled(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let flip = |file: &str| {
        let directory = format!("{TEMPLATES}/{}", template(host)?);
        // In place of the file, not into it: copies that run read theirs.
        let script = format!(
            "cd {directory} && cp --sparse=always {file} new && printf '\\377\\376\\375' | dd of=new bs=1 seek=9000 conv=notrunc 2>/dev/null && mv new {file}"
        );
        host.sh(&script)
    };
    within(cluster, "templates-spoiled", |place| {
        until_a_copy(place, "before")?;
        // While the daemon runs it finds out by the copy.
        flip("state")?;
        place.create(&[pod("booted", sh(STAY))])?;
        place.until_ready("booted")?;
        place.until_event("booted", "MachineStarted", "Machine booted in ")?;
        let message = told(place, "booted")?;
        ensure!(message.contains("the state is not what was written"), "{message}");
        until_a_copy(place, "after")?;
        // One that starts looks first.
        flip("memory")?;
        host.stop_daemon()?;
        restart(cluster)?;
        wait_for("the daemon to say that the template is not used", PATIENCE, || {
            let log = host.daemon_log(200)?;
            Ok(log.contains("the memory is not what was written").then_some(()))
        })?;
        template(host).map(drop)
    })
}
