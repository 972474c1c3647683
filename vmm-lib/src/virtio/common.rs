//! The common configuration structure (virtio 1.2, 4.1.4.3), but for the device status: selection, features and queue registers, and when a
//! driver may write them. Has no effects.

use serde::{Deserialize, Serialize};

use super::device::VirtioDevice;
use super::pci::{DRIVER_OK, FEATURES_OK};
use super::queue::{NO_VECTOR, QueueRegisters};

/// Size of the structure.
pub(crate) const SIZE: usize = 0x38;
/// Where the device status lies.
pub(crate) const STATUS: u64 = 0x14;
const GENERATION: usize = 0x15;
/// All but device status and generation, as offset and length: what is written there means nothing before the status is written or
/// something read.
pub(crate) const POSTED: [(u64, u32); 2] = [(0, 0x14), (0x16, SIZE as u32 - 0x16)];
/// How much of a device's configuration tells whether it has changed.
const WATCHED: usize = 64;

/// All registers of a device.
pub(crate) struct Registers {
    offered: u64,
    device_select: u32,
    driver_select: u32,
    accepted: [u32; 2],
    pub(crate) config_vector: u16,
    vectors: u16,
    generation: u8,
    watched: [u8; WATCHED],
    queue_select: u16,
    pub(crate) queues: Vec<QueueRegisters>,
}

/// What of [`Registers`] is the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RegistersState {
    device_select: u32,
    driver_select: u32,
    accepted: [u32; 2],
    config_vector: u16,
    generation: u8,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

impl Registers {
    /// Of a device that has never been driven.
    pub(crate) fn new(device: &dyn VirtioDevice, vectors: u16) -> Self {
        Self {
            offered: device.features(),
            device_select: 0,
            driver_select: 0,
            accepted: [0; 2],
            config_vector: NO_VECTOR,
            vectors,
            generation: 0,
            watched: watch(device),
            queue_select: 0,
            queues: device.queue_sizes().iter().map(|size| QueueRegisters::new(*size)).collect(),
        }
    }

    /// Back to the beginning.
    pub(crate) fn reset(&mut self) {
        (self.device_select, self.driver_select, self.accepted) = (0, 0, [0; 2]);
        (self.config_vector, self.queue_select) = (NO_VECTOR, 0);
        for queue in &mut self.queues {
            *queue = QueueRegisters::new(queue.max_size);
        }
    }

    /// What the guest has written.
    pub(crate) fn save(&self) -> RegistersState {
        RegistersState {
            device_select: self.device_select,
            driver_select: self.driver_select,
            accepted: self.accepted,
            config_vector: self.config_vector,
            generation: self.generation,
            queue_select: self.queue_select,
            queues: self.queues.clone(),
        }
    }

    /// Takes over what was written to a device like this one. Its configuration may be another, so its generation is.
    pub(crate) fn restore(&mut self, state: &RegistersState) -> Result<(), String> {
        let sizes = |queues: &[QueueRegisters]| -> Vec<u16> { queues.iter().map(|queue| queue.max_size).collect() };
        if sizes(&self.queues) != sizes(&state.queues) {
            return Err("it has other queues".to_owned());
        }
        (self.device_select, self.driver_select, self.accepted) = (state.device_select, state.driver_select, state.accepted);
        (self.config_vector, self.queue_select) = (self.vector(state.config_vector), state.queue_select);
        self.generation = state.generation.wrapping_add(1);
        for (index, queue) in state.queues.iter().enumerate() {
            let vector = self.vector(queue.vector);
            self.queues[index] = QueueRegisters { vector, ..queue.clone() };
        }
        Ok(())
    }

    /// What the driver has accepted.
    pub(crate) fn features(&self) -> u64 {
        u64::from(self.accepted[0]) | u64::from(self.accepted[1]) << 32
    }

    /// Whether that is part of what was offered, with all `required`.
    pub(crate) fn accepts(&self, required: u64) -> bool {
        let features = self.features();
        features & !self.offered == 0 && features & required == required
    }

    /// A driver's read of any length.
    pub(crate) fn read(&mut self, offset: usize, data: &mut [u8], status: u8, device: &dyn VirtioDevice) {
        let end = offset.saturating_add(data.len());
        if (offset..end).contains(&GENERATION) {
            let now = watch(device);
            if now != self.watched {
                (self.watched, self.generation) = (now, self.generation.wrapping_add(1));
            }
        }
        let image = self.image(status);
        if let Some(source) = image.get(offset..end) {
            data.copy_from_slice(source);
        }
    }

    fn image(&self, status: u8) -> [u8; SIZE] {
        let mut image = [0; SIZE];
        let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        let offered = match self.device_select {
            0 => self.offered as u32,
            1 => (self.offered >> 32) as u32,
            _ => 0,
        };
        put(0x00, &self.device_select.to_le_bytes());
        put(0x04, &offered.to_le_bytes());
        put(0x08, &self.driver_select.to_le_bytes());
        put(
            0x0c,
            &self.accepted.get(self.driver_select as usize).copied().unwrap_or(0).to_le_bytes(),
        );
        put(0x10, &self.config_vector.to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[status, self.generation]);
        put(0x16, &self.queue_select.to_le_bytes());
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(0x18, &queue.size.to_le_bytes());
            put(0x1a, &queue.vector.to_le_bytes());
            put(0x1c, &u16::from(queue.enabled).to_le_bytes());
            put(0x1e, &self.queue_select.to_le_bytes());
            put(0x20, &queue.descriptors.to_le_bytes());
            put(0x28, &queue.driver.to_le_bytes());
            put(0x30, &queue.device.to_le_bytes());
        }
        image
    }

    /// A driver's write to anything but the status; a register is written whole (64-bit ones by halves too), anything else is ignored.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], status: u8) {
        let short = <[u8; 2]>::try_from(data).map(u16::from_le_bytes);
        let long = <[u8; 4]>::try_from(data).map(u32::from_le_bytes);
        match (offset, short, long) {
            (0x00, _, Ok(value)) => self.device_select = value,
            (0x08, _, Ok(value)) => self.driver_select = value,
            (0x0c, _, Ok(value)) if status & FEATURES_OK == 0 => {
                if let Some(half) = self.accepted.get_mut(self.driver_select as usize) {
                    *half = value;
                }
            }
            (0x10, Ok(value), _) if status & DRIVER_OK == 0 => self.config_vector = self.vector(value),
            (0x16, Ok(value), _) => self.queue_select = value,
            (0x18.., ..) if status & FEATURES_OK != 0 && status & DRIVER_OK == 0 => self.write_queue(offset, data),
            _ => {}
        }
    }

    fn vector(&self, value: u16) -> u16 {
        if value < self.vectors { value } else { NO_VECTOR }
    }

    /// Writes a register of the selected queue, until it is enabled.
    fn write_queue(&mut self, offset: u64, data: &[u8]) {
        let short = <[u8; 2]>::try_from(data).map(u16::from_le_bytes);
        let vector = short.map(|value| self.vector(value));
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !queue.enabled) else {
            return;
        };
        match (offset, short) {
            (0x18, Ok(size)) => queue.size = size,
            (0x1a, Ok(_)) => queue.vector = vector.unwrap_or(NO_VECTOR),
            (0x1c, Ok(1)) => queue.enabled = true,
            (0x20..0x28, _) => write_address(&mut queue.descriptors, offset - 0x20, data),
            (0x28..0x30, _) => write_address(&mut queue.driver, offset - 0x28, data),
            (0x30..0x38, _) => write_address(&mut queue.device, offset - 0x30, data),
            _ => {}
        }
    }
}

fn write_address(register: &mut u64, offset: u64, data: &[u8]) {
    let mut bytes = register.to_le_bytes();
    match (offset, data.len()) {
        (0, 8) | (0 | 4, 4) => bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data),
        _ => return,
    }
    *register = u64::from_le_bytes(bytes);
}

fn watch(device: &dyn VirtioDevice) -> [u8; WATCHED] {
    let mut bytes = [0; WATCHED];
    for (index, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        device.read_config(8 * index as u64, chunk);
    }
    bytes
}
