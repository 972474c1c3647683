//! The programs of an image and of a host: a folder named by the digest of what is in it, which is what `sha256sum * | sha256sum` says there.
//!
//! A folder may go as soon as the daemon that was started from it has been replaced. Machines do not need it: their process is the file that its daemon
//! opened when it started, has read the guest's kernel and initramfs, and opens nothing by a path of the host once it is confined. What they have
//! open stays until they end, as with the package, whose upgrade takes the files from under them, too.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

/// Where folders of programs are on the host: in the state directory that the unit makes anyway, and which uninstalling takes away.
pub(super) const BIN: &str = "/var/lib/kvmlet/bin";
/// The program in its folder; in [`BIN`] a link to the present one.
pub(super) const PROGRAM: &str = "kvmlet";
/// Before the name of a folder that is not complete.
const PARTIAL: &str = "partial-";

/// A folder of programs, of which its name is the digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Programs {
    pub(super) folder: PathBuf,
    pub(super) digest: String,
}

impl Programs {
    /// That of this program. Its content is not looked at.
    pub(super) fn own() -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let folder = program.parent().context("this program is in no folder")?;
        Self::of(folder)
    }

    fn of(folder: &Path) -> anyhow::Result<Self> {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        ensure!(
            is_digest(name),
            "{} is not named by the digest of what is in it: this command is for the image that `make image` makes",
            folder.display()
        );
        Ok(Self {
            folder: folder.to_owned(),
            digest: name.to_owned(),
        })
    }

    /// Puts them into `bin`, whole or not at all, and says where they are. What is there already is looked at.
    pub(super) fn copy_to(&self, bin: &Path) -> anyhow::Result<PathBuf> {
        let place = bin.join(&self.digest);
        if place.exists() {
            if digest(&place).is_ok_and(|found| found == self.digest) {
                return Ok(place);
            }
            // Somebody has changed it, or a disk has.
            fs::remove_dir_all(&place).with_context(|| format!("remove {}, which is not what its name says", place.display()))?;
        }
        let partial = bin.join(format!("{PARTIAL}{}", self.digest));
        let copied = self
            .copy(&partial)
            .with_context(|| format!("copy the programs to {}", partial.display()))?;
        if copied != self.digest {
            bail!(
                "the programs' digest is {copied}, and their folder is {}: the image is damaged",
                self.folder.display()
            );
        }
        fs::rename(&partial, &place).with_context(|| format!("rename {}", partial.display()))?;
        sync(bin)?;
        Ok(place)
    }

    fn copy(&self, to: &Path) -> io::Result<String> {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        fs::create_dir_all(to)?;
        for name in names(&self.folder)? {
            let (from, to) = (self.folder.join(&name), to.join(&name));
            fs::copy(&from, &to)?;
            let mode = from.metadata()?.permissions().mode() & 0o755;
            fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
            File::open(&to)?.sync_all()?;
        }
        File::open(to)?.sync_all()?;
        digest(to)
    }
}

/// Has the link in `bin` lead to the program of this digest.
pub(super) fn link(bin: &Path, digest: &str) -> io::Result<()> {
    let (link, partial) = (bin.join(PROGRAM), bin.join(format!("{PARTIAL}{PROGRAM}")));
    let target = Path::new(digest).join(PROGRAM);
    if fs::read_link(&link).is_ok_and(|found| found == target) {
        return Ok(());
    }
    remove(&partial)?;
    symlink(&target, &partial)?;
    fs::rename(&partial, &link)?;
    sync(bin)
}

/// Removes folders of other programs than those of `present`, and says which.
pub(super) fn sweep(bin: &Path, present: &str) -> io::Result<Vec<String>> {
    let found = fs::read_dir(bin)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let gone = may_go(found.collect::<io::Result<Vec<_>>>()?, present);
    for name in &gone {
        fs::remove_dir_all(bin.join(name))?;
    }
    Ok(gone)
}

/// Of the names in [`BIN`] those of folders that nobody needs, once the daemon of `present` is at work.
fn may_go(names: Vec<String>, present: &str) -> Vec<String> {
    let is_folder = |name: &String| is_digest(name.strip_prefix(PARTIAL).unwrap_or(name));
    names.into_iter().filter(|name| is_folder(name) && name != present).collect()
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Files of a folder, in order.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = entries.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn digest(folder: &Path) -> io::Result<String> {
    let mut all = Sha256::new();
    for name in names(folder)? {
        let mut one = Hash(Sha256::new());
        io::copy(&mut File::open(folder.join(&name))?, &mut one)?;
        all.update(format!("{}  {name}\n", hex(&one.0.finalize())));
    }
    Ok(hex(&all.finalize()))
}

struct Hash(Sha256);

impl io::Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a folder has been told lasts.
pub(super) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A file that is not there is gone, too.
pub(super) fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Two programs, in a folder that is named by their digest as another tool says it.
    fn image(root: &Path, content: &str) -> Programs {
        let folder = root.join("made");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(PROGRAM), content).unwrap();
        fs::set_permissions(folder.join(PROGRAM), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.join("vmlinux"), "kernel").unwrap();
        let said = Command::new("sh")
            .args(["-c", "LC_ALL=C sha256sum * | sha256sum"])
            .current_dir(&folder)
            .output()
            .unwrap();
        let digest = String::from_utf8(said.stdout).unwrap().split(' ').next().unwrap().to_owned();
        let named = root.join(&digest);
        fs::rename(&folder, &named).unwrap();
        Programs::of(&named).unwrap()
    }

    #[test]
    fn programs_are_put_into_a_folder_that_is_named_by_their_digest() {
        let (one, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let programs = image(one.path(), "one");
        let place = programs.copy_to(bin.path()).unwrap();
        assert_eq!(place, bin.path().join(&programs.digest));
        assert_eq!(fs::read(place.join(PROGRAM)).unwrap(), b"one");
        assert_eq!(place.join(PROGRAM).metadata().unwrap().permissions().mode() & 0o777, 0o755);
        link(bin.path(), &programs.digest).unwrap();
        link(bin.path(), &programs.digest).unwrap();
        assert_eq!(fs::read(bin.path().join(PROGRAM)).unwrap(), b"one");
    }

    #[test]
    fn programs_that_somebody_has_changed_are_put_there_again_and_others_are_not_touched() {
        let (one, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let programs = image(one.path(), "one");
        let place = programs.copy_to(bin.path()).unwrap();
        let made = || place.join(PROGRAM).metadata().unwrap().modified().unwrap();
        let before = made();
        programs.copy_to(bin.path()).unwrap();
        assert_eq!(made(), before);
        fs::write(place.join(PROGRAM), "spoilt").unwrap();
        programs.copy_to(bin.path()).unwrap();
        assert_eq!(fs::read(place.join(PROGRAM)).unwrap(), b"one");
    }

    #[test]
    fn an_image_whose_programs_are_not_what_its_folder_is_named_by_is_refused_and_leaves_nothing_that_could_be_started() {
        let (one, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let programs = image(one.path(), "one");
        fs::write(programs.folder.join("more"), "more").unwrap();
        let said = programs.copy_to(bin.path()).unwrap_err().to_string();
        assert!(said.contains("damaged"), "{said}");
        assert!(!bin.path().join(&programs.digest).exists());
        let said = Programs::of(Path::new("/usr/bin")).unwrap_err().to_string();
        assert!(said.contains("make image"), "{said}");
    }

    #[test]
    fn folders_of_other_programs_go_and_nothing_else_does() {
        let (one, other, bin) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        let (old, new) = (image(one.path(), "old"), image(other.path(), "new"));
        for programs in [&old, &new] {
            programs.copy_to(bin.path()).unwrap();
            link(bin.path(), &programs.digest).unwrap();
        }
        fs::write(bin.path().join("settings"), "").unwrap();
        assert_eq!(sweep(bin.path(), &new.digest).unwrap(), [old.digest]);
        assert_eq!(names(bin.path()).unwrap().len(), 3, "{:?}", names(bin.path()));
        assert_eq!(fs::read(bin.path().join(PROGRAM)).unwrap(), b"new");
    }

    #[test]
    fn a_folder_that_was_not_finished_goes_too() {
        let digest = |letter: char| letter.to_string().repeat(64);
        let names = vec![
            digest('a'),
            digest('b'),
            format!("partial-{}", digest('b')),
            "kvmlet".into(),
            "pending".into(),
        ];
        assert_eq!(may_go(names.clone(), &names[1]), [names[0].clone(), names[2].clone()]);
    }
}
