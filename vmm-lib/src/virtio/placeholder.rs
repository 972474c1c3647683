//! A place on the bus without a device behind it: a function of some kind that no driver can use, and at which a machine that is made of a
//! snapshot may have a device.

use super::device::{ActivateError, Activation, VirtioDevice};

/// The place of a device of this kind.
pub(crate) struct Placeholder {
    kind: u16,
    name: &'static str,
    queues: &'static [u16],
}

impl Placeholder {
    /// Of a device that says this of itself.
    pub(crate) fn of(kind: u16, name: &'static str, queues: &'static [u16]) -> Self {
        Self { kind, name, queues }
    }
}

impl VirtioDevice for Placeholder {
    fn device_type(&self) -> u16 {
        self.kind
    }

    fn name(&self) -> &str {
        self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        self.queues
    }

    /// Not even VERSION_1: a driver lets go of it before it has done anything.
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _activation: Activation) -> Result<(), ActivateError> {
        Err(ActivateError::Nothing)
    }

    fn reset(&mut self) {}
}
