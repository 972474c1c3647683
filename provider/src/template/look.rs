//! A node's template as it lies on the disk, for whoever looks at the host.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{WORKING_SET, keep::never};
use crate::config::Config;

/// Where a node's template stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The node has none, for this reason.
    Never(&'static str),
    /// There is none right now.
    Missing,
    /// It is being made, or whoever made it has died.
    Making,
    /// It is there.
    Kept {
        /// What it was made of, as a hash.
        key: String,
        /// Bytes that it takes of the disk.
        bytes: u64,
        /// When it was made.
        made: SystemTime,
    },
}

/// Looks for the template of a node.
///
/// # Errors
/// When its directory cannot be read.
pub fn look(config: &Config) -> io::Result<Standing> {
    match never(config) {
        Some(why) => Ok(Standing::Never(why)),
        None => find(&config.state_dir.join("templates")),
    }
}

fn find(directory: &Path) -> io::Result<Standing> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Standing::Missing),
        entries => entries?,
    };
    let mut standing = Standing::Missing;
    for entry in entries {
        let entry = entry?;
        let key = entry.file_name().to_string_lossy().into_owned();
        if key == "making" {
            standing = Standing::Making;
        } else if let Ok((bytes, made)) = whole(entry.path()) {
            return Ok(Standing::Kept { key, bytes, made });
        }
    }
    Ok(standing)
}

fn whole(directory: PathBuf) -> io::Result<(u64, SystemTime)> {
    use std::os::unix::fs::MetadataExt as _;
    let (mut bytes, mut made) = (0, SystemTime::UNIX_EPOCH);
    for name in ["state", "memory", WORKING_SET] {
        let file = fs::metadata(directory.join(name))?;
        // The memory of a template is mostly holes.
        bytes += file.blocks() * 512;
        made = made.max(file.modified()?);
    }
    Ok((bytes, made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_there_once_all_of_it_is_and_it_has_its_name() {
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join("templates");
        assert_eq!(find(&directory).unwrap(), Standing::Missing);
        fs::create_dir_all(directory.join("making")).unwrap();
        assert_eq!(find(&directory).unwrap(), Standing::Making);
        fs::create_dir(directory.join("abc")).unwrap();
        assert_eq!(find(&directory).unwrap(), Standing::Making, "an empty one is none");
        for name in ["state", "memory", WORKING_SET] {
            fs::write(directory.join("abc").join(name), [1; 5000]).unwrap();
        }
        let found = find(&directory).unwrap();
        assert!(
            matches!(&found, Standing::Kept { key, bytes, .. } if key == "abc" && *bytes >= 15_000),
            "{found:?}"
        );
    }
}
