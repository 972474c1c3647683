//! An emulated KVM host: QEMU's software emulation with AMD's SVM, Debian's kernel, a root disk opened copy-on-write and an
//! ext4 disk for state, one tap on the cluster's bridge, read-only shares of what test programs may read.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{Host, Processors, Size, shares};
use crate::{
    command::{self, call},
    netns::Netns,
    paths::{GATEWAY, State, THIS_PROGRAM, write},
    process::Process,
};

/// Speed matters more than defence here: nobody hostile is on the emulated host. Its clock is emulated: a host that is late would otherwise
/// find it wanting, and use a slower one.
const KERNEL: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr nowatchdog audit=0 tsc=reliable rcupdate.rcu_cpu_stall_timeout=300";
/// What the emulated processors have. A string instruction of bytes is emulated byte by byte; without the bits that call it fast, Linux clears
/// and copies pages eight bytes at a time.
const PROCESSOR: &str = "max,erms=off,fsrm=off,fzrm=off,fsrs=off";
/// Processors on which nothing of ours runs: the first. QEMU's software emulation keeps a flag of the x87 of all processors in a word of
/// the first one's, next to "nested paging is on", and changes it without a lock whenever any processor restores its x87 (`cpu_set_fpus`,
/// QEMU 10.0). A world switch there at that moment is undone by half: guest or host then walks page tables in the other's addresses, and
/// triple-faults, about once in 200 machines. The host's first process keeps off it, and with it all that it starts.
const SPARE: usize = 1;
/// The state disk, sparse.
const STATE_DISK: &str = "24G";

pub(super) fn start(state: &State, host: &Host, image: &Path, control_plane_disk: &Path, size: &Size) -> Result<()> {
    let folder = state.host(&host.name);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let (root, data, initramfs) = (folder.join("root.qcow2"), folder.join("data.ext4"), folder.join("initramfs.cpio"));
    make_disks(image, &root, &data)?;
    make_initramfs(host, image, &folder, &initramfs)?;

    let network = Netns::of(state);
    network.add_tap(&host.name)?;
    let console = state.logs().join(format!("{}-console.log", host.name));
    let last = host.address.octets()[3];
    let program = match &size.processors {
        Processors::Several(_) => Path::new("qemu-system-x86_64"),
        Processors::InTurn(_, program) | Processors::Counted(program) => program,
    };
    let mut qemu = network.command(program);
    qemu.args(["-name", &host.name, "-machine", "q35", "-cpu", PROCESSOR]);
    qemu.args(["-m", &format!("{}M", size.memory)]);
    match &size.processors {
        Processors::Several(count) => qemu.args(["-accel", "tcg,thread=multi", "-smp", &(count + SPARE).to_string()]),
        Processors::InTurn(count, _) => qemu.args(["-accel", "tcg,thread=single", "-smp", &(count + SPARE).to_string()]),
        // Alone, it has no word of another's to write. The host's first process finds no other to go to, and its console says so.
        Processors::Counted(_) => qemu.args(["-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=1,sleep=on"]),
    };
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.arg("-kernel")
        .arg(image.join("vmlinuz"))
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", KERNEL]);
    qemu.args(["-serial", &format!("file:{}", console.display())]);
    let disks = [
        (root.as_path(), "qcow2,discard=unmap"),
        (data.as_path(), "raw,discard=unmap"),
        (control_plane_disk, "raw,readonly=on"),
    ];
    for (index, (file, format)) in disks.into_iter().enumerate() {
        let file = file.to_str().context("a path that is not text")?;
        ensure!(!file.contains(','), "QEMU takes no path with a comma: {file}");
        qemu.args([
            "-drive",
            &format!("if=none,id=disk{index},file={file},format={format},cache=unsafe"),
        ]);
        qemu.args(["-device", &format!("virtio-blk-pci,drive=disk{index}")]);
    }
    qemu.args(["-netdev", &format!("tap,id=net0,ifname={},script=no,downscript=no", host.name)]);
    qemu.args(["-device", &format!("virtio-net-pci,netdev=net0,mac=52:54:00:89:00:{last:02x}")]);
    qemu.args(["-device", "virtio-rng-pci"]);
    for (tag, folder) in shares::list()? {
        let folder = folder
            .to_str()
            .filter(|text| !text.contains(','))
            .context("QEMU takes no path with a comma")?;
        qemu.args([
            "-virtfs",
            &format!("local,path={folder},mount_tag={tag},security_model=none,readonly=on,multidevs=remap"),
        ]);
    }
    Process::spawn(state, &host.name, &mut qemu).map(drop)
}

fn make_disks(image: &Path, root: &Path, data: &Path) -> Result<()> {
    let mut create = Command::new("qemu-img");
    create
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(image.join("root.ext4"))
        .arg(root);
    command::run(&mut create)?;
    let data = data.to_string_lossy();
    call("truncate", ["-s", STATE_DISK, &*data])?;
    call(
        "mkfs.ext4",
        [
            "-q",
            "-F",
            "-m",
            "0",
            "-O",
            "verity",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1",
            &*data,
        ],
    )
}

/// The image's own archive, and after it one with this host's name and the rig's program.
fn make_initramfs(host: &Host, image: &Path, folder: &Path, initramfs: &Path) -> Result<()> {
    let rig = folder.join("rig");
    let env = format!("RIG_NAME={}\nRIG_ADDRESS={}\nRIG_GATEWAY={GATEWAY}\n", host.name, host.address);
    write(&rig.join("host.env"), env)?;
    fs::copy(THIS_PROGRAM, rig.join("kvmlet-e2e")).context("copy this program")?;
    fs::copy(image.join("initramfs.cpio"), initramfs).context("copy the initramfs")?;
    let archive = File::options().append(true).open(initramfs).context("extend the initramfs")?;
    let list = folder.join("rig.list");
    write(&list, "rig\nrig/host.env\nrig/kvmlet-e2e\n")?;
    let mut cpio = Command::new("cpio");
    cpio.current_dir(folder).args(["--quiet", "-o", "-H", "newc"]);
    let list = File::open(&list).context("open the list of files")?;
    let status = cpio
        .stdin(Stdio::from(list))
        .stdout(Stdio::from(archive))
        .status()
        .context("run cpio")?;
    ensure!(status.success(), "cpio: {status}");
    fs::remove_dir_all(&rig).context("remove what is in the initramfs now")
}
