//! Commands in running containers, through each way that a client may speak.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    Test,
    workload::{Place, STAY, pod_of, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[Test {
    name: "kubectl exec carries output, input, exit codes and 5 MB of bytes, by SPDY and by WebSocket",
    hosts: 1,
    kvmlet: true,
    run: exec,
}];

fn kubectl(cluster: &Cluster, place: &Place<'_>, web_sockets: bool) -> Command {
    let mut command = cluster.kubectl_command();
    command.args(["-n", &place.name]);
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", web_sockets.to_string());
    command
}

pub(super) fn run_with(mut command: Command, input: Vec<u8>) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("run kubectl exec")?;
    let mut stdin = child.stdin.take().context("kubectl has no input")?;
    let writer = thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().context("wait for kubectl exec")?;
    writer.join().expect("writing does not panic").context("write to kubectl exec")?;
    Ok(output)
}

/// Five megabytes that no encoding leaves as they are.
pub(super) fn noise() -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(5 << 20);
    while bytes.len() < 5 << 20 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn exec(cluster: &Cluster) -> Result<()> {
    within(cluster, "exec-ways", |place| {
        let second = with(sh(STAY), &[("/name", json!("second"))]);
        place.create(&[pod_of("runs", json!([sh(STAY), second]))])?;
        place.until_ready("runs")?;
        for web_sockets in [true, false] {
            one_way(cluster, place, web_sockets).with_context(|| format!("with WebSockets: {web_sockets}"))?;
        }
        // A command that is not there, a container that is not there.
        let said = place.kubectl_fails(&["exec", "runs", "--", "/no/such/program"])?;
        ensure!(said.contains("/no/such/program"), "{said}");
        let said = place.kubectl_fails(&["exec", "runs", "-c", "nobody", "--", "true"])?;
        ensure!(said.contains("container not found") || said.contains("nobody"), "{said}");
        terminal(cluster, place)
    })
}

fn one_way(cluster: &Cluster, place: &Place<'_>, web_sockets: bool) -> Result<()> {
    let exec = |flags: &[&str], script: &str, input: Vec<u8>| {
        let mut command = kubectl(cluster, place, web_sockets);
        command
            .arg("exec")
            .args(flags)
            .args(["runs", "-c", "main", "--", "sh", "-c", script]);
        run_with(command, input)
    };
    let output = exec(&[], "echo out; echo err >&2; exit 7", Vec::new())?;
    ensure!(
        output.stdout == b"out\n" && output.stderr.starts_with(b"err\n") && output.status.code() == Some(7),
        "{output:?}"
    );
    let output = exec(&["-i"], "read line; echo got $line; cat", b"one\ntwo\nthree".to_vec())?;
    ensure!(output.stdout == b"got one\ntwo\nthree" && output.status.success(), "{output:?}");

    let bytes = noise();
    let output = exec(&["-i"], "sha256sum; exit 3", bytes.clone())?;
    ensure!(
        output.stdout.starts_with(hex(&bytes).as_bytes()) && output.status.code() == Some(3),
        "to the pod: {output:?}"
    );
    let output = exec(&["-i"], "cat", bytes.clone())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(
        output.stdout.len() == bytes.len() && hex(&output.stdout) == hex(&bytes),
        "{} bytes came back",
        output.stdout.len()
    );
    Ok(())
}

/// With a terminal, under a terminal of `script`.
fn terminal(cluster: &Cluster, place: &Place<'_>) -> Result<()> {
    let inner = kubectl(cluster, place, true);
    let mut line = vec![inner.get_program().to_string_lossy().into_owned()];
    line.extend(inner.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    line.push("exec -it runs -c main -- sh -c 'tty; stty size; exit 5'".into());
    let mut command = Command::new("script");
    command.args(["-qec", &format!("stty rows 41 cols 123; {}", line.join(" ")), "/dev/null"]);
    for (key, value) in inner.get_envs() {
        if let Some(value) = value {
            command.env(key, value);
        }
    }
    command.stdin(Stdio::null());
    let output = command.output().context("run script")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        said.contains("/dev/pts/") && said.contains("41 123") && output.status.code() == Some(5),
        "{said:?} {:?}",
        output.status
    );
    Ok(())
}
