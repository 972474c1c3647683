//! Runs on a host: a Firecracker that boots a machine and makes a snapshot of it, then another that takes it up; from the making of that
//! process to the agent's answer.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    guest::{Resumed, greet},
    monitor::Monitor,
    way::Way,
};

/// In the folder: what `--config-file` takes, and the vsock's socket that it names.
pub(super) const CONFIG: &str = "firecracker.json";
pub(super) const VSOCK: &str = "firecracker.vsock";

/// The second one's start.
pub(super) fn run(program: &str, folder: &Path) -> Result<Resumed> {
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (socket, vsock) = (path("firecracker.sock"), path(VSOCK));
    let way = Way::Unix(vsock.clone().into());
    let argv = |more: &[String]| {
        [
            &[program.to_owned(), "--enable-pci".into(), "--api-sock".into(), socket.clone()],
            more,
        ]
        .concat()
    };
    let forget = || [&socket, &vsock].map(|path| fs::remove_file(path).ok());
    forget();
    let mut first = Monitor::start(&argv(&["--config-file".into(), path(CONFIG)]), Stdio::inherit())?;
    first.wait(|| greet(&way).map(drop))?;
    request(&socket, "PATCH", "/vm", &json!({"state": "Paused"}))?;
    let files = json!({"snapshot_type": "Full", "snapshot_path": path("state"), "mem_file_path": path("memory")});
    request(&socket, "PUT", "/snapshot/create", &files)?;
    drop(first);
    forget();
    let mut second = Monitor::start(&argv(&[]), Stdio::inherit())?;
    let memory = json!({"backend_type": "File", "backend_path": path("memory")});
    let load = json!({"snapshot_path": path("state"), "mem_backend": memory, "resume_vm": true});
    second.wait(|| UnixStream::connect(&socket).context("reach the API"))?;
    request(&socket, "PUT", "/snapshot/load", &load)?;
    let ((), seconds) = second.wait(|| greet(&way).map(drop))?;
    Ok(Resumed {
        seconds,
        processor: second.processor_seconds()?,
    })
}

fn request(socket: &str, method: &str, path: &str, body: &Value) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("reach the API")?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let body = body.to_string();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json");
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    // All of these answer 204, else with a text.
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).with_context(|| format!("hear the answer to {path}"))?;
    let answer = String::from_utf8_lossy(&answer[..length]);
    ensure!(answer.starts_with("HTTP/1.1 204"), "{method} {path}: {answer}");
    Ok(())
}
