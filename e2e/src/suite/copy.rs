//! `kubectl cp`, and much through `kubectl exec`: bytes as they are, and a daemon that holds none of them.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Test,
    port_forward::memory,
    workload::{Place, STAY, pod_of, sh, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "kubectl cp carries a tree to a pod and back, byte for byte",
        hosts: 1,
        kvmlet: true,
        run: copies,
    },
    Test {
        name: "64 MB through kubectl exec in each direction cost the daemon no memory, and WebSockets reach the node as they are",
        hosts: 1,
        kvmlet: true,
        run: |cluster| much(cluster, MUCH),
    },
];

/// More than a guest, its daemon or a client could keep.
pub(super) const LONG_TESTS: &[Test] = &[Test {
    name: "more than 1 GB through kubectl exec in each direction costs the daemon no memory",
    hosts: 1,
    kvmlet: true,
    run: |cluster| much(cluster, 1100 << 20),
}];

fn copies(cluster: &Cluster) -> Result<()> {
    within(cluster, "copy", |place| {
        place.create(&[pod_of("runs", json!([sh(STAY)]))])?;
        place.until_ready("runs")?;
        let folder = cluster.state.root.join("copy");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let files = [
            ("empty", Vec::new()),
            ("noise", super::exec::noise()),
            ("deep/er/file", b"\0\r\n\xff\x04".to_vec()),
        ];
        for (name, bytes) in &files {
            let path = folder.join("there").join(name);
            fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
            fs::write(path, bytes)?;
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        place.kubectl(&["cp", &text(&folder.join("there")), "runs:/tmp/tree"])?;
        place.kubectl(&["cp", "runs:/tmp/tree", &text(&folder.join("back"))])?;
        for (name, bytes) in &files {
            let back = fs::read(folder.join("back").join(name)).with_context(|| format!("read {name} back"))?;
            ensure!(back == *bytes, "{name} changed on its way");
        }
        fs::remove_dir_all(&folder).context("remove what was copied")
    })
}

/// Bytes each way, in each run.
const MUCH: u64 = 64 << 20;

fn much(cluster: &Cluster, bytes: u64) -> Result<()> {
    within(cluster, "copy-much", |place| {
        place.create(&[pod_of("runs", json!([sh(STAY)]))])?;
        place.until_ready("runs")?;
        let host = cluster.host(0)?;
        let features = cluster.kubectl(&["get", "node", &host.name, "-o", "jsonpath={.status.declaredFeatures}"])?;
        ensure!(features.contains("\"ExtendWebSocketsToKubelet\""), "{features}");
        let before = memory(host)?;
        let over = AtomicBool::new(false);
        let most = thread::scope(|scope| {
            let watching = scope.spawn(|| {
                let mut most = before;
                while !over.load(Ordering::Relaxed) {
                    most = most.max(memory(host)?);
                    thread::sleep(Duration::from_millis(500));
                }
                anyhow::Ok(most)
            });
            let ways = [(true, false), (false, true)];
            let moved = ways
                .into_iter()
                .take(if bytes > MUCH { 2 } else { 1 })
                .try_for_each(|(first, second)| {
                    out(cluster, place, first, bytes)?;
                    into(cluster, place, second, bytes)
                });
            over.store(true, Ordering::Relaxed);
            let most = watching.join().expect("watching does not panic");
            moved.and(most)
        })?;
        ensure!(most - before < 24 << 10, "the daemon grew from {before} kB to {most} kB");
        let metrics = cluster.kubectl(&["get", "--raw", "/metrics"])?;
        let passed = metrics.lines().any(|line| {
            line.contains("websocket_streaming_requests_total") && line.contains("exec") && line.contains("proxied_to_kubelet")
        });
        ensure!(passed, "the API server passed no WebSocket on to the node");
        Ok(())
    })
}

fn exec(cluster: &Cluster, place: &Place<'_>, web_sockets: bool, script: &str) -> std::process::Command {
    let mut command = cluster.kubectl_command();
    command.args(["-n", &place.name, "exec", "-i", "runs", "--", "sh", "-c", script]);
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", web_sockets.to_string());
    command
}

fn out(cluster: &Cluster, place: &Place<'_>, web_sockets: bool, bytes: u64) -> Result<()> {
    let mut command = exec(cluster, place, web_sockets, &format!("head -c {bytes} /dev/zero; exit 4"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("run kubectl exec")?;
    let mut stdout = child.stdout.take().context("kubectl has no output")?;
    let (mut buffer, mut count) = (vec![0; 1 << 16], 0);
    loop {
        let read = stdout.read(&mut buffer).context("read from kubectl exec")?;
        if read == 0 {
            break;
        }
        ensure!(buffer[..read].iter().all(|byte| *byte == 0), "bytes changed on the way");
        count += read as u64;
    }
    let status = child.wait().context("wait for kubectl exec")?;
    ensure!(count == bytes && status.code() == Some(4), "{count} bytes came, {status}");
    Ok(())
}

fn into(cluster: &Cluster, place: &Place<'_>, web_sockets: bool, bytes: u64) -> Result<()> {
    let mut command = exec(cluster, place, web_sockets, "wc -c; exit 6");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("run kubectl exec")?;
    let mut stdin = child.stdin.take().context("kubectl has no input")?;
    let piece = vec![7; 1 << 16];
    for _ in 0..bytes >> 16 {
        stdin.write_all(&piece).context("write to kubectl exec")?;
    }
    drop(stdin);
    let output = child.wait_with_output().context("wait for kubectl exec")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        said.trim() == bytes.to_string() && output.status.code() == Some(6),
        "{said:?}, {}",
        output.status
    );
    Ok(())
}
