//! Puts a set of files into a directory so that readers see all of the old ones or all of the new ones, laid out as the kubelet's
//! AtomicWriter does: a dated directory, `..data` that points to it, and links `name -> ..data/name` that never change.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Component, Path};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvmlet_protocol::{ErrorKind, Failure, File, VolumeContent};

use crate::failure::{Attempt, fail};

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";

/// Makes `directory` hold exactly `content`; files and directories are readable by `group` (fsGroup) when there is one.
pub(crate) fn write(directory: &Path, content: &VolumeContent, group: Option<u32>) -> Result<(), Failure> {
    for file in &content.files {
        check(&file.path)?;
    }
    let old = fs::read_link(directory.join(DATA)).ok();
    if old.as_ref().is_some_and(|old| same(&directory.join(old), content)) {
        return Ok(());
    }
    let fresh = fresh_directory(directory).attempt("create a volume's directory")?;
    let fresh_path = directory.join(&fresh);
    if let Err(failure) = fill(&fresh_path, content, group).and_then(|()| swap(directory, &fresh, group)) {
        // What was there before stays visible; the half-written directory must not take memory.
        drop(fs::remove_dir_all(&fresh_path));
        return Err(failure);
    }
    let names: BTreeSet<&str> = content.files.iter().filter_map(|f| f.path.split('/').next()).collect();
    for name in &names {
        link(directory, name, group).attempt(format_args!("link {name}"))?;
    }
    remove_stale(directory, &names).attempt("remove files that are no longer in the volume")?;
    if let Some(old) = old {
        fs::remove_dir_all(directory.join(old)).attempt("remove the volume's former content")?;
    }
    Ok(())
}

/// Relative, plain components only, and nothing that looks like the writer's own files.
fn check(path: &str) -> Result<(), Failure> {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || !plain || path.starts_with("..") || path.ends_with('/') || path.contains("//") || path.contains('\0') {
        return Err(fail(
            ErrorKind::BadContainer,
            format!("{path:?} is not a file name a volume can hold"),
        ));
    }
    Ok(())
}

fn same(directory: &Path, content: &VolumeContent) -> bool {
    fn count(directory: &Path) -> io::Result<usize> {
        let mut files = 0;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            files += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
        }
        Ok(files)
    }
    let unchanged = |file: &File| {
        let path = directory.join(&file.path);
        let Ok(meta) = fs::symlink_metadata(&path) else { return false };
        // The group may have added read permission; it never takes any away.
        meta.is_file()
            && meta.uid() == file.uid.unwrap_or(0)
            && meta.mode() & !0o440 & 0o7777 == file.mode & !0o440 & 0o7777
            && fs::read(&path).is_ok_and(|data| data == file.data)
    };
    content.files.iter().all(unchanged) && count(directory).is_ok_and(|files| files == content.files.len())
}

fn fresh_directory(directory: &Path) -> io::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for attempt in 0.. {
        let name = format!("..{}.{:09}", date(now), u64::from(now.subsec_nanos()) + attempt);
        match fs::DirBuilder::new().mode(0o755).create(directory.join(&name)) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => {}
            Err(e) => return Err(e),
            Ok(()) => return Ok(name),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// `2006_01_02_15_04_05`, UTC.
fn date(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}_{month:02}_{day:02}_{:02}_{:02}_{:02}",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

fn fill(directory: &Path, content: &VolumeContent, group: Option<u32>) -> Result<(), Failure> {
    own_directory(directory, group).attempt("set a volume's owner")?;
    for file in &content.files {
        let mut parent = directory.to_path_buf();
        for component in Path::new(&file.path).parent().into_iter().flat_map(Path::components) {
            parent.push(component);
            if !parent.is_dir() {
                fs::create_dir(&parent).attempt(format_args!("create {} in a volume", file.path))?;
                own_directory(&parent, group).attempt("set a volume's owner")?;
            }
        }
        write_file(&directory.join(&file.path), file, group).attempt(format_args!("write {} in a volume", file.path))?;
    }
    Ok(())
}

fn write_file(path: &Path, file: &File, group: Option<u32>) -> io::Result<()> {
    let mut to = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut to, &file.data)?;
    chown(path, file.uid, group)?;
    let mode = file.mode & 0o777 | if group.is_some() { 0o440 } else { 0 };
    to.set_permissions(fs::Permissions::from_mode(mode))
}

fn own_directory(path: &Path, group: Option<u32>) -> io::Result<()> {
    chown(path, None, group)?;
    fs::set_permissions(path, fs::Permissions::from_mode(if group.is_some() { 0o2755 } else { 0o755 }))
}

fn swap(directory: &Path, fresh: &str, group: Option<u32>) -> Result<(), Failure> {
    let next = directory.join(NEXT);
    drop(fs::remove_file(&next));
    symlink(fresh, &next)
        .and_then(|()| lchown(&next, None, group))
        .and_then(|()| fs::rename(&next, directory.join(DATA)))
        .attempt("swap a volume's content")
}

fn link(directory: &Path, name: &str, group: Option<u32>) -> io::Result<()> {
    let path = directory.join(name);
    match symlink(Path::new(DATA).join(name), &path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
        Ok(()) => lchown(&path, None, group),
    }
}

fn remove_stale(directory: &Path, names: &BTreeSet<&str>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|n| n.starts_with("..") || names.contains(n));
        if !ours && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(files: &[(&str, &str)]) -> VolumeContent {
        let file = |(path, data): &(&str, &str)| File {
            path: (*path).into(),
            mode: 0o644,
            uid: None,
            data: data.as_bytes().into(),
        };
        VolumeContent {
            files: files.iter().map(file).collect(),
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n != DATA)
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_second_content_replaces_the_first_and_leaves_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &content(&[("a", "1"), ("gone", "x"), ("d/e", "2")]), None).unwrap();
        let first = fs::read_link(dir.path().join(DATA)).unwrap();
        assert_eq!(fs::read_link(dir.path().join("d")).unwrap(), Path::new("..data/d"));
        write(dir.path(), &content(&[("a", "3"), ("d/e", "2")]), None).unwrap();
        let second = fs::read_link(dir.path().join(DATA)).unwrap();
        assert_ne!(first, second);
        assert_eq!(names(dir.path()), [second.to_str().unwrap(), "a", "d"]);
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "3");
        assert_eq!(fs::read_to_string(dir.path().join("d/e")).unwrap(), "2");
    }

    #[test]
    fn the_same_content_again_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &content(&[("a", "1")]), None).unwrap();
        let first = fs::read_link(dir.path().join(DATA)).unwrap();
        write(dir.path(), &content(&[("a", "1")]), None).unwrap();
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), first);
        write(dir.path(), &content(&[]), None).unwrap();
        assert_ne!(fs::read_link(dir.path().join(DATA)).unwrap(), first);
        assert_eq!(names(dir.path()).len(), 1);
    }

    #[test]
    fn a_group_can_read_what_only_the_owner_could() {
        let dir = tempfile::tempdir().unwrap();
        let mut secret = content(&[("key", "s")]);
        secret.files[0].mode = 0o400;
        write(dir.path(), &secret, Some(2000)).unwrap();
        let meta = fs::metadata(dir.path().join("key")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o440, 2000));
        let data = fs::metadata(dir.path().join(DATA)).unwrap();
        assert_eq!((data.mode() & 0o7777, data.gid()), (0o2755, 2000));
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["", "/a", "../a", "a/../../b", "..data", "a//b", "a/", "./a", "a\0b"] {
            assert!(write(dir.path(), &content(&[(path, "")]), None).is_err(), "{path:?}");
        }
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(Duration::from_secs(0)), "1970_01_01_00_00_00");
        assert_eq!(date(Duration::from_secs(951_827_696)), "2000_02_29_12_34_56");
        assert_eq!(date(Duration::from_secs(1_767_225_599)), "2025_12_31_23_59_59");
    }
}
