//! The console of `kvmlet vm run` in both directions: a terminal, as one sits before it, and a pipe. Guests of a few instructions.

#[path = "../vmm-lib/tests/support/bzimage.rs"]
#[allow(dead_code, reason = "tests of other crates use more of it")]
mod bzimage;

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::openpty,
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, Termios, tcgetattr},
    },
    unistd::Pid,
};
use tempfile::NamedTempFile;

const DEADLINE: Duration = Duration::from_secs(60);

/// Says `>`, then echoes what its serial port gets until a `q`, then powers off.
fn echo() -> NamedTempFile {
    // mov $'>', %al; mov $0x3f8, %dx; out %al, %dx
    let mut code = vec![0xb0, b'>', 0x66, 0xba, 0xf8, 0x03, 0xee];
    // wait: mov $0x3fd, %dx; in %dx, %al; test $1, %al; jz wait; mov $0x3f8, %dx; in %dx, %al; out %al, %dx; cmp $'q', %al; jne wait
    code.extend([0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7]);
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0x3c, b'q', 0x75, 0xed]);
    // mov $0x34, %al; mov $0x600, %dx; out %al, %dx; hlt
    code.extend([0xb0, 0x34, 0x66, 0xba, 0x00, 0x06, 0xee, 0xf4]);
    let file = NamedTempFile::new().expect("a temporary file can be made");
    std::fs::write(file.path(), bzimage::bzimage(&code)).expect("and written");
    file
}

/// A terminal with somebody before it.
struct Desk {
    person: File,
    terminal: OwnedFd,
    seen: Vec<u8>,
}

impl Desk {
    fn new() -> Self {
        let pty = openpty(None, None).expect("a terminal is to be had");
        fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("it can be told");
        Self {
            person: File::from(pty.master),
            terminal: pty.slave,
            seen: Vec::new(),
        }
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.terminal).expect("it is a terminal")
    }

    /// Starts kvmlet as the job in the foreground of this terminal.
    fn run(&self, kernel: &NamedTempFile, more: &[&str]) -> Child {
        let end = || Stdio::from(self.terminal.as_fd().try_clone_to_owned().expect("a descriptor is to be had"));
        Command::new("setsid")
            .args(["--ctty", "--wait", env!("CARGO_BIN_EXE_kvmlet"), "vm", "run", "--kernel"])
            .arg(kernel.path())
            .args(more)
            .stdin(end())
            .stdout(end())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setsid starts")
    }

    fn types(&mut self, text: &[u8]) {
        self.person.write_all(text).expect("a terminal takes it");
    }

    /// Waits until this is on the screen.
    fn sees(&mut self, text: &[u8]) {
        let begun = Instant::now();
        let mut block = [0; 1024];
        while !self.seen.windows(text.len()).any(|window| window == text) {
            assert!(begun.elapsed() < DEADLINE, "{:?}", String::from_utf8_lossy(&self.seen));
            match self.person.read(&mut block) {
                Ok(length) => self.seen.extend(&block[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(2)),
                Err(error) => panic!("somebody has the terminal open, this test: {error}"),
            }
        }
    }
}

fn finished(mut child: Child) -> (Output, String) {
    let begun = Instant::now();
    while child.try_wait().expect("it is our child").is_none() {
        if begun.elapsed() > DEADLINE {
            child.kill().expect("it is our child");
            panic!("{:?}", child.wait_with_output());
        }
        thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("it has ended");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, errors)
}

#[test]
fn a_terminal_is_the_guests_until_ctrl_a_x_and_then_as_it_was() {
    let (kernel, mut desk) = (echo(), Desk::new());
    let before = desk.modes();
    assert!(
        before
            .local_flags
            .contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    );
    let child = desk.run(&kernel, &[]);
    desk.sees(b">");
    let raw = desk.modes().local_flags;
    assert!(!raw.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG), "{raw:?}");
    // Not a line yet, and Ctrl-C, which would end a program.
    desk.types(b"hel\x03lo");
    desk.sees(b">hel\x03lo");
    desk.types(b"\x01\x01\x01b.");
    desk.sees(b"lo\x01\x01b.");
    desk.types(b"\x01x");
    let (output, errors) = finished(child);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("Ctrl-A x") && errors.ends_with("kvmlet: the machine ended: Stopped\n"),
        "{errors}"
    );
    assert_eq!(desk.modes(), before);
}

#[test]
fn a_terminal_is_as_it_was_after_a_power_off_and_after_signals() {
    let kernel = echo();
    for signal in [None, Some(Signal::SIGTERM), Some(Signal::SIGHUP), Some(Signal::SIGQUIT)] {
        let mut desk = Desk::new();
        let before = desk.modes();
        let child = desk.run(&kernel, &[]);
        desk.sees(b">");
        match signal {
            Some(signal) => kill(Pid::from_raw(child.id() as i32), signal).expect("it is our child"),
            None => desk.types(b"q"),
        }
        let (output, errors) = finished(child);
        assert_eq!(
            output.status.code(),
            Some(if signal.is_some() { 1 } else { 0 }),
            "{signal:?}: {errors}"
        );
        assert_eq!(desk.modes(), before, "{signal:?}");
    }
}

#[test]
fn a_pipe_is_the_consoles_input_to_its_end_and_ctrl_a_is_nothing_special_in_it() {
    let kernel = echo();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvmlet"))
        .args(["vm", "run", "--kernel"])
        .arg(kernel.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kvmlet starts");
    let mut stdin = child.stdin.take().expect("piped");
    let text = [b"\x01x".as_slice(), &[b'z'; 3000], b"q"].concat();
    stdin.write_all(&text).expect("somebody reads it");
    drop(stdin);
    let (output, errors) = finished(child);
    assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""));
    assert_eq!(output.stdout, [b">".as_slice(), &text].concat());
}

#[test]
fn a_virtio_console_is_what_the_kernel_is_told_of_and_its_size_is_the_terminals() {
    let kernel = echo();
    let output = Command::new(env!("CARGO_BIN_EXE_kvmlet"))
        .args(["vm", "run", "--console", "virtio", "--watchdog", "--print-spec", "--kernel"])
        .arg(kernel.path())
        .output()
        .expect("kvmlet starts");
    let spec: vmm_lib::spec::MachineSpec = serde_json::from_slice(&output.stdout).expect("it is a specification");
    assert!(spec.boot.command_line.starts_with("console=hvc0 "), "{}", spec.boot.command_line);
    assert!(!spec.boot.command_line.contains("quiet"), "{}", spec.boot.command_line);
    let console = spec.console.expect("it was asked for");
    assert!(spec.serial.is_none() && console.size.is_none() && console.input.is_some());
    assert!(spec.watchdog.is_some());
}
