//! How errors become answers: a kind and a sentence.

use std::fmt::Display;
use std::io;

use kvmlet_protocol::{ErrorKind, Failure};

/// A failure of `kind`.
pub(crate) fn fail(kind: ErrorKind, message: impl Into<String>) -> Failure {
    Failure {
        kind,
        message: message.into(),
    }
}

/// Says what was attempted when something goes wrong.
pub(crate) trait Attempt<T> {
    /// `what` reads "mount the scratch disk". A full disk or memory becomes [`ErrorKind::NoSpace`].
    fn attempt(self, what: impl Display) -> Result<T, Failure>;
    /// Like `attempt`, but it is the container's specification that cannot be met.
    fn wanted(self, what: impl Display) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn attempt(self, what: impl Display) -> Result<T, Failure> {
        self.map_err(|e| describe(e.into(), ErrorKind::Internal, &what))
    }

    fn wanted(self, what: impl Display) -> Result<T, Failure> {
        self.map_err(|e| describe(e.into(), ErrorKind::BadContainer, &what))
    }
}

fn describe(error: io::Error, kind: ErrorKind, what: &dyn Display) -> Failure {
    let kind = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::ENOMEM | libc::EDQUOT) => ErrorKind::NoSpace,
        _ => kind,
    };
    fail(kind, format!("{what}: {}", reason(&error)))
}

/// An error as other runtimes word it: lower case, without the number.
pub(crate) fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".into(),
        Some(libc::EACCES) => "permission denied".into(),
        Some(libc::EPERM) => "operation not permitted".into(),
        Some(libc::ENOTDIR) => "not a directory".into(),
        Some(libc::EISDIR) => "is a directory".into(),
        Some(libc::ENOEXEC) => "exec format error".into(),
        Some(libc::ENOSPC) => "no space left on device".into(),
        Some(libc::ENOMEM) => "cannot allocate memory".into(),
        Some(libc::EINVAL) => "invalid argument".into(),
        Some(libc::EROFS) => "read-only file system".into(),
        Some(libc::E2BIG) => "argument list too long".into(),
        Some(libc::ELOOP) => "too many levels of symbolic links".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = Err::<(), _>(io::Error::from_raw_os_error(libc::ENOSPC)).wanted("create /x");
        assert_eq!(full, Err(fail(ErrorKind::NoSpace, "create /x: no space left on device")));
        let missing = Err::<(), _>(io::Error::from_raw_os_error(libc::ENOENT)).attempt("open /x");
        assert_eq!(missing, Err(fail(ErrorKind::Internal, "open /x: no such file or directory")));
    }
}
