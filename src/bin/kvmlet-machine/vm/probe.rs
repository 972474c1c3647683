//! `kvmlet vm --probe` and `--boot-trace`: one machine with our agent by hand, without a node. Shows whether this host's KVM boots a guest and
//! what that costs in exits or in time; with `--vsock`, leaves the guest to whoever measures it. Decides nothing for a pod.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::Path,
    process::ExitCode,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use kvmlet_protocol::Welcome;
use kvmlet_provider::template;
use vmm_lib::{
    Builder, Machine,
    boot::{FAST_COMMAND_LINE, with_console},
    machine::Handle,
    snapshot::SnapshotFiles,
    spec::{
        Boot, Disk, DiskEngine, DiskFormat, FileSource, Hotplug, MachineSpec, Pmem, Restore, SPEC_VERSION, Serial, Watchdog, WatchdogAction,
    },
    tap,
};

use super::{
    agent::{hello, renew},
    by_hand::{self, Tap},
    request::DiskWords,
    running::Running,
    trace,
};
use crate::cli::VmArguments;

/// How long a probed guest may take.
const PROBE_TIME: Duration = Duration::from_secs(60);
/// One that is held: many may start at once, and whoever does that can end them.
const HELD_TIME: Duration = Duration::from_secs(600);

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
        return Ok(by_hand::tell_end(&machine.run().exit));
    }
    let directory = std::env::temp_dir().join(format!("kvmlet-probe-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let socket = directory.join("vsock.sock");
    let result = spec(arguments, kernel, initramfs, &socket).and_then(|spec| match arguments.boot_trace {
        true => trace::run(spec, tap.into_iter().collect()),
        false => boot(arguments, spec, tap, &socket),
    });
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
    let pmems = arguments.pmem.iter().enumerate().map(|(index, path)| {
        let Disk { serial, extents, .. } = disk(format!("img{index}"), path, true)?;
        Ok(Pmem { name: serial, extents })
    });
    let line = arguments.command_line.as_deref().unwrap_or(FAST_COMMAND_LINE);
    let line = &if arguments.take.is_some() {
        template::command_line(line)
    } else {
        line.to_owned()
    };
    let command_line = match arguments.serial {
        true => with_console(line),
        false => line.to_owned(),
    };
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
        pmems: pmems.collect::<anyhow::Result<_>>()?,
        shares: Vec::new(),
        nets: by_hand::nets(&arguments.tap.iter().map(|name| Tap { name, queues: 1 }).collect::<Vec<_>>()),
        vsock: Some(by_hand::vsock(vsock)),
        rng: true,
        balloon: true,
        hotplug: arguments.hotplug.map(|mebibytes| Hotplug {
            size: mebibytes << 20,
            requested: 0,
        }),
        serial: arguments.serial.then(|| Serial {
            output: FileSource::Path("/dev/stderr".into()),
            input: None,
        }),
        console: None,
        watchdog: arguments.watchdog.then_some(Watchdog {
            action: WatchdogAction::Reset,
        }),
        comb: (arguments.take.is_some() || arguments.from.is_some()).then(template::comb),
        restore: arguments.from.as_deref().map(|directory| Restore {
            state: FileSource::Path(directory.join("state")),
            memory: FileSource::Path(directory.join("memory")),
            working_set: Some(directory.join("working-set"))
                .filter(|path| path.exists())
                .map(FileSource::Path),
            verify: false,
        }),
        pmem_room: 0,
        dirty_log: false,
        count_exits: arguments.count_exits,
    })
}

fn disk(serial: String, path: &Path, read_only: bool) -> anyhow::Result<Disk> {
    let words = DiskWords {
        format: DiskFormat::Raw,
        engine: DiskEngine::Calls,
        read_only,
    };
    by_hand::disk(serial, path, words).with_context(|| format!("disk {}", path.display()))
}

fn boot(arguments: &VmArguments, spec: MachineSpec, tap: Option<OwnedFd>, socket: &Path) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let machine = build(spec.clone(), tap)?;
    let (ended, watch) = mpsc::channel();
    let running = Running::start(machine, move || {
        let _ = ended.send(());
    })?;
    let greet = || {
        let (mut stream, welcome) = hello(socket)?;
        if arguments.from.is_some() {
            renew(&mut stream, &spec)?;
        }
        anyhow::Ok(welcome)
    };
    let most = if arguments.hold { HELD_TIME } else { PROBE_TIME };
    let answered = loop {
        match greet() {
            Ok(welcome) => break Ok(welcome),
            Err(error) if begun.elapsed() > most || watch.recv_timeout(Duration::from_millis(5)).is_ok() => break Err(error),
            Err(_) => {}
        }
    };
    let elapsed = begun.elapsed();
    let counts = running.handle.exit_counts();
    if let Ok(Welcome { agent, kernel, .. }) = &answered {
        eprintln!(
            "the guest's agent ({agent}, Linux {kernel}) answered after {} ms",
            elapsed.as_millis()
        );
        if arguments.hold {
            io::copy(&mut io::stdin().lock(), &mut io::sink()).context("wait for the end of standard input")?;
        }
    }
    let taken = match (&arguments.take, &answered) {
        (Some(directory), Ok(_)) => take(directory, &running.handle),
        _ => Ok(()),
    };
    let report = running.stop()?;
    taken?;
    match answered {
        Ok(_) => {
            if let Some(counts) = counts {
                println!("{}", serde_json::to_string(&counts)?);
            }
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

/// Writes a snapshot, at which the machine ends.
fn take(directory: &Path, handle: &Handle) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let create = |name: &str| {
        let path = directory.join(name);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        file.with_context(|| format!("make {}", path.display()))
    };
    let files = SnapshotFiles {
        state: create("state")?,
        memory: create("memory")?,
    };
    let begun = Instant::now();
    handle.snapshot(files, false).context("take the snapshot")?;
    eprintln!("the snapshot took {} ms", begun.elapsed().as_millis());
    Ok(())
}
