//! Everything that helps to understand a failure, as one text. Gathering never fails: what cannot be had says why.

use std::{fmt::Write, fs};

use anyhow::Result;

use crate::{Cluster, paths::State, process::tail};

fn section(text: &mut String, title: &str, content: Result<String>) {
    let content = content.unwrap_or_else(|error| format!("({error:#})"));
    if !content.trim().is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "---- {title}\n{}", content.trim_end());
    }
}

/// Pods, events, nodes, daemons, machines, consoles and the control plane's last words.
pub fn cluster(cluster: &Cluster) -> String {
    let mut text = String::new();
    section(&mut text, "pods", cluster.kubectl(&["get", "pods", "-A", "-o", "wide"]));
    section(&mut text, "pods in full", cluster.kubectl(&["get", "pods", "-A", "-o", "yaml"]));
    section(
        &mut text,
        "events",
        cluster.kubectl(&["get", "events", "-A", "--sort-by=.lastTimestamp"]),
    );
    section(&mut text, "nodes", cluster.kubectl(&["describe", "nodes"]));
    for host in &cluster.hosts {
        let name = &host.name;
        section(
            &mut text,
            &format!("{name}: kvmlet node"),
            host.daemon_status().map(|status| format!("{status:?}")),
        );
        section(&mut text, &format!("{name}: log of kvmlet node"), host.daemon_log(120));
        let consoles = "cd /var/lib/kvmlet/pods 2>/dev/null && tail -n 25 */machine/console.log */machine/exit.json 2>/dev/null || true";
        section(&mut text, &format!("{name}: machines"), host.sh(consoles));
        section(
            &mut text,
            &format!("{name}: processes"),
            host.sh("ps -eo pid,ppid,stat,rss,etime,args --sort=start_time | grep -v '\\[' | tail -n 25"),
        );
        section(&mut text, &format!("{name}: kernel"), host.sh("dmesg 2>/dev/null | tail -n 15"));
        section(&mut text, &format!("{name}: console"), Ok(host.console(15)));
    }
    text.push_str(&logs(&cluster.state, 6));
    text
}

/// The ends of all logs on this machine.
pub fn logs(state: &State, lines: usize) -> String {
    let mut text = String::new();
    let mut files: Vec<_> = fs::read_dir(state.logs())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    files.sort();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        section(&mut text, &name, Ok(tail(&file, lines)));
    }
    text
}
