//! What is remembered of how a pod's machine started: `machine/start.json`, beside the machine's other files and gone with them. For whoever looks at
//! the host; nothing is decided by it, so that it is written whole but not synced. It holds nothing of what is in the pod's variables and volumes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vmm_lib::spec::{Extent, FileSource, MachineSpec, Pmem};

use crate::{
    figures::Phase,
    store::{self, StoreError},
    template::Start,
};

const FILE: &str = "start.json";
/// The version of [`Started`] that is written.
const VERSION: u32 = 1;
const MAC_BYTES: usize = 6;

/// How a machine started, as far as it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// Of this form.
    pub version: u32,
    /// When its making began.
    pub begun: Timestamp,
    /// Once its agent has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub how: Option<How>,
    /// Phases that are over, in order.
    pub phases: Vec<Took>,
    /// What was asked for; a copy of the template has the same, in other places.
    pub shape: Shape,
}

/// How a machine came up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct How {
    /// As a copy of the node's template; else it booted.
    pub copy: bool,
    /// Why it booted; empty of a copy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// From its process to its agent's answer, microseconds; of one that was a copy first in vain, only what came then.
    pub microseconds: u64,
}

/// How long a phase took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// Which.
    pub phase: Phase,
    /// How long, microseconds.
    pub microseconds: u64,
}

/// A machine in short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shape {
    /// Processors, whether its guest uses them or not.
    pub cpus: u8,
    /// Memory it began with, bytes.
    pub memory: u64,
    /// What may be added to that, bytes.
    pub growth: u64,
    /// Its devices.
    pub devices: Vec<Device>,
}

/// A device of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// `disk`, `pmem`, `net`, `fs`, `vsock`, `serial`, `watchdog`, …
    pub kind: String,
    /// What its guest knows it by; empty where there is one of its kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Of a disk or an image in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Its guest cannot write to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// The host's files behind it, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
}

impl Started {
    /// One whose process is about to be started.
    pub fn new(begun: Timestamp, phases: &[(Phase, Duration)], spec: &MachineSpec) -> Self {
        Self {
            version: VERSION,
            begun,
            how: None,
            phases: took(phases),
            shape: Shape::of(spec),
        }
    }

    /// It runs, and all its phases are over.
    #[must_use]
    pub fn up(self, how: How, phases: &[(Phase, Duration)]) -> Self {
        Self {
            how: Some(how),
            phases: took(phases),
            ..self
        }
    }

    /// Writes it into the machine's directory.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, machine: &Path) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).expect("plain data becomes JSON");
        store::write_whole(machine, FILE, &bytes)
    }

    /// What is in the machine's directory; `None` of one that has not come that far, and of one that an older release has started.
    pub fn read(machine: &Path) -> Option<Self> {
        let read: Self = serde_json::from_slice(&fs::read(machine.join(FILE)).ok()?).ok()?;
        (read.version == VERSION).then_some(read)
    }

    /// Whether its guest's kernel had a serial port to write to.
    pub fn has_serial(&self) -> bool {
        self.shape.devices.iter().any(|device| device.kind == SERIAL)
    }
}

fn took(phases: &[(Phase, Duration)]) -> Vec<Took> {
    let took = |(phase, time): &(Phase, Duration)| Took {
        phase: *phase,
        microseconds: microseconds(*time),
    };
    phases.iter().map(took).collect()
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl How {
    /// A machine that took so long to start so.
    pub fn new(start: &Start, took: Duration) -> Self {
        let (copy, why) = match start {
            Start::Copy(_) => (true, String::new()),
            Start::Boot(why) => (false, why.clone()),
        };
        Self {
            copy,
            why,
            microseconds: microseconds(took),
        }
    }

    /// In one word.
    pub fn word(&self) -> &'static str {
        if self.copy { "copy" } else { "boot" }
    }
}

const SERIAL: &str = "serial";

impl Shape {
    fn of(spec: &MachineSpec) -> Self {
        let named = |kind: &str, name: &str| Device {
            kind: kind.into(),
            name: name.into(),
            ..Device::default()
        };
        let of_files = |kind, name: &str, extents: &[Extent], read_only| Device {
            bytes: Some(extents.iter().map(|extent| extent.length).sum()),
            files: files(extents),
            read_only,
            ..named(kind, name)
        };
        let pmems = spec.pmems.iter().map(|pmem| Device {
            bytes: Some(Pmem::length(pmem)),
            ..of_files("pmem", &pmem.name, &pmem.extents, true)
        });
        let disks = spec
            .disks
            .iter()
            .map(|disk| of_files("disk", &disk.serial, &disk.extents, disk.read_only));
        let nets = spec.nets.iter().map(|net| named("net", &mac(&net.mac)));
        let shares = spec.shares.iter().map(|share| named("fs", &share.tag));
        let serial = spec.serial.iter().map(|serial| Device {
            files: file(&serial.output).into_iter().collect(),
            ..named(SERIAL, "")
        });
        let others = [
            (spec.vsock.is_some(), "vsock"),
            (spec.rng, "rng"),
            (spec.balloon, "balloon"),
            (spec.watchdog.is_some(), "watchdog"),
        ];
        let others = others.into_iter().filter(|(there, _)| *there).map(|(_, kind)| named(kind, ""));
        Self {
            cpus: spec.cpus,
            memory: spec.memory,
            growth: spec.hotplug.map_or(0, |hotplug| hotplug.size),
            devices: pmems.chain(disks).chain(nets).chain(shares).chain(serial).chain(others).collect(),
        }
    }
}

fn file(source: &FileSource) -> Option<PathBuf> {
    match source {
        FileSource::Path(path) => Some(path.clone()),
        FileSource::Passed(_) => None,
    }
}

/// In order, each once.
fn files(extents: &[Extent]) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = Vec::new();
    for path in extents.iter().filter_map(|extent| file(&extent.file)) {
        if !all.contains(&path) {
            all.push(path);
        }
    }
    all
}

fn mac(bytes: &[u8; MAC_BYTES]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> MachineSpec {
        serde_json::from_value(json!({
            "version": vmm_lib::spec::SPEC_VERSION, "name": "m", "cpus": 2, "memory": 192 << 20,
            "pmems": [{"name": "image0", "extents": [
                {"file": {"path": "/a"}, "offset": 0, "length": 2 << 20}, {"file": {"path": "/b"}, "offset": 0, "length": 4 << 20},
                {"file": {"path": "/a"}, "offset": 0, "length": 2 << 20}]}],
            "nets": [{"tap": {"passed": 0}, "mac": [2, 0, 0, 0, 10, 255], "mtu": 1500}],
            "boot": {"kernel": {"path": "/k"}, "initramfs": null, "commandLine": ""},
        }))
        .unwrap()
    }

    #[test]
    fn what_was_written_of_a_start_is_read_again_and_says_what_the_machine_has() {
        let machine = tempfile::tempdir().unwrap();
        assert_eq!(Started::read(machine.path()), None);
        let begun = [(Phase::Surroundings, Duration::from_millis(3))];
        let started = Started::new(Timestamp::UNIX_EPOCH, &begun, &spec());
        started.write(machine.path()).unwrap();
        assert_eq!(Started::read(machine.path()), Some(started.clone()));
        assert!(!started.has_serial() && started.how.is_none());
        let [image, net] = &started.shape.devices[..] else {
            panic!("{:?}", started.shape)
        };
        assert_eq!((image.bytes, image.files.len(), image.read_only), (Some(8 << 20), 2, true));
        assert_eq!((net.kind.as_str(), net.name.as_str()), ("net", "02:00:00:00:0a:ff"));

        let how = How::new(&Start::Boot("because".into()), Duration::from_millis(1500));
        let up = started.up(how, &[begun[0], (Phase::Guest, Duration::from_micros(7))]);
        up.write(machine.path()).unwrap();
        let read = Started::read(machine.path()).unwrap();
        assert_eq!((read.phases[1].phase, read.phases[1].microseconds), (Phase::Guest, 7));
        let how = read.how.unwrap();
        assert_eq!((how.word(), how.why.as_str(), how.microseconds), ("boot", "because", 1_500_000));
    }

    #[test]
    fn a_record_of_another_version_says_nothing() {
        let machine = tempfile::tempdir().unwrap();
        let newer = Started {
            version: VERSION + 1,
            ..Started::new(Timestamp::UNIX_EPOCH, &[], &spec())
        };
        newer.write(machine.path()).unwrap();
        assert_eq!(Started::read(machine.path()), None);
    }
}
