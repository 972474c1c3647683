//! Images that a guest reads in place, on this machine's KVM: payloads that read one, that write to one, and files that are not what the
//! specification says.

mod support;

use std::io::Write;

use support::{HALT, Kernel, at_4_gib, bzimage, out_byte, run_machine, run_spec};
use vmm_lib::exit::MachineExit;
use vmm_lib::spec::{Extent, FileSource, MachineSpec, Pmem};
use vmm_lib::{BuildError, Builder};

/// A file of two pages: the first ends in a word, the second begins with one.
fn file() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    let mut content = vec![0x11; 8192];
    content[4096] = 0x5a;
    file.write_all(&content).expect("and written");
    file
}

fn extent(file: &tempfile::NamedTempFile, offset: u64) -> Extent {
    Extent {
        file: FileSource::Path(file.path().into()),
        offset,
        length: 4096,
    }
}

fn machine(kernel: &Kernel, extents: Vec<Extent>) -> MachineSpec {
    let mut spec = kernel.spec(1);
    spec.pmems = vec![Pmem {
        name: "image".into(),
        extents,
    }];
    spec
}

/// A payload that does `what` with the image's address in rbx.
fn payload(what: &[&[u8]]) -> Kernel {
    Kernel::new(&bzimage(&at_4_gib(what)))
}

#[test]
fn a_guest_reads_the_pieces_of_its_image_side_by_side_and_zeros_behind() {
    let file = file();
    let off = out_byte(0x600, 0x34);
    let skip = |rest: usize| u8::try_from(rest).expect("the payload is short");
    // The second page lies first: 0x5a at 0, 0x11 at 4096, 0 at 8192. Each comparison jumps to the end, which halts.
    let third = [&[0x80, 0xbb, 0x00, 0x20, 0x00, 0x00, 0x00, 0x75, skip(off.len())][..], &off].concat();
    let second = [&[0x80, 0xbb, 0x00, 0x10, 0x00, 0x00, 0x11, 0x75, skip(third.len())][..], &third].concat();
    let first = [&[0x80, 0x3b, 0x5a, 0x75, skip(second.len())][..], &second].concat();
    let kernel = payload(&[&first]);
    let report = run_spec(machine(&kernel, vec![extent(&file, 4096), extent(&file, 0)]));
    assert_eq!(report.exit, MachineExit::PoweredOff);
}

#[test]
fn a_guest_that_writes_to_its_image_ends_by_name_and_the_file_stays_as_it_was() {
    let file = file();
    let before = std::fs::read(file.path()).expect("it is there");
    // mov byte [rbx + 1], 0x77
    let kernel = payload(&[&[0xc6, 0x43, 0x01, 0x77]]);
    let MachineExit::Crashed { reason } = run_spec(machine(&kernel, vec![extent(&file, 0)])).exit else {
        panic!("a write is no crash")
    };
    assert_eq!(reason, "the guest wrote to its read-only image 0 at 0x100000001");
    assert!(before == std::fs::read(file.path()).expect("still"));
}

#[test]
fn a_file_that_is_shorter_than_its_extent_is_refused_by_name() {
    let (file, kernel) = (file(), Kernel::new(&bzimage(&HALT)));
    let error = Builder::new(machine(&kernel, vec![extent(&file, 0), extent(&file, 8192)]), Vec::new()).build();
    let Err(BuildError::Images(error)) = error else {
        panic!("an extent behind the file's end is taken")
    };
    assert_eq!(
        error.to_string(),
        "image image: extent 1 ends at byte 12288 of a file of 8192 bytes"
    );
}

#[test]
fn a_file_that_shrinks_under_a_guest_ends_its_machine() {
    let (file, kernel) = (file(), payload(&[&[0x8a, 0x03]]));
    let machine = Builder::new(machine(&kernel, vec![extent(&file, 0)]), Vec::new()).build();
    file.as_file().set_len(0).expect("it can be cut");
    let exit = run_machine(machine.expect("this KVM makes machines")).exit;
    assert!(matches!(exit, MachineExit::MemoryFault { .. }), "{exit:?}");
}
