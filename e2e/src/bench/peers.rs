//! Firecracker and Cloud Hypervisor, where a program of them is named (`PEERS=firecracker=PATH,cloud-hypervisor=PATH`): our cold start and our copy beside
//! theirs, with our kernel, initramfs and command line; of Firecracker its system calls, network and vsock, too. Cloud Hypervisor's is written from its
//! documentation; never run by us, who had no such program.

use std::{env, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    FOLDER, Options, Row,
    command_line::{COMMAND_LINE, CommandLine, INITRAMFS, KERNEL, MEMORY, Machine, held, kvmlet, words},
    devices,
    guest::{Own, Resumed},
    median, resume, start, stopwatch,
};
use crate::{Cluster, Host};

/// Names them.
pub(super) const VARIABLE: &str = "PEERS";
/// Names the guest kernel that Firecracker publishes the configuration of: a vmlinux.
const OWN_KERNEL: &str = "PEER_KERNEL";
const FIRECRACKER: &str = "Firecracker";
/// Of its cold start.
const MOST_TIME: f64 = 0.9;
/// Of its cold start with its own guest kernel.
const MOST_TIME_OWN: f64 = 0.5;

/// A monitor that was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    Firecracker,
    CloudHypervisor,
}

pub(super) fn rows(cluster: &Cluster, options: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    let mut rows = Vec::new();
    for (peer, program) in named(host)? {
        let bench = super::prepare(host)?;
        rows.extend(starts(host, &bench, options.starts, peer, &program)?);
        if peer == Peer::Firecracker {
            let lines = (kvmlet(Machine::PLAIN), firecracker(host, &program, Machine::PLAIN)?);
            let name = "system calls of a start beside Firecracker";
            rows.push(start::calls_beside(host, &bench, name, (FIRECRACKER, &lines))?);
            rows.extend(copies(host, &bench, options.starts, &program)?);
            rows.extend(own_kernel(host, &bench, options.starts, &program)?);
        }
    }
    Ok(rows)
}

/// What a network and a vsock carry.
pub(super) fn traffic(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    match named(host)?.into_iter().find(|(peer, _)| *peer == Peer::Firecracker) {
        Some((_, program)) => devices::beside(cluster, FIRECRACKER, |machine| firecracker(host, &program, machine)),
        None => Ok(Vec::new()),
    }
}

/// Those that were named, with their programs on the host.
fn named(host: &Host) -> Result<Vec<(Peer, String)>> {
    let named = env::var(VARIABLE).unwrap_or_default();
    let put = |(index, (peer, path)): (usize, (Peer, &str))| {
        let program = format!("{FOLDER}/peer-{index}");
        host.put_file(&program, 0o755, Path::new(path))?;
        Ok((peer, program))
    };
    parse(&named)?.into_iter().enumerate().map(put).collect()
}

fn parse(text: &str) -> Result<Vec<(Peer, &str)>> {
    let words = text.split(',').filter(|word| !word.is_empty());
    let peer = |word| match str::split_once(word, '=') {
        Some(("firecracker", path)) => Ok((Peer::Firecracker, path)),
        Some(("cloud-hypervisor", path)) => Ok((Peer::CloudHypervisor, path)),
        _ => bail!("{VARIABLE}: firecracker=PATH or cloud-hypervisor=PATH, not {word}"),
    };
    words.map(peer).collect()
}

fn starts(host: &Host, bench: &str, starts: usize, peer: Peer, program: &str) -> Result<Vec<Row>> {
    let (name, theirs) = match peer {
        Peer::Firecracker => (FIRECRACKER, firecracker(host, program, Machine::PLAIN)?),
        Peer::CloudHypervisor => ("Cloud Hypervisor", cloud_hypervisor(program)),
    };
    let samples = start::in_turn(host, bench, starts, &(kvmlet(Machine::PLAIN), theirs))?;
    let (row, samples) = (format!("machine start beside {name}"), (name, &samples));
    Ok(match peer {
        Peer::Firecracker => start::judged(host, &row, samples, MOST_TIME),
        // Nothing was promised beside it.
        Peer::CloudHypervisor => <[Row; 2]>::from(start::reported(host, &row, samples)).into(),
    })
}

/// Our cold start beside Firecracker's with the kernel, transport and kernel arguments that it has by itself, where its kernel is named.
fn own_kernel(host: &Host, bench: &str, starts: usize, program: &str) -> Result<Vec<Row>> {
    let Some(path) = env::var_os(OWN_KERNEL) else {
        return Ok(Vec::new());
    };
    let kernel = format!("{FOLDER}/peer-vmlinux");
    host.put_file(&kernel, 0o644, Path::new(&path))?;
    let boot = json!({"kernel_image_path": kernel, "initrd_path": INITRAMFS});
    let theirs = configured(host, boot, Machine::PLAIN, &[program, "--no-api"])?;
    let samples = start::in_turn(host, bench, starts, &(kvmlet(Machine::PLAIN), theirs))?;
    let name = "machine start beside Firecracker with its own guest kernel";
    Ok(start::judged(host, name, (FIRECRACKER, &samples), MOST_TIME_OWN))
}

fn copies(host: &Host, bench: &str, starts: usize, program: &str) -> Result<Vec<Row>> {
    let template = super::copies::take(host)?;
    let (mut ours, mut theirs) = (Vec::<Own>::new(), Vec::<Resumed>::new());
    for _ in 0..starts {
        ours.push(stopwatch(host, bench, &["own", "--idle", "0"], &held(&["--from", &template]))?);
        let resumed = host.run_with(&[bench, "measure", "resume", program, FOLDER], b"", super::DEADLINE)?;
        theirs.push(serde_json::from_slice(&resumed.stdout).with_context(|| resumed.error_text())?);
    }
    host.sh(&format!("rm -rf {template} {FOLDER}/state {FOLDER}/memory"))?;
    let row = |name: &str, own: fn(&Own) -> f64, resumed: fn(&Resumed) -> f64| {
        let (ours, theirs) = (ours.iter().map(own).collect(), theirs.iter().map(resumed).collect());
        Row::new(host.kind, name, "s", median(ours)).beside(FIRECRACKER, median(theirs))
    };
    let name = "copy of a template beside Firecracker's snapshot";
    let time = row(name, |own| own.seconds, |resumed| resumed.seconds);
    let work = row(&format!("{name}, processor time"), |own| own.processor, |resumed| resumed.processor);
    Ok(start::by_kind(host.kind, (time, work), 1.0))
}

fn firecracker(host: &Host, program: &str, machine: Machine<'_>) -> Result<CommandLine> {
    let boot = json!({"kernel_image_path": KERNEL, "initrd_path": machine.initramfs, "boot_args": COMMAND_LINE});
    // Our guest kernel has no virtio over MMIO.
    configured(host, boot, machine, &[program, "--enable-pci", "--no-api"])
}

/// Firecracker with this boot source and such devices.
fn configured(host: &Host, boot: Value, machine: Machine<'_>, argv: &[&str]) -> Result<CommandLine> {
    let (config, socket) = (format!("{FOLDER}/{}", resume::CONFIG), format!("{FOLDER}/{}", resume::VSOCK));
    let taps = machine.tap.map(|tap| json!({"iface_id": "net", "host_dev_name": tap}));
    let text = json!({
        "boot-source": boot,
        "drives": [],
        "network-interfaces": Vec::from_iter(taps),
        "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY},
        "vsock": {"guest_cid": 3, "uds_path": socket},
        "entropy": {}
    });
    host.put(&config, 0o644, text.to_string().as_bytes())?;
    let mut argv = words(argv);
    argv.extend(words(&["--config-file", &config]));
    Ok(CommandLine {
        way: format!("unix:{socket}"),
        argv,
    })
}

fn cloud_hypervisor(program: &str) -> CommandLine {
    let socket = format!("{FOLDER}/cloud-hypervisor.vsock");
    let (memory, vsock) = (format!("size={MEMORY}M"), format!("cid=3,socket={socket}"));
    let mut argv = words(&[program, "--kernel", KERNEL, "--initramfs", INITRAMFS, "--cmdline", COMMAND_LINE]);
    argv.extend(words(&[
        "--cpus",
        "boot=1",
        "--memory",
        &memory,
        "--vsock",
        &vsock,
        "--console",
        "off",
        "--serial",
        "off",
    ]));
    CommandLine {
        way: format!("unix:{socket}"),
        argv,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_named_with_their_programs() {
        let peers = parse("firecracker=/a,cloud-hypervisor=/b=c").unwrap();
        assert_eq!(peers, [(Peer::Firecracker, "/a"), (Peer::CloudHypervisor, "/b=c")]);
        assert_eq!(parse("").unwrap(), []);
        let error = parse("qemu=/a").unwrap_err();
        assert_eq!(error.to_string(), "PEERS: firecracker=PATH or cloud-hypervisor=PATH, not qemu=/a");
    }
}
