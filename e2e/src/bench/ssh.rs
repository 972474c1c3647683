//! A guest of QEMU's microvm on a host, with our kernel, whose SSH server is reached from the cluster's network, as pods are: what `kubectl exec` is
//! measured beside.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{
    FOLDER,
    command_line::{self, Machine},
};
use crate::{
    Cluster, Host,
    agent::Service,
    artifacts,
    command::{self, call},
    netns::Netns,
    paths::write,
    progress::say,
    wait_for,
};

/// The service, and what it has on the host.
const NAME: &str = "bench-ssh";
const TAP: &str = "kvmlet-ssh";
const LOG: &str = "/var/log/bench-ssh.log";
/// Beside the cluster's own bridge; the host has the first address, the guest the second.
const SUBNET: &str = "10.89.1.0/30";
const ON_HOST: &str = "10.89.1.1";
const IN_GUEST: &str = "10.89.1.2";
const PREFIX: u8 = 30;
/// What a run appends to the initramfs.
const APPENDED: &str = "guest.env\nroot/.ssh\nroot/.ssh/authorized_keys\n";
/// From its start until it lets one in.
const PATIENCE: Duration = Duration::from_secs(120);

/// It runs until this is dropped.
pub(super) struct Guest<'a> {
    cluster: &'a Cluster,
    host: &'a Host,
    /// With the client's key and the server's, as it was first seen.
    folder: TempDir,
}

impl<'a> Guest<'a> {
    /// Starts it, on a host that `bench::prepare` has seen, and waits until it lets one in.
    pub(super) fn start(cluster: &'a Cluster, host: &'a Host) -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for a key")?;
        let guest = Self { cluster, host, folder };
        // What a run left behind that did not come to its end.
        guest.stop()?;
        let archive = format!("{FOLDER}/ssh.cpio");
        host.put_file(&archive, 0o644, &guest.initramfs()?)?;
        host.sh(&format!(
            "ip tuntap add dev {TAP} mode tap && ip address add {ON_HOST}/{PREFIX} dev {TAP} && ip link set {TAP} up"
        ))?;
        // The faster of the two, where there is one.
        let vhost = host.run(&["sh", "-c", "modprobe -q vhost_net; test -c /dev/vhost-net"])?.code == 0;
        let machine = Machine {
            initramfs: &archive,
            disk: None,
            tap: Some(TAP),
        };
        host.start_service(&Service {
            name: NAME.into(),
            argv: command_line::qemu(machine, "", if vhost { ",vhost=on" } else { ",vhost=off" }).argv,
            env: Vec::new(),
            log: LOG.into(),
        })?;
        guest.route("replace")?;
        let answered = wait_for("the guest's SSH server", PATIENCE, || guest.run(&["true"]).map(Some));
        answered.with_context(|| host.sh(&format!("tail -n 8 {LOG}")).unwrap_or_default())?;
        Ok(guest)
    }

    /// `ssh GUEST ARGV`, from where kubectl is run and by the same programs between.
    pub(super) fn run(&self, argv: &[&str]) -> Result<()> {
        let known = format!("UserKnownHostsFile={}", self.folder.path().join("known_hosts").display());
        let mut ssh = self.ssh();
        ssh.args(["-F", "none", "-i"]).arg(self.key());
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "ControlPath=none",
            "GlobalKnownHostsFile=none",
            &known,
            "StrictHostKeyChecking=accept-new",
            "ConnectTimeout=10",
            "LogLevel=ERROR",
        ] {
            ssh.args(["-o", option]);
        }
        command::run(ssh.arg(format!("root@{IN_GUEST}")).args(argv)).map(drop)
    }

    /// `ssh -V`, in the same way: what it takes before it does anything.
    pub(super) fn version(&self) -> Result<()> {
        command::run(self.ssh().arg("-V")).map(drop)
    }

    fn ssh(&self) -> Command {
        let mut ssh = self.cluster.inside("timeout");
        ssh.args(["-k", "5", "120", "ssh"]);
        ssh
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    /// What is built once, with a key and addresses of this run behind it: the kernel unpacks one archive after the other.
    fn initramfs(&self) -> Result<PathBuf> {
        let key = self.key().display().to_string();
        call("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", NAME, "-f", &key])?;
        let root = self.folder.path().join("guest");
        write(
            &root.join("guest.env"),
            format!("GUEST_ADDRESS={IN_GUEST}/{PREFIX}\nGUEST_GATEWAY={ON_HOST}\n"),
        )?;
        let keys = root.join("root/.ssh/authorized_keys");
        write(&keys, fs::read(format!("{key}.pub")).context("read the public key")?)?;
        // The server takes none that others might have written.
        let folder = keys.parent().context("a key without a folder")?;
        fs::set_permissions(folder, Permissions::from_mode(0o700)).context("close the folder of keys")?;
        fs::set_permissions(&keys, Permissions::from_mode(0o600)).context("close the file of keys")?;
        let archive = self.folder.path().join("ssh.cpio");
        fs::copy(artifacts::ssh_guest()?, &archive).context("copy the initramfs")?;
        append(&archive, &root)?;
        Ok(archive)
    }

    /// The guest's addresses, from the cluster's network.
    fn route(&self, verb: &str) -> Result<()> {
        Netns::of(&self.cluster.state).ip(&["route", verb, SUBNET, "via", &self.host.address.to_string()])
    }

    fn stop(&self) -> Result<()> {
        self.host.stop_service(NAME, Signal::SIGTERM, Duration::from_secs(30))?;
        let there = format!("! ip link show {TAP} >/dev/null 2>&1 || ip link delete {TAP}");
        self.host.sh(&format!("{there}; rm -f {FOLDER}/ssh.cpio"))?;
        self.route("flush")
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            say(format_args!("the guest with the SSH server stays: {error:#}"));
        }
    }
}

/// Packs the run's own files, as root's, behind an archive.
fn append(archive: &Path, root: &Path) -> Result<()> {
    let list = root.with_extension("list");
    write(&list, APPENDED)?;
    let list = File::open(&list).context("open the list of files")?;
    let end = File::options().append(true).open(archive).context("extend the initramfs")?;
    let mut cpio = Command::new("cpio");
    cpio.current_dir(root)
        .args(["--quiet", "-o", "-H", "newc", "-R", "0:0"])
        .stdin(Stdio::from(list))
        .stdout(Stdio::from(end));
    let status = cpio.status().context("run cpio")?;
    ensure!(status.success(), "cpio: {status}");
    Ok(())
}
