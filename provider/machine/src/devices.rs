//! A machine's devices as its control socket changes and tells them.

use std::os::fd::OwnedFd;

use vmm_lib::machine::Handle;

use crate::{
    control::{Reply, Request},
    process::chain,
};

/// Does what is asked of a machine's devices.
pub(crate) fn answer(machine: &Handle, request: Request, descriptors: Vec<OwnedFd>) -> Reply {
    let failed = |error: &dyn std::error::Error| Reply::Failed { message: chain(error) };
    match request {
        Request::Attach { device } => match machine.attach(device, descriptors) {
            Ok(slot) => Reply::Attached { slot },
            Err(error) => failed(&error),
        },
        Request::Detach { slot, force } => match machine.detach(slot, force) {
            Ok(()) => Reply::Done,
            Err(error) => failed(&error),
        },
        _ => Reply::Devices(machine.devices().unwrap_or_default()),
    }
}
