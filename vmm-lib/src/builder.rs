//! From a specification to a machine that is ready to run, in KVM's order: VM, memory, interrupt controller, processors, devices, kernel.
//! Everything that can fail because of the host or the specification fails here, before a guest exists.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};

use crate::attach::{AttachError, Attachment, Change, DetachError, Ground, Occupied};
use crate::boot::{self, BootError, Plan};
use crate::bus::Bus;
use crate::cpuid::{CpuidError, Template};
use crate::devices::{self, DeviceError, Shared};
use crate::exit::{ExitCounts, MachineExit, MachineReport};
use crate::files::{FileError, Files};
use crate::generation::{self, GenerationError};
use crate::hotplug::{Hotplug, Hotplugged, ResizeError};
use crate::images::{Images, ImagesError};
use crate::irq::Interrupts;
use crate::kvm::{self, KvmError};
use crate::lock::lock;
use crate::memory::{self, KVM_TSS, Layout, MemoryError};
use crate::pci::PciBus;
use crate::posted::Posted;
use crate::registers::{self, RegistersError};
use crate::serial::{SerialError, SerialPort};
use crate::snapshot::processor::Registers;
use crate::snapshot::restore::{check_shape, open_snapshot, restore};
use crate::snapshot::{self, RestoreError, SnapshotError, SnapshotFiles, Source};
use crate::spec::{MachineSpec, Pmem, Serial, WatchdogAction};
use crate::threads::{Enter, Maker, ThreadKind, Threads, Wish};
use crate::timeline::{Phase, Timeline};
use crate::validate::SpecErrors;
use crate::vcpu::{self, Control, Vcpu};
use crate::virtio::console::Screen;
use crate::virtio::device::{GuestSpace, Memory};
use crate::virtio::vsock::Inlet;
use crate::watchdog::Timer;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The specification is not valid.
    #[error("the specification is not valid")]
    Spec(#[source] SpecErrors),
    /// A file could not be had.
    #[error("open the machine's files")]
    File(#[from] FileError),
    /// The host's KVM cannot be used.
    #[error("use KVM")]
    Kvm(#[from] KvmError),
    /// KVM refused a step.
    #[error("{0}")]
    Step(&'static str, #[source] kvm_ioctls::Error),
    /// Memory.
    #[error("make guest memory")]
    Memory(#[from] MemoryError),
    /// An image that is read in place.
    #[error("map images")]
    Images(#[from] ImagesError),
    /// CPUID.
    #[error("set up CPUID")]
    Cpuid(#[from] CpuidError),
    /// Registers.
    #[error("set up registers")]
    Registers(#[from] RegistersError),
    /// A device.
    #[error("make devices")]
    Device(#[from] DeviceError),
    /// The ring of posted writes.
    #[error("map KVM's ring of posted writes")]
    Posted(#[source] std::io::Error),
    /// The serial port.
    #[error("make the serial port")]
    Serial(#[from] SerialError),
    /// Kernel, initramfs, tables.
    #[error("load the kernel")]
    Boot(#[from] BootError),
    /// A snapshot.
    #[error("take up the snapshot")]
    Restore(#[from] RestoreError),
    /// The generation identifier.
    #[error("give the machine its generation identifier")]
    Generation(#[from] GenerationError),
    /// The signal that gets processors out of the guest.
    #[error("install the signal handler")]
    Signal(#[source] std::io::Error),
}

/// Makes a machine.
pub struct Builder {
    spec: MachineSpec,
    passed: Vec<OwnedFd>,
    kvm: Option<OwnedFd>,
    inlet: Option<Inlet>,
    enter: Arc<Enter>,
}

impl Builder {
    /// Of this specification, with the open files that it names by number.
    pub fn new(spec: MachineSpec, passed: Vec<OwnedFd>) -> Self {
        Self {
            spec,
            passed,
            kvm: None,
            inlet: None,
            enter: Arc::new(|_| Ok(())),
        }
    }

    /// Uses this descriptor of `/dev/kvm`, which is opened otherwise.
    pub fn kvm(mut self, kvm: OwnedFd) -> Self {
        self.kvm = Some(kvm);
        self
    }

    /// Gives the vsock device clients of this process. Closed when there is no such device.
    pub fn inlet(mut self, inlet: Inlet) -> Self {
        self.inlet = Some(inlet);
        self
    }

    /// Has each thread of the machine call this before its work.
    pub fn enter(mut self, enter: Arc<Enter>) -> Self {
        self.enter = enter;
        self
    }

    /// Checks the specification and makes the machine. No guest code has run when this returns.
    pub fn build(self) -> Result<Machine, BuildError> {
        let Self {
            spec,
            passed,
            kvm,
            inlet,
            enter,
        } = self;
        let mut timeline = Timeline::begin();
        spec.validate(passed.len()).map_err(BuildError::Spec)?;
        timeline.done(Phase::Check);
        let files = Files::new(passed);
        let snapshot = spec.restore.as_ref().map(|restore| open_snapshot(restore, &files)).transpose()?;
        let kvm = kvm.map_or_else(kvm::open, kvm::from_open)?;
        let (threads, maker) = Threads::new(enter);
        let cpuid = Template::new(&kvm)?;
        let lengths: Vec<u64> = spec.pmems.iter().map(Pmem::length).collect();
        let room = spec.comb.as_ref().map_or((0, 0), |comb| (comb.memory_bytes, comb.pmem_bytes));
        let hotplug = spec.hotplug.map_or(0, |hotplug| hotplug.size);
        let layout = Layout::new(spec.memory, hotplug, &lengths, room, cpuid.address_bits())?;
        let possible_cpus = spec.comb.as_ref().map_or(spec.cpus, |comb| comb.cpus);
        let first = cpuid.processor(0, possible_cpus)?;
        if let Some((state, ..)) = &snapshot {
            check_shape(state, &spec, &layout, &first)?;
        }
        let msrs = Arc::new(Registers::of(&kvm));
        timeline.done(Phase::Kvm);
        let step = |what: &'static str| move |source| BuildError::Step(what, source);

        let vm = Arc::new(kvm.create_vm().map_err(step("create the virtual machine"))?);
        vm.set_tss_address(KVM_TSS).map_err(step("place KVM's task state"))?;
        timeline.done(Phase::VirtualMachine);
        let ram = memory::create(&vm, &layout, snapshot.as_ref().map(|(_, memory, _)| memory))?;
        let mapped = Images::create(&vm, &layout, &spec.pmems, &files)?;
        let hotplug = spec
            .hotplug
            .map(|hotplug| Arc::new(Hotplug::new(layout.hotplug.clone(), hotplug.requested)));
        let memory: Memory = Arc::new(GuestSpace::new(ram, mapped).with_hotplug(hotplug));
        let ecam = memory::create_ecam(&vm)?;
        timeline.done(Phase::Memory);
        vm.create_irq_chip().map_err(step("create the interrupt controller"))?;
        timeline.done(Phase::Interrupts);
        let mut vcpus = Vec::new();
        for index in 0..spec.cpus {
            let vcpu = vm.create_vcpu(u64::from(index)).map_err(step("create a processor"))?;
            vcpu.set_cpuid2(&cpuid.processor(index, possible_cpus)?)
                .map_err(step("set a processor's CPUID"))?;
            registers::set_msrs(&vcpu)?;
            vcpus.push(vcpu);
        }
        timeline.done(Phase::Processors);

        let serial = spec.serial.as_ref().map(|serial| serial_port(serial, &files, &vm)).transpose()?;
        let screen = spec.console.as_ref().and_then(|console| console.size);
        let screen = screen.map(|size| Screen::new(size.columns, size.rows));
        let timer = spec.watchdog.as_ref().map(|watchdog| (Arc::new(Timer::default()), watchdog.action));
        let interrupts = Arc::new(Interrupts::new(vm.clone()));
        let shared = Shared {
            inlet,
            screen: screen.clone(),
            timer: timer.as_ref().map(|(timer, _)| timer.clone()),
        };
        let functions = devices::create(&spec, &files, &vm, &interrupts, &memory, &layout, (&threads, shared))?;
        let pci = PciBus::new(ecam, layout.clone(), functions);
        pci.post(&vm).map_err(step("post writes of absent registers"))?;
        let bus = Bus {
            pci,
            posted: Posted::new(&vcpus[0]).map_err(BuildError::Posted)?,
            serial,
            images: layout.images.clone(),
        };
        timeline.done(Phase::Devices);

        let restored = snapshot.is_some();
        if let Some((state, _, set)) = snapshot {
            restore(&state, &vm, &vcpus, &bus)?;
            generation::renew(&memory, &vm)?;
            timeline.done(Phase::Restore);
            set.prefetch(&memory, &layout, &vcpus[0]);
            timeline.done(Phase::Prefetch);
        } else {
            generation::write(&memory)?;
            boot(&spec, &files, (&memory, &layout, possible_cpus), &vcpus[0], &mut timeline)?;
        }
        vcpu::install_kick_handler().map_err(|error| BuildError::Signal(error.into()))?;
        timeline.done(Phase::Registers);
        let control = Arc::new(Control::new(spec.cpus, spec.count_exits, timeline));
        Ok(Machine {
            vcpus,
            control,
            bus: Arc::new(bus),
            memory,
            threads,
            maker,
            vm,
            interrupts,
            layout,
            cpuid: first,
            possible_cpus,
            registers: msrs,
            restored,
            screen,
            timer,
        })
    }
}

/// Loads the kernel and points the boot processor at it.
fn boot(
    spec: &MachineSpec,
    files: &Files,
    (memory, layout, cpus): (&Memory, &Layout, u8),
    vcpu: &VcpuFd,
    timeline: &mut Timeline,
) -> Result<(), BuildError> {
    let kernel = files.open_existing("boot.kernel", &spec.boot.kernel, false)?;
    let initramfs = spec
        .boot
        .initramfs
        .as_ref()
        .map(|source| files.open_existing("boot.initramfs", source, false))
        .transpose()?;
    timeline.done(Phase::Files);
    let plan = Plan {
        memory,
        layout,
        kernel: &kernel,
        initramfs: initramfs.as_ref(),
        command_line: &spec.boot.command_line,
        cpus,
        serial: spec.serial.is_some(),
    };
    let entry = boot::load(&plan, timeline)?;
    Ok(registers::set_entry(vcpu, memory, entry)?)
}

/// A snapshot of a machine that runs, and goes on or stops.
fn stand_and_take(control: &Control, source: &Source<'_>, files: &SnapshotFiles, go_on: bool) -> Result<(), SnapshotError> {
    if !control.stand() {
        return Err(SnapshotError::NotRunning);
    }
    let taken = snapshot::take(source, || control.registers(), files);
    if taken.is_ok() && !go_on {
        control.finish(MachineExit::Stopped);
    } else {
        source.bus.pci.resume();
    }
    control.go_on();
    taken
}

fn serial_port(serial: &Serial, files: &Files, vm: &VmFd) -> Result<Arc<SerialPort>, BuildError> {
    let output = files.open_log("serial.output", &serial.output)?;
    let input = serial.input.as_ref();
    let input = input.map(|input| files.open_unblocking("serial.input", input, false)).transpose()?;
    Ok(Arc::new(SerialPort::new(vm, output, input)?))
}

/// A machine that has not run yet.
pub struct Machine {
    vcpus: Vec<VcpuFd>,
    control: Arc<Control>,
    bus: Arc<Bus>,
    memory: Memory,
    threads: Threads,
    maker: Maker,
    vm: Arc<VmFd>,
    interrupts: Arc<Interrupts>,
    layout: Layout,
    cpuid: CpuId,
    possible_cpus: u8,
    registers: Arc<Registers>,
    restored: bool,
    screen: Option<Screen>,
    timer: Option<(Arc<Timer>, WatchdogAction)>,
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

    /// The host's steps up to now, from [`Builder::build`] on.
    pub fn timeline(&self) -> Timeline {
        self.control.timeline()
    }

    /// Brings the machine to a stand, writes all of it, and lets it `go_on` or stops it. Connections of the vsock device are gone then, and the
    /// guest knows. Waits until the files are written; blocks for as long as that takes. After an error the machine goes on.
    pub fn snapshot(&self, files: SnapshotFiles, go_on: bool) -> Result<(), SnapshotError> {
        self.threads.snapshot(files, go_on)
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
            possible_cpus,
            cpuid: cpuid.as_slice(),
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
                    let taken = stand_and_take(&control, &source, &request.files, request.go_on);
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
