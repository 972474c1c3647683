//! Who makes a machine's threads, and what each does before its work. A device starts when its driver says so, on a processor's thread;
//! that thread must not be able to make threads itself once it is confined, and a thread that it made would inherit its confinement. So all
//! of them are made by the thread that runs the machine, on request.
//!
//! Knows no confinement: it calls what the user of this library gave it ([`Enter`]), at the start of each thread, with the thread's kind.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Builder, JoinHandle, ThreadId};

use crate::attach::Change;
use crate::snapshot::{Extent, SnapshotError, SnapshotFiles};

/// What a thread does; its system calls follow from that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThreadKind {
    /// Runs the guest, and answers its exits.
    Vcpu,
    /// Serves a disk.
    Block,
    /// Serves a disk by a ring of the kernel's.
    BlockRing,
    /// Serves a network device.
    Net,
    /// Serves the vsock device.
    Vsock,
    /// Serves random bytes.
    Rng,
    /// Takes memory back from the guest.
    Balloon,
    /// Serves an image that is read in place.
    Pmem,
    /// Gives the guest memory, and takes it back.
    Mem,
    /// Serves a console.
    Console,
    /// Gives the serial port its input.
    Serial,
    /// Counts a watchdog's time.
    Watchdog,
    /// Carries messages to and from a shared directory's process.
    Fs,
}

/// Called by each thread before its work; an error ends what the thread was for.
pub type Enter = dyn Fn(ThreadKind) -> io::Result<()> + Send + Sync;

type Work = Box<dyn FnOnce() + Send>;

/// To the thread that makes threads.
enum Message {
    Make {
        builder: Builder,
        work: Work,
        reply: SyncSender<io::Result<JoinHandle<()>>>,
    },
    /// The machine itself is asked for something.
    Wish(Wish),
    /// A processor's thread has ended.
    Gone,
}

/// What the machine is asked for while it runs.
pub(crate) enum Wish {
    /// A snapshot.
    Snapshot(SnapshotRequest),
    /// Other devices.
    Change(Change),
}

/// A wish for a snapshot.
pub(crate) struct SnapshotRequest {
    /// Where it goes.
    pub(crate) files: SnapshotFiles,
    /// How much of memory it has.
    pub(crate) extent: Extent,
    /// Whether the machine goes on.
    pub(crate) go_on: bool,
    /// Who waits for it.
    pub(crate) reply: SyncSender<Result<(), SnapshotError>>,
}

/// Makes threads of a machine.
#[derive(Clone)]
pub struct Threads {
    enter: Arc<Enter>,
    maker: Option<Sender<Message>>,
    /// The maker's thread, once it has said so: it need not ask itself.
    home: Arc<OnceLock<ThreadId>>,
}

impl Threads {
    /// Threads made by whoever asks, that begin their work at once.
    pub fn plain() -> Self {
        Self {
            enter: Arc::new(|_| Ok(())),
            maker: None,
            home: Arc::default(),
        }
    }

    /// Threads that call `enter` first, made by the one that has the [`Maker`].
    pub(crate) fn new(enter: Arc<Enter>) -> (Self, Maker) {
        let (sender, receiver) = mpsc::channel();
        let threads = Self {
            enter,
            maker: Some(sender),
            home: Arc::default(),
        };
        (threads, Maker(receiver))
    }

    /// What a new thread of this kind calls first.
    pub(crate) fn enter(&self, kind: ThreadKind) -> io::Result<()> {
        (self.enter)(kind)
    }

    /// The calling thread is the one that has the [`Maker`].
    pub(crate) fn settle(&self) {
        // Once only.
        let _ = self.home.set(thread::current().id());
    }

    /// A new thread.
    pub(crate) fn spawn(&self, builder: Builder, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        let Some(maker) = self.maker.as_ref().filter(|_| self.home.get() != Some(&thread::current().id())) else {
            return builder.spawn(work);
        };
        let (reply, answer) = mpsc::sync_channel(1);
        let work = Box::new(work);
        let gone = |_| io::Error::other("the machine is ending");
        maker
            .send(Message::Make { builder, work, reply })
            .map_err(|_| io::Error::other("the machine is ending"))?;
        answer.recv().map_err(gone)?
    }

    /// Has the thread that runs the machine take a snapshot.
    pub(crate) fn snapshot(&self, files: SnapshotFiles, extent: Extent, go_on: bool) -> Result<(), SnapshotError> {
        let request = |reply| SnapshotRequest {
            files,
            extent,
            go_on,
            reply,
        };
        self.ask(|reply| Wish::Snapshot(request(reply)))
            .unwrap_or(Err(SnapshotError::NotRunning))
    }

    /// Asks the machine for something and waits for its answer; `None` when it does not run.
    pub(crate) fn ask<T>(&self, wish: impl FnOnce(SyncSender<T>) -> Wish) -> Option<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.maker.as_ref()?.send(Message::Wish(wish(reply))).ok()?;
        answer.recv().ok()
    }

    /// Tells the maker, when dropped, that one whom it serves is gone.
    pub(crate) fn presence(&self) -> Presence {
        Presence(self.maker.clone())
    }
}

/// One whom the maker serves.
pub(crate) struct Presence(Option<Sender<Message>>);

impl Drop for Presence {
    fn drop(&mut self) {
        if let Some(maker) = &self.0 {
            // Without a maker there is nobody to tell.
            let _ = maker.send(Message::Gone);
        }
    }
}

/// The end where requests for threads arrive.
pub(crate) struct Maker(Receiver<Message>);

impl Maker {
    /// Makes threads, and has `fulfil` do what the machine is asked for, until so many [`Presence`]s are gone.
    pub(crate) fn serve(&self, mut present: usize, mut fulfil: impl FnMut(Wish)) {
        while present > 0 {
            match self.0.recv() {
                Ok(Message::Make { builder, work, reply }) => {
                    let _ = reply.send(builder.spawn(work));
                }
                Ok(Message::Wish(wish)) => fulfil(wish),
                Ok(Message::Gone) => present -= 1,
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_made_by_the_maker_until_the_last_presence_is_gone() {
        let (threads, maker) = Threads::new(Arc::new(|_| Ok(())));
        let maker_id = std::thread::current().id();
        let presence = threads.presence();
        let asker = std::thread::spawn(move || {
            let _presence = presence;
            let made = threads.spawn(Builder::new().name("made".into()), || {
                assert_eq!(std::thread::current().name(), Some("made"));
            });
            made.expect("there is a maker").join().expect("it has the name");
            threads
        });
        maker.serve(1, |_| {});
        let threads = asker.join().expect("it got its thread");
        assert_eq!(std::thread::current().id(), maker_id);
        drop(maker);
        assert!(threads.spawn(Builder::new(), || {}).is_err());
    }
}
