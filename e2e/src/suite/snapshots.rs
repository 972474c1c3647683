//! Snapshots of machines by hand, images that come while they run, and disks that are served by a ring of the kernel's: with a guest of real
//! Linux.

use anyhow::{Context, Result, ensure};

use super::{
    Test,
    attach::{FOLDER, SLOW, begin, prepare, refused, tell, until_ready, vm, within},
};
use crate::{Cluster, Host, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a machine by hand goes on from a snapshot and what was written since, and from nothing less",
        hosts: 1,
        kvmlet: true,
        run: changes,
    },
    Test {
        name: "a machine by hand reads an image that comes while it runs, and a disk through io_uring",
        hosts: 1,
        kvmlet: true,
        run: image,
    },
];

/// With either console: what the guest is told comes through it, before and after.
fn changes(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    ["serial", "virtio"].into_iter().try_for_each(|console| {
        let options = format!("--initrd initrd --dirty-log --console {console}");
        within(host, |host| changes_of(host, &options)).with_context(|| format!("--console {console}"))
    })
}

fn changes_of(host: &Host, options: &str) -> Result<()> {
    prepare(host)?;
    begin(host, options)?;
    until_ready(host)?;
    tell(host, "echo first >/before")?;
    vm(host, "snapshot control base")?;
    tell(host, "echo second >/after")?;
    vm(host, "snapshot control changes --changes --stop")?;
    wait_for("the machine to end", SLOW, || {
        Ok(host.sh(&format!("! kill -0 $(cat {FOLDER}/pid) 2>/dev/null")).ok())
    })?;
    let size = |name: &str| -> Result<u64> {
        // What it takes: memory that the guest has given back is a hole.
        let size = host.sh(&format!("du -B1 {FOLDER}/{name}/memory | cut -f1"))?;
        size.trim().parse().with_context(|| format!("the size of {name}: {size}"))
    };
    let (whole, part) = (size("base")?, size("changes")?);
    ensure!(part > 0 && part < whole / 2, "{part} of {whole} bytes");

    let alone = refused(
        host,
        &format!("run --kernel none --mem 128M --control control2 {options} --from changes"),
    )?;
    ensure!(alone.contains("merge"), "a part alone: {alone}");
    let twice = refused(host, "merge base base into")?;
    ensure!(twice.contains("all of a machine"), "two whole ones: {twice}");
    vm(host, "merge base changes all")?;
    begin(host, &format!("{options} --from all"))?;
    let said = tell(host, "cat /before /after")?;
    ensure!(said.contains("first") && said.contains("second"), "{said}");
    host.sh(&format!("kill $(cat {FOLDER}/pid)")).map(drop)
}

fn image(cluster: &Cluster) -> Result<()> {
    within(cluster.host(0)?, |host| {
        prepare(host)?;
        begin(host, "--initrd initrd --pmem-room 64M --disk disk,engine=io_uring")?;
        until_ready(host)?;
        let sum = |host: &Host, file: &str| -> Result<String> {
            let sum = host.sh(&format!("md5sum <{FOLDER}/{file}"))?;
            Ok(sum.split(' ').next().unwrap_or_default().to_owned())
        };
        let disk = sum(host, "disk")?;
        let said = tell(host, "md5sum </dev/vda && echo written | dd of=/dev/vda conv=fsync")?;
        ensure!(said.contains(&disk), "{disk}, but the guest: {said}");
        ensure!(host.sh(&format!("head -c 7 {FOLDER}/disk"))? == "written");

        host.sh(&format!("head -c 4194304 /dev/urandom >{FOLDER}/image"))?;
        let image = sum(host, "image")?;
        let told = vm(host, "attach control --pmem image")?;
        let (slot, address) = told.trim().split_once(' ').with_context(|| format!("it said {told:?}"))?;
        let said = tell(
            host,
            "echo 1 >/sys/bus/pci/rescan && echo 1 >/sys/bus/nd/devices/region0/read_only && \
             until [ -e /dev/pmem0 ]; do busybox sleep 1; done && md5sum </dev/pmem0",
        )?;
        ensure!(said.contains(&image), "{image}, but the guest: {said}");
        tell(
            host,
            &format!("echo 1 >/sys/bus/pci/devices/{address}/remove && [ ! -e /dev/pmem0 ]"),
        )?;
        vm(host, &format!("detach control {slot}"))?;
        tell(host, "md5sum </dev/vda")?;
        Ok(())
    })
}
