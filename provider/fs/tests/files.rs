//! A directory as its guest sees it, and what a guest cannot make of it.

mod support;

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
        net::UnixStream,
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use kvmlet_fs::{Limits, ServeError, Server, keep_capabilities};
use rustix::fs::{Mode, OFlags, open};

use support::{Attributes, Error, Guest, O_RDWR, ROOT, body, u32_at, u64_at};

const EPERM: Error = 1;
const ENOENT: Error = 2;
const ENXIO: Error = 6;
const EEXIST: Error = 17;
const ENOTDIR: Error = 20;
const EISDIR: Error = 21;
const EINVAL: Error = 22;
const ENFILE: Error = 23;
const EROFS: Error = 30;
const ENOSYS: Error = 38;
const EOPNOTSUPP: Error = 95;
const ESTALE: Error = 116;

const LIMITS: Limits = Limits {
    nodes: 64,
    handles: 8,
    threads: 3,
};

/// A directory with another beside it that must not be reached.
struct Rig {
    top: tempfile::TempDir,
    guest: Guest,
    server: Option<thread::JoinHandle<Result<(), ServeError>>>,
}

impl Rig {
    fn new(read_only: bool) -> Self {
        let top = tempfile::tempdir().expect("the test's own folder");
        fs::create_dir(top.path().join("shared")).expect("the test's own folder");
        fs::write(top.path().join("secret"), "not for guests").expect("the test's own folder");
        let of = |path: &Path| open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("the test's own folder");
        let (ours, theirs) = UnixStream::pair().expect("the test's own folder");
        let server = Server::new(
            of(&top.path().join("shared")),
            of(Path::new("/proc/self/fd")),
            read_only,
            LIMITS,
            theirs,
        )
        .expect("the test's own folder");
        let serve = move || {
            rustix::process::umask(Mode::empty());
            keep_capabilities().expect("these tests run as root");
            server.serve()
        };
        Self {
            top,
            server: Some(thread::spawn(serve)),
            guest: Guest::new(ours),
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.top.path().join("shared").join(name)
    }

    fn secret(&self) -> String {
        fs::read_to_string(self.top.path().join("secret")).expect("the test's own folder")
    }

    /// The server's end, once its guest is gone.
    fn end(mut self) -> Result<(), ServeError> {
        let _ = self.guest.socket.shutdown(std::net::Shutdown::Both);
        self.server.take().expect("ended once").join().expect("it does not panic")
    }
}

#[test]
fn a_file_is_created_written_and_read_with_its_owner_and_mode() {
    let mut rig = Rig::new(false);
    rig.guest.user = (1234, 5678);
    let (node, told, handle) = rig.guest.create(ROOT, "new", O_RDWR, 0o100_640).unwrap();
    assert_eq!((told.uid, told.gid, told.mode), (1234, 5678, 0o100_640));
    assert_eq!(rig.guest.write(handle, 3, b"content"), Ok(7));
    assert_eq!(rig.guest.read(handle, 0, 100), Ok(b"\0\0\0content".to_vec()));
    assert_eq!(rig.guest.getattr(node).unwrap().size, 10);
    rig.guest.release(handle).unwrap();
    let there = fs::metadata(rig.path("new")).unwrap();
    assert_eq!((there.uid(), there.gid(), there.mode(), there.len()), (1234, 5678, 0o100_640, 10));
    // The server is itself again: what it makes next for root is root's.
    rig.guest.user = (0, 0);
    let (_, told) = rig.guest.mkdir(ROOT, "directory", 0o40_755).unwrap();
    assert_eq!((told.uid, told.gid, told.mode), (0, 0, 0o40_755));
    assert_eq!(rig.guest.create(ROOT, "new", O_RDWR | 0o200, 0o100_640), Err(EEXIST));
    assert_eq!(rig.guest.create(ROOT, "new", O_RDWR, 0o100_640).unwrap().0, node);
    rig.end().unwrap();
}

#[test]
fn a_group_is_inherited_where_the_directory_says_so() {
    let mut rig = Rig::new(false);
    fs::create_dir(rig.path("team")).unwrap();
    std::os::unix::fs::chown(rig.path("team"), Some(0), Some(77)).unwrap();
    fs::set_permissions(rig.path("team"), fs::Permissions::from_mode(0o2777)).unwrap();
    let team = rig.guest.lookup(ROOT, "team").unwrap();
    rig.guest.user = (1234, 5678);
    assert_eq!(rig.guest.create(team, "f", O_RDWR, 0o100_644).unwrap().1.gid, 77);
    assert_eq!(rig.guest.mkdir(team, "d", 0o40_755).unwrap().1.mode & 0o7777, 0o2755);
}

#[test]
fn owner_mode_size_and_times_are_set() {
    let mut rig = Rig::new(false);
    fs::write(rig.path("f"), "0123456789").unwrap();
    let node = rig.guest.lookup(ROOT, "f").unwrap();
    let all = 1 | 2 | 4 | 8 | 16 | 32;
    let told = rig.guest.setattr(node, all, (4, 0o4711, 5, 6)).unwrap();
    let expected = Attributes {
        size: 4,
        mode: 0o104_711,
        uid: 5,
        gid: 6,
    };
    assert_eq!(told, expected);
    let there = fs::metadata(rig.path("f")).unwrap();
    assert_eq!(
        (there.atime(), there.mtime(), there.mtime_nsec()),
        (1_000_000_000, 1_000_000_001, 6)
    );
    let link = rig.guest.symlink(ROOT, "link", "f").unwrap();
    assert_eq!(rig.guest.setattr(link, 2, (0, 0, 9, 0)).unwrap().uid, 9);
    assert_eq!(rig.guest.setattr(link, 1, (0, 0o600, 0, 0)), Err(EOPNOTSUPP));
    assert_eq!(rig.guest.setattr(link, 8, (0, 0, 0, 0)), Err(ENXIO));
    assert_eq!(fs::metadata(rig.path("f")).unwrap().uid(), 5);
    assert_eq!(rig.guest.setattr(node, 2, (0, 0, u32::MAX, 0)), Err(EINVAL));
}

#[test]
fn names_are_linked_moved_exchanged_and_taken_away() {
    let mut rig = Rig::new(false);
    let (directory, _) = rig.guest.mkdir(ROOT, "d", 0o40_755).unwrap();
    let (node, ..) = rig.guest.create(ROOT, "a", O_RDWR, 0o100_644).unwrap();
    assert_eq!(rig.guest.link(node, directory, "b"), Ok(node));
    assert_eq!(rig.guest.rename((ROOT, "a"), (directory, "b"), 1), Err(EEXIST));
    rig.guest.symlink(ROOT, "s", "where").unwrap();
    rig.guest.rename((ROOT, "s"), (directory, "b"), 2).unwrap();
    let moved = rig.guest.lookup(directory, "b").unwrap();
    assert_eq!(rig.guest.readlink(moved), Ok("where".into()));
    assert_eq!(rig.guest.lookup(ROOT, "s"), Ok(node));
    assert_eq!(rig.guest.rmdir(ROOT, "d"), Err(39));
    assert_eq!(rig.guest.unlink(ROOT, "d"), Err(EISDIR));
    rig.guest.unlink(directory, "b").unwrap();
    rig.guest.rmdir(ROOT, "d").unwrap();
    assert_eq!(rig.guest.lookup(ROOT, "d"), Err(ENOENT));
    let names: Vec<_> = fs::read_dir(rig.top.path().join("shared"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2);
}

#[test]
fn a_directory_is_read_in_pieces_and_each_entry_once() {
    let mut rig = Rig::new(false);
    let mut expected: Vec<String> = (0..40).map(|n| format!("{n:0>width$}", width = 1 + n * 5)).collect();
    for name in &expected {
        fs::write(rig.path(name), name).unwrap();
    }
    expected.extend([".".into(), "..".into()]);
    expected.sort();
    for (plus, room) in [(false, 4096), (false, 300), (true, 600), (true, 65_536)] {
        let listed = rig.guest.list(ROOT, plus, room).unwrap();
        assert_eq!(
            listed.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(),
            expected,
            "{plus} {room}"
        );
        for (name, number) in listed.into_iter().filter(|(name, _)| plus && !name.starts_with('.')) {
            assert_eq!(rig.guest.lookup(ROOT, &name), Ok(number));
            assert_eq!(rig.guest.getattr(number).unwrap().size, name.len() as u64);
            rig.guest.forget(number, 2);
        }
    }
}

#[test]
fn data_holes_copies_and_attributes_of_users_work() {
    let mut rig = Rig::new(false);
    let (node, _, handle) = rig.guest.create(ROOT, "f", O_RDWR, 0o100_644).unwrap();
    rig.guest.ask(43, node, &body(&[&handle, &0u64, &8192u64, &0u32, &0u32])).unwrap();
    assert_eq!(rig.guest.getattr(node).unwrap().size, 8192);
    rig.guest.write(handle, 1 << 20, b"far").unwrap();
    let data = rig.guest.ask(46, node, &body(&[&handle, &(512u64 << 10), &3u32, &0u32])).unwrap();
    assert!(u64_at(&data, 0) <= 1 << 20);
    let (_, _, copy) = rig.guest.create(ROOT, "g", O_RDWR, 0o100_644).unwrap();
    let copied = rig
        .guest
        .ask(47, node, &body(&[&handle, &(1u64 << 20), &0u64, &copy, &5u64, &3u64, &0u64]))
        .unwrap();
    assert_eq!(u32_at(&copied, 0), 3);
    assert_eq!(rig.guest.read(copy, 5, 10), Ok(b"far".to_vec()));
    for opcode in [20, 25] {
        rig.guest.ask(opcode, node, &body(&[&handle, &1u32, &0u32, &0u64])).unwrap();
    }
    let statfs = rig.guest.ask(17, ROOT, &[]).unwrap();
    assert_eq!((statfs.len(), u32_at(&statfs, 44)), (80, 255));
    rig.guest
        .ask(21, node, &body(&[&5u32, &0u32, &"user.note", &b"value".as_slice()]))
        .unwrap();
    assert_eq!(
        rig.guest.ask(22, node, &body(&[&64u32, &0u32, &"user.note"])),
        Ok(b"value".to_vec())
    );
    assert_eq!(rig.guest.ask(22, node, &body(&[&2u32, &0u32, &"user.note"])), Err(34));
    assert_eq!(rig.guest.ask(23, node, &body(&[&64u32, &0u32])), Ok(b"user.note\0".to_vec()));
    rig.guest.ask(24, node, &body(&[&"user.note"])).unwrap();
    assert_eq!(rig.guest.ask(22, node, &body(&[&0u32, &0u32, &"user.note"])), Err(61));
    for name in ["security.capability", "trusted.x", "system.posix_acl_access"] {
        assert_eq!(
            rig.guest.ask(21, node, &body(&[&1u32, &0u32, &name, &b"x".as_slice()])),
            Err(EOPNOTSUPP),
            "{name}"
        );
    }
}

#[test]
fn no_name_leads_out_of_the_directory() {
    let mut rig = Rig::new(false);
    symlink("../secret", rig.path("up")).unwrap();
    symlink(rig.top.path().join("secret"), rig.path("away")).unwrap();
    symlink("..", rig.path("parent")).unwrap();
    for name in ["..", ".", "", "../secret", "/etc/passwd", "a/b"] {
        assert_eq!(rig.guest.lookup(ROOT, name), Err(EINVAL), "{name:?}");
        assert_eq!(rig.guest.create(ROOT, name, O_RDWR, 0o100_644), Err(EINVAL), "{name:?}");
        assert_eq!(rig.guest.mkdir(ROOT, name, 0o40_755), Err(EINVAL), "{name:?}");
        assert_eq!(rig.guest.rename((ROOT, "up"), (ROOT, name), 0), Err(EINVAL), "{name:?}");
        assert_eq!(rig.guest.unlink(ROOT, name), Err(EINVAL), "{name:?}");
    }
    for name in ["up", "away", "parent"] {
        let link = rig.guest.lookup(ROOT, name).unwrap();
        assert_eq!(rig.guest.getattr(link).unwrap().mode & 0o170_000, 0o120_000);
        assert_eq!(rig.guest.open(link, O_RDWR), Err(ENXIO), "{name}");
        assert_eq!(rig.guest.lookup(link, "secret"), Err(ENOTDIR), "{name}");
        assert_eq!(rig.guest.create(link, "x", O_RDWR, 0o100_644), Err(ENOTDIR), "{name}");
        assert_eq!(rig.guest.create(ROOT, name, 0o1001, 0o100_644), Err(EEXIST), "{name}");
        assert_eq!(rig.guest.list(link, false, 4096), Err(ENOTDIR), "{name}");
    }
    assert_eq!(rig.secret(), "not for guests");
}

#[test]
fn a_file_that_is_replaced_by_a_link_while_it_is_opened_is_itself_or_nothing() {
    let mut rig = Rig::new(false);
    let (file, link, way) = (rig.path("file"), rig.path("link"), rig.path("way"));
    fs::write(&file, "harmless").unwrap();
    symlink(rig.top.path().join("secret"), &link).unwrap();
    fs::write(&way, "harmless").unwrap();
    let stop = AtomicBool::new(false);
    let exchange = || {
        while !stop.load(Ordering::Relaxed) {
            let _ = rustix::fs::renameat_with(rustix::fs::CWD, &link, rustix::fs::CWD, &way, rustix::fs::RenameFlags::EXCHANGE);
        }
    };
    let seen = thread::scope(|scope| {
        scope.spawn(exchange);
        let mut seen = (0, 0);
        for _ in 0..2000 {
            match rig.guest.create(ROOT, "way", O_RDWR, 0o100_644) {
                Ok((_, _, handle)) => {
                    assert_eq!(rig.guest.read(handle, 0, 100), Ok(b"harmless".to_vec()));
                    rig.guest.release(handle).unwrap();
                    seen.0 += 1;
                }
                Err(error) => {
                    assert_eq!(error, EEXIST);
                    seen.1 += 1;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        seen
    });
    assert_eq!(seen.0 + seen.1, 2000);
    assert_eq!(rig.secret(), "not for guests");
}

#[test]
fn a_directory_that_is_moved_away_takes_nothing_with_it() {
    let mut rig = Rig::new(false);
    fs::create_dir_all(rig.path("a/b")).unwrap();
    let a = rig.guest.lookup(ROOT, "a").unwrap();
    let b = rig.guest.lookup(a, "b").unwrap();
    // As another user of the host may: the guest is in it, and has no way up.
    fs::rename(rig.path("a/b"), rig.top.path().join("b")).unwrap();
    assert_eq!(rig.guest.lookup(b, ".."), Err(EINVAL));
    let listed = rig.guest.list(b, true, 4096).unwrap();
    assert_eq!(listed, [(".".to_owned(), 0), ("..".to_owned(), 0)]);
}

#[test]
fn no_device_is_made_and_nothing_but_files_is_opened() {
    let mut rig = Rig::new(false);
    for kind in [0o020_000, 0o060_000, 0o120_000, 0o040_000, 0] {
        assert_eq!(rig.guest.mknod(ROOT, "device", kind | 0o666, 0x0103), Err(EPERM), "{kind:o}");
    }
    let (fifo, _) = rig.guest.mknod(ROOT, "fifo", 0o010_644, 0).unwrap();
    let (socket, _) = rig.guest.mknod(ROOT, "socket", 0o140_644, 0).unwrap();
    let (file, told) = rig.guest.mknod(ROOT, "file", 0o100_644, 7).unwrap();
    assert_eq!(told.mode, 0o100_644);
    assert!(fs::symlink_metadata(rig.path("fifo")).unwrap().file_type().is_fifo());
    for node in [fifo, socket] {
        assert_eq!(rig.guest.open(node, O_RDWR), Err(ENXIO));
        assert_eq!(rig.guest.setattr(node, 8, (0, 0, 0, 0)), Err(ENXIO));
    }
    rig.guest.open(file, O_RDWR).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        rig.path("null"),
        rustix::fs::FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    let null = rig.guest.lookup(ROOT, "null").unwrap();
    assert_eq!(rig.guest.open(null, O_RDWR), Err(ENXIO));
    assert_eq!(rig.guest.create(ROOT, "null", O_RDWR, 0o100_644), Err(EEXIST));
    assert_eq!(
        rig.guest.rename((ROOT, "file"), (ROOT, "other"), 4),
        Err(EINVAL),
        "a whiteout is a device"
    );
    assert_eq!(rig.guest.open(ROOT, 0), Err(EISDIR));
}

#[test]
fn what_is_read_only_is_read_and_not_changed() {
    let mut rig = Rig::new(true);
    fs::write(rig.path("f"), "as it was").unwrap();
    let node = rig.guest.lookup(ROOT, "f").unwrap();
    let handle = rig.guest.open(node, 0).unwrap();
    assert_eq!(rig.guest.read(handle, 0, 100), Ok(b"as it was".to_vec()));
    for flags in [1, 2, 0o1000] {
        assert_eq!(rig.guest.open(node, flags), Err(EROFS), "{flags:o}");
    }
    assert_eq!(rig.guest.create(ROOT, "n", O_RDWR, 0o100_644), Err(EROFS));
    assert_eq!(rig.guest.mkdir(ROOT, "n", 0o40_755), Err(EROFS));
    assert_eq!(rig.guest.mknod(ROOT, "n", 0o100_644, 0), Err(EROFS));
    assert_eq!(rig.guest.symlink(ROOT, "n", "f"), Err(EROFS));
    assert_eq!(rig.guest.link(node, ROOT, "n"), Err(EROFS));
    assert_eq!(rig.guest.rename((ROOT, "f"), (ROOT, "n"), 0), Err(EROFS));
    assert_eq!(rig.guest.unlink(ROOT, "f"), Err(EROFS));
    assert_eq!(rig.guest.rmdir(ROOT, "f"), Err(EROFS));
    assert_eq!(rig.guest.setattr(node, 8, (0, 0, 0, 0)), Err(EROFS));
    assert_eq!(
        rig.guest.ask(21, node, &body(&[&1u32, &0u32, &"user.x", &b"x".as_slice()])),
        Err(EROFS)
    );
    assert_eq!(rig.guest.ask(24, node, &body(&[&"user.x"])), Err(EROFS));
    assert_eq!(rig.guest.ask(43, node, &body(&[&handle, &0u64, &99u64, &0u32, &0u32])), Err(EROFS));
    assert!(rig.guest.write(handle, 0, b"x").is_err());
    assert_eq!(fs::read_to_string(rig.path("f")).unwrap(), "as it was");
}

#[test]
fn what_a_guest_has_is_bounded_and_can_be_forgotten() {
    let mut rig = Rig::new(false);
    for n in 0..LIMITS.nodes {
        fs::write(rig.path(&n.to_string()), "").unwrap();
    }
    let known: Vec<_> = (0..LIMITS.nodes - 1)
        .map(|n| rig.guest.lookup(ROOT, &n.to_string()).unwrap())
        .collect();
    let last = (LIMITS.nodes - 1).to_string();
    assert_eq!(rig.guest.lookup(ROOT, &last), Err(ENFILE));
    assert_eq!(rig.guest.lookup(ROOT, "0"), Ok(known[0]), "what it knows it may be told again");
    rig.guest.forget(known[0], 1);
    assert_eq!(rig.guest.lookup(ROOT, &last), Err(ENFILE), "it was told twice");
    rig.guest.forget(known[0], 1);
    rig.guest.lookup(ROOT, &last).unwrap();
    assert_eq!(rig.guest.getattr(known[0]), Err(ESTALE));
    rig.guest.forget(ROOT, u64::MAX);
    rig.guest.send(42, 0, &body(&[&2u32, &0u32, &known[1], &9u64, &77_777u64, &1u64]));
    assert_eq!(rig.guest.getattr(known[1]), Err(ESTALE));
    let handles: Vec<_> = (0..LIMITS.handles).map(|_| rig.guest.open(known[2], O_RDWR).unwrap()).collect();
    assert_eq!(rig.guest.open(known[2], O_RDWR), Err(ENFILE));
    assert_eq!(rig.guest.create(ROOT, "0", O_RDWR, 0o100_644).map(drop), Err(ENFILE));
    handles.into_iter().for_each(|handle| rig.guest.release(handle).unwrap());
    assert_eq!(rig.guest.read(1, 0, 1), Err(9));
    rig.guest.getattr(ROOT).unwrap();
}

#[test]
fn arguments_that_are_cut_short_are_refused_whatever_is_asked() {
    let mut rig = Rig::new(false);
    fs::write(rig.path("f"), "as it was").unwrap();
    for opcode in (0..64).filter(|opcode| ![2, 42, 3, 5, 17, 25, 27, 38].contains(opcode)) {
        for length in [0, 1, 7] {
            let error = rig.guest.ask(opcode, ROOT, &vec![0xff; length]).unwrap_err();
            assert!([EINVAL, EISDIR, ENOSYS].contains(&error), "{opcode} {length}: {error}");
        }
    }
    // Not even refused: nobody waits for it.
    rig.guest.send(2, ROOT, &[1]);
    rig.guest.send(42, ROOT, &body(&[&9u32, &0u32, &7u64]));
    assert_eq!(rig.guest.getattr(7), Err(ESTALE));
    assert_eq!(rig.guest.ask(16, 0, &body(&[&1u64, &0u64, &500u32])), Err(9));
    rig.end().unwrap();
}

#[test]
fn a_message_of_a_length_that_cannot_be_ends_the_service() {
    for length in [0u32, 39, (1 << 20) + 4097, u32::MAX] {
        use std::io::Write;
        let mut rig = Rig::new(false);
        rig.guest.socket.write_all(&length.to_le_bytes()).unwrap();
        let server = rig.server.take().unwrap();
        assert!(matches!(server.join().unwrap(), Err(ServeError::Message(said)) if said == length as usize));
    }
}
