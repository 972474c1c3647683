//! The guest's processors: those that are online are the first ones. The first of all always is.

use std::{fs, io, path::PathBuf};

use kvmlet_protocol::Failure;

use crate::failure::Attempt;

/// Starts those of the first so many that do not run.
pub(crate) fn bring_up(count: u8) -> Result<(), Failure> {
    for cpu in 1..count {
        set(cpu, true).attempt(format_args!("start processor {cpu}"))?;
    }
    Ok(())
}

/// Stops all but the first so many.
pub(crate) fn take_down(count: u8) -> Result<(), Failure> {
    let beyond = (count.max(1)..=u8::MAX).take_while(|cpu| file(*cpu).exists());
    for cpu in beyond {
        set(cpu, false).attempt(format_args!("stop processor {cpu}"))?;
    }
    Ok(())
}

fn set(cpu: u8, online: bool) -> io::Result<()> {
    let wanted = if online { "1" } else { "0" };
    if fs::read_to_string(file(cpu))?.trim() == wanted {
        return Ok(());
    }
    fs::write(file(cpu), wanted)
}

fn file(cpu: u8) -> PathBuf {
    format!("/sys/devices/system/cpu/cpu{cpu}/online").into()
}
