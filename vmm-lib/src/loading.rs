//! Kernel and initramfs come into guest memory on a thread of their own, beside the making of processors and devices: one is copying, the other
//! mostly waiting for KVM.

use std::panic::resume_unwind;
use std::thread::{self, JoinHandle};

use crate::arch::boot::{self, Entry};
use crate::builder::BuildError;
use crate::files::Files;
use crate::memory::Layout;
use crate::spec::MachineSpec;
use crate::timeline::{Phase, Timeline};
use crate::virtio::device::Memory;

type Loaded = Result<(Entry, Timeline), BuildError>;

/// What is being loaded. Whoever drops it waits for it.
pub(crate) struct Loading(Option<JoinHandle<Loaded>>);

impl Loading {
    /// Opens the files and begins to load them for a machine that may have so many processors.
    pub(crate) fn begin(
        spec: &MachineSpec,
        files: &Files,
        (memory, layout, cpus): (&Memory, &Layout, u8),
        timeline: &Timeline,
    ) -> Result<Self, BuildError> {
        let mut timeline = timeline.beside();
        let kernel = files.open_existing("boot.kernel", &spec.boot.kernel, false)?;
        let initramfs = spec.boot.initramfs.as_ref();
        let initramfs = initramfs
            .map(|source| files.open_existing("boot.initramfs", source, false))
            .transpose()?;
        timeline.done(Phase::Files);
        let (memory, layout, command_line, serial) = (
            memory.clone(),
            layout.clone(),
            spec.boot.command_line.clone(),
            spec.serial.is_some(),
        );
        let load = move || {
            let plan = boot::Plan {
                memory: &memory,
                layout: &layout,
                kernel: &kernel,
                initramfs: initramfs.as_ref(),
                command_line: &command_line,
                cpus,
                serial,
            };
            Ok((boot::load(&plan, &mut timeline)?, timeline))
        };
        let thread = thread::Builder::new().name("load".into()).spawn(load);
        Ok(Self(Some(thread.map_err(BuildError::Thread)?)))
    }

    /// Where the guest begins, once all is loaded.
    pub(crate) fn end(mut self, timeline: &mut Timeline) -> Result<Entry, BuildError> {
        let thread = self.0.take().expect("only dropping takes it, too");
        let (entry, own) = thread.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        timeline.join(own);
        timeline.done(Phase::Loading);
        Ok(entry)
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join();
        }
    }
}
