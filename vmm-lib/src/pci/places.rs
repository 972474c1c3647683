//! The places of the bus while the machine runs: which have a function, and how one comes and goes. A place is locked while that happens, so a
//! guest that reads or writes there finds the function or nothing.

use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use kvm_ioctls::VmFd;

use super::{DEVICE, DEVICES, PciBus, PciFunction, config};
use crate::arch::layout::ECAM;
use crate::attach::{DetachError, Occupied};
use crate::lock::lock;
use crate::posted;

/// What a place has, if it has something.
pub(super) type Place = Option<Box<dyn PciFunction>>;

/// A function, locked in its place.
pub(super) struct Locked<'a>(MutexGuard<'a, Place>);

impl<'a> Locked<'a> {
    /// `None` where there is nothing.
    pub(super) fn new(place: MutexGuard<'a, Place>) -> Option<Self> {
        place.is_some().then_some(Self(place))
    }
}

impl Deref for Locked<'_> {
    type Target = Box<dyn PciFunction>;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("a place is locked so only where it has a function")
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.0.as_mut().expect("a place is locked so only where it has a function")
    }
}

impl PciBus {
    /// A place that has nothing.
    pub(crate) fn free(&self) -> Option<u8> {
        (1..DEVICES).find(|device| self.lock(*device).is_none()).map(|device| device as u8)
    }

    /// What there is, but for what has no name.
    pub(crate) fn occupied(&self) -> Vec<Occupied> {
        let function = |device: usize| {
            let function = self.lock(device)?;
            Some(Occupied {
                slot: device as u8,
                name: function.name()?.to_owned(),
                in_use: function.is_in_use(),
                detachable: function.is_detachable(),
            })
        };
        (0..DEVICES).filter_map(function).collect()
    }

    /// Puts a function into a place that has nothing. A guest that looks there finds it whole.
    pub(crate) fn attach(&self, vm: &VmFd, slot: u8, function: Box<dyn PciFunction>) -> Result<(), kvm_ioctls::Error> {
        let device = usize::from(slot);
        let mut place = lock(&self.places[device]);
        let posted = post_absent(vm, device, function.as_ref(), true);
        if posted.is_err() {
            let _ = post_absent(vm, device, function.as_ref(), false);
            return posted;
        }
        self.changed.store(true, Ordering::Release);
        // Who it is comes last: from then on it is there.
        self.publish(device, 4..config::SIZE, function.as_ref());
        self.publish(device, 0..4, function.as_ref());
        *place = Some(function);
        Ok(())
    }

    /// Takes a function out of its place, and with it all that KVM and this process had for it.
    pub(crate) fn detach(&self, vm: &VmFd, slot: u8, force: bool) -> Result<(), DetachError> {
        let device = usize::from(slot);
        let mut function = self.lock(device).ok_or(DetachError::Empty(slot))?;
        let name = function.name().unwrap_or("a function of the bus").to_owned();
        if !function.is_detachable() {
            return Err(DetachError::Fixed { slot, name });
        }
        if function.is_in_use() && !force {
            return Err(DetachError::InUse { slot, name });
        }
        self.changed.store(true, Ordering::Release);
        self.store(device as u64 * DEVICE, u32::MAX);
        for register in (4..config::SIZE).step_by(4) {
            self.store(device as u64 * DEVICE + register as u64, 0);
        }
        self.place(device, &mut function, None);
        function.leave();
        // What stays posted there is a write to nothing.
        let _ = post_absent(vm, device, function.as_ref(), false);
        *function.0 = None;
        Ok(())
    }
}

/// Has KVM keep writes of registers that a function does not have, or no longer.
pub(super) fn post_absent(vm: &VmFd, device: usize, function: &dyn PciFunction, on: bool) -> Result<(), kvm_ioctls::Error> {
    for range in function.config().absent() {
        let start = ECAM + device as u64 * DEVICE + range.start as u64;
        posted::post(vm, start, range.len() as u32, on)?;
    }
    Ok(())
}
