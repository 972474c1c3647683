//! The first process of a guest whose disk and network are measured: sets up what it needs, then serves [`Task`]s by vsock and TCP, a thread
//! each. Never ends: whoever measures ends the machine. Bench only; no pod has it.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
};

use anyhow::{Context, Result, ensure};
use kvmlet_load::{CHUNK, GUEST, LAST, PORT, PREFIX, Task, hear, tell};
use rustix::mount::{MountFlags, mount};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

mod disk;

/// In the initramfs, for the one thing that takes netlink.
const BUSYBOX: &str = "/busybox";

fn main() {
    if let Err(error) = serve() {
        eprintln!("kvmlet-load: {error:#}");
    }
}

fn serve() -> Result<()> {
    for (kind, at) in [("devtmpfs", "/dev"), ("sysfs", "/sys")] {
        mount(kind, at, kind, MountFlags::empty(), None::<&std::ffi::CStr>).with_context(|| format!("mount {kind}"))?;
    }
    if Path::new("/sys/class/net/eth0").exists() {
        busybox(&["ip", "address", "add", &format!("{GUEST}/{PREFIX}"), "dev", "eth0"])?;
        busybox(&["ip", "link", "set", "eth0", "up"])?;
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listen by TCP")?;
        thread::spawn(move || listener.incoming().flatten().for_each(begin));
    }
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, u32::from(PORT)).context("listen by vsock")?;
    listener.incoming().flatten().for_each(begin);
    Ok(())
}

fn busybox(arguments: &[&str]) -> Result<()> {
    let status = Command::new(BUSYBOX).args(arguments).status().context("run busybox")?;
    ensure!(status.success(), "busybox {}: {status}", arguments.join(" "));
    Ok(())
}

/// Both kinds of connection.
trait Connection: Read + Write + Send + 'static {
    /// Lets small writes go at once.
    fn hurry(&self) -> io::Result<()>;
}

impl Connection for TcpStream {
    fn hurry(&self) -> io::Result<()> {
        self.set_nodelay(true)
    }
}

impl Connection for VsockStream {
    fn hurry(&self) -> io::Result<()> {
        Ok(())
    }
}

fn begin(connection: impl Connection) {
    // The other side may go whenever it has heard enough.
    thread::spawn(move || attend(connection).map_err(|error| eprintln!("kvmlet-load: {error}")));
}

fn attend(mut connection: impl Connection) -> io::Result<()> {
    connection.hurry()?;
    let mut chunk = vec![0; CHUNK];
    match hear(&mut connection)? {
        Task::Disk(access) => tell(&mut connection, &disk::run(&access)?),
        Task::Sink => {
            let mut total = 0_u64;
            while chunk[0] != LAST {
                connection.read_exact(&mut chunk)?;
                total += chunk.len() as u64;
            }
            connection.write_all(&total.to_le_bytes())
        }
        Task::Source => {
            while connection.write_all(&chunk).is_ok() {}
            Ok(())
        }
        Task::Echo => loop {
            match connection.read(&mut chunk)? {
                0 => return Ok(()),
                length => connection.write_all(&chunk[..length])?,
            }
        },
    }
}
