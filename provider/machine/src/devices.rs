//! A machine's devices as its control socket changes and tells them.

use std::os::fd::OwnedFd;

use vmm_lib::{Attachment, machine::Handle, spec::DiskEngine};

use crate::{
    control::{Reply, Request},
    process::chain,
};

/// Does what is asked of a machine's devices, of which disks may have `rings` or not.
pub(crate) fn answer(machine: &Handle, request: Request, descriptors: Vec<OwnedFd>, rings: bool) -> Reply {
    let failed = |error: &dyn std::error::Error| Reply::Failed { message: chain(error) };
    match request {
        Request::Attach {
            device: Attachment::Disk(disk),
        } if disk.engine == DiskEngine::IoUring && !rings => Reply::Failed {
            message: "a machine that was started without io_uring cannot have it later".to_owned(),
        },
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
