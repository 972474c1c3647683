//! What a machine may move to and from the disks that hold its scratch disk and its images: `machines.io` of the configuration as contents of
//! its control group's files. A node that is asked for such limits and cannot keep them does not start.
//!
//! Reads are held to them from the first. A file's buffered writes count for the group that wrote it first, until the kernel has seen for some
//! ten rounds of writing back that another does: a scratch disk is made by the daemon, so its machine's first megabytes may go unheld.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{major, minor};

use super::ROOT;
use crate::config::{Config, Io};

/// Where the kernel tells of block devices by number.
const DEVICES: &str = "/sys/dev/block";

/// Why the limits cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// There is no such controller.
    #[error(
        "this host's control groups (v2) have no io controller (cgroup.controllers: {0:?}): it needs a kernel with BLK_CGROUP and \
         BLK_DEV_THROTTLING, and cgroup v1 must not have taken it; or leave machines.io out"
    )]
    Controller(String),
    /// The files are on no disk.
    #[error("{path} is on no block device of its own (device {major}:{minor}), so its reads and writes cannot be limited")]
    Device {
        /// Which.
        path: PathBuf,
        /// Of its file system.
        major: u32,
        /// Of its file system.
        minor: u32,
    },
    /// Something could not be looked at.
    #[error("look at {path}")]
    Look {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The limits of each machine; none by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoLimits {
    files: Vec<(&'static str, String)>,
}

impl IoLimits {
    /// What a node's configuration says, for the disks that its machines' files are on.
    pub fn of_node(config: &Config) -> Result<Self, IoError> {
        Self::new(&config.machines.io, &[&config.state_dir, &config.state_dir.join("images")])
    }

    fn new(wanted: &Io, directories: &[&Path]) -> Result<Self, IoError> {
        if *wanted == Io::default() {
            return Ok(Self::default());
        }
        let controllers = Path::new(ROOT).join("cgroup.controllers");
        let has = fs::read_to_string(&controllers).unwrap_or_default();
        if !has.split_whitespace().any(|controller| controller == "io") {
            return Err(IoError::Controller(has.trim().to_owned()));
        }
        let disks = directories
            .iter()
            .map(|directory| disk(directory))
            .collect::<Result<BTreeSet<_>, _>>()?;
        Ok(Self::of(wanted, &disks))
    }

    fn of(wanted: &Io, disks: &BTreeSet<String>) -> Self {
        let limits = [
            ("rbps", wanted.read_bytes_per_second.map(|quantity| quantity.value())),
            ("wbps", wanted.write_bytes_per_second.map(|quantity| quantity.value())),
            ("riops", wanted.read_operations_per_second),
            ("wiops", wanted.write_operations_per_second),
        ];
        let said: String = limits
            .iter()
            .filter_map(|(name, value)| value.map(|value| format!(" {name}={value}")))
            .collect();
        let mut files = Vec::new();
        if !said.is_empty() {
            // One device a write.
            files.extend(disks.iter().map(|disk| ("io.max", format!("{disk}{said}"))));
        }
        files.extend(wanted.weight.map(|weight| ("io.weight", format!("default {weight}"))));
        Self { files }
    }

    /// Names and contents of files of a machine's group.
    pub fn files(&self) -> &[(&'static str, String)] {
        &self.files
    }
}

/// The whole disk that holds a directory, or will hold it, as `major:minor`: a partition has no limits.
fn disk(directory: &Path) -> Result<String, IoError> {
    let there = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let look = |path: &Path| {
        let path = path.to_owned();
        move |source| IoError::Look { path, source }
    };
    let device = fs::metadata(there).map_err(look(there))?.dev();
    let (major, minor) = (major(device), minor(device));
    let Ok(entry) = fs::canonicalize(format!("{DEVICES}/{major}:{minor}")) else {
        let path = there.to_owned();
        return Err(IoError::Device { path, major, minor });
    };
    let whole = match (entry.join("partition").exists(), entry.parent()) {
        (true, Some(parent)) => parent.join("dev"),
        _ => entry.join("dev"),
    };
    Ok(fs::read_to_string(&whole).map_err(look(&whole))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantity::Quantity;

    #[test]
    fn limits_are_said_for_each_disk_and_only_those_that_were_asked_for() {
        let wanted = Io {
            read_bytes_per_second: Some(Quantity::bytes(10 << 20)),
            write_operations_per_second: Some(500),
            weight: Some(50),
            ..Io::default()
        };
        let limits = IoLimits::of(&wanted, &["8:0".to_owned(), "254:16".to_owned()].into());
        let expected = [
            ("io.max", "254:16 rbps=10485760 wiops=500"),
            ("io.max", "8:0 rbps=10485760 wiops=500"),
            ("io.weight", "default 50"),
        ];
        assert_eq!(limits.files(), expected.map(|(name, text)| (name, text.to_owned())));
        let only_weight = Io {
            weight: Some(7),
            ..Io::default()
        };
        assert_eq!(
            IoLimits::of(&only_weight, &["8:0".to_owned()].into()).files(),
            [("io.weight", "default 7".to_owned())]
        );
    }

    #[test]
    fn a_node_that_asks_for_nothing_needs_nothing() {
        assert_eq!(
            IoLimits::new(&Io::default(), &[Path::new("/nowhere")]).unwrap(),
            IoLimits::default()
        );
    }

    #[test]
    fn a_directory_on_no_disk_is_named() {
        let error = disk(Path::new("/proc/self/nothing/here")).unwrap_err().to_string();
        assert!(error.starts_with("/proc/"), "{error}");
    }
}
