//! Who has said what, and where it goes: the state shared by the thread that writes logs and those that answer the daemon. No lock is held
//! while a file is written to. Bounded: a guest's records wait in limited number, then its connection is not read from.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use kvmlet_protocol::LogRecord;
use rustix::{
    event::EventfdFlags,
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
};

use super::line;
use crate::control::{LinkStatus, LogStatus, MachineState};

/// What one waiting record is counted as, besides its data.
const RECORD_OVERHEAD: usize = 64;
/// Bytes that wait for one container with a file, before nothing is read from the guest. An agent that keeps its window never gets there.
const MAX_WAITING: usize = 4 << 20;
/// Bytes that wait for all containers without a file.
const MAX_UNKNOWN: usize = 1 << 20;
/// Containers without a file.
const MAX_UNKNOWN_CONTAINERS: usize = 64;
/// Closed containers that are remembered, so that late records do not wait for ever.
const MAX_CLOSED: usize = 4096;
/// Longest piece of a line.
const MAX_DATA: usize = 16_384;
/// Longest container identifier.
const MAX_ID: usize = 64;
/// Bytes in one write.
const MAX_BATCH: usize = 256 << 10;

#[derive(Debug)]
struct Target {
    file: Arc<File>,
    /// The file's length when it came, and what was added since.
    base: u64,
    written: u64,
    budget: u64,
}

#[derive(Debug, Default)]
struct Log {
    target: Option<Target>,
    waiting: VecDeque<LogRecord>,
    waiting_bytes: usize,
    /// Sequence numbers: the last one that came, the last one written.
    received: u64,
    written: u64,
    lines: u64,
    bytes: u64,
    spent: bool,
    /// How often the budget was spent, so that each time is told once.
    spent_count: u64,
    error: Option<String>,
}

#[derive(Debug)]
struct Inner {
    logs: BTreeMap<String, Log>,
    closed: VecDeque<String>,
    link: LinkStatus,
    state: MachineState,
    /// Nobody waits for logs any longer.
    abandoned: bool,
}

/// The book.
#[derive(Debug)]
pub(crate) struct Book {
    inner: Mutex<Inner>,
    wakers: Mutex<Vec<Weak<OwnedFd>>>,
}

/// Lines that go to one file in one write.
#[derive(Debug)]
struct Batch {
    container: String,
    file: Arc<File>,
    /// The file's length before.
    length: u64,
    bytes: Vec<u8>,
    count: usize,
}

/// What [`Book::write`] did.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Containers, with the last sequence number that is in a file.
    pub(super) acks: Vec<(String, u64)>,
    /// A file could not be written to: try again later.
    pub(super) failed: bool,
}

impl Book {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                logs: BTreeMap::new(),
                closed: VecDeque::new(),
                link: LinkStatus::default(),
                state: MachineState::Starting,
                abandoned: false,
            }),
            wakers: Mutex::new(Vec::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An eventfd that becomes readable whenever something changes.
    pub(crate) fn waker(&self) -> io::Result<Arc<OwnedFd>> {
        let waker = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        self.wakers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::downgrade(&waker));
        Ok(waker)
    }

    fn wake(&self) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.retain(|waker| {
            waker
                .upgrade()
                .is_some_and(|waker| rustix::io::write(&waker, &1u64.to_ne_bytes()).is_ok())
        });
    }

    /// Directs a container's output to `file`, until `budget` bytes are written to it.
    pub(crate) fn put_file(&self, container: String, file: OwnedFd, budget: u64) -> io::Result<()> {
        if !is_id(&container) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a container identifier"));
        }
        // A short write is taken back by truncation, and the next one must land behind it.
        let flags = fcntl_getfl(&file)?;
        fcntl_setfl(&file, flags | OFlags::APPEND)?;
        let file = File::from(file);
        let base = file.metadata()?.len();
        let mut inner = self.lock();
        inner.closed.retain(|closed| *closed != container);
        let log = inner.logs.entry(container).or_default();
        log.target = Some(Target {
            file: Arc::new(file),
            base,
            written: 0,
            budget,
        });
        (log.spent, log.error) = (false, None);
        drop(inner);
        self.wake();
        Ok(())
    }

    /// Forgets a container: what it still says is dropped.
    pub(crate) fn close(&self, container: &str) {
        let mut inner = self.lock();
        inner.logs.remove(container);
        if is_id(container) && !inner.closed.iter().any(|closed| closed == container) {
            inner.closed.push_back(container.to_owned());
        }
        if inner.closed.len() > MAX_CLOSED {
            inner.closed.pop_front();
        }
        drop(inner);
        self.wake();
    }

    pub(crate) fn set_state(&self, state: MachineState) {
        self.lock().state = state;
        self.wake();
    }

    pub(crate) fn state(&self) -> MachineState {
        self.lock().state
    }

    /// Gives up on what waits.
    pub(crate) fn abandon(&self) {
        self.lock().abandoned = true;
        self.wake();
    }

    pub(super) fn abandoned(&self) -> bool {
        self.lock().abandoned
    }

    pub(crate) fn status(&self) -> (MachineState, Vec<LogStatus>, LinkStatus) {
        let inner = self.lock();
        let logs = inner.logs.iter().map(|(container, log)| LogStatus {
            container: container.clone(),
            has_file: log.target.is_some(),
            budget_left: log.target.as_ref().map_or(0, |target| target.budget.saturating_sub(target.written)),
            spent: log.spent,
            lines: log.lines,
            bytes: log.bytes,
            waiting: log.waiting.len() as u64,
            error: log.error.clone(),
        });
        (inner.state, logs.collect(), inner.link.clone())
    }

    /// Containers whose budget is spent, with how often it was.
    pub(crate) fn spent(&self) -> Vec<(String, u64)> {
        let inner = self.lock();
        let spent = inner.logs.iter().filter(|(_, log)| log.spent);
        spent.map(|(container, log)| (container.clone(), log.spent_count)).collect()
    }

    pub(super) fn link_up(&self) {
        self.lock().link.connected = true;
    }

    pub(super) fn link_down(&self, violation: Option<String>) {
        let mut inner = self.lock();
        inner.link.connected = false;
        if let Some(violation) = violation {
            if inner.link.violations == 0 {
                tracing::warn!(%violation, "the guest broke the log protocol; further violations are only counted");
            }
            inner.link.violations += 1;
            inner.link.last_violation = Some(violation);
        }
    }

    /// Takes a record in. `Ok(Some(n))`: everything up to `n` is written (or will never be) and can be acknowledged again.
    pub(crate) fn take(&self, record: LogRecord) -> Result<Option<u64>, String> {
        if !is_id(&record.container) {
            return Err("a record of a container without a proper identifier".into());
        }
        if record.data.len() > MAX_DATA || record.data.contains(&b'\n') {
            return Err("a record that is no line".into());
        }
        let mut inner = self.lock();
        if inner.closed.iter().any(|closed| *closed == record.container) {
            return Ok(Some(record.sequence));
        }
        let log = inner.logs.entry(record.container.clone()).or_default();
        if record.sequence <= log.received {
            return Ok((record.sequence <= log.written).then_some(log.written));
        }
        if record.sequence != log.received + 1 {
            return Err(format!("record {} followed record {}", record.sequence, log.received));
        }
        log.received = record.sequence;
        log.waiting_bytes += record.data.len() + RECORD_OVERHEAD;
        log.waiting.push_back(record);
        Ok(None)
    }

    /// Whether nothing more can be taken in before something is written.
    pub(super) fn full(&self) -> bool {
        let inner = self.lock();
        let (mut unknown, mut bytes) = (0, 0);
        for log in inner.logs.values() {
            if log.target.is_none() {
                (unknown, bytes) = (unknown + 1, bytes + log.waiting_bytes);
            } else if log.waiting_bytes >= MAX_WAITING {
                return true;
            }
        }
        unknown > MAX_UNKNOWN_CONTAINERS || bytes >= MAX_UNKNOWN
    }

    /// The machine has ended and nothing waits for a file that is known of.
    pub(super) fn finished(&self) -> bool {
        let inner = self.lock();
        let waits = |log: &Log| log.target.is_some() && !log.waiting.is_empty();
        inner.state == MachineState::Ended && !inner.logs.values().any(waits)
    }

    /// Writes all that can be written.
    pub(crate) fn write(&self) -> Written {
        let mut done = Written::default();
        let containers: Vec<String> = self.lock().logs.keys().cloned().collect();
        for container in containers {
            while let Some(batch) = self.batch(&container) {
                let outcome = write_whole(&batch);
                let failed = outcome.is_err();
                if let Some(sequence) = self.settle(&batch, outcome) {
                    done.acks.retain(|(acked, _)| *acked != container);
                    done.acks.push((container.clone(), sequence));
                }
                if failed {
                    done.failed = true;
                    break;
                }
            }
        }
        done
    }

    /// The next lines of a container, as many as fit into its budget; notes when none does.
    fn batch(&self, container: &str) -> Option<Batch> {
        let mut inner = self.lock();
        let log = inner.logs.get_mut(container)?;
        let target = log.target.as_ref()?;
        let left = target.budget.saturating_sub(target.written);
        let mut batch = Batch {
            container: container.to_owned(),
            file: Arc::clone(&target.file),
            length: target.base + target.written,
            bytes: Vec::new(),
            count: 0,
        };
        for record in &log.waiting {
            let before = batch.bytes.len();
            line::append(record, &mut batch.bytes);
            if batch.bytes.len() as u64 > left || (batch.count > 0 && batch.bytes.len() > MAX_BATCH) {
                batch.bytes.truncate(before);
                break;
            }
            batch.count += 1;
        }
        if batch.count > 0 {
            return Some(batch);
        }
        if !log.waiting.is_empty() && !log.spent {
            log.spent = true;
            log.spent_count += 1;
            drop(inner);
            self.wake();
        }
        None
    }

    /// Enters what became of a batch; the sequence number to acknowledge.
    fn settle(&self, batch: &Batch, outcome: io::Result<()>) -> Option<u64> {
        let mut inner = self.lock();
        let log = inner.logs.get_mut(&batch.container)?;
        if let Err(error) = outcome {
            if log.error.is_none() {
                tracing::warn!(container = batch.container, %error, "a log file cannot be written to; tried again each second");
            }
            log.error = Some(error.to_string());
            return None;
        }
        log.error = None;
        if let Some(target) = log.target.as_mut().filter(|target| Arc::ptr_eq(&target.file, &batch.file)) {
            target.written += batch.bytes.len() as u64;
        }
        for record in log.waiting.drain(..batch.count.min(log.waiting.len())) {
            log.waiting_bytes -= record.data.len() + RECORD_OVERHEAD;
            log.written = record.sequence;
        }
        log.lines += batch.count as u64;
        log.bytes += batch.bytes.len() as u64;
        Some(log.written)
    }
}

/// One write of everything; what was written by half is taken back.
fn write_whole(batch: &Batch) -> io::Result<()> {
    let mut file = &*batch.file;
    let outcome = match file.write(&batch.bytes) {
        Ok(count) if count == batch.bytes.len() => return Ok(()),
        Ok(_) => Err(io::ErrorKind::StorageFull.into()),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return write_whole(batch),
        Err(error) => Err(error),
    };
    // The next attempt writes these lines again: half a line must not stay before them.
    if batch.file.as_ref().metadata().is_ok_and(|metadata| metadata.len() > batch.length) {
        rustix::fs::ftruncate(batch.file.as_fd(), batch.length)?;
    }
    outcome
}

fn is_id(container: &str) -> bool {
    (1..=MAX_ID).contains(&container.len())
        && container
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}
