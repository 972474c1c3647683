use std::path::PathBuf;

use clap::Parser as _;

use super::*;
use crate::cli::{Cli, Command, VmCommand};

fn arguments(words: &[&str]) -> Box<RunArguments> {
    let words = ["kvmlet", "vm", "run"].iter().chain(words);
    match Cli::try_parse_from(words).expect("clap takes it").command {
        Command::Vm(vm) => match vm.command {
            Some(VmCommand::Run(run)) => run,
            _ => panic!("`run` was not seen"),
        },
        Command::Node(_) | Command::Webhook(_) | Command::Fs => panic!("`vm` was not seen"),
    }
}

/// A kernel, an initramfs and a disk of 1 MiB, as far as their sizes go.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().expect("a directory can be made"));
        for (name, size) in [("vmlinux", 1), ("initrd", 1), ("disk", 1 << 20), ("odd", 1000)] {
            std::fs::write(files.path(name), vec![0; size]).expect("a file can be written");
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

fn good(words: &[&str]) -> MachineSpec {
    let mut mistakes = Mistakes::default();
    let spec = spec(&arguments(words), &mut mistakes);
    assert_eq!(mistakes.all(), &[] as &[String], "{words:?}");
    spec
}

#[test]
fn options_become_the_machine_that_they_say() {
    let files = Files::new();
    let (kernel, initrd, disk) = (files.text("vmlinux"), files.text("initrd"), files.text("disk"));
    let read_only = format!("{disk},ro");
    let spec = good(&[
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--disk",
        &read_only,
        "--disk",
        &disk,
        "--mem",
        "512M",
        "--memory-max",
        "1G",
        "--control",
        "nowhere.control",
        "--cpus",
        "3",
        "--tap",
        "t0",
        "--tap",
        "t1",
        "--vsock",
        "nowhere.sock",
        "--rng=false",
        "--cmdline",
        "-x quiet",
    ]);
    assert_eq!((spec.cpus, spec.memory, spec.rng), (3, 512 << 20, false));
    let room = Hotplug {
        size: 512 << 20,
        requested: 0,
    };
    assert_eq!(spec.hotplug, Some(room));
    assert_eq!(spec.boot.initramfs, Some(FileSource::Path(initrd.into())));
    let disks: Vec<_> = spec
        .disks
        .iter()
        .map(|disk| (disk.serial.as_str(), disk.read_only, disk.extents[0].length))
        .collect();
    assert_eq!(disks, [("disk0", true, 1 << 20), ("disk1", false, 1 << 20)]);
    assert_eq!(
        spec.nets.iter().map(|net| &net.tap).collect::<Vec<_>>(),
        [&FileSource::Passed(0), &FileSource::Passed(1)]
    );
    assert_ne!(spec.nets[0].mac, spec.nets[1].mac);
    assert!(spec.vsock.is_some());
    let line = &spec.boot.command_line;
    assert!(
        line.starts_with("8250.nr_uarts=1 console=ttyS0 ") && line.ends_with(" -x quiet"),
        "{line}"
    );
    assert!(!line.contains("root=") && !line.contains("nomodule"), "{line}");
}

#[test]
fn a_disk_is_raw_unless_its_format_is_stated() {
    let files = Files::new();
    let (kernel, disk) = (files.text("vmlinux"), files.text("disk"));
    for (words, format, read_only) in [
        ("", DiskFormat::Raw, false),
        (",format=raw", DiskFormat::Raw, false),
        (",format=qcow2", DiskFormat::Qcow2, false),
        (",format=qcow2,ro", DiskFormat::Qcow2, true),
        (",ro,format=qcow2", DiskFormat::Qcow2, true),
    ] {
        let spec = good(&["--kernel", &kernel, "--disk", &format!("{disk}{words}")]);
        assert_eq!((spec.disks[0].format, spec.disks[0].read_only), (format, read_only), "{words}");
    }
    let mut mistakes = Mistakes::default();
    let text = format!("{disk},format=vmdk");
    spec(&arguments(&["--kernel", &kernel, "--disk", &text]), &mut mistakes);
    assert_eq!(
        mistakes.all(),
        [format!("--disk {text}: has a format that is neither raw nor qcow2")]
    );
}

#[test]
fn without_an_initramfs_the_first_disk_is_the_root() {
    let files = Files::new();
    let (kernel, disk) = (files.text("vmlinux"), files.text("disk"));
    let of = |disk: &str| good(&["--kernel", &kernel, "--disk", disk]).boot.command_line;
    assert!(of(&disk).ends_with(" root=/dev/vda rw"));
    assert!(of(&format!("{disk},ro")).ends_with(" root=/dev/vda ro"));
}

#[test]
fn what_is_not_said_is_a_small_machine_with_entropy_and_a_console() {
    let files = Files::new();
    let spec = good(&["--kernel", &files.text("vmlinux")]);
    assert_eq!((spec.cpus, spec.memory, spec.rng), (1, MEMORY, true));
    assert_eq!(spec.serial.map(|serial| serial.output), Some(FileSource::Path(STDOUT.into())));
    assert!(spec.disks.is_empty() && spec.nets.is_empty() && spec.vsock.is_none());
}

#[test]
fn every_mistake_is_told_at_once_with_its_option() {
    let files = Files::new();
    let (odd, taken) = (files.text("odd"), files.text("disk"));
    let mut mistakes = Mistakes::default();
    let words = [
        "--initrd",
        "/nowhere/initrd",
        "--disk",
        "/nowhere/disk,ro",
        "--disk",
        &odd,
        "--mem",
        "12x",
        "--memory-max",
        "12y",
        "--control",
        &taken,
        "--cpus",
        "0",
        "--vsock",
        &taken,
        "--tap",
        "a",
        "--tap",
        "b",
        "--tap",
        "c",
        "--tap",
        "d",
        "--tap",
        "e",
        "--cmdline",
        &"x".repeat(3000),
    ];
    spec(&arguments(&words), &mut mistakes);
    let told = mistakes.all();
    let expected = [
        "--kernel: is missing".to_owned(),
        "--initrd /nowhere/initrd: ".into(),
        format!("--vsock {taken}: "),
        "--disk /nowhere/disk,ro: ".into(),
        "--mem 12x: ".into(),
        "--memory-max 12y: ".into(),
        format!("--control {taken}: "),
        "--cpus 0: ".into(),
        "--cmdline: ".into(),
        format!("--disk {odd}: 1000 is not a multiple of 512"),
        "--tap: 5 are more than 4".into(),
    ];
    for begin in &expected {
        assert!(told.iter().any(|told| told.starts_with(begin)), "{begin}: {told:#?}");
    }
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    let text = mistakes.check().expect_err("they are an error").to_string();
    assert_eq!(text.lines().count(), 1 + expected.len(), "{text}");
}

#[test]
fn memory_that_may_come_is_whole_steps_beyond_what_is_there_and_needs_a_way_to_ask_for_it() {
    let files = Files::new();
    for max in ["256M", "300M", "64M"] {
        let mut mistakes = Mistakes::default();
        let words = [
            "--kernel",
            &files.text("vmlinux"),
            "--memory-max",
            max,
            "--control",
            "nowhere.control",
        ];
        spec(&arguments(&words), &mut mistakes);
        let told = mistakes.all();
        assert!(told.len() == 1 && told[0].starts_with(&format!("--memory-max {max}: ")), "{told:?}");
    }
    assert!(Cli::try_parse_from(["kvmlet", "vm", "run", "--kernel", "k", "--memory-max", "1G"]).is_err());
}

#[test]
fn sizes_are_read_as_people_and_kubernetes_write_them() {
    for (text, expected) in [
        ("268435456", Some(256 << 20)),
        ("256M", Some(256 << 20)),
        ("256Mi", Some(256 << 20)),
        ("1G", Some(1 << 30)),
        ("1Gi", Some(1 << 30)),
        ("65536K", Some(64 << 20)),
        ("1T", Some(1 << 40)),
        ("", None),
        ("M", None),
        ("i", None),
        ("1i", None),
        ("256MB", None),
        ("-1", None),
        ("1.5G", None),
        ("256 M", None),
        ("18446744073709551616", None),
        ("99999999999T", None),
    ] {
        assert_eq!(bytes(text), expected, "{text:?}");
    }
}

#[test]
fn a_whole_specification_goes_with_no_option_that_is_part_of_it() {
    for option in [
        "--kernel",
        "--initrd",
        "--disk",
        "--mem",
        "--memory-max",
        "--cpus",
        "--cmdline",
        "--vsock",
        "--rng",
    ] {
        let words = ["kvmlet", "vm", "run", "--spec", "x.json", option, "true"];
        let error = Cli::try_parse_from(words).expect_err(option);
        assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict, "{option}");
    }
    assert!(Cli::try_parse_from(["kvmlet", "vm", "run", "--spec", "x.json", "--tap", "t0", "--boot-trace"]).is_ok());
}

#[test]
fn the_forms_that_the_node_and_the_rig_use_are_taken() {
    for words in [
        "kvmlet vm",
        "kvmlet vm --probe --kernel k --initramfs i",
        "kvmlet vm --probe --kernel k --initramfs i --memory 128 --vsock s",
        "kvmlet vm --probe --count-exits --kernel k --initramfs i --disk d --scratch s --tap t",
        "kvmlet vm --probe --kernel k --initramfs i --hotplug 1024",
        "kvmlet vm memory control.sock",
        "kvmlet vm memory control.sock 512M",
        "kvmlet vm snapshot control.sock directory --changes --stop",
        "kvmlet vm merge base changes into",
        "kvmlet vm run --from directory --control control.sock --dirty-log",
        "kvmlet vm --boot-trace --kernel k --initramfs i --cpus 2",
        "kvmlet vm --probe --boot-trace --kernel k --initramfs i",
    ] {
        Cli::try_parse_from(words.split(' ')).expect(words);
    }
    for words in [
        "kvmlet vm --boot-trace",
        "kvmlet vm --disk d",
        "kvmlet vm run --kernel k --dirty-log",
        "kvmlet vm --boot-trace run --kernel k",
    ] {
        assert!(Cli::try_parse_from(words.split(' ')).is_err(), "{words}");
    }
}

#[test]
fn a_machine_goes_on_from_a_snapshot_with_either_console() {
    let snapshot = tempfile::tempdir().expect("a directory can be made");
    for name in ["state", "memory"] {
        std::fs::write(snapshot.path().join(name), "").expect("a file can be written");
    }
    let from = snapshot.path().display().to_string();
    for (console, serial) in [("serial", true), ("virtio", false)] {
        let spec = good(&["--from", &from, "--console", console]);
        assert_eq!((spec.restore.is_some(), spec.serial.is_some()), (true, serial), "{console}");
    }
}
