//! `/logs/`: the host's own log directory, to read, as the kubelet serves it (pkg/kubelet/server, EnableSystemLogHandler): directories as lists of
//! links, files as they are. Links lead nowhere outside it.

use std::{
    fs, io,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use axum::{
    Extension,
    body::Body,
    http::{StatusCode, Uri, header},
    response::{IntoResponse as _, Redirect, Response},
};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use tokio_util::io::ReaderStream;

/// The host's log directory; none when it is not to be served.
#[derive(Debug, Clone)]
pub(crate) struct Root(pub(crate) Option<Arc<FilePath>>);

/// What is at a path.
enum Found {
    File(fs::File, u64),
    /// Names, directories with a slash behind them.
    Directory(Vec<String>),
}

pub(crate) async fn serve(Extension(Root(root)): Extension<Root>, uri: Uri) -> Response {
    let Some(root) = root else {
        return (StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n").into_response();
    };
    let path = uri.path();
    let Some(wanted) = decoded(path.trim_start_matches("/logs")) else {
        return (StatusCode::BAD_REQUEST, "the path is not text\n").into_response();
    };
    let found = tokio::task::spawn_blocking(move || look(&root, wanted.trim_start_matches('/'))).await;
    match found.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(Found::Directory(_)) if !path.ends_with('/') => Redirect::permanent(&format!("{path}/")).into_response(),
        Ok(Found::Directory(names)) => ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], list(&names)).into_response(),
        Ok(Found::File(file, length)) => {
            use tokio::io::AsyncReadExt as _;
            // What is written meanwhile is not in the length that was told.
            let bytes = tokio::fs::File::from_std(file).take(length);
            let told = [
                (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
                (header::CONTENT_LENGTH, length.to_string()),
            ];
            (told, Body::from_stream(ReaderStream::new(bytes))).into_response()
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => (StatusCode::FORBIDDEN, "403 Forbidden\n").into_response(),
        Err(error) => {
            tracing::debug!(%error, path, "read a log of the host");
            (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
        }
    }
}

/// What is at a path below the root. Nothing but files and directories is opened to be read, and what is being asked for never blocks.
fn look(root: &FilePath, path: &str) -> io::Result<Found> {
    let directory = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { "." } else { path };
    let seen = fstat(openat2(&directory, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?)?;
    if !matches!(FileType::from_raw_mode(seen.st_mode), FileType::RegularFile | FileType::Directory) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file = fs::File::from(openat2(&directory, path, flags, Mode::empty(), resolve)?);
    let data = file.metadata()?;
    if data.is_file() {
        return Ok(Found::File(file, data.len()));
    }
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(file)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            let slash = if entry.file_type() == FileType::Directory { "/" } else { "" };
            names.push(name + slash);
        }
    }
    names.sort();
    Ok(Found::Directory(names))
}

/// As Go's file server lists a directory.
fn list(names: &[String]) -> String {
    let line = |name: &String| {
        let link: String = form_urlencoded::byte_serialize(name.as_bytes()).collect();
        let link = link.replace('+', "%20").replace("%2F", "/");
        format!("<a href=\"{link}\">{}</a>\n", escaped(name))
    };
    format!(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n{}</pre>\n",
        names.iter().map(line).collect::<String>()
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;")
}

/// A path of a URL with its percent signs resolved.
fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = behind;
    }
    String::from_utf8(bytes).ok().filter(|path| !path.contains('\0'))
}

/// For the router.
pub(crate) fn root(directory: Option<PathBuf>) -> Extension<Root> {
    Extension(Root(directory.map(Arc::from)))
}
