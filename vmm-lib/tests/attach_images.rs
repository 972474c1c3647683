//! Images that come and go while a guest runs: it reads them where their device says that they lie, has a disk read from them, cannot write to them,
//! and finds all ones where one was.

mod support;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::thread;

use support::drive::*;
use support::script::{Running, Script};
use support::{HALT, Kernel, bzimage, run_machine};
use vmm_lib::exit::MachineExit;
use vmm_lib::spec::{Disk, DiskEngine, DiskFormat, Extent, FileSource, Limits, MachineSpec, Pmem};
use vmm_lib::{AttachError, Attachment, Builder, DetachError};

/// Behind the bridge and the source of random numbers, and with a disk behind that and another one.
const FIRST: u8 = 2;
const MIB: u64 = 1 << 20;
/// What a small machine has behind its RAM.
const ROOM: u64 = 1 << 32;
/// The table of directories of the guest's pages, and a free page for another one.
const DIRECTORIES: u64 = 0xa000;
const DIRECTORY: u64 = 0x30_0000;
/// Where a device's own configuration lies in its BAR.
const OWN: u64 = 0x200;

/// A file of `pages` pages, each full of its number and `mark` together.
fn file(pages: u8, mark: u8) -> File {
    let file = tempfile::tempfile().expect("a temporary file can be made");
    for page in 0..pages {
        let place = u64::from(page) * 4096;
        file.write_all_at(&[page ^ mark; 4096], place).expect("and written");
    }
    file
}

/// An image of these pieces of files: first page and number of pages.
fn image(name: &str, pieces: &[(&File, u64, u64)]) -> (Attachment, Vec<OwnedFd>) {
    let extent = |(number, (_, first, pages)): (usize, &(&File, u64, u64))| Extent {
        file: FileSource::Passed(number as u32),
        offset: first * 4096,
        length: pages * 4096,
    };
    let image = Pmem {
        name: name.into(),
        extents: pieces.iter().enumerate().map(extent).collect(),
    };
    let files = pieces.iter().map(|(file, ..)| file.try_clone().expect("it is open").into());
    (Attachment::Pmem(image), files.collect())
}

fn attach(running: &Running, image: (Attachment, Vec<OwnedFd>)) -> Result<u8, AttachError> {
    running.handle.attach(image.0, image.1)
}

fn room(bytes: u64) -> impl Fn(&mut MachineSpec) {
    move |spec| spec.pmem_room = bytes
}

/// A page that can be written.
fn disk_of(serial: &str, file: FileSource) -> Disk {
    Disk {
        serial: serial.into(),
        extents: vec![Extent {
            file,
            offset: 0,
            length: 4096,
        }],
        read_only: false,
        format: DiskFormat::Raw,
        limits: Limits::default(),
        engine: DiskEngine::Calls,
    }
}

fn config(slot: u8) -> u64 {
    ECAM + u64::from(slot) * 0x8000
}

/// Lets the guest reach 1 GiB from 4 GiB on, in pages of 2 MiB; the first two are enough.
fn map_room(script: &mut Script) {
    for step in 0..4 {
        script.write(8, DIRECTORY + 8 * step, ROOM + step * 2 * MIB + 0x83);
    }
    script.write(8, DIRECTORIES + 8 * 4, DIRECTORY + 3);
}

/// Waits for a device, and lets it decode its BAR.
fn find(script: &mut Script, slot: u8) {
    script.wait(config(slot) + 0x34, 0x40);
    place(script, u64::from(slot), BAR);
}

#[test]
fn an_image_that_is_attached_is_read_where_its_device_says_and_is_gone_when_it_goes() {
    let mut script = Script::default();
    map_room(&mut script);
    script.say(ROOM);
    find(&mut script, FIRST);
    // Where it lies and how large it is: 4 GiB, 2 MiB.
    for byte in [4, 10] {
        script.say(BAR + OWN + byte);
    }
    script.say(ROOM).say(ROOM + 4096).say(ROOM + 8192).say(ROOM + 12288);
    script.wait(config(FIRST), 1).wait(ROOM, 0x80).say(ROOM).say(BAR + OWN + 4);
    find(&mut script, FIRST);
    script.say(ROOM).say(ROOM + 4096);
    let running = script.begin(room(4 * MIB));
    assert_eq!(running.said(1), [0xff], "nobody answers there");
    let (one, other) = (file(3, 0x10), file(2, 0x20));
    assert_eq!(
        attach(&running, image("one", &[(&one, 1, 2), (&other, 0, 1)])).expect("there is room"),
        FIRST
    );
    assert_eq!(running.said(7)[1..], [1, 0x20, 0x11, 0x12, 0x20, 0]);
    running.handle.detach(FIRST, false).expect("nobody drives it");
    assert_eq!(running.said(9)[7..], [0xff, 0xff]);
    attach(&running, image("two", &[(&other, 1, 1)])).expect("its place is free again");
    let (report, said) = running.end();
    assert_eq!((report.exit, &said[9..]), (MachineExit::PoweredOff, &[0x21, 0][..]));
}

#[test]
fn a_disk_is_written_from_an_image_that_came_and_from_nothing_once_it_went() {
    const DISK: u8 = 1;
    let disk = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    disk.as_file().write_all_at(&[0x77; 4096], 0).expect("and written");
    let mut script = Script::default();
    map_room(&mut script);
    place(&mut script, u64::from(DISK), BAR);
    bring_up(&mut script, BAR, [TABLE, AVAILABLE, USED]);
    let slot = FIRST + 1;
    let (header, status) = (DATA, DATA + 512);
    let write = |script: &mut Script, count: u64| {
        script.write(4, header, 1).write(8, header + 8, count - 1).write(1, status, 0xff);
        descriptor(script, TABLE, 0, (header, 16, NEXT, 1));
        descriptor(script, TABLE, 1, (ROOM + 512, 512, NEXT, 2));
        descriptor(script, TABLE, 2, (status, 1, WRITE, 0));
        offer(script, BAR, count, 0);
        script.wait(USED + 2, (count & !(count - 1)) as u8).say(status);
    };
    script.wait(config(slot) + 0x34, 0x40);
    write(&mut script, 1);
    // What comes behind its place tells that it is gone.
    script.wait(config(slot + 1) + 0x34, 0x40);
    write(&mut script, 2);
    let path = disk.path().to_owned();
    let running = script.begin(|spec| {
        room(2 * MIB)(spec);
        spec.disks = vec![disk_of("disk", FileSource::Path(path))];
    });
    let content = file(1, 0x5a);
    assert_eq!(attach(&running, image("it", &[(&content, 0, 1)])).expect("there is room"), slot);
    assert_eq!(running.said(1), [0]);
    running.handle.detach(slot, false).expect("nobody drives it");
    for came in [slot, slot + 1] {
        let disk = Attachment::Disk(disk_of(&format!("disk{came}"), FileSource::Passed(0)));
        let attached = running.handle.attach(disk, vec![file(1, 0).into()]);
        assert_eq!(attached.expect("there is a place"), came);
    }
    let (report, said) = running.end();
    assert_eq!((report.exit, said), (MachineExit::PoweredOff, vec![0, 0]));
    let written = std::fs::read(disk.path()).expect("it is there");
    assert!(written[..512] == [0x5a; 512], "from the image");
    assert!(written[512..1024] == [0; 512], "from nothing");
}

#[test]
fn a_guest_that_writes_to_an_image_that_came_ends_by_name_and_the_file_stays_as_it_was() {
    let mut script = Script::default();
    map_room(&mut script);
    script.wait(config(FIRST) + 0x34, 0x40).write(1, ROOM + 5, 0x77).say(ROOM);
    let running = script.begin(room(2 * MIB));
    let content = file(1, 0x11);
    attach(&running, image("it", &[(&content, 0, 1)])).expect("there is room");
    let reason = "the guest wrote to its read-only attached image at 0x100000005".to_owned();
    let (report, said) = running.end();
    assert_eq!((report.exit, said), (MachineExit::Crashed { reason }, Vec::new()));
    let mut bytes = [0; 16];
    content.read_exact_at(&mut bytes, 0).expect("it is as long");
    assert_eq!(bytes, [0x11; 16]);
}

#[test]
fn images_that_cannot_come_or_go_are_refused_with_their_reason_and_leave_room_for_others() {
    let kernel = Kernel::new(&bzimage(&HALT));
    let content = file(4, 0);
    let begin = |spec: MachineSpec, files: Vec<OwnedFd>| {
        let machine = Builder::new(spec, files).build().expect("this KVM makes machines");
        let handle = machine.handle();
        (handle, thread::spawn(|| run_machine(machine)))
    };
    let (handle, running) = begin(kernel.spec(1), Vec::new());
    let (attachment, files) = image("it", &[(&content, 0, 1)]);
    assert!(matches!(handle.attach(attachment, files), Err(AttachError::NoRoom)));
    handle.stop();
    running.join().expect("no panic");
    let mut spec = kernel.spec(1);
    room(4 * MIB)(&mut spec);
    spec.pmems = vec![Pmem {
        name: "first".into(),
        extents: vec![Extent {
            file: FileSource::Passed(0),
            offset: 0,
            length: 4096,
        }],
    }];
    let (handle, running) = begin(spec, vec![content.try_clone().expect("it is open").into()]);
    let attach = |name: &str, pieces: &[(&File, u64, u64)]| {
        let (attachment, files) = image(name, pieces);
        handle.attach(attachment, files)
    };
    let told = |error: Result<u8, AttachError>| {
        let error = error.expect_err("it is refused");
        std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string)
    };
    assert!(matches!(attach("first", &[(&content, 0, 1)]), Err(AttachError::Taken(name)) if name == "pmem first"));
    let large: Vec<_> = std::iter::repeat_n((&content, 0, 4), 300).collect();
    assert!(told(attach("large", &large)).starts_with("image large takes 6291456 bytes, and of the 4194304 bytes"));
    assert!(told(attach("short", &[(&content, 0, 1), (&content, 3, 2)])).contains("ends at byte 20480 of a file of 16384 bytes"));
    assert_eq!(attach("one", &[(&content, 0, 1)]).expect("there is room"), 3);
    assert_eq!(attach("two", &[(&content, 0, 1)]).expect("there is room"), 4);
    assert!(told(attach("three", &[(&content, 0, 1)])).starts_with("image three takes 2097152 bytes"));
    assert_eq!(handle.detach(3, false), Ok(()));
    assert_eq!(attach("three", &[(&content, 0, 1)]).expect("there is room again"), 3);
    let name = "pmem first".to_owned();
    assert_eq!(handle.detach(1, true), Err(DetachError::Fixed { slot: 1, name }));
    let (Attachment::Pmem(mut odd), files) = image("odd", &[(&content, 0, 1)]) else {
        panic!("it is an image")
    };
    odd.extents[0].length = 100;
    odd.extents[0].file = FileSource::Path("/dev/zero".into());
    let Err(AttachError::Invalid(errors)) = handle.attach(Attachment::Pmem(odd), files) else {
        panic!("it is not valid")
    };
    let errors = errors.to_string();
    assert!(errors.contains("pmem.extents[0].length: 100 is not a multiple of 4096 above 0") && errors.contains("must be passed open"));
    handle.stop();
    running.join().expect("no panic");
}

#[test]
fn images_that_come_and_go_a_hundred_times_leave_nothing_behind() {
    let count = |what: &str| {
        let text = std::fs::read_to_string("/proc/self/maps").expect("Linux has it");
        text.lines().filter(|line| line.contains(what)).count()
    };
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("an-image-of-this-test");
    std::fs::write(&path, [0x33; 4096]).expect("it can be written");
    let content = File::open(&path).expect("it is there");
    let kernel = Kernel::new(&bzimage(&HALT));
    let mut spec = kernel.spec(1);
    room(2 * MIB)(&mut spec);
    let machine = Builder::new(spec, Vec::new()).build().expect("this KVM makes machines");
    let handle = machine.handle();
    let running = thread::spawn(|| run_machine(machine));
    for _ in 0..100 {
        let (attachment, files) = image("it", &[(&content, 0, 1)]);
        let slot = handle.attach(attachment, files).expect("there is room");
        assert_eq!(count("an-image-of-this-test"), 1);
        handle.detach(slot, false).expect("nobody uses it");
        assert_eq!(count("an-image-of-this-test"), 0);
    }
    handle.stop();
    running.join().expect("no panic");
}
