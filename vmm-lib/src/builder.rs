//! From a specification to a machine that is ready to run, in KVM's order: VM, memory, interrupt controller, processors, devices, kernel.
//! Everything that can fail because of the host or the specification fails here, before a guest exists.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_ioctls::VmFd;

use crate::arch::board;
use crate::arch::boot::BootError;
use crate::arch::cpuid::{CpuidError, Template};
use crate::arch::processor::Registers;
use crate::arch::registers::{self, RegistersError};
use crate::bus::Bus;
use crate::devices::{self, DeviceError, Shared};
use crate::dirty::DirtyLog;
use crate::files::{FileError, Files};
use crate::generation::{self, GenerationError};
use crate::hotplug::Hotplug;
use crate::images::{Images, ImagesError};
use crate::irq::Interrupts;
use crate::kvm::{self, KvmError};
use crate::loading::Loading;
use crate::machine::Machine;
use crate::memory::{self, Layout, MemoryError};
use crate::pci::PciBus;
use crate::posted::Posted;
use crate::serial::{PortState, SerialError, SerialPort};
use crate::snapshot::RestoreError;
use crate::snapshot::restore::{check_shape, open_snapshot, restore};
use crate::spec::{MachineSpec, Pmem, Serial};
use crate::threads::{Enter, Threads};
use crate::timeline::{Phase, Timeline};
use crate::validate::SpecErrors;
use crate::vcpu::{self, Control};
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
    /// The thread that loads the kernel could not be started.
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
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
        let layout = layout.with_late_images(spec.pmem_room, cpuid.address_bits())?;
        let possible_cpus = spec.comb.as_ref().map_or(spec.cpus, |comb| comb.cpus);
        let first = cpuid.processor(0, possible_cpus)?;
        if let Some((state, ..)) = &snapshot {
            check_shape(state, &spec, &layout, &first)?;
        }
        let msrs = Arc::new(Registers::of(&kvm));
        timeline.done(Phase::Kvm);
        let step = |what: &'static str| move |source| BuildError::Step(what, source);
        let refused = |(what, source): board::Step| BuildError::Step(what, source);

        let vm = Arc::new(kvm.create_vm().map_err(step("create the virtual machine"))?);
        board::begin(&vm).map_err(refused)?;
        timeline.done(Phase::VirtualMachine);
        let ram = memory::create(&vm, &layout, snapshot.as_ref().map(|(_, memory, _)| memory), spec.dirty_log)?;
        let log = spec
            .dirty_log
            .then(|| DirtyLog::new(snapshot.as_ref().map(|(state, ..)| state.identity)));
        let mapped = Images::create(&vm, &layout, &spec.pmems, &files)?;
        let hotplug = spec
            .hotplug
            .map(|hotplug| Arc::new(Hotplug::new(layout.hotplug.clone(), hotplug.requested)));
        let memory: Memory = Arc::new(GuestSpace::new(ram, mapped).with_hotplug(hotplug));
        let ecam = memory::create_ecam(&vm)?;
        timeline.done(Phase::Memory);
        let loading = if snapshot.is_none() {
            generation::write(&memory)?;
            Some(Loading::begin(&spec, &files, (&memory, &layout, possible_cpus), &timeline)?)
        } else {
            None
        };
        board::interrupt_controllers(&vm).map_err(refused)?;
        timeline.done(Phase::Interrupts);
        let mut vcpus = Vec::new();
        for index in 0..spec.cpus {
            let vcpu = vm.create_vcpu(u64::from(index)).map_err(step("create a processor"))?;
            let shown = cpuid.processor(index, possible_cpus)?;
            shown.set(&vcpu).map_err(step("set a processor's CPUID"))?;
            registers::set_msrs(&vcpu)?;
            vcpus.push(vcpu);
        }
        timeline.done(Phase::Processors);

        let port = snapshot.as_ref().and_then(|(state, ..)| state.serial.as_ref());
        let serial = spec.serial.as_ref();
        let serial = serial.map(|serial| serial_port(serial, &files, &vm, port)).transpose()?;
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
            late: memory.late_images().cloned(),
        };
        timeline.done(Phase::Devices);

        let restored = snapshot.is_some();
        if let Some((state, _, set)) = snapshot {
            restore(&state, &vm, &vcpus, &bus, spec.surplus_places().len())?;
            generation::renew(&memory, &vm)?;
            timeline.done(Phase::Restore);
            set.prefetch(&memory, &layout, &vcpus[0]);
            timeline.done(Phase::Prefetch);
        }
        if let Some(loading) = loading {
            let entry = loading.end(&mut timeline)?;
            registers::set_entry(&vcpus[0], &memory, entry)?;
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
            log,
            cpuid: first,
            possible_cpus,
            registers: msrs,
            restored,
            screen,
            timer,
        })
    }
}

fn serial_port(serial: &Serial, files: &Files, vm: &VmFd, state: Option<&PortState>) -> Result<Arc<SerialPort>, BuildError> {
    let output = files.open_log("serial.output", &serial.output)?;
    let input = serial.input.as_ref();
    let input = input.map(|input| files.open_unblocking("serial.input", input, false)).transpose()?;
    Ok(Arc::new(SerialPort::new(vm, output, input, state)?))
}
