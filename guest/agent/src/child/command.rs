//! Finds the program, and words what goes wrong as other runtimes do, since people search for those words.

use std::ffi::CString;
use std::io;

use kvmlet_protocol::{ErrorKind, Failure};
use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};

use crate::failure::{fail, reason};

/// A string the kernel can take.
pub(crate) fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| fail(ErrorKind::BadContainer, format!("{text:?} holds a NUL byte")))
}

/// `NAME=value` of each variable; HOME is the user's when it is not set.
pub(crate) fn environment(variables: &[(String, String)], home: &str) -> Result<Vec<CString>, Failure> {
    let mut all: Vec<CString> = variables
        .iter()
        .map(|(name, value)| c_string(&format!("{name}={value}")))
        .collect::<Result<_, _>>()?;
    if !variables.iter().any(|(name, value)| name == "HOME" && !value.is_empty()) {
        all.retain(|v| v.as_bytes() != b"HOME=");
        all.push(c_string(&format!("HOME={home}"))?);
    }
    Ok(all)
}

/// The path of `name`: itself when it has a slash, else the first in PATH that can be executed.
pub(crate) fn find(name: &str, variables: &[(String, String)]) -> Result<CString, Failure> {
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => c_string(name),
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::NotADirectory => Err(fail(
                ErrorKind::CommandNotFound,
                format!("exec: {name:?}: stat {name}: {}", reason(&e)),
            )),
            Err(e) => Err(fail(ErrorKind::CommandNotExecutable, format!("exec: {name:?}: {}", reason(&e)))),
        };
    }
    // The last one wins, as it does in the program's own environment for most.
    let path = variables
        .iter()
        .rev()
        .find(|(variable, _)| variable == "PATH")
        .map_or("", |(_, value)| value);
    for directory in path.split(':').filter(|_| !name.is_empty() && !path.is_empty()) {
        let candidate = format!(
            "{}/{name}",
            if directory.is_empty() {
                "."
            } else {
                directory.trim_end_matches('/')
            }
        );
        if executable(&candidate).is_ok() {
            return c_string(&candidate);
        }
    }
    Err(fail(
        ErrorKind::CommandNotFound,
        format!("exec: {name:?}: executable file not found in $PATH"),
    ))
}

/// Whether this process may execute the file, by its effective user and groups.
fn executable(path: &str) -> io::Result<()> {
    if FileType::from_raw_mode(stat(path)?.st_mode) == FileType::Directory {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).map_err(io::Error::from)
}

/// What the kernel said to a program that was found.
pub(crate) fn not_executed(program: &CString, error: &io::Error) -> Failure {
    let kind = match error.raw_os_error() {
        // The program was there a moment ago: it is its interpreter that is missing.
        Some(libc::ENOENT) => ErrorKind::CommandNotFound,
        _ => ErrorKind::CommandNotExecutable,
    };
    fail(kind, format!("exec {}: {}", program.to_string_lossy(), reason(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn path(value: &str) -> Vec<(String, String)> {
        vec![("PATH".into(), value.into())]
    }

    #[test]
    fn the_first_executable_file_in_path_wins() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p).to_str().unwrap().to_owned();
        for (name, mode) in [("a/tool", 0o644), ("b/tool", 0o755), ("c/tool", 0o755)] {
            fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            fs::write(dir.path().join(name), "").unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir_all(at("a/dir")).unwrap();
        let all = path(&format!("{}:{}/:{}", at("a"), at("b"), at("c")));
        assert_eq!(find("tool", &all).unwrap().to_str().unwrap(), at("b/tool"));
        for missing in ["dir", "other", ""] {
            let failure = find(missing, &all).unwrap_err();
            assert_eq!(
                failure,
                fail(
                    ErrorKind::CommandNotFound,
                    format!("exec: {missing:?}: executable file not found in $PATH")
                )
            );
        }
        assert!(find("tool", &[]).is_err());
    }

    #[test]
    fn a_path_says_why_it_cannot_be_executed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "").unwrap();
        let (dir, file) = (dir.path().to_str().unwrap(), file.to_str().unwrap());
        let failure = |name: &str| find(name, &[]).unwrap_err();
        assert_eq!(
            failure("/none/x"),
            fail(
                ErrorKind::CommandNotFound,
                "exec: \"/none/x\": stat /none/x: no such file or directory"
            )
        );
        assert_eq!(
            failure(file),
            fail(ErrorKind::CommandNotExecutable, format!("exec: {file:?}: permission denied"))
        );
        assert_eq!(
            failure(dir),
            fail(ErrorKind::CommandNotExecutable, format!("exec: {dir:?}: is a directory"))
        );
    }

    #[test]
    fn home_is_added_only_when_it_is_missing() {
        let set = [("A".to_owned(), "b=c".to_owned()), ("HOME".to_owned(), "/h".to_owned())];
        assert_eq!(environment(&set, "/root").unwrap(), [c"A=b=c".to_owned(), c"HOME=/h".to_owned()]);
        assert_eq!(
            environment(&set[..1], "/root").unwrap(),
            [c"A=b=c".to_owned(), c"HOME=/root".to_owned()]
        );
    }
}
