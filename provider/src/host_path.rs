//! hostPath volumes: which of them the node's configuration allows, and the directories and files that they name. A path is followed below its
//! allowed prefix only: a pod that may write there cannot lead another one out of it by a link.

use std::{
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::HostPathVolumeSource;
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, open, openat2},
    io::Errno,
};

use crate::{
    config::AllowedPath,
    desired::{DesiredPod, Refusal},
};

/// The key that allows a path.
const KEY: &str = "volumes.hostPath.allowed";

/// Something of the host, open, to be shared with a machine.
#[derive(Debug)]
pub struct Shared {
    /// The pod's volume.
    pub volume: String,
    /// What the guest mounts it by.
    pub tag: String,
    /// For messages.
    pub path: PathBuf,
    /// Opened with O_PATH.
    pub what: OwnedFd,
    /// A plain file, not a directory.
    pub file: bool,
    /// No container may write to it.
    pub read_only: bool,
}

impl Shared {
    /// The same, with a descriptor of its own.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self {
            volume: self.volume.clone(),
            tag: self.tag.clone(),
            path: self.path.clone(),
            what: self.what.try_clone()?,
            ..*self
        })
    }
}

/// The hostPath volumes of a pod, by name.
fn volumes(pod: &DesiredPod) -> impl Iterator<Item = (&str, &HostPathVolumeSource)> {
    let volumes = pod.volumes().iter();
    volumes.filter_map(|volume| Some((volume.name.as_str(), volume.host_path.as_ref()?)))
}

/// Whether all that mount a volume only read it.
fn only_read(pod: &DesiredPod, volume: &str) -> bool {
    let containers = pod.containers.iter().map(|container| pod.spec_of(container));
    let mut mounts = containers.flat_map(|container| container.volume_mounts.iter().flatten());
    mounts.all(|mount| mount.name != volume || mount.read_only == Some(true))
}

/// The rule for a path, and what is below its prefix.
fn rule<'a>(path: &'a Path, allowed: &'a [AllowedPath]) -> Option<(&'a AllowedPath, &'a Path)> {
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let holding = allowed
        .iter()
        .filter_map(|rule| Some((rule, path.strip_prefix(&rule.prefix).ok()?)));
    holding.filter(|_| plain).max_by_key(|(rule, _)| rule.prefix.as_os_str().len())
}

/// Refuses a pod with a path that is not allowed here.
pub fn admit(pod: &DesiredPod, allowed: &[AllowedPath]) -> Result<(), Refusal> {
    for (name, source) in volumes(pod) {
        let why = match rule(Path::new(&source.path), allowed) {
            None => format!("is under no prefix of {KEY}"),
            Some((rule, _)) if rule.read_only && !only_read(pod, name) => {
                format!("is mounted writable, and the entry {} of {KEY} is readOnly", rule.prefix.display())
            }
            Some(_) => continue,
        };
        return Err(Refusal {
            reason: "HostPathNotAllowed",
            message: format!("volume {name:?}: hostPath {} {why} in this node's configuration", source.path),
        });
    }
    Ok(())
}

/// Opens all that a pod names of the host, and makes what it wants made; the error is the sentence of a FailedMount event.
pub fn open_all(pod: &DesiredPod, allowed: &[AllowedPath]) -> Result<Vec<Shared>, String> {
    let mut all = Vec::new();
    for (number, (name, source)) in volumes(pod).enumerate() {
        let failed = |why: String| format!("MountVolume.SetUp failed for volume {name:?} : {why}");
        let path = Path::new(&source.path);
        // Refused before; but the configuration may be another since.
        let (rule, rest) = rule(path, allowed).ok_or_else(|| failed(format!("{} is under no prefix of {KEY}", source.path)))?;
        let (what, kind) = open_one(&rule.prefix, rest, source.type_.as_deref().unwrap_or_default())
            .map_err(|why| failed(format!("hostPath type check failed: {} {why}", source.path)))?;
        all.push(Shared {
            volume: name.to_owned(),
            tag: format!("share{number}"),
            path: path.to_owned(),
            what,
            file: kind == FileType::RegularFile,
            read_only: rule.read_only || only_read(pod, name),
        });
    }
    Ok(all)
}

fn open_one(prefix: &Path, rest: &Path, wanted: &str) -> Result<(OwnedFd, FileType), String> {
    let failed = |error: Errno| match error {
        Errno::NOENT => "is not there".to_owned(),
        Errno::XDEV => format!("leads out of {}", prefix.display()),
        error => format!("cannot be opened: {}", std::io::Error::from(error)),
    };
    if matches!(wanted, "" | "DirectoryOrCreate") {
        // As administrators name it, links and all; what is made is made below.
        std::fs::create_dir_all(prefix).map_err(|error| format!("cannot be made: {error}"))?;
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let top = open(prefix, flags, Mode::empty()).map_err(failed)?;
    let found = match beneath(&top, rest, flags) {
        Err(Errno::NOENT) if wanted == "FileOrCreate" => make_file(&top, rest).and_then(|()| beneath(&top, rest, flags)),
        Err(Errno::NOENT) if matches!(wanted, "" | "DirectoryOrCreate") => {
            make_directories(&top, rest).and_then(|()| beneath(&top, rest, flags))
        }
        other => other,
    };
    let found = found.map_err(failed)?;
    let kind = FileType::from_raw_mode(fstat(&found).map_err(failed)?.st_mode);
    match (kind, wanted) {
        (FileType::Directory, "" | "Directory" | "DirectoryOrCreate") | (FileType::RegularFile, "" | "File" | "FileOrCreate") => {
            Ok((found, kind))
        }
        (_, "Directory" | "DirectoryOrCreate") => Err("is not a directory".into()),
        (_, "File" | "FileOrCreate") => Err("is not a file".into()),
        _ => Err("is neither a directory nor a file: nothing else can be shared with a pod that has a kernel of its own".into()),
    }
}

/// What a path leads to without leaving `top`.
fn beneath(top: &OwnedFd, rest: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    if rest.as_os_str().is_empty() {
        return rustix::io::fcntl_dupfd_cloexec(top, 3);
    }
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    openat2(top, rest, flags, Mode::empty(), within)
}

fn make_directories(top: &OwnedFd, rest: &Path) -> Result<(), Errno> {
    let mut parent = beneath(top, Path::new(""), OFlags::PATH)?;
    let mut path = PathBuf::new();
    for part in rest.components() {
        match mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        path.push(part);
        parent = beneath(top, &path, OFlags::PATH | OFlags::CLOEXEC)?;
    }
    Ok(())
}

/// In a directory that is there, as the kubelet does.
fn make_file(top: &OwnedFd, rest: &Path) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (rest.parent(), rest.file_name()) else {
        return Err(Errno::ISDIR);
    };
    let parent = beneath(top, parent, OFlags::PATH | OFlags::CLOEXEC)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(&parent, name, flags, Mode::from_raw_mode(0o644), ResolveFlags::BENEATH).map(drop)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, sync::Arc};

    use super::*;
    use serde_json::json;

    fn pod(path: &Path, kind: &str, read_only: bool) -> DesiredPod {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "volumes": [{"name": "other", "emptyDir": {}}, {"name": "v", "hostPath": {"path": path, "type": kind}}],
            "containers": [
                {"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true}, {"name": "other", "mountPath": "/o"}]},
                {"name": "b", "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": read_only}]}]}});
        DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0
    }

    fn allow(prefix: impl Into<PathBuf>, read_only: bool) -> AllowedPath {
        AllowedPath {
            prefix: prefix.into(),
            read_only,
        }
    }

    #[test]
    fn a_path_is_refused_unless_it_is_allowed_and_the_refusal_names_the_key() {
        let allowed = [allow("/srv/data", false), allow("/srv/data/fixed", true)];
        let verdict = |path: &str, read_only| admit(&pod(Path::new(path), "", read_only), &allowed).map_err(|refusal| refusal.message);
        for path in ["/srv/data", "/srv/data/", "/srv/data/a/b"] {
            assert_eq!(verdict(path, false), Ok(()), "{path}");
        }
        for path in ["/", "/srv", "/srv/database", "/srv/data/../../etc", "srv/data", "/etc"] {
            let words = verdict(path, true).unwrap_err();
            assert!(words.contains(path) && words.contains("volumes.hostPath.allowed"), "{words}");
        }
        assert_eq!(verdict("/srv/data/fixed/x", true), Ok(()));
        assert!(verdict("/srv/data/fixed/x", false).unwrap_err().contains("readOnly"));
        assert!(admit(&pod(Path::new("/srv"), "", true), &[]).is_err(), "nothing by default");
        assert!(admit(&pod(Path::new("/any"), "", false), &[allow("/", false)]).is_ok());
    }

    /// What is opened, or why it is not.
    fn opened(top: &Path, path: &str, kind: &str) -> Result<(bool, bool), String> {
        let all = open_all(&pod(&top.join(path), kind, true), &[allow(top, false)])?;
        assert_eq!((all.len(), &all[0].volume[..], &all[0].tag[..]), (1, "v", "share0"));
        Ok((all[0].file, all[0].read_only))
    }

    #[test]
    fn what_is_there_is_opened_by_its_type_and_what_is_wanted_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        fs::create_dir(top.join("d")).unwrap();
        fs::write(top.join("f"), "").unwrap();
        drop(std::os::unix::net::UnixListener::bind(top.join("s")).unwrap());
        for (path, kind) in [
            ("d", ""),
            ("d", "Directory"),
            ("new/below", "DirectoryOrCreate"),
            ("other/below", ""),
        ] {
            assert_eq!(opened(top, path, kind), Ok((false, true)), "{path} {kind}");
        }
        for (path, kind) in [("f", ""), ("f", "File"), ("f", "FileOrCreate"), ("d/made", "FileOrCreate")] {
            assert_eq!(opened(top, path, kind), Ok((true, true)), "{path} {kind}");
        }
        for (path, kind, words) in [
            ("f", "Directory", "is not a directory"),
            ("f", "DirectoryOrCreate", "is not a directory"),
            ("d", "File", "is not a file"),
            ("s", "", "neither a directory nor a file"),
            ("gone", "Directory", "is not there"),
            ("gone", "File", "is not there"),
            ("gone/f", "FileOrCreate", "is not there"),
        ] {
            let error = opened(top, path, kind).unwrap_err();
            assert!(
                error.contains(words) && error.contains("for volume \"v\""),
                "{path} {kind}: {error}"
            );
        }
        assert_eq!(fs::metadata(top.join("d/made")).unwrap().len(), 0);
    }

    #[test]
    fn a_link_leads_to_what_is_below_the_prefix_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let (top, outside) = (directory.path().join("allowed"), directory.path().join("outside"));
        fs::create_dir_all(top.join("d")).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink("d", top.join("inner")).unwrap();
        symlink("../outside", top.join("up")).unwrap();
        symlink(&outside, top.join("away")).unwrap();
        assert_eq!(opened(&top, "inner", "Directory"), Ok((false, true)));
        for (path, kind) in [
            ("up", ""),
            ("away", ""),
            ("up/new", "DirectoryOrCreate"),
            ("away/new", ""),
            ("up/f", "FileOrCreate"),
        ] {
            let error = opened(&top, path, kind).unwrap_err();
            assert!(error.contains("leads out of"), "{path}: {error}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
