//! What has to be built before a cluster starts, each by the script that knows how, each cached outside the tree by the
//! hash of its inputs. This file only knows where the scripts are and what their result looks like.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    command::{call, last_line},
    paths::{cache, repository, target},
    progress::step,
};

/// The guest of all machines.
#[derive(Debug, Clone)]
pub struct Guest {
    /// ELF with a PVH entry.
    pub kernel: PathBuf,
    /// With the agent as /init.
    pub initramfs: PathBuf,
}

fn script(name: &str, path: &str, arguments: &[&Path]) -> Result<PathBuf> {
    step(name, || {
        let file = repository().join(path);
        ensure!(file.exists(), "{} does not exist", file.display());
        let folder = PathBuf::from(last_line(Command::new(&file).args(arguments))?);
        ensure!(
            folder.exists(),
            "{} printed {}, which does not exist",
            file.display(),
            folder.display()
        );
        Ok(folder)
    })
}

fn cargo_build(arguments: &[&str], flags: Option<&str>) -> Result<PathBuf> {
    let target = target()?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(repository())
        .args(["build", "--release"])
        .args(arguments)
        .arg("--target-dir")
        .arg(&target);
    if let Some(flags) = flags {
        cargo.env("RUSTFLAGS", flags);
    }
    let status = cargo.status().context("run cargo")?;
    ensure!(status.success(), "cargo build {}: {status}", arguments.join(" "));
    Ok(target)
}

/// The folder with etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy and kubectl.
pub fn control_plane() -> Result<PathBuf> {
    script("control plane programs", "e2e/controlplane/build.sh", &[])
}

/// The node that the bench compares the daemon with.
pub fn peer() -> Result<PathBuf> {
    Ok(script("the peer's node", "e2e/peer/build.sh", &[])?.join("peer"))
}

/// The initramfs of a guest with an SSH server, to which the bench appends a key and addresses.
pub fn ssh_guest() -> Result<PathBuf> {
    Ok(script("guest with an SSH server", "e2e/ssh/build.sh", &[])?.join("ssh.cpio"))
}

/// The folder with a real kubelet, containerd with its shim, and runc.
pub fn kubelet() -> Result<PathBuf> {
    script("kubelet and containerd", "e2e/kubelet/build.sh", &[])
}

/// helm.
pub fn helm() -> Result<PathBuf> {
    Ok(script("helm", "e2e/helm/build.sh", &[])?.join("helm"))
}

/// The OpenTelemetry collector.
pub fn collector() -> Result<PathBuf> {
    Ok(script("OpenTelemetry collector", "e2e/collector/build.sh", &[])?.join("collector"))
}

/// The folder with Debian's prometheus and promtool.
pub fn prometheus() -> Result<PathBuf> {
    script("Prometheus", "e2e/prometheus/fetch.sh", &[])
}

/// The QEMU of the host that counts: what Debian packages stops guests now and then under `-icount`.
pub fn counting_qemu() -> Result<PathBuf> {
    Ok(script("QEMU of the host that counts", "e2e/host/qemu/build.sh", &[])?.join("qemu-system-x86_64"))
}

/// The folder with an emulated host's vmlinuz, initramfs.cpio and root.ext4.
pub fn host_image() -> Result<PathBuf> {
    script("emulated host's image", "e2e/host/build.sh", &[])
}

/// The same of one that boots systemd, with logind and D-Bus.
pub fn systemd_host_image() -> Result<PathBuf> {
    script(
        "image of an emulated host with systemd",
        "e2e/host/build.sh",
        &[Path::new("systemd")],
    )
}

/// A Debian package of this program and guest, of this version, in `folder`. `quick`: larger, and sooner made.
pub fn deb((kvmlet, guest): (&Path, &Guest), version: &str, folder: &Path, quick: bool) -> Result<PathBuf> {
    let guest = guest.kernel.parent().context("the guest's kernel has no folder")?;
    step("Debian package", || {
        let mut script = Command::new(repository().join("manifests/deb/build.sh"));
        script.arg(kvmlet).arg(guest).arg(version).arg(folder);
        if quick {
            script.env("DEB_LEVEL", "0");
        }
        last_line(&mut script).map(PathBuf::from)
    })
}

/// The image of this program and guest, of this version, as an OCI layout at `out`; with `storage` under that name in the registry's storage folder `out`. Answers
/// its digest. `quick`: larger, and sooner made.
pub fn image((kvmlet, guest): (&Path, &Guest), version: &str, out: &Path, storage: Option<&str>, quick: bool) -> Result<String> {
    let guest = guest.kernel.parent().context("the guest's kernel has no folder")?;
    step("image", || {
        let mut script = Command::new(repository().join("manifests/image/build.py"));
        if let Some(name) = storage {
            script.args(["--storage", name]);
        }
        script.arg(kvmlet).arg(guest).arg(version).arg(out);
        if quick {
            script.env("IMAGE_LEVEL", "1");
        }
        last_line(&mut script)
    })
}

/// The program that holds Kubernetes' own specifications.
pub fn specs() -> Result<PathBuf> {
    let folder = script("Kubernetes' own specifications", "e2e/controlplane/specs/build.sh", &[])?;
    Ok(folder.join("e2e.test"))
}

/// The folder with the registry's storage.
pub fn images() -> Result<PathBuf> {
    script("test images", "e2e/images/build.sh", &[])
}

/// The guest's kernel, and an initramfs around the agent as it is now.
pub fn guest() -> Result<Guest> {
    let agent = step("guest agent (release, static)", || static_program("kvmlet-agent"))?;
    let folder = script("guest kernel and initramfs", "guest/build.sh", &[&agent])?;
    let guest = Guest {
        kernel: folder.join("vmlinux"),
        initramfs: folder.join("initramfs.cpio"),
    };
    for file in [&guest.kernel, &guest.initramfs] {
        ensure!(file.exists(), "guest/build.sh made no {}", file.display());
    }
    Ok(guest)
}

/// A package's program that needs no library.
fn static_program(package: &str) -> Result<PathBuf> {
    const TRIPLE: &str = "x86_64-unknown-linux-gnu";
    // With a target named, the flags are not those of build scripts, and the result has a folder of its own.
    let target = cargo_build(&["-p", package, "--target", TRIPLE], Some("-C target-feature=+crt-static"))?;
    Ok(target.join(TRIPLE).join("release").join(package))
}

/// An initramfs of the bench's own: with `kvmlet-load` in the agent's place, and busybox. `folder` is for its making.
pub fn load_initramfs(folder: &Path) -> Result<PathBuf> {
    let load = step("kvmlet-load (release, static)", || static_program("kvmlet-load"))?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let archive = folder.join("load.cpio");
    let script = repository().join("guest/initramfs.py");
    call("python3", [script.as_os_str(), load.as_os_str(), archive.as_os_str()])?;
    fs::copy("/bin/busybox", folder.join("busybox")).context("copy busybox")?;
    let list = folder.join("list");
    fs::write(&list, "busybox\n").context("write the list of files")?;
    // The kernel unpacks one archive after the other.
    let end = fs::File::options().append(true).open(&archive).context("extend the initramfs")?;
    let list = fs::File::open(list).context("open the list of files")?;
    let mut cpio = Command::new("cpio");
    cpio.current_dir(folder)
        .args(["--quiet", "-o", "-H", "newc"])
        .stdin(list)
        .stdout(end);
    let status = cpio.status().context("run cpio")?;
    ensure!(status.success(), "cpio: {status}");
    Ok(archive)
}

/// The kvmlet program: `$KVMLET_BIN`, else built now in release mode.
pub fn kvmlet() -> Result<PathBuf> {
    if let Some(program) = env::var_os("KVMLET_BIN") {
        return Ok(program.into());
    }
    step("kvmlet (release)", || {
        // All packages, as the Makefile does: with a few alone cargo would settle on other features and build twice.
        Ok(cargo_build(&["--workspace"], None)?.join("release/kvmlet"))
    })
}

/// A read-only disk with the control plane's programs, from which emulated hosts run kube-proxy.
pub fn control_plane_disk(programs: &Path) -> Result<PathBuf> {
    let name = programs.file_name().context("find the control plane programs")?.to_string_lossy();
    let disk = cache().join(format!("{name}-disk.ext4"));
    if disk.exists() {
        return Ok(disk);
    }
    step("disk with kube-proxy", || {
        let partial = disk.with_extension(format!("partial-{}", std::process::id()));
        let bytes: u64 = fs::read_dir(programs)
            .and_then(|entries| entries.map(|entry| Ok(entry?.metadata()?.len())).sum::<std::io::Result<u64>>())
            .context("measure the control plane programs")?;
        let mebibytes = bytes / (1 << 20) * 11 / 10 + 16;
        let (programs, partial_path) = (programs.to_string_lossy(), partial.to_string_lossy());
        call(
            "mkfs.ext4",
            [
                "-q",
                "-F",
                "-m",
                "0",
                "-O",
                "^has_journal",
                "-d",
                &*programs,
                &*partial_path,
                &format!("{mebibytes}M"),
            ],
        )?;
        fs::rename(&partial, &disk).context("keep the disk with kube-proxy")
    })?;
    Ok(disk)
}
