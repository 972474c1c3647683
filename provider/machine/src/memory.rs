//! A machine's memory as its control socket tells it: sums of what it began with and what came by virtio-mem since.

use vmm_lib::{ResizeError, machine::Handle};

use crate::control::Memory;

/// Has the guest grow or shrink to `resize` bytes in all, if that is wished; then tells what it has. `least` is what it began with.
pub(crate) fn memory(handle: &Handle, least: u64, resize: Option<u64>) -> Result<Memory, String> {
    if let Some(wanted) = resize {
        let more = wanted
            .checked_sub(least)
            .ok_or_else(|| format!("the machine began with {least} bytes and cannot have less"))?;
        match handle.resize_memory(more) {
            // Nothing more is what it has.
            Err(ResizeError::NoRegion) if more == 0 => {}
            resized => drop(resized.map_err(|error| format!("besides the {least} bytes that it began with: {error}"))?),
        }
    }
    let (size, requested, plugged) = handle
        .hotplugged()
        .map_or((0, 0, 0), |hotplugged| (hotplugged.size, hotplugged.requested, hotplugged.plugged));
    Ok(Memory {
        least,
        most: least + size,
        wanted: least + requested,
        present: least + plugged,
    })
}
