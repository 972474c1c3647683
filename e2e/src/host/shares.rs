//! What of this machine an emulated host may read at the same paths: the workspace, cargo's target directory and the
//! cache. Test programs and their data are then simply there. Over 9p, so slow: nothing that is timed may read from it.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{Host, HostKind};
use crate::paths::{cache, repository, target};

/// Mount tags and folders.
pub(super) fn list() -> Result<Vec<(String, PathBuf)>> {
    let mut folders = vec![repository(), target()?, cache()];
    // One inside another needs no share of its own.
    folders.sort();
    folders.dedup_by(|inner, outer| inner.starts_with(outer));
    folders.retain(|folder| folder.is_dir());
    Ok(folders
        .into_iter()
        .enumerate()
        .map(|(index, folder)| (format!("rig{index}"), folder))
        .collect())
}

impl Host {
    /// Runs a program of this machine, cargo's test programs above all, with this process's output, folder and those
    /// environment variables that mean something to it. Answers its exit code.
    pub fn run_program(&self, program: &Path, arguments: &[String]) -> Result<i32> {
        let folder = env::current_dir().context("find the current folder")?;
        let program = program.canonicalize().with_context(|| format!("find {}", program.display()))?;
        if self.kind == HostKind::Emulated {
            self.mount_shares()?;
        }
        // A copy, as starting from 9p would read page by page.
        let name = program.file_name().context("a program without a name")?.to_string_lossy();
        let copy = format!("/tmp/{}-{name}", std::process::id());
        self.put_file(&copy, 0o755, &program)?;
        let folder = folder.to_string_lossy();
        let mut argv = vec!["env".to_owned(), "-C".into(), folder.into_owned()];
        let meant = |key: &str| ["RUST_", "CARGO_", "KVMLET_"].iter().any(|prefix| key.starts_with(prefix));
        let variables: BTreeMap<String, String> = env::vars().filter(|(key, _)| meant(key)).collect();
        argv.extend(variables.into_iter().map(|(key, value)| format!("{key}={value}")));
        argv.push(copy.clone());
        argv.extend_from_slice(arguments);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let code = self.attach(&argv, std::io::empty());
        self.sh(&format!("rm -f '{copy}'"))?;
        code
    }

    fn mount_shares(&self) -> Result<()> {
        for (tag, folder) in list()? {
            let folder = folder.to_string_lossy();
            ensure!(!folder.contains('\''), "a path with a quote: {folder}");
            let options = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap,ro";
            self.sh(&format!(
                "mountpoint -q '{folder}' || {{ mkdir -p '{folder}' && mount -t 9p -o {options} {tag} '{folder}'; }}"
            ))?;
        }
        Ok(())
    }
}
