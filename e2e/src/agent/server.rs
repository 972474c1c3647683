//! The server of the rig's agent: one thread a connection, one request a connection.

use std::{
    fs, io,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt, process::ExitStatusExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{WaitStatus, wait},
    },
    time::{ClockId, clock_settime},
    unistd::Pid,
};

use super::{
    service::Services,
    wire::{Exit, Kind, Request, parse, read_frame, write_frame},
};

/// How long output of what a command left behind is still waited for after its end.
const LINGER: Duration = Duration::from_secs(1);
const AS_CHILD: &str = "KVMLET_RIG_AGENT_CHILD";

/// Serves until the process is ended. As PID 1 it serves from a child and itself reaps what is orphaned.
pub fn serve(address: SocketAddr) -> Result<()> {
    if std::process::id() == 1 && std::env::var_os(AS_CHILD).is_none() {
        return reap();
    }
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    let services = Services::default();
    println!("rig agent: listening on {address}");
    for stream in listener.incoming() {
        let stream = stream.context("accept a connection")?;
        let services = services.clone();
        thread::spawn(move || {
            if let Err(error) = answer(stream, &services) {
                eprintln!("rig agent: {error}");
            }
        });
    }
    Ok(())
}

fn reap() -> Result<()> {
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    let child = command.args(std::env::args_os().skip(1)).env(AS_CHILD, "1").spawn();
    let agent = i32::try_from(child.context("start the agent")?.id()).context("the agent's process id")?;
    loop {
        match wait().context("wait for orphans")? {
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) if pid == Pid::from_raw(agent) => {
                anyhow::bail!("the rig's agent has ended");
            }
            _ => {}
        }
    }
}

fn answer(mut stream: TcpStream, services: &Services) -> io::Result<()> {
    let Some((Kind::Request, body)) = read_frame(&mut stream)? else {
        return Ok(());
    };
    let result = match parse(&body)? {
        Request::Run { argv } => run(&stream, &argv).and_then(to_json),
        Request::Put { path, mode } => put(&mut stream, Path::new(&path), mode).and_then(to_json),
        Request::Start { name, argv, env, log } => services.start(&name, &argv, &env, &log).and_then(to_json),
        Request::Stop {
            name,
            signal,
            wait_seconds,
        } => services.stop(&name, signal, Duration::from_secs(wait_seconds)).and_then(to_json),
        Request::Status { name } => to_json(services.status(&name)),
        Request::SetClock { now } => clock_settime(ClockId::CLOCK_REALTIME, now.into())
            .map_err(io::Error::from)
            .and_then(to_json),
    };
    match result {
        Ok(json) => write_frame(&mut stream, Kind::Answer, &json),
        Err(error) => write_frame(&mut stream, Kind::Failure, error.to_string().as_bytes()),
    }
}

fn to_json(value: impl serde::Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec(&value).map_err(io::Error::other)
}

fn run(stream: &TcpStream, argv: &[String]) -> io::Result<Exit> {
    let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("no command"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let spawned = command.process_group(0).spawn();
    let mut child = spawned.map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    let exit = carry(stream, &mut child)?;
    Ok(Exit {
        code: exit.code(),
        signal: exit.signal(),
    })
}

/// Where frames of output go until the answer closes it: late output must not follow the answer.
type Outlet = Arc<Mutex<Option<TcpStream>>>;

/// Carries input and output between the connection and the command until it has ended.
fn carry(stream: &TcpStream, child: &mut Child) -> io::Result<ExitStatus> {
    let group = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let ended = Arc::new(AtomicBool::new(false));
    let (mut input, mut requests, has_ended) = (child.stdin.take(), stream.try_clone()?, ended.clone());
    thread::spawn(move || {
        loop {
            match read_frame(&mut requests) {
                Ok(Some((Kind::Input, body))) if !body.is_empty() => {
                    // A command that does not read its input is not an error.
                    input = input.take().and_then(|mut pipe| pipe.write_all(&body).is_ok().then_some(pipe));
                }
                Ok(Some((Kind::Input, _))) => input = None,
                _ => break,
            }
        }
        if !has_ended.load(Ordering::SeqCst) {
            // The client is gone, and with it whoever wanted the command.
            let _ = killpg(group, Signal::SIGKILL);
        }
    });

    let outlet: Outlet = Arc::new(Mutex::new(Some(stream.try_clone()?)));
    let (open, closed) = mpsc::channel();
    if let Some(pipe) = child.stdout.take() {
        forward(pipe, Kind::Output, outlet.clone(), open.clone());
    }
    if let Some(pipe) = child.stderr.take() {
        forward(pipe, Kind::Error, outlet.clone(), open.clone());
    }
    drop(open);
    let exit = child.wait()?;
    ended.store(true, Ordering::SeqCst);
    // Disconnected: both outputs have ended. Timed out: something the command left behind holds them.
    let _ = closed.recv_timeout(LINGER);
    outlet.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok(exit)
}

fn forward(mut pipe: impl Read + Send + 'static, kind: Kind, outlet: Outlet, open: mpsc::Sender<()>) {
    thread::spawn(move || {
        let _open = open;
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count) = pipe.read(&mut buffer) {
            let mut outlet = outlet.lock().unwrap_or_else(PoisonError::into_inner);
            let written = outlet.as_mut().map(|stream| write_frame(stream, kind, &buffer[..count]));
            if count == 0 || !matches!(written, Some(Ok(()))) {
                break;
            }
        }
    });
}

fn put(stream: &mut TcpStream, path: &Path, mode: u32) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let mut file = fs::File::create(&partial)?;
    loop {
        match read_frame(stream)? {
            Some((Kind::Input, body)) if !body.is_empty() => file.write_all(&body)?,
            Some((Kind::Input, _)) => break,
            _ => return Err(io::Error::other("the content was cut short")),
        }
    }
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    drop(file);
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::super::wire::write_json;
    use super::*;

    #[test]
    fn a_file_that_was_cut_short_does_not_replace_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        write_frame(&mut client, Kind::Input, b"half of it").unwrap();
        drop(client);
        let (mut stream, _) = listener.accept().unwrap();
        assert!(put(&mut stream, &path, 0o644).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }

    #[test]
    fn a_request_without_a_command_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        write_json(&mut client, Kind::Request, &Request::Run { argv: vec![] }).unwrap();
        answer(listener.accept().unwrap().0, &Services::default()).unwrap();
        let (kind, body) = read_frame(&mut client).unwrap().unwrap();
        assert_eq!((kind, body.as_slice()), (Kind::Failure, b"no command".as_slice()));
    }
}
