//! A shared directory's process, spawned for real: this program is it when its argument is `fs`. What it serves is tested beside the server;
//! here it is seen confined, serving all the same, and ending by itself.

#[path = "../../fs/tests/support/mod.rs"]
mod guest;
mod support;

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    time::{Duration, Instant},
};

use kvmlet_machine::{Share, ShareError, VERSION, run_share, spawn_share};
use rustix::fs::{Mode, OFlags, open};

use guest::{Guest, O_RDWR, ROOT, body};
use support::{own, uid};

fn main() {
    if std::env::args().nth(1).as_deref() == Some("fs") {
        std::process::exit(i32::from(run_share().is_err()));
    }
    support::main(&[
        (
            "a_confined_process_does_all_that_a_guest_may_ask",
            a_confined_process_does_all_that_a_guest_may_ask,
        ),
        (
            "the_process_has_no_more_than_owning_files_takes",
            the_process_has_no_more_than_owning_files_takes,
        ),
        (
            "a_single_file_is_shared_without_its_neighbours",
            a_single_file_is_shared_without_its_neighbours,
        ),
        ("what_is_shared_read_only_is_not_changed", what_is_shared_read_only_is_not_changed),
        ("what_is_mounted_below_is_not_shared", what_is_mounted_below_is_not_shared),
        ("the_process_ends_with_its_machine", the_process_ends_with_its_machine),
        ("an_order_of_another_version_is_refused", an_order_of_another_version_is_refused),
    ]);
}

struct Rig {
    guest: Guest,
    pid: u32,
    top: tempfile::TempDir,
}

fn order(read_only: bool) -> Share {
    Share {
        version: VERSION,
        uid: uid(),
        read_only,
        log_filter: "info".into(),
    }
}

fn path_to(path: &Path) -> OwnedFd {
    open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("it is there")
}

fn rig(what: &str, order: &Share) -> Rig {
    let top = tempfile::tempdir().expect("a directory");
    fs::create_dir_all(top.path().join("shared/below")).expect("it is made");
    fs::write(top.path().join("shared/file"), "as it was").expect("it is written");
    fs::create_dir(top.path().join("machine")).expect("it is made");
    let shared = path_to(&top.path().join(what));
    let mut pid = 0;
    let socket = spawn_share(&top.path().join("machine"), order, shared.as_fd(), &own(), |it| pid = it);
    let socket = socket.unwrap_or_else(|error| panic!("{error:?}: {}", log(top.path())));
    Rig {
        guest: Guest::new(socket.into()),
        pid,
        top,
    }
}

fn log(top: &Path) -> String {
    fs::read_to_string(top.join("machine/machine.log")).unwrap_or_default()
}

fn status(pid: u32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("the kernel says so");
    line.trim_start_matches(':').trim().to_owned()
}

fn a_confined_process_does_all_that_a_guest_may_ask() {
    let mut rig = rig("shared", &order(false));
    let guest = &mut rig.guest;
    guest.user = (1234, 5678);
    let (node, told, handle) = guest.create(ROOT, "new", O_RDWR, 0o100_640).expect("created");
    assert_eq!((told.uid, told.gid, told.mode), (1234, 5678, 0o100_640));
    assert_eq!(guest.write(handle, 0, &vec![7; 1 << 20]), Ok(1 << 20));
    assert_eq!(guest.read(handle, 0, 1 << 20), Ok(vec![7; 1 << 20]));
    for (opcode, arguments) in [
        (43, body(&[&handle, &0u64, &8192u64, &0u32, &0u32])),
        (46, body(&[&handle, &0u64, &4u32, &0u32])),
        (47, body(&[&handle, &0u64, &node, &handle, &(4u64 << 20), &10u64, &0u64])),
        (20, body(&[&handle, &0u32, &0u32])),
        (20, body(&[&handle, &1u32, &0u32])),
        (21, body(&[&1u32, &0u32, &"user.a", &b"b".as_slice()])),
        (22, body(&[&10u32, &0u32, &"user.a"])),
        (23, body(&[&100u32, &0u32])),
        (24, body(&[&"user.a"])),
        (17, vec![]),
    ] {
        let done = guest.ask(opcode, node, &arguments);
        // A file system without attributes of users says so.
        assert!(
            done.is_ok() || ((21..=24).contains(&opcode) && done == Err(95)),
            "{opcode}: {done:?}"
        );
    }
    guest.setattr(node, 1 | 2 | 4 | 8 | 16 | 32, (5, 0o600, 9, 10)).expect("set");
    let (directory, _) = guest.mkdir(ROOT, "d", 0o40_755).expect("made");
    guest.symlink(directory, "s", "/etc/passwd").expect("made");
    guest.mknod(directory, "p", 0o010_600, 0).expect("made");
    guest.mknod(directory, "u", 0o140_600, 0).expect("made");
    guest.link(node, directory, "l").expect("linked");
    guest.rename((directory, "l"), (ROOT, "l"), 0).expect("renamed");
    assert_eq!(guest.list(directory, true, 4096).expect("listed").len(), 5);
    assert_eq!(guest.list(directory, false, 4096).expect("listed").len(), 5);
    for name in ["s", "p", "u"] {
        guest.unlink(directory, name).expect("unlinked");
    }
    guest.rmdir(ROOT, "d").expect("removed");
    guest.release(handle).expect("closed");
    let there = fs::metadata(rig.top.path().join("shared/new")).expect("it is there");
    assert_eq!((there.uid(), there.gid(), there.len()), (9, 10, 5));
    // A directory that root alone may enter: who may is decided by the guest's kernel.
    fs::create_dir(rig.top.path().join("shared/closed")).expect("made");
    fs::set_permissions(
        rig.top.path().join("shared/closed"),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .expect("closed");
    let closed = rig.guest.lookup(ROOT, "closed").expect("found");
    assert_eq!(rig.guest.create(closed, "f", O_RDWR, 0o100_644).expect("created").1.uid, 1234);
}

fn the_process_has_no_more_than_owning_files_takes() {
    let order = order(false);
    let rig = rig("shared", &order);
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID: bits 0 to 4, 6, 7.
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status(rig.pid, set), format!("{:016x}", 0b1101_1111), "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(status(rig.pid, set), format!("{:016x}", 0), "{set}");
    }
    assert_eq!(status(rig.pid, "Uid"), [order.uid; 4].map(|uid| uid.to_string()).join("\t"));
    assert_eq!(
        (status(rig.pid, "NoNewPrivs"), status(rig.pid, "Seccomp")),
        ("1".into(), "2".into())
    );
    for space in ["mnt", "pid", "net", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{space}")).expect("it is there");
        assert_ne!(of(&rig.pid.to_string()), of("self"), "{space}");
    }
    let mut names: Vec<_> = fs::read_dir(format!("/proc/{}/root", rig.pid))
        .expect("root sees it")
        .map(|entry| entry.expect("it is listed").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["below", "file"]);
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", rig.pid)).expect("it is there");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains("nosuid,nodev,noexec"), "{mounts}");
    // What is open: standard streams, the socket twice, the root, the descriptors; and what this test has from whoever runs it.
    let open = |pid: &str| fs::read_dir(format!("/proc/{pid}/fd")).expect("root sees it");
    let ours: Vec<_> = open("self")
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .collect();
    for entry in open(&rig.pid.to_string()).flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let inherited = ours.contains(&target);
        let target = target.to_string_lossy().into_owned();
        let known = target.starts_with("socket:") || target == "/" || target.ends_with("/fd") || target.ends_with("machine.log");
        assert!(known || inherited, "{target}");
    }
}

fn a_single_file_is_shared_without_its_neighbours() {
    let mut rig = rig("shared/file", &order(false));
    assert_eq!(rig.guest.list(ROOT, false, 4096).expect("listed").len(), 3);
    let file = rig.guest.lookup(ROOT, "file").expect("it is there");
    let handle = rig.guest.open(file, O_RDWR).expect("opened");
    assert_eq!(rig.guest.write(handle, 0, b"is"), Ok(2));
    assert_eq!(fs::read_to_string(rig.top.path().join("shared/file")).expect("read"), "is it was");
    assert!(rig.guest.create(ROOT, "other", O_RDWR, 0o100_644).is_err());
    assert!(rig.guest.unlink(ROOT, "file").is_err());
}

fn what_is_shared_read_only_is_not_changed() {
    for what in ["shared", "shared/file"] {
        let mut rig = rig(what, &order(true));
        let file = rig.guest.lookup(ROOT, "file").expect("it is there");
        assert_eq!(rig.guest.open(file, O_RDWR), Err(30));
        let handle = rig.guest.open(file, 0).expect("opened");
        assert_eq!(rig.guest.read(handle, 0, 100), Ok(b"as it was".to_vec()));
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", rig.pid)).expect("it is there");
        assert!(mounts.lines().all(|line| line.contains(" ro,")), "{mounts}");
    }
}

fn what_is_mounted_below_is_not_shared() {
    let top = tempfile::tempdir().expect("a directory");
    fs::create_dir_all(top.path().join("shared/below")).expect("it is made");
    // The test's own mount, in a name space that ends with this thread.
    let end = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("root may");
        let none = None::<&str>;
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(none, "/", none, private, none).expect("root may");
        let below = top.path().join("shared/below");
        nix::mount::mount(Some("x"), &below, Some("tmpfs"), nix::mount::MsFlags::empty(), none).expect("root may");
        fs::write(below.join("inside"), "").expect("it is written");
        let shared = path_to(&top.path().join("shared"));
        let order = order(false);
        let socket = spawn_share(top.path(), &order, shared.as_fd(), &own(), |_| {}).expect("it is shared");
        let mut guest = Guest::new(socket.into());
        let below = guest.lookup(ROOT, "below").expect("the place is there");
        let listed = guest.list(below, false, 4096).expect("listed");
        nix::mount::umount2(&top.path().join("shared/below"), nix::mount::MntFlags::MNT_DETACH).expect("it was mounted");
        listed.len()
    });
    assert_eq!(end.join().expect("it does not panic"), 2);
}

fn the_process_ends_with_its_machine() {
    let rig = rig("shared", &order(false));
    let proc = format!("/proc/{}", rig.pid);
    assert!(fs::metadata(&proc).is_ok());
    drop(rig.guest);
    let end = Instant::now() + Duration::from_secs(20);
    while fs::metadata(&proc).is_ok() {
        assert!(Instant::now() < end, "it lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(log(rig.top.path()), "");
}

fn an_order_of_another_version_is_refused() {
    let top = tempfile::tempdir().expect("a directory");
    let order = Share {
        version: VERSION + 1,
        ..order(false)
    };
    let what = path_to(top.path());
    let error = spawn_share(top.path(), &order, what.as_fd(), &own(), |_| {}).expect_err("too new");
    assert!(matches!(error, ShareError::Refused(why) if why.contains("in versions")));
}
