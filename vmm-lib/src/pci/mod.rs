//! PCI bus 0: an ECAM page that the guest reads without an exit, and the functions behind it. No CF8, no interrupt pins, no other bus.
//!
//! Lock order: a function, then the windows. The windows are never held while a function is locked.

pub(crate) mod config;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
pub(crate) mod msix;
mod places;
pub(crate) mod state;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use kvm_ioctls::VmFd;
use vm_memory::{Bytes, MmapRegion};

use crate::arch::layout::{ECAM, ECAM_SIZE};
use crate::lock::lock;
use crate::memory::Layout;
use config::{ConfigSpace, Identity};
use places::{Locked, Place, post_absent};
use state::FunctionState;

/// Devices of a bus.
pub(crate) const DEVICES: usize = 32;
/// Bytes of one function in the ECAM, and of one device.
const FUNCTION: u64 = 4096;
const DEVICE: u64 = 8 * FUNCTION;

/// A function on the bus.
pub(crate) trait PciFunction: Send {
    /// Its registers.
    fn config(&self) -> &ConfigSpace;
    /// Its registers, to be written; [`PciFunction::config_written`] follows.
    fn config_mut(&mut self) -> &mut ConfigSpace;
    /// A guest wrote registers.
    fn config_written(&mut self) {}
    /// BAR 0 is decoded here from now on, or nowhere.
    fn place(&mut self, _base: Option<u64>) {}
    /// A guest reads BAR 0.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    /// A guest writes BAR 0.
    fn write(&mut self, _offset: u64, _data: &[u8]) {}
    /// The machine is over.
    fn stop(&mut self) {}
    /// Stops what works, so that [`PciFunction::resume`] can go on with it, and tells what there is; the error names what cannot be told.
    fn save(&mut self) -> Result<FunctionState, String> {
        Ok(FunctionState {
            config: self.config().bytes().to_vec(),
            transport: None,
        })
    }
    /// Becomes what was saved, by the same kind of function; goes on with [`PciFunction::resume`].
    fn restore(&mut self, state: &FunctionState) -> Result<(), String> {
        self.config_mut().restore(&state.config)
    }
    /// The name of its device, if it has one.
    fn name(&self) -> Option<&str> {
        None
    }
    /// Whether the machine can be without it.
    fn is_detachable(&self) -> bool {
        false
    }
    /// Whether a driver is at work on it.
    fn is_in_use(&self) -> bool {
        false
    }
    /// It is taken off the bus, where it is decoded nowhere by now: nothing of it stays in KVM, and its threads end.
    fn leave(&mut self) {}
    /// Goes on where [`PciFunction::save`] stopped, or after [`PciFunction::restore`].
    fn resume(&mut self) {}
}

/// The host bridge: there, and nothing else.
pub(crate) struct HostBridge(ConfigSpace);

impl HostBridge {
    /// The generic PCI Express host bridge, as known from QEMU.
    pub(crate) fn new() -> Self {
        Self(ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: [6, 0, 0],
            subsystem: 0x1100,
        }))
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
}

/// The bus.
pub(crate) struct PciBus {
    ecam: MmapRegion,
    layout: Layout,
    /// [`DEVICES`], of which a machine fills the first when it is made.
    places: Vec<Mutex<Place>>,
    /// Other functions have come, or have gone, since.
    changed: AtomicBool,
    windows: RwLock<Vec<Window>>,
}

struct Window {
    range: Range<u64>,
    device: usize,
}

impl PciBus {
    /// A bus with these functions, one a device from 0 on; at most [`DEVICES`].
    pub(crate) fn new(ecam: MmapRegion, layout: Layout, functions: Vec<Box<dyn PciFunction>>) -> Self {
        let functions = functions.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let bus = Self {
            ecam,
            layout,
            places: functions.take(DEVICES).map(Mutex::new).collect(),
            changed: AtomicBool::new(false),
            windows: RwLock::new(Vec::new()),
        };
        for device in 0..DEVICES {
            match bus.lock(device) {
                Some(function) => bus.publish(device, 0..config::SIZE, function.as_ref()),
                // Linux asks each device's first function only; untouched pages read as zero, which names no device either.
                None => bus.store(device as u64 * DEVICE, u32::MAX),
            }
        }
        bus
    }

    /// Has KVM keep writes of registers that are not there: read in place they stay zero, so nobody waits for such a write.
    pub(crate) fn post(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        for device in 0..DEVICES {
            if let Some(function) = self.lock(device) {
                post_absent(vm, device, function.as_ref(), true)?;
            }
        }
        Ok(())
    }

    /// Device and function that an address in the ECAM names.
    pub(crate) fn locate(address: u64) -> Option<(u8, u8)> {
        let offset = address.checked_sub(ECAM).filter(|offset| *offset < ECAM_SIZE)?;
        Some(((offset / DEVICE) as u8, (offset % DEVICE / FUNCTION) as u8))
    }

    /// A read that exited: from a BAR, or from the ECAM where the page is not readable in place.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, function)) = Self::locate(address) {
            if let Some(config) = self.lock(usize::from(device)).filter(|_| function == 0) {
                config.config().read((address % FUNCTION) as usize, data);
            }
        } else if let Some((device, offset)) = self.window(address, data.len())
            && let Some(mut function) = self.lock(device)
        {
            function.read(offset, data);
        }
    }

    /// A write that exited.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, function)) = Self::locate(address) {
            if function == 0 {
                self.write_config(usize::from(device), (address % FUNCTION) as usize, data);
            }
        } else if let Some((device, offset)) = self.window(address, data.len())
            && let Some(mut function) = self.lock(device)
        {
            function.write(offset, data);
        }
    }

    /// Stops all functions and tells what they are. After an error, too, they are to be resumed.
    pub(crate) fn save(&self) -> Result<Vec<FunctionState>, String> {
        if self.changed.load(Ordering::Acquire) {
            return Err("other devices than it began with".to_owned());
        }
        let functions = (0..DEVICES).filter_map(|device| self.lock(device));
        functions.map(|mut function| function.save()).collect()
    }

    /// Makes all functions what they were, but for up to `surplus` of the last ones, which the snapshot need not have: they stay as they were
    /// made, for the guest to find. The error names the one that cannot be what it was.
    pub(crate) fn restore(&self, states: &[FunctionState], surplus: usize) -> Result<(), (usize, String)> {
        let functions = (0..DEVICES).filter_map(|device| self.lock(device)).count();
        if !(functions.saturating_sub(surplus)..=functions).contains(&states.len()) {
            let what = format!("the machine has {functions} functions, the snapshot {}", states.len());
            return Err((states.len(), what));
        }
        for (device, state) in states.iter().enumerate() {
            let Some(mut function) = self.lock(device) else { continue };
            function.restore(state).map_err(|what| (device, what))?;
            function.config_written();
            self.publish(device, 0..config::SIZE, function.as_ref());
            let range = function.config().decoded();
            self.place(device, &mut function, range);
        }
        Ok(())
    }

    /// Lets all functions go on.
    pub(crate) fn resume(&self) {
        for device in 0..DEVICES {
            if let Some(mut function) = self.lock(device) {
                function.resume();
            }
        }
    }

    /// Ends all functions.
    pub(crate) fn stop(&self) {
        for device in 0..DEVICES {
            if let Some(mut function) = self.lock(device) {
                function.stop();
            }
        }
    }

    fn write_config(&self, device: usize, offset: usize, data: &[u8]) {
        let Some(mut function) = self.lock(device) else { return };
        let before = function.config().decoded();
        function.config_mut().write(offset, data);
        function.config_written();
        let start = (offset & !3).min(config::SIZE);
        let end = (offset + data.len()).next_multiple_of(4).min(config::SIZE);
        self.publish(device, start..end, function.as_ref());
        let after = function.config().decoded();
        if before != after {
            self.place(device, &mut function, after);
        }
    }

    /// A BAR has moved: where it lies in a device window it is decoded, anywhere else it is not.
    fn place(&self, device: usize, function: &mut Locked<'_>, range: Option<Range<u64>>) {
        let range = range.filter(|range| self.layout.is_device_window(range));
        function.place(range.as_ref().map(|range| range.start));
        let mut windows = self.windows.write().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|window| window.device != device);
        windows.extend(range.map(|range| Window { range, device }));
    }

    fn window(&self, address: u64, length: usize) -> Option<(usize, u64)> {
        let end = address.checked_add(length as u64)?;
        let windows = self.windows.read().unwrap_or_else(PoisonError::into_inner);
        let window = windows
            .iter()
            .find(|window| window.range.start <= address && end <= window.range.end)?;
        Some((window.device, address - window.range.start))
    }

    fn lock(&self, device: usize) -> Option<Locked<'_>> {
        Locked::new(lock(self.places.get(device)?))
    }

    /// Copies registers to where the guest reads them.
    fn publish(&self, device: usize, range: Range<usize>, function: &dyn PciFunction) {
        let bytes = &function.config().bytes()[range.clone()];
        for (index, chunk) in bytes.chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            self.store(device as u64 * DEVICE + (range.start + 4 * index) as u64, value);
        }
    }

    fn store(&self, offset: u64, value: u32) {
        let page = vm_memory::VolatileMemory::as_volatile_slice(&self.ecam);
        page.store(value, offset as usize, Ordering::Release)
            .expect("every register lies in the page, on its boundary");
    }
}
