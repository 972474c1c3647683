//! The control socket's other end, as a daemon and a person have it.

use std::sync::atomic::AtomicU32;

use super::*;
use crate::{client::Control, client::Events, order::CONTROL_SOCKET};

const SOON: Option<Duration> = Some(Duration::from_secs(20));

struct Rig {
    directory: tempfile::TempDir,
    book: Arc<Book>,
    kills: Arc<AtomicU32>,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let book = Arc::new(Book::new());
        let kills = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&kills);
        let server = Server {
            book: Arc::clone(&book),
            pid: std::process::id(),
            rings: false,
            enter: Arc::new(|_| Ok(())),
            kill: Arc::new(move || {
                counted.fetch_add(1, Ordering::SeqCst);
            }),
            snapshot: Arc::new(|_, wanted| Err(format!("nothing runs: {wanted:?}"))),
            memory: Arc::new(resized),
            machine: Arc::new(|| None),
        };
        server
            .start(UnixListener::bind(directory.path().join(CONTROL_SOCKET)).unwrap())
            .unwrap();
        Self { directory, book, kills }
    }

    fn control(&self) -> Control {
        Control::connect(self.directory.path(), std::process::id(), DEADLINE).unwrap()
    }
}

/// A machine that follows at once.
fn resized(resize: Option<u64>) -> Result<Memory, String> {
    let (least, most) = (100, 300);
    let wanted = resize.unwrap_or(200);
    let memory = Memory {
        least,
        most,
        wanted,
        present: wanted,
    };
    (least..=most).contains(&wanted).then_some(memory).ok_or("not so much".into())
}

#[test]
fn memory_is_told_and_a_wish_that_cannot_be_met_is_refused_with_its_reason() {
    let mut control = Rig::new().control();
    assert_eq!(control.memory(None).unwrap().present, 200);
    assert_eq!(control.memory(Some(300)).unwrap().wanted, 300);
    let refused = control.memory(Some(301));
    assert!(matches!(refused, Err(crate::ClientError::Refused(why)) if why == "not so much"));
}

#[test]
fn a_snapshot_is_of_what_was_asked_for() {
    let mut control = Rig::new().control();
    let (one, other) = (file(), file());
    let taken = control.snapshot(one.as_fd(), other.as_fd());
    assert!(matches!(taken, Err(crate::ClientError::Refused(why)) if why.ends_with("{ changes: false, go_on: false }")));
    for (changes, go_on) in [(false, true), (true, false), (true, true)] {
        let taken = control.snapshot_by_hand((one.as_fd(), other.as_fd()), changes, go_on);
        let words = format!("{{ changes: {changes}, go_on: {go_on} }}");
        assert!(
            matches!(taken, Err(crate::ClientError::Refused(why)) if why.ends_with(&words)),
            "{words}"
        );
    }
}

fn file() -> std::fs::File {
    tempfile::tempfile().unwrap()
}

fn record(sequence: u64) -> kvmlet_protocol::LogRecord {
    kvmlet_protocol::LogRecord {
        container: "a".into(),
        sequence,
        stream: kvmlet_protocol::LogStream::Stdout,
        time: 0,
        partial: false,
        data: b"text".to_vec(),
    }
}

#[test]
fn files_and_kills_arrive_and_status_tells_everything() {
    let rig = Rig::new();
    let mut control = rig.control();
    control.log_file("a", file().as_fd(), 4321).unwrap();
    assert!(control.log_file("no/id", file().as_fd(), 1).is_err());
    rig.book.set_state(MachineState::Running);
    control.kill().unwrap();
    // A daemon that comes back sees the same.
    let status = rig.control().status().unwrap();
    assert_eq!((status.pid, status.state), (std::process::id(), MachineState::Running));
    assert_eq!((status.logs.len(), status.logs[0].budget_left), (1, 4321));
    assert_eq!(rig.kills.load(Ordering::SeqCst), 1);
    control.close_log("a").unwrap();
    assert!(control.status().unwrap().logs.is_empty());
}

#[test]
fn events_are_pushed_and_told_again_to_a_daemon_that_returns() {
    let rig = Rig::new();
    rig.control().log_file("a", file().as_fd(), 10).unwrap();
    let mut events = Events::subscribe(rig.control()).unwrap();
    assert_eq!(events.next(Some(Duration::ZERO)).unwrap(), None);
    rig.book.take(record(1)).unwrap();
    rig.book.write();
    let spent = Event::BudgetSpent { container: "a".into() };
    assert_eq!(events.next(SOON).unwrap(), Some(spent.clone()));
    let mut again = Events::subscribe(rig.control()).unwrap();
    assert_eq!(again.next(SOON).unwrap(), Some(spent));
    rig.book.set_state(MachineState::Ended);
    assert_eq!(events.next(SOON).unwrap(), Some(Event::Ended));
    assert_eq!(again.next(SOON).unwrap(), Some(Event::Ended));
}

#[test]
fn another_version_and_another_process_are_refused() {
    let rig = Rig::new();
    let stream = UnixStream::connect(rig.directory.path().join(CONTROL_SOCKET)).unwrap();
    let hello = Request::Hello {
        oldest: VERSION + 1,
        newest: VERSION + 2,
    };
    send(&stream, &hello, &[]).unwrap();
    assert!(matches!(Receiver::new(stream).receive().unwrap().0, Reply::Failed { .. }));
    let other = Control::connect(rig.directory.path(), 1, DEADLINE);
    assert!(matches!(other, Err(crate::ClientError::Stranger { expected: 1, .. })));
}
