//! Trees as the kernel shows them: an image mounted from its extents, a directory umoci unpacked, and what to compare of both.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use kvmlet_image::ImageDevice;
use sha2::{Digest, Sha256};

/// Runs a program that must succeed.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be run, is its package installed? {error}"));
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{program} {args:?}: {text}");
    text
}

/// Lays the extents of a device into one file, as a machine sees them.
pub fn concatenate(device: &ImageDevice, to: &Path) {
    let out = OpenOptions::new().create_new(true).write(true).open(to).unwrap();
    out.set_len(device.size).unwrap();
    let mut at = 0;
    let mut buf = vec![0; 1 << 20];
    for extent in &device.extents {
        assert_eq!((extent.offset, extent.length % (2 << 20)), (0, 0));
        let file = File::open(&extent.path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), extent.length);
        let mut done = 0;
        while done < extent.length {
            let count = file.read_at(&mut buf, done).unwrap();
            if buf[..count].iter().any(|byte| *byte != 0) {
                out.write_all_at(&buf[..count], at + done).unwrap();
            }
            done += count as u64;
        }
        at += extent.length;
    }
}

/// A mounted image, checked by fsck first.
pub struct Mounted {
    pub root: PathBuf,
}

impl Mounted {
    pub fn new(device: &ImageDevice, dir: &Path) -> Self {
        let file = dir.join("device");
        concatenate(device, &file);
        let file = file.to_str().unwrap().to_owned();
        run("fsck.erofs", &[&file]);
        let root = dir.join("root");
        fs::create_dir(&root).unwrap();
        run("mount", &["-t", "erofs", "-o", "loop,ro", &file, root.to_str().unwrap()]);
        Self { root }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[self.root.to_str().unwrap()]);
    }
}

/// All that is compared of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub size: u64,
    pub device: u64,
    pub links: u64,
    /// Digest of a file's bytes, target of a symlink.
    pub content: String,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path, in order, of the same inode.
    pub same_as: String,
}

/// Everything below a directory by path.
pub fn walk(root: &Path) -> BTreeMap<String, Seen> {
    let mut paths = vec![root.to_path_buf()];
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            paths.push(entry.path());
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
        }
    }
    paths.sort();
    let mut inodes: HashMap<u64, String> = HashMap::new();
    let mut seen = BTreeMap::new();
    for path in paths {
        let data = fs::symlink_metadata(&path).unwrap();
        let name = String::from_utf8_lossy(path.strip_prefix(root).unwrap().as_os_str().as_bytes()).into_owned();
        let same_as = inodes.entry(data.ino()).or_insert_with(|| name.clone()).clone();
        let kind = data.file_type();
        let content = if kind.is_file() {
            digest(&path)
        } else if kind.is_symlink() {
            fs::read_link(&path).unwrap().to_string_lossy().into_owned()
        } else {
            String::new()
        };
        let size = if kind.is_dir() { 0 } else { data.size() };
        seen.insert(
            name,
            Seen {
                mode: data.mode(),
                owner: (data.uid(), data.gid()),
                mtime: (data.mtime(), data.mtime_nsec()),
                size,
                device: data.rdev(),
                links: data.nlink(),
                content,
                xattrs: xattrs(&path),
                same_as,
            },
        );
    }
    seen
}

fn digest(path: &Path) -> String {
    let mut file = File::open(path).unwrap();
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buf).unwrap();
        if count == 0 {
            return format!("{:x?}", &hash.finalize()[..]);
        }
        hash.update(&buf[..count]);
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let Ok(len) = rustix::fs::llistxattr(path, &mut names[..]) else {
        return BTreeMap::new();
    };
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0; 64 << 10];
            let len = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).unwrap();
            (name, value[..len].to_vec())
        })
        .collect()
}
