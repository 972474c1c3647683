use std::io::{PipeReader, PipeWriter, Read, Seek, Write};
use std::os::fd::OwnedFd;

use super::*;
use crate::virtio::device::Interrupt;
use crate::virtio::testing::{BUFFERS, DEADLINE, Driver, F_ALL, Faults, activate, memory};

struct Rig {
    device: Console,
    receive: Driver,
    transmit: Driver,
    faults: Faults,
}

fn file(end: impl Into<OwnedFd>) -> File {
    let file = File::from(end.into());
    rustix::io::ioctl_fionbio(&file, true).unwrap();
    file
}

impl Rig {
    fn new(output: File, input: Option<File>) -> Self {
        let mut device = Console::new(output, input, Some(Screen::new(80, 25)));
        let memory = memory();
        let [receive, transmit] = [0, 1].map(|index| Driver::new(&memory, index, QUEUE_SIZE));
        let faults = activate(&mut device, &[&receive, &transmit], F_ALL | F_SIZE);
        Self {
            device,
            receive,
            transmit,
            faults,
        }
    }

    /// The device is reset, and its driver begins anew.
    fn restart(&mut self) {
        self.device.reset();
        self.receive.restart();
        self.transmit.restart();
        self.faults = activate(&mut self.device, &[&self.receive, &self.transmit], F_ALL | F_SIZE);
    }

    /// The guest writes, and waits until it has its buffer back.
    fn say(&mut self, text: &[u8]) {
        self.transmit.write(BUFFERS, text);
        self.transmit.chain(0, &[(BUFFERS, text.len() as u32, false)]);
        self.transmit.offer(0);
        self.transmit.kick();
        assert_eq!(self.transmit.wait_used(), (0, 0));
    }

    fn buffer(head: u16) -> u64 {
        BUFFERS + 0x10_0000 + 0x1_0000 * u64::from(head)
    }

    /// The guest offers a buffer for input.
    fn listen(&mut self, head: u16, length: u32) {
        self.receive.chain(head, &[(Self::buffer(head), length, true)]);
        self.receive.offer(head);
        self.receive.kick();
    }

    fn hear(&mut self) -> Vec<u8> {
        let (head, length) = self.receive.wait_used();
        self.receive.read(Self::buffer(head), length as usize)
    }
}

/// Output and its reader, input and its writer.
fn pipes() -> (File, PipeReader, File, PipeWriter) {
    let (out, output) = std::io::pipe().unwrap();
    let (input, typed) = std::io::pipe().unwrap();
    (file(output), out, file(input), typed)
}

#[test]
fn what_a_guest_writes_comes_out_and_what_is_typed_gets_in() {
    let (output, mut out, input, mut typed) = pipes();
    let mut rig = Rig::new(output, Some(input));
    rig.say(b"login: ");
    let mut text = [0; 7];
    out.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"login: ");
    rig.listen(0, 100);
    rig.listen(1, 4);
    typed.write_all(b"root\n").unwrap();
    assert_eq!(rig.hear(), b"root\n");
    typed.write_all(b"secret\n").unwrap();
    assert_eq!(rig.hear(), b"secr");
    rig.listen(0, 100);
    assert_eq!(rig.hear(), b"et\n");
    assert!(rig.faults.none());
}

#[test]
fn input_that_comes_before_the_guest_wants_it_waits_outside() {
    let (output, _out, input, mut typed) = pipes();
    let mut rig = Rig::new(output, Some(input));
    typed.write_all(b"early").unwrap();
    rig.say(b"x");
    rig.listen(0, 100);
    assert_eq!(rig.hear(), b"early");
}

#[test]
fn output_goes_on_when_input_has_ended_and_when_there_is_none() {
    let (output, mut out, input, typed) = pipes();
    let mut rig = Rig::new(output, Some(input));
    rig.listen(0, 100);
    drop(typed);
    rig.say(b"still here");
    let mut text = [0; 10];
    out.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"still here");
    let (output, _out, ..) = pipes();
    Rig::new(output, None).say(b"nobody types");
}

#[test]
fn a_host_that_does_not_read_holds_a_guest_up_once_and_is_told_what_it_has_lost() {
    let (output, mut out, ..) = pipes();
    let mut rig = Rig::new(output, None);
    let line = vec![b'x'; 60_000];
    let begun = Instant::now();
    for _ in 0..50 {
        rig.say(&line);
    }
    let passed = begun.elapsed();
    assert!((PATIENCE..25 * PATIENCE).contains(&passed), "{passed:?}");
    let mut text = vec![0; 70_000];
    let mut got = out.read(&mut text).unwrap();
    rig.say(b"and on");
    while !text[..got].ends_with(b"and on") {
        got += out.read(&mut text[got..]).unwrap();
    }
    let text = String::from_utf8_lossy(&text[..got]).into_owned();
    let lost = text.trim_start_matches('x').strip_prefix("\r\n[");
    let lost = lost.and_then(|rest| rest.split(' ').next()).expect("it is told");
    let seen = text.bytes().take_while(|byte| *byte == b'x').count();
    assert_eq!(seen + lost.parse::<usize>().unwrap(), 50 * line.len());
    assert!(rig.faults.none());
}

#[test]
fn a_host_that_reads_slowly_gets_everything() {
    let (output, mut out, ..) = pipes();
    let mut rig = Rig::new(output, None);
    let reader = std::thread::spawn(move || {
        let (mut all, mut block) = (0, [0; 8192]);
        while all < 500_000 {
            std::thread::sleep(Duration::from_millis(5));
            let length = out.read(&mut block).unwrap();
            assert!(block[..length].iter().all(|byte| *byte == b'x'));
            all += length;
        }
        all
    });
    for _ in 0..10 {
        rig.say(&[b'x'; 50_000]);
    }
    assert_eq!(reader.join().unwrap(), 500_000);
}

#[test]
fn a_guest_that_floods_is_held_to_the_rate_and_loses_nothing() {
    let output = tempfile::tempfile().unwrap();
    let mut rig = Rig::new(output.try_clone().unwrap(), None);
    let block = vec![b'y'; 1 << 19];
    let begun = Instant::now();
    for _ in 0..10 {
        rig.say(&block);
    }
    let over = (10 * block.len() as u64 - crate::outlet::BURST) as f64 / crate::outlet::RATE as f64;
    assert!(begun.elapsed().as_secs_f64() > over * 0.95, "{:?}", begun.elapsed());
    assert_eq!((&output).seek(std::io::SeekFrom::End(0)).unwrap(), 10 * block.len() as u64);
}

#[test]
fn a_reset_ends_a_wait_at_once_and_the_device_serves_again() {
    let (output, _out, ..) = pipes();
    let mut rig = Rig::new(output, None);
    rig.transmit.chain(0, &[(BUFFERS, 8 << 20, false)]);
    rig.transmit.offer(0);
    rig.transmit.kick();
    let begun = Instant::now();
    rig.restart();
    assert!(begun.elapsed() < DEADLINE / 2);
    rig.say(b"again");
    assert!(rig.faults.none());
}

#[test]
fn a_reset_gives_no_new_allowance() {
    let mut rig = Rig::new(tempfile::tempfile().unwrap(), None);
    rig.say(&vec![0; 4 << 20]);
    let begun = Instant::now();
    for _ in 0..4 {
        rig.restart();
        rig.say(&[0; 256 << 10]);
    }
    assert!(begun.elapsed() > Duration::from_millis(700), "{:?}", begun.elapsed());
}

#[test]
fn the_screens_size_is_configuration_and_its_owner_changes_it() {
    let (output, ..) = pipes();
    let screen = Screen::new(80, 25);
    let device = Console::new(output, None, Some(screen.clone()));
    let read = |length: usize| {
        let mut data = vec![0xff; length];
        device.read_config(0, &mut data);
        data
    };
    assert_eq!(read(8), [80, 0, 25, 0, 0, 0, 0, 0]);
    screen.resize(132, 50);
    assert_eq!(read(4), [132, 0, 50, 0]);
    assert_ne!(device.features() & F_SIZE, 0);
    let (output, ..) = pipes();
    assert_eq!(Console::new(output, None, None).features() & F_SIZE, 0);
}

#[test]
fn a_resize_interrupts_a_running_guest_once() {
    let (output, ..) = pipes();
    let screen = Screen::new(80, 25);
    let raised = Arc::new(vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap());
    screen.resize(81, 25);
    screen.0.changed.set(Some(Interrupt::new(raised.clone())));
    screen.resize(81, 25);
    assert!(raised.read().is_err());
    screen.resize(82, 25);
    assert_eq!(raised.read().unwrap(), 1);
    let mut device = Console::new(output, None, Some(screen.clone()));
    device.reset();
    screen.resize(83, 25);
    assert!(raised.read().is_err());
}

#[test]
fn a_buffer_for_input_that_cannot_be_written_is_refused() {
    let (output, _out, input, mut typed) = pipes();
    let mut rig = Rig::new(output, Some(input));
    typed.write_all(b"x").unwrap();
    rig.receive.chain(0, &[(BUFFERS, 8, false)]);
    rig.receive.offer(0);
    rig.receive.kick();
    assert!(rig.faults.wait().what.contains("too short"));
}
