//! A machine that was made: run to its end, and reached from other threads meanwhile.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use kvm_ioctls::{VcpuFd, VmFd};

use crate::arch::cpuid::Shown;
use crate::arch::processor::Registers;
use crate::attach::{AttachError, Attachment, Change, DetachError, Ground, Occupied};
use crate::bus::Bus;
use crate::dirty::DirtyLog;
use crate::exit::{ExitCounts, MachineExit, MachineReport};
use crate::hotplug::{Hotplug, Hotplugged, ResizeError};
use crate::irq::Interrupts;
use crate::lock::lock;
use crate::memory::Layout;
use crate::serial::SerialPort;
use crate::snapshot::{self, Extent, SnapshotError, SnapshotFiles, Source};
use crate::spec::WatchdogAction;
use crate::threads::{Maker, SnapshotRequest, ThreadKind, Threads, Wish};
use crate::timeline::{Phase, Timeline};
use crate::vcpu::{Control, Vcpu};
use crate::virtio::console::Screen;
use crate::virtio::device::Memory;
use crate::watchdog::Timer;

/// A machine that has not run yet.
pub struct Machine {
    pub(crate) vcpus: Vec<VcpuFd>,
    pub(crate) control: Arc<Control>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) memory: Memory,
    pub(crate) threads: Threads,
    pub(crate) maker: Maker,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) interrupts: Arc<Interrupts>,
    pub(crate) layout: Layout,
    pub(crate) log: Option<DirtyLog>,
    pub(crate) cpuid: Shown,
    pub(crate) possible_cpus: u8,
    pub(crate) registers: Arc<Registers>,
    pub(crate) restored: bool,
    pub(crate) screen: Option<Screen>,
    pub(crate) timer: Option<(Arc<Timer>, WatchdogAction)>,
}

/// Reaches a machine from other threads, before, while and after it runs.
#[derive(Clone)]
pub struct Handle {
    control: Arc<Control>,
    threads: Threads,
    hotplug: Option<Arc<Hotplug>>,
}

impl Handle {
    /// Ends the machine at once, as if by pulling its plug; a machine that has not run yet will not.
    pub fn stop(&self) {
        self.control.finish(MachineExit::Stopped);
    }

    /// The exits to user space up to now, if they are counted.
    pub fn exit_counts(&self) -> Option<ExitCounts> {
        self.control.counts()
    }

    /// The host's steps up to now, from [`Builder::build`](crate::Builder::build) on.
    pub fn timeline(&self) -> Timeline {
        self.control.timeline()
    }

    /// Brings the machine to a stand, writes all of it, and lets it `go_on` or stops it. Connections of the vsock device are gone then, and the
    /// guest knows. Waits until the files are written; blocks for as long as that takes. After an error the machine goes on.
    pub fn snapshot(&self, files: SnapshotFiles, go_on: bool) -> Result<(), SnapshotError> {
        self.threads.snapshot(files, Extent::All, go_on)
    }

    /// The same, but of memory only what was written since the last snapshot, or since the machine was made of one; its specification has a
    /// `dirtyLog`. A machine is made of both together, [merged](crate::snapshot::merge). After an error nothing of the log is lost.
    pub fn snapshot_changes(&self, files: SnapshotFiles, go_on: bool) -> Result<(), SnapshotError> {
        self.threads.snapshot(files, Extent::Changes, go_on)
    }

    /// Has the guest plug or unplug memory until it has `requested` bytes besides what it began with, a multiple of
    /// [`HOTPLUG_BLOCK`](crate::spec::HOTPLUG_BLOCK). Returns what it has now: it follows while it runs, as far as it can.
    /// A guest that could not unplug all tries again when it is asked again, for the same too; by itself Linux does so after 50 s.
    pub fn resize_memory(&self, requested: u64) -> Result<Hotplugged, ResizeError> {
        let hotplug = self.hotplug.as_ref().ok_or(ResizeError::NoRegion)?;
        hotplug.request(requested)?;
        Ok(hotplug.status())
    }

    /// Puts a device on the machine's bus, with the open `files` that it names by number; the guest has to look for it. Returns its device
    /// number on PCI bus 0.
    pub fn attach(&self, attachment: Attachment, files: Vec<OwnedFd>) -> Result<u8, AttachError> {
        self.threads
            .ask(|reply| Wish::Change(Change::Attach(Box::new(attachment), files, reply)))
            .unwrap_or(Err(AttachError::NotRunning))
    }

    /// Takes the device with this number off the machine's bus. One that the guest uses stays, unless by `force`: the guest then finds all
    /// ones where it was.
    pub fn detach(&self, slot: u8, force: bool) -> Result<(), DetachError> {
        self.threads
            .ask(|reply| Wish::Change(Change::Detach(slot, force, reply)))
            .unwrap_or(Err(DetachError::NotRunning))
    }

    /// What is on the machine's bus; `None` when it does not run.
    pub fn devices(&self) -> Option<Vec<Occupied>> {
        self.threads.ask(|reply| Wish::Change(Change::List(reply)))
    }

    /// How much memory besides what it began with the guest has, if there is room for any.
    pub fn hotplugged(&self) -> Option<Hotplugged> {
        self.hotplug.as_ref().map(|hotplug| hotplug.status())
    }
}

impl Machine {
    /// A handle on this machine.
    pub fn handle(&self) -> Handle {
        Handle {
            control: self.control.clone(),
            threads: self.threads.clone(),
            hotplug: self.memory.hotplug().cloned(),
        }
    }

    /// The screen of its console, if that has a size.
    pub fn screen(&self) -> Option<Screen> {
        self.screen.clone()
    }

    /// Runs the machine to its end. Returns when all its threads are gone.
    pub fn run(self) -> MachineReport {
        let Self {
            vcpus,
            control,
            bus,
            memory,
            threads: enter,
            maker,
            vm,
            interrupts,
            layout,
            log,
            cpuid,
            possible_cpus,
            registers,
            restored,
            screen: _,
            timer,
        } = self;
        enter.settle();
        if restored {
            bus.pci.resume();
            bus.serial.iter().for_each(|serial| serial.resume());
        }
        control.done(Phase::Waiting);
        let attendants = attend(&control, &enter, bus.serial.as_ref(), timer.as_ref());
        let mut threads = Vec::new();
        for (index, fd) in vcpus.into_iter().enumerate() {
            let vcpu = Vcpu {
                index: index as u8,
                fd,
                control: control.clone(),
                bus: bus.clone(),
                registers: registers.clone(),
                _memory: memory.clone(),
            };
            let (enter, presence) = (enter.clone(), enter.presence());
            let begin = move || {
                // Dropped last, and by a panic too.
                let _presence = presence;
                match enter.enter(ThreadKind::Vcpu) {
                    Ok(()) => vcpu.run(),
                    Err(error) => vcpu.give_up(format!("confine processor {index}: {error}")),
                }
            };
            match thread::Builder::new().name(format!("vcpu{index}")).spawn(begin) {
                Ok(thread) => threads.push(thread),
                Err(error) => control.finish(MachineExit::Error {
                    what: format!("start processor {index}: {error}"),
                }),
            }
        }
        let source = Source {
            vm: &vm,
            bus: &bus,
            memory: &memory,
            layout: &layout,
            log: log.as_ref(),
            possible_cpus,
            cpuid: cpuid.leaves(),
        };
        let one_at_a_time = Mutex::new(());
        let ground = Ground {
            vm: &vm,
            bus: &bus,
            memory: &memory,
            layout: &layout,
            interrupts: &interrupts,
            threads: &enter,
        };
        let fulfil = |wish: Wish| {
            let _turn = lock(&one_at_a_time);
            match wish {
                Wish::Snapshot(request) => {
                    let taken = stand_and_take(&control, &source, &request);
                    // Whoever asked may have gone.
                    let _ = request.reply.send(taken);
                }
                Wish::Change(change) => ground.change(change),
            }
        };
        thread::scope(|scope| {
            // On a thread of its own: a processor on its way to a stand may still want this one to make it a thread.
            maker.serve(threads.len(), |wish| {
                // Without a thread the wish is dropped, and whoever asked is told that.
                let _ = thread::Builder::new().name("wish".into()).spawn_scoped(scope, || fulfil(wish));
            });
        });
        let mut vcpu_cpu_micros = Vec::new();
        for thread in threads {
            // A thread that panicked has ended the machine and said so.
            vcpu_cpu_micros.push(thread.join().unwrap_or(0));
        }
        control.done(Phase::Guest);
        bus.pci.stop();
        if let Some(serial) = &bus.serial {
            serial.stop();
        }
        if let Some((timer, _)) = &timer {
            timer.stop();
        }
        for attendant in attendants {
            // It serves nobody any more, however it ended.
            let _ = attendant.join();
        }
        let exit = control.exit().unwrap_or_else(|| MachineExit::Error {
            what: "no processor ran".to_owned(),
        });
        MachineReport {
            exit,
            exits: control.counts(),
            vcpu_cpu_micros,
        }
    }
}

/// Threads beside the processors' that are there from the start: the serial port's input, the watchdog's time. Without one of them there is no
/// such machine as was asked for.
fn attend(
    control: &Arc<Control>,
    enter: &Threads,
    serial: Option<&Arc<SerialPort>>,
    timer: Option<&(Arc<Timer>, WatchdogAction)>,
) -> Vec<JoinHandle<()>> {
    let mut threads = Vec::new();
    let mut start = |name: &str, kind: ThreadKind, work: Box<dyn FnOnce() -> Result<(), String> + Send>| {
        let (enter, ends, what) = (enter.clone(), control.clone(), name.to_owned());
        let begin = move || {
            let entered = enter
                .enter(kind)
                .map_err(|error| format!("confine the thread of the {what}: {error}"));
            if let Err(what) = entered.and_then(|()| work()) {
                ends.finish(MachineExit::Error { what });
            }
        };
        // The kernel keeps 15 bytes of a thread's name; a thread of these needs little.
        match thread::Builder::new().name(name.into()).stack_size(128 << 10).spawn(begin) {
            Ok(thread) => threads.push(thread),
            Err(error) => control.finish(MachineExit::Error {
                what: format!("start the thread of the {name}: {error}"),
            }),
        }
    };
    if let Some((serial, input)) = serial.and_then(|serial| Some((serial.clone(), serial.take_input()?))) {
        let work = move || serial.feed(input).map_err(|error| format!("feed the serial port: {error}"));
        start("serial port", ThreadKind::Serial, Box::new(work));
    }
    if let Some((timer, action)) = timer {
        let (timer, action, control) = (timer.clone(), *action, control.clone());
        let work = move || {
            if timer.count() {
                control.finish(MachineExit::Watchdog { action });
            }
            Ok(())
        };
        start("watchdog", ThreadKind::Watchdog, Box::new(work));
    }
    threads
}

/// A snapshot of a machine that runs, and goes on or stops.
fn stand_and_take(control: &Control, source: &Source<'_>, request: &SnapshotRequest) -> Result<(), SnapshotError> {
    if !control.stand() {
        return Err(SnapshotError::NotRunning);
    }
    let taken = snapshot::take(source, || control.registers(), &request.files, request.extent);
    if taken.is_ok() && !request.go_on {
        control.finish(MachineExit::Stopped);
    } else {
        source.bus.pci.resume();
    }
    control.go_on();
    taken
}
