//! The jail of a machine's process, as the host sees it: two pods of one host are two users that can reach nothing of each other's.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Test,
    daemon::Identity,
    workload::{STAY, line, pod, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[Test {
    name: "a machine's process is confined to a user, an empty root, its system calls and its pod's size",
    hosts: 1,
    kvmlet: true,
    run: confined,
}];

/// What is looked at, as `key=value` lines; `$1` is the process.
const LOOK: &str = "cd /proc/$1
    for field in Uid Gid NoNewPrivs Seccomp CapEff CapPrm CapBnd; do
        echo $field=$(cat task/*/status | sed -n \"s/^$field:[[:space:]]*//p\" | sort -u | tr '\\t\\n' ' ')
    done
    for namespace in mnt pid ipc uts net user; do echo $namespace=$(readlink ns/$namespace); done
    echo root=$(ls -A root | wc -l)
    echo directories=$(for fd in fd/*; do test -d $fd && readlink $fd; done | wc -l)
    echo cgroup=$(cut -d: -f3 cgroup)
    cd /sys/fs/cgroup/$(cut -d: -f3 cgroup)
    for file in memory.max memory.swap.max cpu.max pids.max; do echo $file=$(cat $file); done";

fn confined(cluster: &Cluster) -> Result<()> {
    within(cluster, "jail", |place| {
        let host = cluster.host(0)?;
        let limits = |cpu: &str| json!({"limits": {"cpu": cpu, "memory": "128Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}});
        place.create(&[
            pod("one", with(sh(STAY), &[("/resources", limits("1"))])),
            pod("two", with(sh(STAY), &[("/resources", limits("2"))])),
        ])?;
        let own = host.sh("for namespace in mnt pid ipc uts net user; do echo $namespace=$(readlink /proc/self/ns/$namespace); done")?;
        let mut seen = BTreeSet::new();
        for (name, cpus) in [("one", 1), ("two", 2)] {
            place.until_ready(name)?;
            let process = Identity::of(place, name)?.process;
            let script = format!("set -- {process}; {LOOK}");
            let found = host.sh(&script)?;
            let value = |key: &str| line(&found, key);
            let uid = value("Uid")?.split_whitespace().next().unwrap_or_default().to_owned();
            let four = [uid.as_str(); 4].join(" ");
            ensure!(
                uid.parse::<u32>().is_ok_and(|uid| uid >= 1_900_000_000) && value("Uid")? == four && value("Gid")? == four,
                "{found}"
            );
            ensure!(value("NoNewPrivs")? == "1" && value("Seccomp")? == "2", "{found}");
            for capabilities in ["CapEff", "CapPrm", "CapBnd"] {
                ensure!(value(capabilities)? == "0000000000000000", "{found}");
            }
            for namespace in ["mnt", "pid", "ipc", "uts", "net"] {
                ensure!(value(namespace)? != line(&own, namespace)?, "{namespace} is the host's: {found}");
                ensure!(
                    seen.insert(value(namespace)?.to_owned()),
                    "two machines share {}",
                    value(namespace)?
                );
            }
            ensure!(value("user")? == line(&own, "user")?, "{found}");
            ensure!(value("root")? == "0" && value("directories")? == "0", "{found}");
            ensure!(seen.insert(uid), "two machines are one user");
            ensure!(
                value("cgroup")?.starts_with("/kvmlet.slice/") && seen.insert(value("cgroup")?.to_owned()),
                "{found}"
            );
            // 128Mi, the guest's own 64 MiB and memory map; page tables and the monitor's 64 MiB.
            let memory: u64 = value("memory.max")?.parse()?;
            ensure!(
                (250 << 20..300 << 20).contains(&memory) && value("memory.swap.max")? == "0",
                "{found}"
            );
            ensure!(value("cpu.max")? == format!("{} 100000", (cpus + 1) * 100_000), "{found}");
            ensure!(value("pids.max")?.parse::<u64>()? < 100, "{found}");
        }
        Ok(())
    })
}
