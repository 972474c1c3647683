//! `kvmlet vm snapshot` and `merge`: a machine that runs into a directory, and two of these into one. A directory has `state` and `memory`; while
//! these are written they have other names, so that one which has them has all of them.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, ensure};
use kvmlet_machine::Control;
use vmm_lib::{
    snapshot::{self, SnapshotFiles},
    spec::{FileSource, Restore},
};

use super::by_hand::Mistakes;
use crate::cli::{MergeArguments, SnapshotArguments};

/// Of memory first: what a directory has no state of is no snapshot.
const NAMES: [&str; 2] = ["memory", "state"];

/// Has the machine written.
pub(super) fn take(arguments: &SnapshotArguments) -> anyhow::Result<ExitCode> {
    let socket = &arguments.socket;
    let mut control = Control::open(socket).with_context(|| format!("reach the machine at {}", socket.display()))?;
    let new = New::create(&arguments.directory)?;
    let files = (new.files.state.as_fd(), new.files.memory.as_fd());
    control.snapshot_by_hand(files, arguments.changes, !arguments.stop)?;
    new.keep()?;
    Ok(ExitCode::SUCCESS)
}

/// Makes two snapshots one.
pub(super) fn merge(arguments: &MergeArguments) -> anyhow::Result<ExitCode> {
    let (base, changes) = (open(&arguments.base)?, open(&arguments.changes)?);
    let new = New::create(&arguments.into)?;
    snapshot::merge(&base, &changes, &new.files)
        .with_context(|| format!("merge {} with {}", arguments.base.display(), arguments.changes.display()))?;
    new.keep()?;
    Ok(ExitCode::SUCCESS)
}

/// What a machine is to be made of. All of memory is read first: by hand nobody waits for milliseconds.
pub(super) fn restore(directory: &Path, mistakes: &mut Mistakes) -> Restore {
    let mut source = |name: &str| {
        let path = directory.join(name);
        if let Err(error) = File::open(&path) {
            mistakes.add(&format!("--from {}", directory.display()), format!("{name}: {error}"));
        }
        FileSource::Path(path)
    };
    Restore {
        state: source("state"),
        memory: source("memory"),
        working_set: None,
        verify: true,
    }
}

fn open(directory: &Path) -> anyhow::Result<SnapshotFiles> {
    let open = |name: &str| {
        let path = directory.join(name);
        File::open(&path).with_context(|| format!("open {}", path.display()))
    };
    Ok(SnapshotFiles {
        state: open("state")?,
        memory: open("memory")?,
    })
}

/// A snapshot that is being written. What is not kept is removed.
#[derive(Debug)]
struct New {
    files: SnapshotFiles,
    directory: PathBuf,
}

impl New {
    fn create(directory: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        for name in NAMES {
            let path = directory.join(name);
            let free = !path.try_exists().with_context(|| format!("look for {}", path.display()))?;
            ensure!(free, "{} is there already", path.display());
        }
        let create = |name: &str| {
            let path = unfinished(directory, name);
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
            file.with_context(|| format!("make {}", path.display()))
        };
        Ok(Self {
            files: SnapshotFiles {
                state: create("state")?,
                memory: create("memory")?,
            },
            directory: directory.to_owned(),
        })
    }

    fn keep(self) -> anyhow::Result<()> {
        for file in [&self.files.memory, &self.files.state] {
            file.sync_all().context("write the snapshot to its disk")?;
        }
        for name in NAMES {
            let path = self.directory.join(name);
            fs::rename(unfinished(&self.directory, name), &path).with_context(|| format!("name {}", path.display()))?;
        }
        let directory = File::open(&self.directory).and_then(|directory| directory.sync_all());
        directory.with_context(|| format!("write {} to its disk", self.directory.display()))
    }
}

impl Drop for New {
    fn drop(&mut self) {
        for name in NAMES {
            // What was kept has another name.
            let _ = fs::remove_file(unfinished(&self.directory, name));
        }
    }
}

fn unfinished(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.unfinished"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("it is there");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("it can be listed").file_name().into_string();
        let mut names: Vec<_> = entries.map(|entry| name(entry).expect("it is text")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_snapshot_has_its_names_once_it_is_whole_and_leaves_nothing_otherwise() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("new");
        let new = New::create(&place).expect("there is room");
        assert_eq!(names(&place), ["memory.unfinished", "state.unfinished"]);
        drop(new);
        assert!(names(&place).is_empty());
        New::create(&place).expect("there is room").keep().expect("it can be kept");
        assert_eq!(names(&place), ["memory", "state"]);
        let refused = New::create(&place).expect_err("there is one").to_string();
        assert!(refused.ends_with("memory is there already"), "{refused}");
        assert_eq!(names(&place), ["memory", "state"]);
    }

    #[test]
    fn a_merge_that_is_refused_leaves_no_snapshot() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = |name: &str| directory.path().join(name);
        for name in ["base", "changes"] {
            New::create(&place(name)).expect("there is room").keep().expect("it can be kept");
        }
        let arguments = MergeArguments {
            base: place("base"),
            changes: place("changes"),
            into: place("into"),
        };
        let refused = format!("{:#}", merge(&arguments).expect_err("they are empty"));
        assert!(refused.contains("use the base: the state is not that of a machine"), "{refused}");
        assert!(names(&place("into")).is_empty());
    }
}
