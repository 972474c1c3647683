//! `kubectl port-forward`, over both of its transports: bytes both ways, many connections, closed ports, clients that are slow or go.

use std::{
    fs::File,
    io::Write,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    Test,
    workload::{PATIENCE, Place, STAY, pod_of, sh, within},
};
use crate::{Cluster, Host, command::text, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "kubectl port-forward carries many connections at once, each direction to its end, by SPDY and by WebSocket",
        hosts: 1,
        kvmlet: true,
        run: carries,
    },
    Test {
        name: "kubectl port-forward says why a port is closed, holds little for a slow reader, and ends connections with its client",
        hosts: 1,
        kvmlet: true,
        run: bounded,
    },
];

/// Bytes of the large file.
const LARGE: usize = 24 << 20;

/// Servers that listen on the pod's loopback only, one of them on that of IPv6; and one that reads to the end before it answers.
fn servers() -> String {
    format!(
        "mkdir /www && echo hello >/www/index.html && head -c {LARGE} /dev/urandom >/www/large && truncate -s 1G /www/endless \
         && httpd -p 127.0.0.1:8080 -h /www && httpd -p [::1]:8081 -h /www && {{ nc -ll -p 7001 -e sha256sum & }} \
         && echo listening; {STAY}"
    )
}

/// A kubectl that forwards a port of the cluster's loopback, until it is dropped.
struct Forwarding {
    child: Child,
    port: u16,
    errors: std::path::PathBuf,
}

impl Forwarding {
    fn begin(cluster: &Cluster, place: &Place<'_>, port: u16, web_sockets: bool) -> Result<Self> {
        let stem = format!("forward-{}-{port}-{web_sockets}", place.name);
        let [told, errors] = ["out", "err"].map(|end| cluster.state.root.join(format!("{stem}.{end}")));
        let mut command = cluster.kubectl_command();
        command.args([
            "-n",
            &place.name,
            "port-forward",
            "--address=127.0.0.1",
            "serves",
            &format!(":{port}"),
        ]);
        command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", web_sockets.to_string());
        command
            .stdin(Stdio::null())
            .stdout(File::create(&told)?)
            .stderr(File::create(&errors)?);
        let child = command.spawn().context("run kubectl port-forward")?;
        let mut forwarding = Self { child, port: 0, errors };
        forwarding.port = wait_for("kubectl port-forward to listen", Duration::from_secs(60), || {
            ensure!(forwarding.child.try_wait()?.is_none(), "it ended: {}", forwarding.said()?);
            let told = std::fs::read_to_string(&told)?;
            let mut ports = told
                .lines()
                .filter_map(|line| line.strip_prefix("Forwarding from 127.0.0.1:")?.split(' ').next()?.parse().ok());
            Ok(ports.next())
        })?;
        Ok(forwarding)
    }

    fn said(&self) -> Result<String> {
        std::fs::read_to_string(&self.errors).context("read what kubectl said")
    }

    fn curl(&self, cluster: &Cluster, options: &[&str], path: &str) -> Command {
        let mut curl = cluster.inside("curl");
        curl.args(["-sS", "--fail", "--max-time", "100"]).args(options);
        curl.arg(format!("http://127.0.0.1:{}{path}", self.port));
        curl
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serve<'a>(place: &'a Place<'_>) -> Result<&'a Place<'a>> {
    place.create(&[pod_of("serves", json!([sh(&servers())]))])?;
    place.until_ready("serves")?;
    place.until_says("serves", "listening")?;
    Ok(place)
}

fn carries(cluster: &Cluster) -> Result<()> {
    within(cluster, "forward-ways", |place| {
        serve(place)?;
        let sum = place.exec("serves", "sha256sum /www/large")?;
        for web_sockets in [true, false] {
            one_way(cluster, place, web_sockets, &sum).with_context(|| format!("with WebSockets: {web_sockets}"))?;
        }
        Ok(())
    })
}

fn one_way(cluster: &Cluster, place: &Place<'_>, web_sockets: bool, sum: &str) -> Result<()> {
    let http = Forwarding::begin(cluster, place, 8080, web_sockets)?;
    let six = Forwarding::begin(cluster, place, 8081, web_sockets)?;
    for forwarding in [&http, &six] {
        let output = forwarding.curl(cluster, &[], "/index.html").output()?;
        ensure!(output.stdout == b"hello\n", "{output:?} {}", forwarding.said()?);
    }
    // Kept apart, one of them large.
    thread::scope(|scope| {
        let ask = |path: &'static str| {
            let mut curl = http.curl(cluster, &[], path);
            scope.spawn(move || curl.output())
        };
        let large = ask("/large");
        let small: Vec<_> = (0..40).map(|_| ask("/index.html")).collect();
        for one in small {
            let output = one.join().expect("asking does not panic")?;
            ensure!(output.stdout == b"hello\n", "{output:?}");
        }
        let output = large.join().expect("asking does not panic")?;
        ensure!(
            output.stdout.len() == LARGE && sum.starts_with(&hex(&output.stdout)),
            "{} bytes of the large file came, {}",
            output.stdout.len(),
            text(&output.stderr)
        );
        Ok(())
    })?;
    // The server answers once its client has ended its own direction.
    let sums = Forwarding::begin(cluster, place, 7001, web_sockets)?;
    let sent: Vec<u8> = (0..5_000_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes())
        .collect();
    let mut nc = cluster.inside("busybox");
    nc.args(["nc", "127.0.0.1", &sums.port.to_string()]);
    let mut nc = nc.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("run nc")?;
    let mut stdin = nc.stdin.take().context("nc has no input")?;
    stdin.write_all(&sent).context("send through the forwarded port")?;
    drop(stdin);
    let output = nc.wait_with_output().context("wait for nc")?;
    ensure!(output.stdout.starts_with(hex(&sent).as_bytes()), "{output:?} {}", sums.said()?);
    for forwarding in [&http, &six, &sums] {
        let said = forwarding.said()?;
        ensure!(!said.contains("error"), "{said}");
    }
    Ok(())
}

/// Kilobytes of memory that the daemon has.
pub(super) fn memory(host: &Host) -> Result<i64> {
    let line = host.sh("sed -n 's/VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(pgrep -of '^[^ ]*kvmlet node')/status")?;
    line.trim().parse().with_context(|| format!("read the daemon's memory: {line:?}"))
}

fn bounded(cluster: &Cluster) -> Result<()> {
    within(cluster, "forward-bounds", |place| {
        serve(place)?;
        for web_sockets in [true, false] {
            let closed = Forwarding::begin(cluster, place, 81, web_sockets)?;
            let output = closed.curl(cluster, &[], "/").output()?;
            ensure!(!output.status.success(), "port 81 answered");
            wait_for("kubectl to say why", Duration::from_secs(30), || {
                let said = closed.said()?;
                let words = "failed to connect to localhost:81 inside the pod, IPv4: dial tcp4 127.0.0.1:81: connect: connection refused";
                ensure!(
                    said.contains("error forwarding port 81 to pod serves_") && said.contains(words),
                    "{said}"
                );
                Ok(Some(()))
            })?;
            slow(cluster, place, web_sockets).with_context(|| format!("with WebSockets: {web_sockets}"))?;
        }
        Ok(())
    })
}

/// A client that reads slowly, and then goes. What it asks for is more than all sockets on the way can hold.
fn slow(cluster: &Cluster, place: &Place<'_>, web_sockets: bool) -> Result<()> {
    let established = || place.exec("serves", "netstat -tn | grep ':8080 ' | grep -c ESTABLISHED || true");
    let http = Forwarding::begin(cluster, place, 8080, web_sockets)?;
    let before = memory(cluster.host(0)?)?;
    let mut curl = http.curl(cluster, &["--limit-rate", "100k", "-o", "/dev/null"], "/endless");
    let mut curl = curl.stderr(Stdio::null()).spawn().context("run curl")?;
    let mut last = String::new();
    let held = wait_for("the server in the pod to be held back", PATIENCE, || {
        let waiting = place.exec("serves", "netstat -tn | awk '$4 ~ /:8080$/ && $3 > 0 {print $3}'")?;
        let still = !waiting.is_empty() && waiting == last;
        last = waiting;
        Ok(still.then_some(()))
    });
    let more = memory(cluster.host(0)?).map(|after| after - before);
    drop(http);
    let gone = wait_for("the connection in the pod to end with its client", PATIENCE, || {
        let count = established()?;
        ensure!(count.trim() == "0", "{count} are left");
        Ok(Some(()))
    });
    let _ = curl.kill();
    curl.wait().context("wait for curl")?;
    held?;
    gone?;
    let more = more?;
    ensure!(more < 16 << 10, "the daemon took {more} kB for a client that reads slowly");
    Ok(())
}
