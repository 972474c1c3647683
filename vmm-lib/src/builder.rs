//! From a specification to a machine that is ready to run, in KVM's order: VM, memory, interrupt controller, processors, devices, kernel.
//! Everything that can fail because of the host or the specification fails here, before a guest exists.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use kvm_ioctls::VcpuFd;

use crate::boot::{self, BootError, Plan};
use crate::bus::Bus;
use crate::cpuid::{CpuidError, Template};
use crate::devices::{self, DeviceError};
use crate::exit::{ExitCounts, MachineExit, MachineReport};
use crate::files::{FileError, Files};
use crate::hotplug::{Hotplug, Hotplugged, ResizeError};
use crate::images::{Images, ImagesError};
use crate::irq::Interrupts;
use crate::kvm::{self, KvmError};
use crate::memory::{self, KVM_TSS, Layout, MemoryError};
use crate::pci::PciBus;
use crate::registers::{self, RegistersError};
use crate::serial::{SerialError, SerialPort};
use crate::spec::{MachineSpec, Pmem};
use crate::threads::{Enter, Maker, ThreadKind, Threads};
use crate::timeline::{Phase, Timeline};
use crate::validate::SpecErrors;
use crate::vcpu::{self, Control, Vcpu};
use crate::virtio::device::{GuestSpace, Memory};
use crate::virtio::vsock::Inlet;

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
    /// The serial port.
    #[error("make the serial port")]
    Serial(#[from] SerialError),
    /// Kernel, initramfs, tables.
    #[error("load the kernel")]
    Boot(#[from] BootError),
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
        let kvm = kvm.map_or_else(kvm::open, kvm::from_open)?;
        let (threads, maker) = Threads::new(enter);
        let cpuid = Template::new(&kvm)?;
        let lengths: Vec<u64> = spec.pmems.iter().map(Pmem::length).collect();
        let layout = Layout::new(
            spec.memory,
            spec.hotplug.map_or(0, |hotplug| hotplug.size),
            &lengths,
            cpuid.address_bits(),
        )?;
        timeline.done(Phase::Kvm);
        let step = |what: &'static str| move |source| BuildError::Step(what, source);

        let vm = Arc::new(kvm.create_vm().map_err(step("create the virtual machine"))?);
        vm.set_tss_address(KVM_TSS).map_err(step("place KVM's task state"))?;
        timeline.done(Phase::VirtualMachine);
        let ram = memory::create(&vm, &layout)?;
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
            vcpu.set_cpuid2(&cpuid.processor(index, spec.cpus)?)
                .map_err(step("set a processor's CPUID"))?;
            registers::set_msrs(&vcpu)?;
            vcpus.push(vcpu);
        }
        timeline.done(Phase::Processors);

        let serial = spec
            .serial
            .as_ref()
            .map(|serial| -> Result<_, BuildError> { Ok(SerialPort::new(&vm, files.open_log("serial.output", &serial.output)?)?) });
        let serial = serial.transpose()?;
        let interrupts = Arc::new(Interrupts::new(vm.clone()));
        let functions = devices::create(&spec, &files, &vm, &interrupts, &memory, &layout, (&threads, inlet))?;
        let bus = Bus {
            pci: PciBus::new(ecam, layout.clone(), functions),
            serial,
            images: layout.images.clone(),
        };
        timeline.done(Phase::Devices);

        let kernel = files.open_existing("boot.kernel", &spec.boot.kernel, false)?;
        let initramfs = spec
            .boot
            .initramfs
            .as_ref()
            .map(|source| files.open_existing("boot.initramfs", source, false))
            .transpose()?;
        timeline.done(Phase::Files);
        let plan = Plan {
            memory: &memory,
            layout: &layout,
            kernel: &kernel,
            initramfs: initramfs.as_ref(),
            command_line: &spec.boot.command_line,
            cpus: spec.cpus,
            serial: spec.serial.is_some(),
        };
        let entry = boot::load(&plan, &mut timeline)?;
        registers::set_entry(&vcpus[0], &memory, entry)?;
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
        })
    }
}

/// A machine that has not run yet.
pub struct Machine {
    vcpus: Vec<VcpuFd>,
    control: Arc<Control>,
    bus: Arc<Bus>,
    memory: Memory,
    threads: Threads,
    maker: Maker,
}

/// Reaches a machine from other threads, before, while and after it runs.
#[derive(Clone)]
pub struct Handle {
    control: Arc<Control>,
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

    /// Has the guest plug or unplug memory until it has `requested` bytes besides what it began with, a multiple of
    /// [`HOTPLUG_BLOCK`](crate::spec::HOTPLUG_BLOCK). Returns what it has now: it follows while it runs, as far as it can.
    /// A guest that could not unplug all tries again when it is asked again, for the same too; by itself Linux does so after 50 s.
    pub fn resize_memory(&self, requested: u64) -> Result<Hotplugged, ResizeError> {
        let hotplug = self.hotplug.as_ref().ok_or(ResizeError::NoRegion)?;
        hotplug.request(requested)?;
        Ok(hotplug.status())
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
            hotplug: self.memory.hotplug().cloned(),
        }
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
        } = self;
        control.done(Phase::Waiting);
        let mut threads = Vec::new();
        for (index, fd) in vcpus.into_iter().enumerate() {
            let vcpu = Vcpu {
                index: index as u8,
                fd,
                control: control.clone(),
                bus: bus.clone(),
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
        maker.serve(threads.len());
        let mut vcpu_cpu_micros = Vec::new();
        for thread in threads {
            // A thread that panicked has ended the machine and said so.
            vcpu_cpu_micros.push(thread.join().unwrap_or(0));
        }
        control.done(Phase::Guest);
        bus.pci.stop();
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
