//! The jail from inside and from outside. Inside: a process that confines itself as a machine's does, takes a role, and tries what a guest
//! that has taken over that thread would try; the kernel ends it at each. Outside: what the host sees of a machine that runs.

mod support;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use kvm_ioctls::Kvm;
use kvmlet_machine::jail::{Filters, Jail, Limits, Needs, Role, confine};
use nix::sched::{CloneFlags, unshare};
use vmm_lib::exit::MachineExit;
use vmm_lib::spec::{Disk, DiskEngine, DiskFormat, Extent, FileSource, Vsock};

use support::outside::{descriptors, limits};
use support::{SOON, SPIN, kernel, order, running, spawned, uid};

/// What is tried, and what with: opened before the jail, as a machine's files are.
type Attempt = (&'static str, fn(&Tools));

struct Tools {
    kvm: Kvm,
    file: File,
}

/// Forbidden to every thread.
const ATTEMPTS: &[Attempt] = &[
    ("open", |_| drop(File::open("/"))),
    ("openat by a descriptor", |tools| {
        drop(rustix::fs::openat(
            &tools.file,
            "x",
            rustix::fs::OFlags::RDONLY,
            rustix::fs::Mode::empty(),
        ));
    }),
    ("remove a file", |_| drop(fs::remove_file("/x"))),
    ("internet socket", |_| {
        drop(rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        ));
    }),
    ("internet socket pair", |_| {
        drop(rustix::net::socketpair(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::empty(),
            None,
        ));
    }),
    ("trace", |_| {
        let _ = nix::sys::ptrace::traceme();
    }),
    ("mount", |_| {
        let _ = rustix::mount::mount_change("/", rustix::mount::MountPropagationFlags::SHARED);
    }),
    ("namespace", |_| {
        let _ = unshare(CloneFlags::CLONE_NEWUSER);
    }),
    ("process", |_| drop(Command::new("/x").spawn())),
    ("root", |_| {
        let _ = rustix::thread::set_thread_uid(rustix::process::Uid::ROOT);
    }),
    ("signal to another", |_| {
        let _ = rustix::process::kill_process(rustix::process::Pid::INIT, rustix::process::Signal::TERM);
    }),
    ("host name", |_| {
        let _ = rustix::system::sethostname(b"x");
    }),
    ("limit", |_| {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Core);
        let _ = rustix::process::setrlimit(rustix::process::Resource::Core, limit);
    }),
    ("ioctl that is nobody's", |tools| drop(rustix::termios::tcgetattr(&tools.file))),
    ("file in memory", |_| {
        drop(rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC))
    }),
];

/// Forbidden to those that a guest talks to; the threads that make threads and machines do these.
const OF_GUESTS: &[Attempt] = &[
    ("thread", |_| drop(thread::spawn(|| ()).join())),
    ("machine", |tools| drop(tools.kvm.create_vm())),
];

/// Allowed to every thread.
const OF_ALL: &[Attempt] = &[("much memory", |_| {
    // More than an arena of glibc's keeps, in pieces that it does not map one by one.
    for _ in 0..3 {
        let all: Vec<Vec<u8>> = (0..200).map(|piece| vec![piece; 100 << 10]).collect();
        assert!(all.iter().all(|piece| piece.len() == 100 << 10));
    }
})];

fn guests_talk_to(role: Role) -> bool {
    !matches!(role, Role::Process | Role::Control)
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, role, attempt] = &arguments[..]
        && mode == "try"
    {
        inside(role, attempt);
        return;
    }
    support::main(&[
        ("each_forbidden_attempt_ends_the_process", each_forbidden_attempt_ends_the_process),
        ("each_role_can_be_entered_and_left", each_role_can_be_entered_and_left),
        (
            "a_process_that_cannot_be_confined_says_why",
            a_process_that_cannot_be_confined_says_why,
        ),
        (
            "a_guest_that_moves_a_device_stays_within_its_processors_list",
            a_guest_that_moves_a_device_stays_within_its_processors_list,
        ),
        ("a_running_machine_is_seen_to_be_confined", a_running_machine_is_seen_to_be_confined),
    ]);
}

/// The process that tries.
fn inside(role: &str, attempt: &str) {
    let role = Role::all().find(|known| format!("{known:?}") == role).expect("a role");
    let act = ATTEMPTS.iter().chain(OF_GUESTS).chain(OF_ALL).find(|(name, _)| *name == attempt);
    let tools = Tools {
        kvm: Kvm::new().expect("a KVM"),
        file: File::open("/dev/null").expect("a file"),
    };
    // Only a machine that has such a disk has such a thread.
    let needs = Needs {
        rings: role == Role::BlockRing,
        ..Needs::default()
    };
    let filters = Filters::new(needs).expect("filters");
    let limits = Limits {
        files: 256,
        threads: 8,
        locked: 0,
    };
    let jail = Jail {
        uid: 299_999,
        file_size: 1 << 20,
    };
    confine(&jail, &limits, &filters).expect("it is confined");
    // As a machine's threads are: made by one that has the process's role, each entering its own.
    let work = move || {
        if role != Role::Process {
            filters.enter(role).expect("it has its role");
        }
        say("in");
        if let Some((_, act)) = act {
            act(&tools);
        }
        say("out");
        std::process::exit(0);
    };
    thread::spawn(work).join().expect("it ends the process");
}

fn say(word: &str) {
    std::io::stdout().write_all(format!("{word}\n").as_bytes()).expect("it is heard");
}

/// Starts this program as the first process of a pid namespace.
fn apart(arguments: &[&str]) -> Child {
    let mut command = Command::new("/proc/self/exe");
    command
        .args(arguments)
        // As `spawn` does it for a machine.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let start = move || {
        unshare(CloneFlags::CLONE_NEWPID).expect("root may");
        command.spawn().expect("it starts")
    };
    thread::spawn(start).join().expect("it does not panic")
}

/// What it said, and the signal that ended it.
fn outcome(role: Role, attempt: &str) -> (String, Option<i32>) {
    let mut child = apart(&["try", &format!("{role:?}"), attempt]);
    let mut said = String::new();
    let mut output = child.stdout.take().expect("it is piped");
    output.read_to_string(&mut said).expect("it is read");
    let status = child.wait().expect("it ends");
    (said.replace('\n', " "), status.signal())
}

fn each_forbidden_attempt_ends_the_process() {
    let sigsys = Some(nix::sys::signal::Signal::SIGSYS as i32);
    for role in Role::all() {
        let of_guests = if guests_talk_to(role) { OF_GUESTS } else { &[] };
        for (attempt, _) in ATTEMPTS.iter().chain(of_guests) {
            assert_eq!(outcome(role, attempt), ("in ".to_owned(), sigsys), "{role:?} tries: {attempt}");
        }
    }
}

fn each_role_can_be_entered_and_left() {
    for role in Role::all() {
        for allowed in ["nothing", "much memory"] {
            assert_eq!(outcome(role, allowed), ("in out ".to_owned(), None), "{role:?}: {allowed}");
        }
    }
    // The others may.
    assert_eq!(outcome(Role::Control, "thread"), ("in out ".to_owned(), None));
    assert_eq!(outcome(Role::Process, "machine"), ("in out ".to_owned(), None));
}

fn a_process_that_cannot_be_confined_says_why() {
    let filters = Filters::new(Needs::default()).expect("filters");
    let limits = Limits {
        files: 256,
        threads: 8,
        locked: 0,
    };
    let confined = |uid| confine(&Jail { uid, file_size: 0 }, &limits, &filters).map_err(|error| error.to_string());
    assert_eq!(confined(0), Err("a machine cannot run as user 0".to_owned()));
    let with_company = thread::spawn(move || {
        confine(
            &Jail { uid: 5, file_size: 0 },
            &limits,
            &Filters::new(Needs::default()).expect("filters"),
        )
    });
    let refused = with_company.join().expect("it does not panic").map_err(|error| error.to_string());
    assert!(refused.is_err_and(|why| why.contains("threads cannot be confined")));
}

/// What decodes a BAR and moves it tells KVM new places of notifications and of posted writes, on the processor's thread.
fn a_guest_that_moves_a_device_stays_within_its_processors_list() {
    let code = [
        // mov $0xe0008010, %edi: BAR 0 of the first device; movl $0xc0000000, (%rdi); movl $0, 4(%rdi).
        &[0xbf, 0x10, 0x80, 0x00, 0xe0][..],
        &[0xc7, 0x07, 0x00, 0x00, 0x00, 0xc0],
        &[0xc7, 0x47, 0x04, 0x00, 0x00, 0x00, 0x00],
        // movw $6, -12(%rdi): decode; movl $0xc0100000, (%rdi).
        &[0x66, 0xc7, 0x47, 0xf4, 0x06, 0x00],
        &[0xc7, 0x07, 0x00, 0x00, 0x10, 0xc0],
        // mov $0x34, %al; mov $0x600, %dx; out %al, %dx: power off.
        &[0xb0, 0x34, 0x66, 0xba, 0x00, 0x06, 0xee],
        &SPIN,
    ];
    let directory = tempfile::tempdir().expect("a directory");
    let mut order = order(kernel(directory.path(), &code.concat()), uid());
    order.spec.rng = true;
    let machine = spawned(directory.path(), order.jail.uid).start(&order, &[]).expect("it starts");
    assert!(machine.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
    let record = machine.exit_record().expect("the record is read");
    let exit = record.map(|record| record.report.exit);
    assert_eq!(exit, Some(MachineExit::PoweredOff), "{:?}", machine.signal());
}

fn a_running_machine_is_seen_to_be_confined() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = directory.path().join("disk");
    File::create(&disk).and_then(|file| file.set_len(1 << 20)).expect("it is made");
    let extent = |offset| Extent {
        file: FileSource::Path(disk.clone()),
        offset,
        length: 512,
    };
    let mut order = order(kernel(directory.path(), &SPIN), uid());
    order.spec.rng = true;
    order.spec.disks = vec![Disk {
        serial: "img0".into(),
        extents: vec![extent(0), extent(512)],
        read_only: true,
        format: DiskFormat::Raw,
        limits: Default::default(),
        engine: DiskEngine::Calls,
    }];
    order.spec.vsock = Some(Vsock {
        cid: 3,
        socket: FileSource::Path(directory.path().join("vsock.sock")),
    });
    let machine = running(directory.path(), &order);
    let process = Path::new("/proc").join(machine.pid().to_string());
    // A thread has its own filter a moment after its start.
    let deadline = Instant::now() + SOON.expect("a limit");
    while !all_have_roles(&process) {
        assert!(Instant::now() < deadline, "a thread goes on without its own filter");
        thread::sleep(Duration::from_millis(20));
    }
    tasks(&process, order.jail.uid);
    for namespace in ["mnt", "pid", "ipc", "uts", "net"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).expect("root may look");
        assert_ne!(of(&process), of(Path::new("/proc/self")), "{namespace}");
    }
    assert_eq!(
        fs::read_link(process.join("ns/user")).expect("root may look"),
        fs::read_link("/proc/self/ns/user").expect("and here")
    );
    assert_eq!(fs::read_dir(process.join("root")).expect("root may look").count(), 0);
    let mounts = fs::read_to_string(process.join("mounts")).expect("root may look");
    assert!(mounts.lines().count() == 1 && mounts.contains(" / tmpfs ro,"), "{mounts}");
    let interfaces = fs::read_to_string(process.join("net/dev")).expect("root may look");
    assert!(
        interfaces.lines().skip(2).all(|line| line.trim().starts_with("lo:")),
        "{interfaces}"
    );
    descriptors(&process, &disk);
    limits(&process, &order);
    machine.kill_process().expect("it is killed");
    assert!(machine.wait(SOON).expect("its pidfd can be polled"));
    machine.reap();
}

/// A field of a task's status.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Of every task that has not ended meanwhile.
fn statuses(process: &Path) -> Vec<String> {
    let tasks = fs::read_dir(process.join("task")).expect("root may look");
    tasks
        .filter_map(|task| fs::read_to_string(task.expect("it is there").path().join("status")).ok())
        .collect()
}

/// Whether each thread has the process's two filters and its role's; the one that makes the others has no role of its own.
fn all_have_roles(process: &Path) -> bool {
    statuses(process).iter().all(|status| {
        let own = if field(status, "Name") == "machine" { "2" } else { "3" };
        field(status, "Seccomp_filters") == own
    })
}

/// Every thread of the process.
fn tasks(process: &Path, uid: u32) {
    let mut names = BTreeSet::new();
    for status in statuses(process) {
        let field = |name: &str| field(&status, name);
        names.insert(field("Name"));
        let four = format!("{uid} {uid} {uid} {uid}");
        assert_eq!(
            (field("Uid"), field("Gid"), field("Groups")),
            (four.clone(), four, String::new()),
            "{status}"
        );
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set}: {status}");
        }
        assert_eq!(
            (field("NoNewPrivs"), field("Seccomp")),
            ("1".to_owned(), "2".to_owned()),
            "{status}"
        );
    }
    for expected in ["signals", "control", "logs", "machine", "vcpu0"] {
        assert!(names.contains(expected), "{expected} is not among {names:?}");
    }
}
