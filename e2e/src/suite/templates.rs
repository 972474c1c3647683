//! Pods' machines as copies of a template that the node makes for itself: seen by their owner, each a machine of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use jiff::Timestamp;
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

/// What a copy says of itself: its clock at once and then each second; of what is its own a line each, none of which another may say. A guest has no
/// machine id, neither one that was made of the image nor one of the machine's. Then it begins a TCP connection, between the same addresses and ports
/// as every other copy.
fn script(host: &Host) -> String {
    format!(
        "adjtimex
        (cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid
        cat /sys/class/net/eth0/address; hostname; mktemp -u XXXXXXXXXXXXXXXX; cat /etc/machine-id /sys/class/dmi/id/product_uuid 2>/dev/null) | sed 's/^/own /'
        ip address add {SAME} dev lo
        ip route add {address} $(ip route | sed -n s/^default//p) src {SAME}
        nc -w 1 -p 4000 {address} 10250 </dev/null 2>/dev/null
        echo told
        while sleep 1; do adjtimex; done",
        address = host.address
    )
}

/// What connections of all copies come from.
const SAME: &str = "192.0.2.7";
/// Lines of its own, by [`script`].
const OWN: usize = 6;

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
            let security = json!({"capabilities": {"add": ["NET_ADMIN"]}});
            let own = |name: &String| {
                let changes = [("/resources", limits.clone()), ("/securityContext", security.clone())];
                let main = with(sh(&script(host)), &changes);
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
            clocks(place, names.len())?;
            for sequence in watched.end()? {
                ensure!(
                    seen.insert(sequence.to_string()),
                    "a connection began with sequence number {sequence}, as another copy's did"
                );
            }
            made += names.len();
            place.kubectl(&["delete", "pods", "--all", "--timeout=170s"])?;
            if number > together {
                eprintln!("  {made} of {number} copies, {} things said, each once", seen.len());
            }
        }
        ensure!(
            seen.len() == (OWN + 1) * number,
            "{} things were said by {number} copies",
            seen.len()
        );
        Ok(())
    })
}

/// What so many copies say of themselves, with their names, once all have.
fn said(place: &Place<'_>, number: usize) -> Result<Vec<(String, String)>> {
    let logs = ["logs", "--selector=set=copies", "--prefix", "--tail=-1", "--max-log-requests=100"];
    wait_for("all copies to have told", PATIENCE, || {
        let text = place.kubectl(&logs)?;
        let lines: Vec<_> = text.lines().filter_map(|line| line.split_once("] ")).collect();
        let told = lines.iter().filter(|(_, line)| *line == "told").count();
        let own = |(name, line): &(&str, &str)| Some(((*name).to_owned(), line.strip_prefix("own ")?.to_owned()));
        Ok((told == number).then(|| lines.iter().filter_map(own).collect()))
    })
}

/// The clocks of so many copies are their host's, give or take 50 ms, from their first containers' first lines on: the host stamps a line, soon after a
/// copy has read its clock for it, and never before.
fn clocks(place: &Place<'_>, number: usize) -> Result<()> {
    const OFF: f64 = 0.05;
    let logs = [
        "logs",
        "--selector=set=copies",
        "--prefix",
        "--timestamps",
        "--tail=-1",
        "--max-log-requests=100",
    ];
    wait_for("a line of each copy to come in 50 ms", PATIENCE, || {
        let text = place.kubectl(&logs)?;
        let (mut least, mut seconds) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            let Some((name, (stamp, said))) = line.split_once("] ").and_then(|(name, rest)| Some((name, rest.split_once(' ')?))) else {
                continue;
            };
            if let Some(whole) = said.trim().strip_prefix("time.tv_sec:") {
                seconds.insert(name, whole.trim().parse::<f64>()?);
            } else if let Some(micros) = said.trim().strip_prefix("time.tv_usec:") {
                let there = seconds.get(name).context("microseconds of no second")? + micros.trim().parse::<f64>()? / 1e6;
                let here = stamp.parse::<Timestamp>()?.as_nanosecond() as f64 / 1e9;
                let late = least.entry(name).or_insert(f64::MAX);
                *late = late.min(here - there);
            }
        }
        ensure!(
            least.len() == number && least.values().all(|late| *late <= OFF),
            "seconds after the copies' clocks: {least:?}"
        );
        Ok(Some(if let Some((name, late)) = least.iter().find(|(_, late)| **late < -OFF) {
            Err(anyhow!("{name}'s clock is {} s before its host's", -late))
        } else {
            Ok(())
        }))
    })?
}

/// What TCP connections of copies to their host begin with.
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

    /// The sequence number of each connection, once: it is seen on each interface that it passes, and again if it is repeated. What they are besides
    /// the clock (RFC 6528 section 3: of the addresses, which are the same, and a secret) must differ by more than the time between a connection and
    /// its being seen, but for pairs that do not by chance.
    fn end(self) -> Result<BTreeSet<u32>> {
        /// A quarter of a second: by chance one pair in 512.
        const NEAR: u32 = 1 << 22;
        const BY_CHANCE: usize = 3;
        let seen = self.0.sh(&format!(
            "kill $(cat {file}.pid); grep '^{SAME}' {file} || true; rm {file} {file}.pid",
            file = Self::FILE
        ))?;
        let mut secrets = BTreeMap::new();
        for line in seen.lines() {
            let numbers: Vec<u32> = line.split(' ').skip(1).map(str::parse).collect::<Result<_, _>>()?;
            let [sequence, rest] = numbers[..] else {
                bail!("{line:?} was seen")
            };
            secrets.entry(sequence).or_insert(rest);
        }
        let rest: Vec<u32> = secrets.values().copied().collect();
        let pairs = (1..rest.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
        let near = pairs
            .filter(|(a, b)| rest[*b].wrapping_sub(rest[*a]).wrapping_add(NEAR) <= 2 * NEAR)
            .count();
        ensure!(near <= BY_CHANCE, "{near} pairs of copies have one secret: {secrets:?}");
        Ok(secrets.into_keys().collect())
    }
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
