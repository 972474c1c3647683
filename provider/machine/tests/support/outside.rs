//! What the host sees of a machine's process that runs: its limits and its open files.

use std::{fs, path::Path};

use kvmlet_machine::Start;

/// Each limit that the jail sets, soft and hard: neither the machine nor who takes it over can have more.
pub(crate) fn limits(process: &Path, order: &Start) {
    let text = fs::read_to_string(process.join("limits")).expect("root may look");
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("it is there");
        let words: Vec<_> = line.split_whitespace().take(2).map(str::parse::<u64>).collect();
        match words[..] {
            [Ok(soft), Ok(hard)] if soft == hard => soft,
            _ => panic!("{name}: {line}"),
        }
    };
    assert_eq!(of("Max file size"), order.jail.file_size);
    assert_eq!(of("Max core file size"), 0, "a core would hold the guest's memory");
    assert_eq!(of("Max msgqueue size"), 0);
    assert_eq!(of("Max locked memory"), 0, "none of its disks has a ring");
    assert_eq!(of("Max processes"), kvmlet_machine::threads(&order.spec));
    // What every machine has, and for each of two extents the file and its own.
    assert_eq!(of("Max open files"), 3072 + 4);
}

/// No directory is open, and a read-only disk only for reading.
pub(crate) fn descriptors(process: &Path, disk: &Path) {
    let mut disks = 0;
    for entry in fs::read_dir(process.join("fd")).expect("root may look") {
        let path = entry.expect("it is there").path();
        let meta = fs::metadata(&path);
        assert!(meta.is_ok_and(|meta| !meta.is_dir()), "{:?} is a directory", fs::read_link(&path));
        if fs::read_link(&path).is_ok_and(|target| target == disk) {
            let number = path.file_name().expect("it has a number");
            let info = fs::read_to_string(process.join("fdinfo").join(number)).expect("root may look");
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("it has flags");
            assert_eq!(u32::from_str_radix(flags.trim(), 8).expect("octal") & 3, 0, "{info}");
            disks += 1;
        }
    }
    assert!(disks > 0, "the disk is not open");
}
