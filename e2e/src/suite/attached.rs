//! `kubectl attach` and `kubectl run -it`: a container's own streams, beside its log.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    workload::{PATIENCE, Place, STAY, pod, pod_of, sh, with, within},
};
use crate::{Cluster, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "kubectl attach joins a container's streams beside its log, several clients at once, and stdinOnce closes its input after the first",
        hosts: 1,
        kvmlet: true,
        run: attached,
    },
    Test {
        name: "a client that is attached and does not read neither stops the container nor costs it a line of its log",
        hosts: 1,
        kvmlet: true,
        run: stuck,
    },
    Test {
        name: "kubectl run -it has a terminal of its size and the exit code, and kubectl attach finds it again",
        hosts: 1,
        kvmlet: true,
        run: terminal,
    },
];

/// A kubectl that is attached with its input open, until it is dropped.
pub(super) struct Attached {
    child: Child,
    stdin: Option<ChildStdin>,
    output: PathBuf,
}

impl Attached {
    pub(super) fn begin(cluster: &Cluster, place: &Place<'_>, arguments: &[&str], web_sockets: bool, number: usize) -> Result<Self> {
        let output = cluster.state.root.join(format!("attached-{}-{number}", place.name));
        let mut command = cluster.kubectl_command();
        command.args(["-n", &place.name, "attach"]).args(arguments);
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", web_sockets.to_string());
        command
            .stdin(Stdio::piped())
            .stdout(fs::File::create(&output)?)
            .stderr(Stdio::null());
        let mut child = command.spawn().context("run kubectl attach")?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, output })
    }

    pub(super) fn say(&mut self, words: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input has ended")?;
        stdin.write_all(words.as_bytes()).context("write to kubectl attach")
    }

    pub(super) fn until_hears(&self, words: &str) -> Result<()> {
        wait_for(&format!("kubectl attach to show {words:?}"), PATIENCE, || {
            let heard = fs::read_to_string(&self.output)?;
            ensure!(heard.contains(words), "it showed {heard:?}");
            Ok(Some(()))
        })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A container that has an input.
fn listens(script: &str, once: bool) -> Value {
    with(sh(script), &[("/stdin", json!(true)), ("/stdinOnce", json!(once))])
}

fn attached(cluster: &Cluster) -> Result<()> {
    within(cluster, "attached", |place| {
        let once = |name| {
            with(
                pod(name, listens("cat; echo all was said", true)),
                &[("/spec/restartPolicy", json!("Never"))],
            )
        };
        let answers = listens(&format!("while read line; do echo got $line; done; {STAY}"), false);
        place.create(&[once("once-true"), once("once-false"), pod("many", answers)])?;
        for (name, web_sockets) in [("once-true", true), ("once-false", false)] {
            place.until_ready(name)?;
            let mut command = cluster.kubectl_command();
            command.args(["-n", &place.name, "attach", "-q", "-i", name]);
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", web_sockets.to_string());
            let output = super::exec::run_with(command, b"one\ntwo\n".to_vec())?;
            ensure!(
                output.stdout == b"one\ntwo\nall was said\n" && output.status.success(),
                "{output:?}"
            );
            let log = place.output(name)?;
            ensure!(log == "one\ntwo\nall was said", "{log:?}");
        }
        let said = place.kubectl_fails(&["attach", "once-true"])?;
        ensure!(said.contains("cannot attach a container in a completed pod"), "{said}");

        place.until_ready("many")?;
        let mut clients = Vec::new();
        for (number, web_sockets) in [true, false].into_iter().enumerate() {
            let mut client = Attached::begin(cluster, place, &["-q", "-i", "many"], web_sockets, number)?;
            // Seen by itself once it is attached.
            client.say(&format!("hello {number}\n"))?;
            client.until_hears(&format!("got hello {number}\n"))?;
            clients.push(client);
        }
        for number in 0..2 {
            clients[number].say(&format!("from {number}\n"))?;
            for client in &clients {
                client.until_hears(&format!("got from {number}\n"))?;
            }
        }
        clients.remove(0);
        clients[0].say("still here\n")?;
        clients[0].until_hears("got still here\n")?;
        // One whose input ends goes; the container's stays open for others.
        clients[0].stdin = None;
        let status = wait_for("kubectl attach to end with its input", PATIENCE, || {
            clients[0].child.try_wait().context("look after kubectl")
        })?;
        ensure!(status.success(), "kubectl attach: {status}");
        place.until_logs("many", "got hello 0\ngot hello 1\ngot from 0\ngot from 1\ngot still here")
    })
}

/// Lines of a kilobyte: far more than all buffers on the way hold.
const LINES: usize = 30_000;

fn stuck(cluster: &Cluster) -> Result<()> {
    within(cluster, "attach-stuck", |place| {
        let script = format!("read go; yes $(head -c 999 /dev/zero | tr '\\0' x) | head -n {LINES}; echo all is written >&2; {STAY}");
        place.create(&[pod("floods", listens(&script, false))])?;
        place.until_ready("floods")?;
        let mut command = cluster.kubectl_command();
        command.args(["-n", &place.name, "attach", "-q", "-i", "floods"]);
        // Nobody reads this pipe.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("run kubectl attach")?;
        child.stdin.as_mut().context("kubectl has no input")?.write_all(b"go\n")?;
        let host = cluster.host(0)?;
        let lines = wait_for("the container to have written all", PATIENCE, || {
            let tail = place.kubectl(&["logs", "floods", "--tail=1"])?;
            ensure!(tail == "all is written", "it has not");
            let logs = format!("cat /var/log/pods/{}_floods_*/main/0.log*", place.name);
            let count = host.sh(&format!("{logs} | grep -c ' stdout F x' || true"))?;
            ensure!(count.trim() == LINES.to_string(), "{count} lines are there");
            Ok(Some(()))
        });
        let _ = child.kill();
        child.wait().context("wait for kubectl")?;
        lines
    })
}

/// Runs kubectl under a terminal of 41 rows and 123 columns, with this typed.
pub(super) fn under_script(cluster: &Cluster, place: &Place<'_>, arguments: &str, typed: &str) -> Result<Output> {
    let mut inner = cluster.kubectl_command();
    inner.args(["-n", &place.name]);
    let mut line = vec![inner.get_program().to_string_lossy().into_owned()];
    line.extend(inner.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    let mut command = Command::new("timeout");
    command.args(["120", "script", "-qec"]);
    command.args([&format!("stty rows 41 cols 123; {} {arguments}", line.join(" ")), "/dev/null"]);
    for (key, value) in inner.get_envs() {
        if let Some(value) = value {
            command.env(key, value);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("run script")?;
    let mut stdin = child.stdin.take().context("script has no input")?;
    stdin.write_all(typed.as_bytes()).context("type")?;
    // Open until the end: script would type an end of file.
    let output = child.wait_with_output().context("wait for script");
    drop(stdin);
    output
}

fn terminal(cluster: &Cluster) -> Result<()> {
    within(cluster, "attach-terminal", |place| {
        let spec = pod_of("x", json!([]))["spec"].clone();
        let mut overrides = json!({"spec": {"tolerations": spec["tolerations"], "terminationGracePeriodSeconds": 1}});
        overrides["spec"]["nodeName"] = cluster.host(0)?.name.as_str().into();
        let size = "until [ \"$(stty size)\" = \"41 123\" ]; do sleep 0.1; done";
        let script = format!("read word; {size}; tty; ls -l /dev/console; echo TERM=$TERM; echo heard $word; exit 5");
        let run = format!(
            "run asks -it --rm --restart=Never --image=busybox --overrides='{overrides}' --pod-running-timeout=100s --command -- sh -c '{script}'"
        );
        let output = under_script(cluster, place, &run, "magic\n")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            said.contains("/dev/pts/0") && said.contains("heard magic") && said.contains("TERM=xterm") && output.status.code() == Some(5),
            "{said:?} {:?}",
            output.status
        );
        wait_for("kubectl run --rm to have deleted the pod", Duration::from_secs(60), || {
            Ok(place.kubectl_fails(&["get", "pod", "asks"]).is_ok().then_some(()))
        })?;

        let shell = with(json!({"command": ["sh"]}), &[("/stdin", json!(true)), ("/tty", json!(true))]);
        place.create(&[pod("shell", shell)])?;
        place.until_ready("shell")?;
        for (round, word) in [(0, "first"), (1, "second")] {
            let mut client = Attached::begin(cluster, place, &["-q", "-i", "shell"], round == 0, round)?;
            client.say(&format!("echo $((1{round} * 3)) {word}\n"))?;
            client.until_hears(&format!("{} {word}", (10 + round) * 3))?;
        }
        let log = place.kubectl(&["logs", "shell"])?;
        ensure!(log.contains("30 first") && log.contains("33 second"), "{log:?}");
        let found = place.get("shell")?;
        ensure!(found["status"]["containerStatuses"][0]["restartCount"] == 0, "{}", found["status"]);
        Ok(())
    })
}
