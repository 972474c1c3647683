//! The log writer against an agent that speaks through a socket like the vsock device's: one that keeps the protocol, and one that does not.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use kvmlet_protocol::{Hello, LogAck, LogRecord, LogStream, MAX_GUEST_FRAME, VERSION, Welcome, read_frame, write_frame};

use super::{Book, Writer};
use crate::control::{LogStatus, MachineState};

const DEADLINE: Duration = Duration::from_secs(20);

struct Rig {
    directory: tempfile::TempDir,
    listener: UnixListener,
    book: Arc<Book>,
    writer: Option<JoinHandle<()>>,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vsock.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let book = Arc::new(Book::new());
        book.set_state(MachineState::Running);
        let writer = Writer::new(Arc::clone(&book), Box::new(move || UnixStream::connect(&socket))).unwrap();
        let writer = Some(thread::spawn(move || writer.run()));
        Self {
            directory,
            listener,
            book,
            writer,
        }
    }

    /// Accepts the writer's next connection as the device and the agent would.
    fn agent(&self) -> BufReader<UnixStream> {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut agent = BufReader::new(stream);
        let mut line = String::new();
        agent.read_line(&mut line).unwrap();
        assert_eq!(line, "CONNECT 1025\n");
        agent.get_mut().write_all(b"OK 1073741824\n").unwrap();
        let hello: Hello = read_frame(&mut agent, 1000).unwrap();
        assert_eq!(hello.newest, VERSION);
        let welcome = Welcome {
            version: VERSION,
            agent: "test".into(),
            kernel: "6.1".into(),
        };
        write_frame(agent.get_mut(), &welcome).unwrap();
        agent
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, container: &str, name: &str, budget: u64) {
        let file = OpenOptions::new().create(true).append(true).open(self.path(name)).unwrap();
        self.book.put_file(container.into(), file.into(), budget).unwrap();
    }

    fn status(&self, container: &str) -> Option<LogStatus> {
        self.book.status().1.into_iter().find(|log| log.container == container)
    }

    fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(Instant::now() < end, "{what}: {:?}", self.book.status());
            thread::yield_now();
        }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn finish(mut self) {
        self.book.set_state(MachineState::Ended);
        self.writer.take().unwrap().join().unwrap();
    }
}

fn record(container: &str, sequence: u64, data: &str) -> LogRecord {
    LogRecord {
        container: container.into(),
        sequence,
        stream: LogStream::Stdout,
        time: sequence,
        partial: false,
        data: data.into(),
    }
}

fn say(agent: &mut BufReader<UnixStream>, container: &str, sequence: u64, data: &str) {
    write_frame(agent.get_mut(), &record(container, sequence, data)).unwrap();
}

fn acked(agent: &mut BufReader<UnixStream>, container: &str, sequence: u64) {
    loop {
        let ack: LogAck = read_frame(agent, 1000).unwrap();
        assert_eq!(ack.container, container);
        assert!(ack.sequence <= sequence);
        if ack.sequence == sequence {
            return;
        }
    }
}

fn line(sequence: u64, text: &str) -> String {
    format!("1970-01-01T00:00:00.{sequence:09}Z stdout F {text}\n")
}

#[test]
fn records_wait_for_a_file_and_are_acknowledged_once_written() {
    let rig = Rig::new();
    let mut agent = rig.agent();
    say(&mut agent, "a", 1, "one");
    say(&mut agent, "a", 2, "two");
    rig.until("two lines wait", |rig| rig.status("a").is_some_and(|log| log.waiting == 2));
    rig.put("a", "a.log", 1000);
    acked(&mut agent, "a", 2);
    assert_eq!(rig.text("a.log"), line(1, "one") + &line(2, "two"));
    drop(agent);
    rig.finish();
}

#[test]
fn a_spent_budget_stops_one_container_until_a_fresh_file_comes() {
    let rig = Rig::new();
    let mut agent = rig.agent();
    let size = line(1, "x").len() as u64;
    rig.put("a", "a.0", 2 * size + size / 2);
    rig.put("b", "b.0", 1000);
    for sequence in 1..=5 {
        say(&mut agent, "a", sequence, "x");
    }
    acked(&mut agent, "a", 2);
    rig.until("a is spent", |rig| rig.status("a").is_some_and(|log| log.spent));
    assert_eq!(rig.book.spent(), [("a".to_owned(), 1)]);
    say(&mut agent, "b", 1, "goes on");
    acked(&mut agent, "b", 1);
    assert_eq!(rig.text("b.0"), line(1, "goes on"));
    assert_eq!(rig.text("a.0"), line(1, "x") + &line(2, "x"));
    rig.put("a", "a.1", 2 * size);
    acked(&mut agent, "a", 4);
    rig.until("a is spent again", |rig| rig.book.spent() == [("a".to_owned(), 2)]);
    // The machine ends; what waits is not dropped.
    drop(agent);
    rig.book.set_state(MachineState::Ended);
    rig.until("the link is down", |rig| !rig.book.status().2.connected);
    assert!(!rig.writer.as_ref().unwrap().is_finished());
    let path = rig.path("a.2");
    rig.put("a", "a.2", 1000);
    let copy = rig.directory.path().join("copy");
    let mut rig = rig;
    rig.writer.take().unwrap().join().unwrap();
    fs::copy(path, &copy).unwrap();
    assert_eq!(fs::read_to_string(copy).unwrap(), line(5, "x"));
}

#[test]
fn after_a_reconnect_nothing_is_written_twice() {
    let rig = Rig::new();
    let mut agent = rig.agent();
    rig.put("a", "a.log", 1000);
    say(&mut agent, "a", 1, "one");
    acked(&mut agent, "a", 1);
    drop(agent);
    let mut agent = rig.agent();
    say(&mut agent, "a", 1, "one");
    acked(&mut agent, "a", 1);
    say(&mut agent, "a", 2, "two");
    acked(&mut agent, "a", 2);
    assert_eq!(rig.text("a.log"), line(1, "one") + &line(2, "two"));
    assert_eq!(rig.book.status().2.violations, 0);
    drop(agent);
    rig.finish();
}

#[test]
fn garbage_ends_the_connection_is_counted_and_the_next_one_works() {
    let rig = Rig::new();
    rig.put("a", "a.log", 1000);
    let frame = |body: &[u8]| [&(body.len() as u32).to_le_bytes()[..], body].concat();
    let bad: Vec<Vec<u8>> = vec![
        // 4 GiB announced, one byte more than allowed, no record, a record too long, a newline inside, a gap, no identifier.
        vec![0xff; 64],
        (MAX_GUEST_FRAME as u32 + 1).to_le_bytes().to_vec(),
        frame(&[0xff; 32]),
        kvmlet_protocol::encode(&record("a", 1, &"x".repeat(16_385))),
        kvmlet_protocol::encode(&record("a", 1, "one\nforged")),
        kvmlet_protocol::encode(&record("a", 7, "gap")),
        kvmlet_protocol::encode(&record("../a", 1, "x")),
    ];
    for (count, bytes) in bad.iter().enumerate() {
        let mut agent = rig.agent();
        agent.get_mut().write_all(bytes).unwrap();
        assert!(read_frame::<LogAck>(&mut agent, 1000).is_err());
        rig.until("it is counted", |rig| rig.book.status().2.violations == count as u64 + 1);
    }
    let mut agent = rig.agent();
    say(&mut agent, "a", 1, "fine");
    acked(&mut agent, "a", 1);
    assert_eq!(rig.text("a.log"), line(1, "fine"));
    drop(agent);
    rig.finish();
}

#[test]
fn a_flood_of_unknown_containers_is_bounded_and_nothing_of_it_is_lost() {
    let rig = Rig::new();
    let mut agent = rig.agent();
    let mut stream = agent.get_ref().try_clone().unwrap();
    // More than the book and the socket's buffers hold together.
    let flood = thread::spawn(move || {
        for sequence in 1..=500 {
            write_frame(&mut stream, &record("unknown", sequence, &"y".repeat(16_000))).unwrap();
        }
    });
    rig.until("it is full", |rig| rig.book.full());
    assert!(rig.status("unknown").unwrap().waiting < 200);
    assert!(!flood.is_finished());
    rig.put("unknown", "u.log", u64::MAX);
    acked(&mut agent, "unknown", 500);
    flood.join().unwrap();
    assert_eq!(rig.text("u.log").lines().count(), 500);
    drop(agent);
    rig.finish();
}

#[test]
fn a_full_disk_is_waited_out_without_a_torn_line() {
    let rig = Rig::new();
    let mut agent = rig.agent();
    // /dev/full takes nothing; then a real file.
    let full = File::options().write(true).open("/dev/full").unwrap();
    rig.book.put_file("a".into(), full.into(), 1000).unwrap();
    say(&mut agent, "a", 1, "one");
    rig.until("the error is reported", |rig| {
        rig.status("a").is_some_and(|log| log.error.is_some())
    });
    rig.put("a", "a.log", 1000);
    acked(&mut agent, "a", 1);
    assert_eq!(rig.text("a.log"), line(1, "one"));
    assert_eq!(rig.status("a").unwrap().error, None);
    drop(agent);
    rig.finish();
}

#[test]
fn a_closed_container_is_acknowledged_and_dropped() {
    let rig = Rig::new();
    let mut agent = rig.agent();
    rig.put("a", "a.log", 1000);
    rig.book.close("a");
    say(&mut agent, "a", 1, "late");
    acked(&mut agent, "a", 1);
    assert_eq!(rig.text("a.log"), "");
    assert!(rig.status("a").is_none());
    drop(agent);
    rig.finish();
}
