//! `kvmlet vm`: one machine. Started by the node with its order on standard input; with `--probe`, a machine by hand that shows whether this
//! host's KVM boots a kernel, and what that costs in exits.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use vmm_lib::{
    Builder,
    exit::MachineExit,
    spec::{Boot, Disk, Extent, FileSource, MachineSpec, SPEC_VERSION, Serial, Vsock},
};

use crate::cli::VmArguments;

/// How long a probed guest may take.
const PROBE_TIME: Duration = Duration::from_secs(60);
/// The agent's control port.
const AGENT_PORT: u32 = 1024;

/// Runs a machine to its end.
pub(crate) fn run(arguments: &VmArguments) -> anyhow::Result<ExitCode> {
    if arguments.probe {
        return probe(arguments);
    }
    Ok(match kvmlet_machine::run()? {
        MachineExit::PoweredOff | MachineExit::Stopped => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn probe(arguments: &VmArguments) -> anyhow::Result<ExitCode> {
    let (Some(kernel), Some(initramfs)) = (&arguments.kernel, &arguments.initramfs) else {
        bail!("--probe needs --kernel and --initramfs")
    };
    let directory = std::env::temp_dir().join(format!("kvmlet-probe-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let result = boot(arguments, kernel, initramfs, &directory);
    std::fs::remove_dir_all(&directory)?;
    result
}

fn boot(arguments: &VmArguments, kernel: &Path, initramfs: &Path, directory: &Path) -> anyhow::Result<ExitCode> {
    let mut disks = Vec::new();
    for (i, path) in arguments.disk.iter().enumerate() {
        let length = std::fs::metadata(path).with_context(|| format!("disk {}", path.display()))?.len();
        let extents = vec![Extent {
            file: FileSource::Path(path.clone()),
            offset: 0,
            length,
        }];
        disks.push(Disk {
            serial: format!("disk{i}"),
            extents,
            read_only: true,
        });
    }
    let mut command_line = vmm_lib::boot::FAST_COMMAND_LINE.to_owned();
    if arguments.serial {
        command_line = command_line
            .replace("8250.nr_uarts=0", "8250.nr_uarts=1 console=ttyS0")
            .replace("quiet", "");
    }
    let vsock = directory.join("vsock.sock");
    let spec = MachineSpec {
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
        nets: Vec::new(),
        vsock: Some(Vsock {
            cid: 3,
            socket: FileSource::Path(vsock.clone()),
        }),
        rng: true,
        serial: arguments.serial.then(|| Serial {
            output: FileSource::Path("/dev/stderr".into()),
        }),
        count_exits: arguments.count_exits,
    };
    let begun = Instant::now();
    let machine = Builder::new(spec, Vec::new()).build().context("make the machine")?;
    let handle = machine.handle();
    let (ended, watch) = std::sync::mpsc::channel();
    let running = std::thread::Builder::new().name("machine".into()).spawn(move || {
        let report = machine.run();
        let _ = ended.send(());
        report
    })?;
    let answered = loop {
        if hello(&vsock) {
            break true;
        }
        if begun.elapsed() > PROBE_TIME || watch.recv_timeout(Duration::from_millis(5)).is_ok() {
            break false;
        }
    };
    let elapsed = begun.elapsed();
    if let (true, Some(counts)) = (arguments.count_exits, handle.exit_counts()) {
        println!("{}", serde_json::to_string(&counts)?);
    }
    handle.stop();
    let report = running.join().map_err(|_| anyhow::anyhow!("the machine's thread panicked"))?;
    if answered {
        eprintln!("the guest's agent answered after {} ms", elapsed.as_millis());
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "this host's KVM does not boot a guest: no answer within {} ms ({:?})",
        elapsed.as_millis(),
        report.exit
    );
    Ok(ExitCode::FAILURE)
}

/// Whether the guest's agent takes a connection.
fn hello(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return false;
    };
    let limit = Some(Duration::from_secs(1));
    if stream.set_read_timeout(limit).is_err() || stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).is_err() {
        return false;
    }
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).is_ok() && &answer == b"OK "
}
