//! `kvmlet vm --probe`: one machine by hand, without a node. Shows whether this host's KVM boots a guest and what that costs in exits; with
//! `--vsock`, leaves the guest to whoever measures it. Decides nothing for a pod.

use std::{
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use kvmlet_protocol::{CONTROL_PORT, Hello, MAX_GUEST_FRAME, OLDEST_VERSION, VERSION, Welcome, read_frame, write_frame};
use vmm_lib::{
    Builder, Machine,
    exit::MachineExit,
    spec::{Boot, Disk, Extent, FileSource, MachineSpec, Net, Pmem, SPEC_VERSION, Serial, Vsock},
    tap,
};

use crate::cli::VmArguments;

/// How long a probed guest may take.
const PROBE_TIME: Duration = Duration::from_secs(60);
/// The probed guest's network address, locally administered.
const MAC: [u8; 6] = [0x02, 0x6b, 0x76, 0x6d, 0, 1];
const MTU: u16 = 1500;

/// Boots once.
pub(crate) fn run(arguments: &VmArguments) -> anyhow::Result<ExitCode> {
    let (Some(kernel), Some(initramfs)) = (&arguments.kernel, &arguments.initramfs) else {
        bail!("--probe needs --kernel and --initramfs")
    };
    let tap = arguments
        .tap
        .as_deref()
        .map(|name| tap::open_tap(name).with_context(|| format!("open the tap {name}")))
        .transpose()?;
    if let Some(socket) = &arguments.vsock {
        let machine = build(spec(arguments, kernel, initramfs, socket)?, tap)?;
        return Ok(match machine.run().exit {
            MachineExit::PoweredOff => ExitCode::SUCCESS,
            exit => {
                eprintln!("the machine ended: {exit:?}");
                ExitCode::FAILURE
            }
        });
    }
    let directory = std::env::temp_dir().join(format!("kvmlet-probe-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let result = boot(spec(arguments, kernel, initramfs, &directory.join("vsock.sock"))?, tap);
    std::fs::remove_dir_all(&directory)?;
    result
}

fn build(spec: MachineSpec, tap: Option<OwnedFd>) -> anyhow::Result<Machine> {
    Builder::new(spec, tap.into_iter().collect()).build().context("make the machine")
}

fn spec(arguments: &VmArguments, kernel: &Path, initramfs: &Path, vsock: &Path) -> anyhow::Result<MachineSpec> {
    let images = arguments.disk.iter().enumerate();
    let mut disks = images
        .map(|(index, path)| disk(format!("img{index}"), path, true))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(path) = &arguments.scratch {
        disks.push(disk("scratch".into(), path, false)?);
    }
    let mut command_line = vmm_lib::boot::FAST_COMMAND_LINE.to_owned();
    if arguments.serial {
        command_line = command_line
            .replace("8250.nr_uarts=0", "8250.nr_uarts=1 console=ttyS0")
            .replace("quiet", "");
    }
    Ok(MachineSpec {
        version: SPEC_VERSION,
        name: "probe".into(),
        cpus: arguments.cpus,
        memory: arguments.memory << 20,
        boot: Boot {
            kernel: FileSource::Path(kernel.into()),
            initramfs: Some(FileSource::Path(initramfs.into())),
            command_line,
        },
        disks,
        pmems: arguments
            .pmem
            .iter()
            .enumerate()
            .map(|(index, path)| pmem(index, path))
            .collect::<anyhow::Result<_>>()?,
        nets: arguments
            .tap
            .iter()
            .map(|_| Net {
                tap: FileSource::Passed(0),
                mac: MAC,
                mtu: MTU,
            })
            .collect(),
        vsock: Some(Vsock {
            cid: 3,
            socket: FileSource::Path(vsock.into()),
        }),
        rng: true,
        balloon: true,
        serial: arguments.serial.then(|| Serial {
            output: FileSource::Path("/dev/stderr".into()),
        }),
        count_exits: arguments.count_exits,
    })
}

fn pmem(index: usize, path: &PathBuf) -> anyhow::Result<Pmem> {
    let length = std::fs::metadata(path).with_context(|| format!("image {}", path.display()))?.len();
    Ok(Pmem {
        name: format!("img{index}"),
        extents: vec![Extent {
            file: FileSource::Path(path.clone()),
            offset: 0,
            length,
        }],
    })
}

fn disk(serial: String, path: &PathBuf, read_only: bool) -> anyhow::Result<Disk> {
    let length = std::fs::metadata(path).with_context(|| format!("disk {}", path.display()))?.len();
    Ok(Disk {
        serial,
        extents: vec![Extent {
            file: FileSource::Path(path.clone()),
            offset: 0,
            length,
        }],
        read_only,
    })
}

fn boot(spec: MachineSpec, tap: Option<OwnedFd>) -> anyhow::Result<ExitCode> {
    let Some(Vsock {
        socket: FileSource::Path(socket),
        ..
    }) = spec.vsock.clone()
    else {
        bail!("a probed machine has a vsock device at a path")
    };
    let begun = Instant::now();
    let machine = build(spec, tap)?;
    let handle = machine.handle();
    let (ended, watch) = mpsc::channel();
    let running = thread::Builder::new().name("machine".into()).spawn(move || {
        let report = machine.run();
        let _ = ended.send(());
        report
    })?;
    let answered = loop {
        match hello(&socket) {
            Ok(welcome) => break Ok(welcome),
            Err(error) if begun.elapsed() > PROBE_TIME || watch.recv_timeout(Duration::from_millis(5)).is_ok() => break Err(error),
            Err(_) => {}
        }
    };
    let elapsed = begun.elapsed();
    let counts = handle.exit_counts();
    handle.stop();
    let report = running.join().map_err(|_| anyhow::anyhow!("the machine's thread panicked"))?;
    match answered {
        Ok(welcome) => {
            if let Some(counts) = counts {
                println!("{}", serde_json::to_string(&counts)?);
            }
            let Welcome { agent, kernel, .. } = welcome;
            eprintln!(
                "the guest's agent ({agent}, Linux {kernel}) answered after {} ms",
                elapsed.as_millis()
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!(
                "this host's KVM does not boot a guest: no answer within {} ms ({:?}): {error:#}",
                elapsed.as_millis(),
                report.exit
            );
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The agent's answer to the first frame of a connection.
fn hello(socket: &Path) -> anyhow::Result<Welcome> {
    let mut stream = UnixStream::connect(socket).context("reach the machine")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("CONNECT {CONTROL_PORT}\n").as_bytes())?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("reach the agent")?;
        answer.push(byte[0]);
        ensure!(answer.len() < 64, "the machine's answer has no end");
    }
    ensure!(
        answer.starts_with(b"OK "),
        "the machine answered {:?}",
        String::from_utf8_lossy(&answer)
    );
    let hello = Hello {
        oldest: OLDEST_VERSION,
        newest: VERSION,
    };
    write_frame(&mut stream, &hello).context("greet the agent")?;
    read_frame(&mut stream, MAX_GUEST_FRAME).context("hear the agent")
}
