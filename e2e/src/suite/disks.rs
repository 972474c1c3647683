//! Disks: images of qemu's making under a machine that is run by hand, and scratch disks that give back what a pod deletes.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Test,
    workload::{STAY, pod, sh, with, within},
};
use crate::{Cluster, Host, command, node, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a guest lives on a compressed qcow2 image, and qemu-img finds all that it did in it and nothing wrong",
        hosts: 1,
        kvmlet: true,
        run: qcow2,
    },
    Test {
        name: "the scratch disk's file shrinks when a pod deletes what it wrote",
        hosts: 1,
        kvmlet: true,
        run: trimmed,
    },
];

const KERNEL: &str = "/usr/lib/kvmlet/vmlinux";
const IMAGE: &str = "/var/tmp/guest.qcow2";
/// For a boot whose every message goes through a serial port.
const BOOT: Duration = Duration::from_secs(200);
/// What the guest does: copies what it finds, deletes it, and gives the room back.
const INIT: &str = "#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc && $b mount -t proc proc /proc && $b cp /old /new && $b rm /old && $b sync && $b fstrim / && $b mount -o remount,ro / && $b echo the guest is done
$b poweroff -f
";
/// Bytes of its file: half of them can be compressed.
const OLD: usize = 8 << 20;

fn qcow2(cluster: &Cluster) -> Result<()> {
    let folder = tempfile::tempdir().context("make a folder")?;
    let old = root(folder.path())?;
    let image = folder.path().join("guest.qcow2");
    let host = cluster.host(0)?;
    host.put_file(IMAGE, 0o600, &image)?;
    let result = run(host);
    let bytes = host.run(&["cat", IMAGE])?.stdout;
    host.sh(&format!("rm -f {IMAGE}"))?;
    result?;
    fs::write(&image, bytes).context("write the image")?;
    look(folder.path(), &image, &old)
}

fn qemu_img(arguments: &[&str], file: &Path, more: &[&Path]) -> Result<()> {
    command::run(Command::new("qemu-img").args(arguments).arg(file).args(more)).map(drop)
}

/// Makes the image, of a root file system; the bytes of its file `old`.
fn root(folder: &Path) -> Result<Vec<u8>> {
    let (tree, raw) = (folder.join("root"), folder.join("root.raw"));
    for name in ["bin", "sbin", "dev", "proc"] {
        fs::create_dir_all(tree.join(name)).context("make the guest's root")?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).context("copy busybox (package busybox-static)")?;
    let init = tree.join("sbin/init");
    fs::write(&init, INIT).context("write the guest's init")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("make it a program")?;
    let mut old = "what a disk has on it, again and again\n".repeat(OLD / 20).into_bytes();
    old.truncate(OLD);
    let random = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut old[OLD / 2..]));
    random.context("read random bytes")?;
    fs::write(tree.join("old"), &old).context("write the guest's file")?;
    let made = File::create(&raw).and_then(|file| file.set_len(64 << 20));
    made.context("make a raw disk")?;
    command::run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&tree).arg(&raw))?;
    qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2"], &raw, &[&folder.join("guest.qcow2")])?;
    Ok(old)
}

fn run(host: &Host) -> Result<()> {
    let disk = format!("{IMAGE},format=qcow2");
    let more = "rootfstype=ext4 init=/sbin/init";
    let argv = [
        node::PROGRAM,
        "vm",
        "run",
        "--kernel",
        KERNEL,
        "--disk",
        &disk,
        "--mem",
        "128M",
        "--cmdline",
        more,
    ];
    let output = host.run_with(&argv, b"", BOOT)?;
    let said = output.text();
    ensure!(
        output.code == 0 && said.contains("the guest is done"),
        "{said}{}",
        output.error_text()
    );
    Ok(())
}

/// What qemu-img, the file system's own tools and a comparison say of it.
fn look(folder: &Path, image: &Path, old: &[u8]) -> Result<()> {
    // Leaks are an error of it, too.
    qemu_img(&["check", "-f", "qcow2"], image, &[])?;
    let (raw, new) = (folder.join("after.raw"), folder.join("new"));
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], image, &[&raw])?;
    command::run(Command::new("e2fsck").arg("-fn").arg(&raw))?;
    let dump = format!("dump /new {}", new.display());
    command::run(Command::new("debugfs").args(["-R", &dump]).arg(&raw))?;
    let copied = fs::read(&new).context("read the guest's copy")?;
    ensure!(copied == old, "the guest's copy of {} bytes is another", copied.len());
    // Written without compression, once; what was deleted is not in the image any more.
    let length = fs::metadata(image).context("look at the image")?.len();
    ensure!(length < 3 * OLD as u64, "the image has {length} bytes");
    Ok(())
}

fn trimmed(cluster: &Cluster) -> Result<()> {
    within(cluster, "disks-trimmed", |place| {
        let mount = ("/volumeMounts", json!([{"name": "disk", "mountPath": "/disk"}]));
        let volume = ("/spec/volumes", json!([{"name": "disk", "emptyDir": {}}]));
        place.create(&[with(pod("main", with(sh(STAY), &[mount])), &[volume])])?;
        let found = place.until_ready("main")?;
        let (host, uid) = (cluster.host(0)?, found["metadata"]["uid"].as_str().context("no UID")?.to_owned());
        let allocated = || -> Result<u64> {
            let blocks = host.sh(&format!(
                "find /var/lib/kvmlet/pods/{uid} -name scratch.img -exec stat -c %b {{}} +"
            ))?;
            Ok(blocks.trim().parse::<u64>().context("no scratch disk")? * 512)
        };
        let before = allocated()?;
        place.exec(
            "main",
            "head -c 4194304 /dev/urandom >/disk/kept; md5sum /disk/kept >/disk/sum; head -c 67108864 /dev/zero | tr '\\0' x >/disk/gone; sync",
        )?;
        let full = allocated()?;
        ensure!(full > before + (64 << 20), "64 MiB more, and {before} bytes have become {full}");
        place.exec("main", "rm /disk/gone; sync")?;
        wait_for("the scratch disk's file to shrink", Duration::from_secs(60), || {
            let left = allocated()?;
            ensure!(left + (60 << 20) < full, "{full} bytes were allocated, and {left} are");
            Ok(Some(()))
        })?;
        place.exec("main", "echo 3 >/proc/sys/vm/drop_caches 2>/dev/null; md5sum -c /disk/sum")?;
        Ok(())
    })
}
