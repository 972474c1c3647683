//! `kvmlet vm run` as its users meet it, with guests of a few instructions, so that any KVM will do.

#[path = "../vmm-lib/tests/support/bzimage.rs"]
#[allow(dead_code, reason = "tests of other crates use more of it")]
mod bzimage;

use std::{
    io::{BufRead, BufReader, Read as _},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::NamedTempFile;
use vmm_lib::spec::MachineSpec;

/// A machine that does not end by itself fails its test after this.
const DEADLINE: Duration = Duration::from_secs(60);
const COM1: u16 = 0x3f8;
/// Halts for good.
const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];

/// `mov $value, %al; mov $port, %dx; out %al, %dx`.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0xb0, value, 0x66, 0xba, low, high, 0xee]
}

/// A guest that writes this to its serial port and does that.
fn guest(text: &str, then: &[u8]) -> NamedTempFile {
    let say = text.bytes().flat_map(|byte| out(COM1, byte));
    let file = NamedTempFile::new().expect("a temporary file can be made");
    let code: Vec<u8> = say.chain(then.iter().copied()).collect();
    std::fs::write(file.path(), bzimage::bzimage(&code)).expect("and written");
    file
}

fn power_off() -> Vec<u8> {
    [out(0x600, 0x34), HALT.to_vec()].concat()
}

fn kvmlet(words: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_kvmlet"))
        .args(["vm", "run"])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kvmlet starts")
}

fn finished(mut child: Child) -> Output {
    let begun = Instant::now();
    while child.try_wait().expect("it is our child").is_none() {
        if begun.elapsed() > DEADLINE {
            child.kill().expect("it is our child");
            panic!("{:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("it has ended")
}

fn run(kernel: &NamedTempFile, more: &[&str]) -> (Option<i32>, String, String) {
    let kernel = kernel.path().to_str().expect("temporary paths are text");
    let output = finished(kvmlet(&[&["--kernel", kernel][..], more].concat()));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_guests_console_is_standard_output_and_its_power_off_is_success() {
    let (code, console, errors) = run(&guest("hello\n", &power_off()), &["--mem", "64M", "--cpus", "2"]);
    assert_eq!((code, console.as_str(), errors.as_str()), (Some(0), "hello\n", ""));
}

#[test]
fn any_other_end_is_a_failure_with_its_reason() {
    let reset = [out(0x602, 1), HALT.to_vec()].concat();
    let (code, console, errors) = run(&guest("oops\n", &reset), &[]);
    assert_eq!((code, console.as_str()), (Some(1), "oops\n"));
    assert_eq!(errors, "kvmlet: the machine ended: Reset\n");
}

#[test]
fn an_interrupt_ends_the_machine_and_leaves_no_socket() {
    let kernel = guest("up\n", &HALT);
    let folder = tempfile::tempdir().expect("a directory can be made");
    let socket = folder.path().join("vsock.sock");
    let path = |path: &std::path::Path| path.to_str().expect("temporary paths are text").to_owned();
    let mut child = kvmlet(&["--kernel", &path(kernel.path()), "--vsock", &path(&socket)]);
    let mut console = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    console.read_line(&mut line).expect("it can be read");
    assert_eq!(line, "up\n");
    assert!(socket.exists());
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it is our child");
    let output = finished(child);
    console.read_to_string(&mut line).expect("it has an end");
    assert_eq!((output.status.code(), line.as_str()), (Some(1), "up\n"));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "kvmlet: the machine ended: Stopped\n");
    assert!(!socket.exists());
}

#[test]
fn a_printed_specification_runs_the_same_machine() {
    let kernel = guest("again\n", &power_off());
    let (code, text, errors) = run(&kernel, &["--mem", "64Mi", "--rng=false", "--print-spec"]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let spec: MachineSpec = serde_json::from_str(&text).expect("it is a specification");
    assert_eq!((spec.memory, spec.rng), (64 << 20, false));
    let file = NamedTempFile::new().expect("a temporary file can be made");
    std::fs::write(file.path(), &text).expect("and written");
    let output = finished(kvmlet(&["--spec", file.path().to_str().expect("temporary paths are text")]));
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"again\n"[..]));
}

#[test]
fn mistakes_are_told_all_at_once_and_nothing_runs() {
    let output = finished(kvmlet(&[
        "--kernel",
        "/nowhere/vmlinux",
        "--mem",
        "16M",
        "--cpus",
        "many",
        "--tap",
        "much-too-long-for-one",
    ]));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    for mistake in [
        "4 mistakes",
        "--kernel /nowhere/vmlinux: ",
        "--mem 16M: ",
        "--cpus many: ",
        "--tap much-too-long-for-one: ",
    ] {
        assert!(errors.contains(mistake), "{mistake}: {errors}");
    }
}

#[test]
fn a_file_in_a_sockets_place_is_left_alone() {
    let kernel = guest("", &power_off());
    let precious = NamedTempFile::new().expect("a temporary file can be made");
    std::fs::write(precious.path(), "precious").expect("and written");
    let path = precious.path().to_str().expect("temporary paths are text");
    let (_, text, _) = run(&kernel, &["--print-spec"]);
    let mut spec: serde_json::Value = serde_json::from_str(&text).expect("it is a specification");
    spec["vsock"] = serde_json::json!({ "cid": 3, "socket": { "path": path } });
    let file = NamedTempFile::new().expect("a temporary file can be made");
    std::fs::write(file.path(), spec.to_string()).expect("and written");
    let (by_option, _, told) = run(&kernel, &["--vsock", path]);
    let by_spec = finished(kvmlet(&["--spec", file.path().to_str().expect("temporary paths are text")]));
    assert_eq!((by_option, by_spec.status.code()), (Some(1), Some(1)));
    for errors in [told, String::from_utf8_lossy(&by_spec.stderr).into_owned()] {
        assert!(errors.contains("is no socket"), "{errors}");
    }
    assert_eq!(std::fs::read(precious.path()).expect("it is still there"), b"precious");
}

/// Says what Linux says with `initcall_debug`.
const LINUX: &str = "[    0.001000] calling  early+0x0/0x10 @ 1\r\n[    0.002000] initcall early+0x0/0x10 returned 0 after 900 usecs\r\n\
                     [    0.030000] initcall slow+0x0/0x10 returned 0 after 20000 usecs\r\n[    0.031000] Run /init as init process\r\n";

#[test]
fn a_traced_boot_ends_with_its_timeline_when_the_first_process_begins() {
    let begun = Instant::now();
    let (code, text, errors) = run(&guest(LINUX, &HALT), &["--boot-trace"]);
    // Nobody waits for an agent where there is no way to it.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{text}");
    let lines: Vec<_> = text.lines().collect();
    let place = |what: &str| {
        lines
            .iter()
            .position(|line| line.contains(what))
            .unwrap_or_else(|| panic!("{what}: {text}"))
    };
    let parts = [
        "create the virtual machine",
        "load the kernel",
        "first KVM_RUN",
        "initcall slow",
        "/init begins",
        "2 longest of 2 initcalls",
    ];
    let places: Vec<_> = parts.iter().map(|part| place(part)).collect();
    assert!(places.is_sorted(), "{text}");
    assert!(text.contains("     20.900 ms  in 2 initcalls"), "{text}");
}

#[test]
fn a_traced_guest_that_does_not_boot_shows_the_hosts_steps_and_its_last_words() {
    let (code, text, errors) = run(&guest("no root\n", &out(0x602, 1)), &["--boot-trace"]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("load the kernel") && text.contains("said nothing of its initcalls"),
        "{text}"
    );
    assert_eq!(errors, "no root\nkvmlet: the machine ended: Reset\n");
}
