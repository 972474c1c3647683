//! Processors: one thread each that enters the guest, answers its exits and counts them, and the one place that ends them all.
//!
//! A stop cannot be lost: the flag is set first, then each processor's `immediate_exit`, then it is signalled. A thread that has not yet
//! looked at the flag sees it; one about to enter the guest finds `immediate_exit`; one inside is interrupted.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use crate::arch::processor::{self, ProcessorState, Registers};
use crate::bus::Bus;
use crate::exit::{ExitCounts, MachineExit};
use crate::lock::lock;
use crate::pause::Pause;
use crate::pci::PciBus;
use crate::timeline::{Phase, Timeline};
use crate::virtio::device::Memory;

const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;

/// How to get a processor out of the guest.
struct Kick {
    immediate_exit: NonNull<AtomicU8>,
    thread: libc::pthread_t,
}

// SAFETY: the byte is only ever accessed atomically, and a `Kick` is removed, under its lock, before what it points at goes away.
unsafe impl Send for Kick {}

/// Shared by all processors of a machine and its handles.
pub(crate) struct Control {
    stopping: AtomicBool,
    exit: Mutex<Option<MachineExit>>,
    kicks: Vec<Mutex<Option<Kick>>>,
    counts: Option<Vec<Mutex<ExitCounts>>>,
    timeline: Mutex<Timeline>,
    pause: Pause,
}

impl Control {
    /// For so many processors, of a machine that came to be like this.
    pub(crate) fn new(cpus: u8, count_exits: bool, timeline: Timeline) -> Self {
        Self {
            stopping: AtomicBool::new(false),
            exit: Mutex::new(None),
            kicks: (0..cpus).map(|_| Mutex::new(None)).collect(),
            counts: count_exits.then(|| (0..cpus).map(|_| Mutex::default()).collect()),
            timeline: Mutex::new(timeline),
            pause: Pause::default(),
        }
    }

    /// Ends the machine; the first reason counts.
    pub(crate) fn finish(&self, exit: MachineExit) {
        lock(&self.exit).get_or_insert(exit);
        self.stopping.store(true, Ordering::SeqCst);
        self.pause.give_up();
        self.kick();
    }

    /// Gets all processors out of the guest.
    fn kick(&self) {
        for kick in &self.kicks {
            if let Some(kick) = &*lock(kick) {
                // SAFETY: a registered kick's page is mapped: its thread removes the kick, under this lock, before unmapping.
                unsafe { kick.immediate_exit.as_ref() }.store(1, Ordering::SeqCst);
                // SAFETY: a registered kick's thread is alive for the same reason; the signal has a handler.
                unsafe { libc::pthread_kill(kick.thread, SIGRTMIN()) };
            }
        }
    }

    /// Brings all processors to a stand; `false` when the machine ends instead.
    pub(crate) fn stand(&self) -> bool {
        self.pause.want();
        self.kick();
        self.pause.wait(self.kicks.len())
    }

    /// The registers of all processors, which stand; `None` when the machine ends instead.
    pub(crate) fn registers(&self) -> Option<Vec<Result<ProcessorState, String>>> {
        self.pause.tell(self.kicks.len())
    }

    /// Lets processors that stand go on.
    pub(crate) fn go_on(&self) {
        self.pause.end();
    }

    /// Why the machine ended, once it has.
    pub(crate) fn exit(&self) -> Option<MachineExit> {
        lock(&self.exit).clone()
    }

    /// What has been counted up to now.
    pub(crate) fn counts(&self) -> Option<ExitCounts> {
        let mut all = ExitCounts::default();
        self.counts.as_ref()?.iter().for_each(|counts| all.merge(&lock(counts)));
        Some(all)
    }

    /// The host has done this.
    pub(crate) fn done(&self, phase: Phase) {
        lock(&self.timeline).done(phase);
    }

    /// What the host has done.
    pub(crate) fn timeline(&self) -> Timeline {
        lock(&self.timeline).clone()
    }

    fn count(&self, index: u8, count: impl FnOnce(&mut ExitCounts)) {
        if let Some(counts) = &self.counts {
            count(&mut lock(&counts[usize::from(index)]));
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// A processor that can be kicked: while this lives, its thread and its page do. A thread that panics ends the machine.
struct Registered<'a> {
    control: &'a Control,
    index: usize,
}

impl<'a> Registered<'a> {
    fn new(control: &'a Control, index: u8, kick: Kick) -> Self {
        let index = usize::from(index);
        *lock(&control.kicks[index]) = Some(kick);
        Self { control, index }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        *lock(&self.control.kicks[self.index]) = None;
        if std::thread::panicking() {
            self.control.finish(MachineExit::Error {
                what: format!("the thread of processor {} panicked", self.index),
            });
        }
    }
}

/// Makes the kick's signal interrupt, and nothing else. Process-wide: SIGRTMIN belongs to this library.
pub(crate) fn install_kick_handler() -> Result<(), vmm_sys_util::errno::Error> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing)
}

/// One processor, on its thread.
pub(crate) struct Vcpu {
    pub(crate) index: u8,
    pub(crate) fd: VcpuFd,
    pub(crate) control: Arc<Control>,
    pub(crate) bus: Arc<Bus>,
    /// What there is to be told of it.
    pub(crate) registers: Arc<Registers>,
    /// Kept mapped for as long as this processor can touch it.
    pub(crate) _memory: Memory,
}

/// What to do after an exit.
enum Next {
    Enter,
    End(MachineExit),
    InternalError,
}

impl Vcpu {
    /// Runs until the machine ends; returns the processor time used, microseconds.
    pub(crate) fn run(mut self) -> u64 {
        let control = self.control.clone();
        // Whoever started this thread may have blocked all signals; one that stays blocked only delays a stop until the next exit.
        if let Err(error) = unblock_signal(SIGRTMIN()) {
            tracing::warn!(%error, "a processor cannot be interrupted by a signal");
        }
        let immediate_exit = NonNull::from(&mut self.fd.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        // SAFETY: asks for this thread's own identifier.
        let thread = unsafe { libc::pthread_self() };
        let registered = Registered::new(&control, self.index, Kick { immediate_exit, thread });
        if self.index == 0 {
            control.done(Phase::Threads);
        }
        let exit = self.run_until_end();
        drop(registered);
        if let Some(exit) = exit {
            self.control.finish(exit);
        }
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
    }

    /// Ends the machine, whose guest this processor cannot run.
    pub(crate) fn give_up(self, what: String) -> u64 {
        self.control.finish(MachineExit::Error { what });
        0
    }

    fn run_until_end(&mut self) -> Option<MachineExit> {
        while !self.control.is_stopping() {
            if self.control.pause.is_wanted() {
                // KVM finishes what the last exit began, and comes back.
                self.fd.set_kvm_immediate_exit(1);
            }
            match self.enter() {
                Next::Enter => {}
                Next::End(exit) => return Some(exit),
                Next::InternalError => return Some(self.internal_error()),
            }
        }
        None
    }

    fn enter(&mut self) -> Next {
        let (control, bus, index) = (&self.control, &self.bus, self.index);
        let left = self.fd.run();
        bus.settle();
        match left {
            Ok(VcpuExit::IoIn(port, data)) => {
                control.count(index, |counts| counts.port(port));
                bus.read_port(port, data);
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                control.count(index, |counts| counts.port(port));
                if let Some(exit) = bus.write_port(port, data) {
                    return Next::End(exit);
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                control.count(index, |counts| count_address(counts, address));
                if let Some(exit) = bus.read(address, data) {
                    return Next::End(exit);
                }
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                control.count(index, |counts| count_address(counts, address));
                if let Some(exit) = bus.write(address, data) {
                    return Next::End(exit);
                }
            }
            Ok(VcpuExit::Intr) => control.count(index, |counts| counts.other("signal")),
            Ok(VcpuExit::Shutdown) => return Next::End(MachineExit::TripleFault),
            Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _)) => return Next::End(MachineExit::PoweredOff),
            Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _)) => return Next::End(MachineExit::Reset),
            Ok(VcpuExit::SystemEvent(kind, _)) => return crashed(format!("system event {kind}")),
            Ok(VcpuExit::InternalError) => return Next::InternalError,
            Ok(VcpuExit::FailEntry(reason, _)) => return crashed(format!("the processor refused to enter the guest: {reason:#x}")),
            Ok(VcpuExit::Hlt) => return crashed("a processor halted outside of KVM's interrupt controller".to_owned()),
            Ok(VcpuExit::MemoryFault { gpa, size, .. }) => {
                let reason = format!("{size:#x} bytes at {gpa:#x}");
                return Next::End(MachineExit::MemoryFault { reason });
            }
            Ok(exit) => return crashed(format!("unexpected exit {exit:?}")),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => {
                    control.count(index, |counts| counts.other("signal"));
                    self.after_signal();
                }
                libc::EFAULT => {
                    return Next::End(MachineExit::MemoryFault {
                        reason: "guest memory that the host could not give".into(),
                    });
                }
                _ => {
                    return Next::End(MachineExit::Error {
                        what: format!("run processor {}: {error}", self.index),
                    });
                }
            },
        }
        Next::Enter
    }

    /// Stands if that is wished; then the kick must not keep the processor out of the guest.
    fn after_signal(&mut self) {
        let (control, fd, registers) = (self.control.clone(), &self.fd, &self.registers);
        if control.pause.is_wanted() {
            control.pause.stand(usize::from(self.index), || ProcessorState::save(fd, registers));
        }
        if !control.is_stopping() {
            self.fd.set_kvm_immediate_exit(0);
        }
    }

    fn internal_error(&mut self) -> MachineExit {
        let run = self.fd.get_kvm_run();
        // SAFETY: KVM filled this member of the union: the exit reason was KVM_EXIT_INTERNAL_ERROR.
        let error = unsafe { run.__bindgen_anon_1.internal };
        let known = (error.ndata as usize).min(error.data.len());
        let place = processor::place(&self.fd)
            .map(|place| format!(" at {place:#x}"))
            .unwrap_or_default();
        MachineExit::Crashed {
            reason: format!("KVM could not go on{place}: error {}, {:x?}", error.suberror, &error.data[..known]),
        }
    }
}

fn crashed(reason: String) -> Next {
    Next::End(MachineExit::Crashed { reason })
}

fn count_address(counts: &mut ExitCounts, address: u64) {
    match PciBus::locate(address) {
        Some((device, function)) => counts.config(device, function),
        None => counts.address(address),
    }
}
