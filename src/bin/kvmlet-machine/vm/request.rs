//! The options of `kvmlet vm run` as a machine's specification, with every mistake in them at once. Opens files to see that they are there;
//! runs nothing.

use std::{fs::File, path::Path};

use vmm_lib::{
    boot::{FAST_COMMAND_LINE, with_console, with_virtio_console},
    spec::{
        Boot, Console, Disk, DiskEngine, DiskFormat, Extent, FileSource, HOTPLUG_STEP, Hotplug, Limits, MachineSpec, SPEC_VERSION, Serial,
        Watchdog, WatchdogAction,
    },
};

use super::{
    by_hand::{self, Mistakes, Tap},
    snapshot, terminal,
};
use crate::cli::{ConsoleKind, RunArguments};

/// Bytes, when nothing is said.
const MEMORY: u64 = 256 << 20;
/// Where a console goes that is for whoever runs the machine, and comes from.
pub(super) const STDOUT: &str = "/dev/stdout";
pub(super) const STDIN: &str = "/dev/stdin";

/// The machine that is asked for. What is wrong has a valid value in it, so that the rest is looked at too.
pub(super) fn spec(arguments: &RunArguments, mistakes: &mut Mistakes) -> MachineSpec {
    if arguments.kernel.is_none() && arguments.from.is_none() {
        mistakes.add("--kernel", "is missing (or --spec)");
    }
    let booted = [("--kernel", &arguments.kernel), ("--initrd", &arguments.initrd)];
    for (option, path) in booted.into_iter().filter(|_| arguments.from.is_none()) {
        if let Some(path) = path
            && let Err(error) = File::open(path)
        {
            mistakes.add(&format!("{option} {}", path.display()), error);
        }
    }
    if let Some(socket) = &arguments.vsock {
        mistakes.check_socket("--vsock", socket);
    }
    if let Some(socket) = &arguments.control {
        mistakes.check_socket("--control", socket);
    }
    let disks: Vec<_> = arguments
        .disk
        .iter()
        .enumerate()
        .map(|(index, text)| disk(index, text, mistakes))
        .collect();
    let path = |path: &Path| FileSource::Path(path.into());
    let memory = number("--mem", arguments.mem.as_deref(), MEMORY, bytes, mistakes);
    let hotplug = arguments.memory_max.as_ref().map(|max| Hotplug {
        size: number("--memory-max", Some(max), memory + HOTPLUG_STEP, bytes, mistakes).saturating_sub(memory),
        requested: 0,
    });
    // What is wrong with them is told where they are opened.
    let taps: Vec<_> = arguments
        .tap
        .iter()
        .map(|text| Tap::parse(text, &mut Mistakes::default()))
        .collect();
    let spec = MachineSpec {
        version: SPEC_VERSION,
        name: "run".into(),
        cpus: number("--cpus", arguments.cpus.as_deref(), 1, |text| text.parse().ok(), mistakes),
        memory,
        boot: Boot {
            kernel: path(arguments.kernel.as_deref().unwrap_or(Path::new("vmlinux"))),
            initramfs: arguments.initrd.as_deref().map(path),
            command_line: command_line(arguments, &disks),
        },
        nets: by_hand::nets(&taps),
        vsock: arguments.vsock.as_deref().map(by_hand::vsock),
        rng: arguments.rng.unwrap_or(true),
        balloon: true,
        hotplug,
        serial: (arguments.console != ConsoleKind::Virtio).then(|| Serial {
            output: path(Path::new(STDOUT)),
            input: Some(path(Path::new(STDIN))),
        }),
        console: (arguments.console == ConsoleKind::Virtio).then(|| Console {
            output: path(Path::new(STDOUT)),
            input: Some(path(Path::new(STDIN))),
            size: terminal::size(),
        }),
        watchdog: arguments.watchdog.then_some(Watchdog {
            action: WatchdogAction::Reset,
        }),
        comb: None,
        restore: arguments.from.as_deref().map(|directory| snapshot::restore(directory, mistakes)),
        pmem_room: number("--pmem-room", arguments.pmem_room.as_deref(), 0, bytes, mistakes),
        dirty_log: arguments.dirty_log,
        count_exits: false,
        disks,
        pmems: Vec::new(),
        shares: Vec::new(),
    };
    if let Err(errors) = spec.validate(taps.iter().map(|tap| tap.queues).sum()) {
        for error in errors.0 {
            mistakes.add(&option(&error.path, arguments), error.problem);
        }
    }
    spec
}

fn number<T>(option: &str, text: Option<&str>, unsaid: T, read: impl Fn(&str) -> Option<T>, mistakes: &mut Mistakes) -> T {
    let Some(text) = text else { return unsaid };
    read(text).unwrap_or_else(|| {
        mistakes.add(&format!("{option} {text}"), "is not such a number");
        unsaid
    })
}

/// Reads `268435456`, `256M`, `256Mi`, `1G`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.strip_suffix('i').filter(|unit| !unit.is_empty()).unwrap_or(unit) {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// What a disk shall be, besides its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DiskWords {
    pub(super) format: DiskFormat,
    pub(super) engine: DiskEngine,
    pub(super) read_only: bool,
}

/// Path, and what follows it.
pub(super) fn disk_words<'t>(text: &'t str, mistakes: &mut Mistakes) -> (&'t str, DiskWords) {
    let mut path = text;
    let mut words = DiskWords {
        format: DiskFormat::Raw,
        engine: DiskEngine::Calls,
        read_only: false,
    };
    // From the end: a path may have commas in it.
    while let Some((rest, word)) = path.rsplit_once(',') {
        match word {
            "ro" => words.read_only = true,
            "engine=io_uring" => words.engine = DiskEngine::IoUring,
            "format=raw" => words.format = DiskFormat::Raw,
            "format=qcow2" => words.format = DiskFormat::Qcow2,
            _ if word.starts_with("format=") => mistakes.add(&format!("--disk {text}"), "has a format that is neither raw nor qcow2"),
            _ => break,
        }
        path = rest;
    }
    (path, words)
}

fn disk(index: usize, text: &str, mistakes: &mut Mistakes) -> Disk {
    let (path, words) = disk_words(text, mistakes);
    let serial = format!("disk{index}");
    by_hand::disk(serial.clone(), Path::new(path), words).unwrap_or_else(|error| {
        mistakes.add(&format!("--disk {text}"), error);
        Disk {
            serial,
            extents: vec![Extent {
                file: FileSource::Path("missing".into()),
                offset: 0,
                length: 512,
            }],
            read_only: words.read_only,
            format: words.format,
            limits: Limits::default(),
            engine: words.engine,
        }
    })
}

/// What saves any Linux guest time on this machine, its console, its root, and then what was asked for. Modules may be loaded: a
/// distribution's kernel has its drivers there.
fn command_line(arguments: &RunArguments, disks: &[Disk]) -> String {
    let mut words: Vec<_> = FAST_COMMAND_LINE.split(' ').filter(|word| *word != "nomodule").collect();
    if let (None, Some(root)) = (&arguments.initrd, disks.first()) {
        words.extend(["root=/dev/vda", if root.read_only { "ro" } else { "rw" }]);
    }
    let mut line = match arguments.console {
        ConsoleKind::Serial => with_console(&words.join(" ")),
        ConsoleKind::Virtio => with_virtio_console(&words.join(" ")),
    };
    if let Some(more) = &arguments.cmdline {
        line.push(' ');
        line.push_str(more);
    }
    line
}

/// The option that a field of the specification came from.
fn option(field: &str, arguments: &RunArguments) -> String {
    let nth = |list: &str| -> Option<usize> { field.strip_prefix(list)?.strip_prefix('[')?.split(']').next()?.parse().ok() };
    let of = |option: &str, value: Option<&String>| value.map_or(option.to_owned(), |value| format!("{option} {value}"));
    match field.split(['[', '.']).next() {
        Some("memory") => of("--mem", arguments.mem.as_ref()),
        Some("hotplug") => of("--memory-max", arguments.memory_max.as_ref()),
        Some("cpus") => of("--cpus", arguments.cpus.as_ref()),
        Some("disks") => of("--disk", nth("disks").and_then(|index| arguments.disk.get(index))),
        Some("nets") => of("--tap", nth("nets").and_then(|index| arguments.tap.get(index))),
        Some("vsock") => "--vsock".into(),
        Some("pmemRoom") => of("--pmem-room", arguments.pmem_room.as_ref()),
        Some("restore") => "--from".into(),
        Some("boot") if field == "boot.commandLine" => "--cmdline".into(),
        Some("boot") if field == "boot.initramfs" => "--initrd".into(),
        Some("boot") => "--kernel".into(),
        _ => field.to_owned(),
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
