//! The JSON form of [`MachineSpec`](crate::spec::MachineSpec) as files beside the sources, and tests that they and the types are one.

use std::path::Path;

use crate::spec::{
    Boot, Bucket, Comb, Console, ConsoleSize, Disk, DiskEngine, DiskFormat, Extent, FileSource, Hotplug, Limits, MachineSpec, Net,
    NetLimits, Pmem, Restore, SPEC_VERSION, Serial, Share, Vsock, Watchdog, WatchdogAction,
};

/// Writes the files in place of comparing them.
const WRITE: &str = "VMM_LIB_WRITE_SCHEMA";

/// Each version's files, the newest last.
const FILES: &[(u32, &[(&str, &str)])] = &[(
    1,
    &[
        ("v1.json", include_str!("../schema/v1.json")),
        ("v1-example.json", include_str!("../schema/v1-example.json")),
    ],
)];

/// Compares a file of this version with what it should be.
fn compare(index: usize, value: &serde_json::Value) {
    let (version, files) = FILES.last().expect("there is a version");
    assert_eq!(
        *version, SPEC_VERSION,
        "a new version needs files of its own, and keeps the old one's"
    );
    let (name, known) = files[index];
    let text = serde_json::to_string_pretty(value).expect("plain data serialises") + "\n";
    if std::env::var_os(WRITE).is_some() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
        return std::fs::write(folder.join(name), text).expect("the schema can be written");
    }
    // As data: in which order objects are written depends on who else is built with serde_json.
    let same = serde_json::from_str::<serde_json::Value>(known).is_ok_and(|known| known == *value);
    assert!(
        same,
        "schema/{name} is not what the types of spec.rs are. A new field that may be left out: rewrite it ({WRITE}=1 cargo test -p vmm-lib \
         schema). Any other change of shape: raise SPEC_VERSION first.\n{}",
        first_difference(known, &text)
    );
}

fn first_difference(known: &str, text: &str) -> String {
    let same = known.lines().zip(text.lines()).take_while(|(known, text)| known == text).count();
    let at = |text: &str| text.lines().nth(same).unwrap_or("(nothing)").trim().to_owned();
    format!("line {}: {}, should be: {}", same + 1, at(known), at(text))
}

/// A machine with everything, each kind of file source among it. Without `..`: a new field has to be put here.
fn everything() -> MachineSpec {
    let path = |path: &str| FileSource::Path(path.into());
    let bucket = |size, refill| Some(Bucket { size, refill, burst: size });
    let limits = Limits {
        bytes: bucket(1 << 20, 10 << 20),
        operations: bucket(100, 1000),
    };
    MachineSpec {
        version: SPEC_VERSION,
        name: "everything".into(),
        cpus: 2,
        memory: 256 << 20,
        boot: Boot {
            kernel: path("vmlinux"),
            initramfs: Some(path("initramfs.cpio")),
            command_line: "quiet panic=-1".into(),
        },
        disks: vec![Disk {
            serial: "root".into(),
            extents: vec![Extent {
                file: FileSource::Passed(1),
                offset: 4096,
                length: 1 << 20,
            }],
            read_only: true,
            format: DiskFormat::Raw,
            limits,
            engine: DiskEngine::IoUring,
        }],
        pmems: vec![Pmem {
            name: "image".into(),
            extents: vec![Extent {
                file: path("layer"),
                offset: 0,
                length: 2 << 20,
            }],
        }],
        shares: vec![Share {
            tag: "data".into(),
            socket: FileSource::Passed(1),
        }],
        nets: vec![Net {
            tap: FileSource::Passed(0),
            more_queues: vec![FileSource::Passed(2)],
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            limits: NetLimits {
                receive: limits,
                transmit: limits,
            },
        }],
        vsock: Some(Vsock {
            cid: 3,
            socket: path("vsock.sock"),
        }),
        rng: true,
        balloon: true,
        hotplug: Some(Hotplug {
            size: 512 << 20,
            requested: 64 << 20,
        }),
        serial: Some(Serial {
            output: path("serial.log"),
            input: Some(path("serial.in")),
        }),
        console: Some(Console {
            output: path("console.log"),
            input: Some(path("console.in")),
            size: Some(ConsoleSize { columns: 80, rows: 25 }),
        }),
        watchdog: Some(Watchdog {
            action: WatchdogAction::Reset,
        }),
        comb: Some(Comb {
            cpus: 4,
            disks: 2,
            pmems: 2,
            nets: 1,
            pmem_bytes: 1 << 30,
            memory_bytes: 1 << 36,
        }),
        pmem_room: 64 << 20,
        dirty_log: true,
        restore: Some(Restore {
            state: path("template.state"),
            memory: path("template.memory"),
            working_set: Some(path("template.working-set")),
            verify: true,
        }),
        count_exits: true,
    }
}

#[test]
fn the_schema_of_this_version_is_that_of_the_types() {
    let schema = schemars::schema_for!(MachineSpec);
    compare(0, schema.as_value());
}

#[test]
fn the_example_of_this_version_has_every_field_and_is_valid() {
    let spec = everything();
    spec.validate(3).expect("an example is valid");
    let value = serde_json::to_value(&spec).expect("plain data serialises");
    compare(1, &value);
    assert_eq!(serde_json::from_value::<MachineSpec>(value).expect("and comes back"), spec);
}

/// Written when version 1 was; never to be changed: what its users have in their files.
const LEAST_V1: &str = r#"{"version":1,"name":"m","cpus":1,"memory":67108864,"boot":{"kernel":{"path":"vmlinux"},"commandLine":""}}"#;

#[test]
fn a_document_of_version_1_with_the_fewest_fields_stays_valid() {
    let spec: MachineSpec = serde_json::from_str(LEAST_V1).expect("no field has become mandatory");
    assert_eq!(spec.validate(0), Ok(()));
    assert_eq!((spec.rng, spec.vsock, spec.serial), (false, None, None));
}

#[test]
fn a_field_that_this_version_does_not_know_is_refused() {
    let document = LEAST_V1.replacen('{', r#"{"turbo":true,"#, 1);
    let error = serde_json::from_str::<MachineSpec>(&document).expect_err("nothing is ignored");
    assert!(error.to_string().contains("turbo"), "{error}");
}
