//! `kvmlet vm memory`: how much memory a machine has, and the wish for another size, through its control socket.

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use kvmlet_machine::{Control, Memory};

use super::request::bytes;
use crate::cli::MemoryArguments;

/// For a guest to do what it can.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks, and waits.
pub(super) fn run(arguments: &MemoryArguments) -> anyhow::Result<ExitCode> {
    let wish = arguments
        .size
        .as_deref()
        .map(|size| bytes(size).with_context(|| format!("{size} is no size")))
        .transpose()?;
    let socket = &arguments.socket;
    let mut control = Control::open(socket).with_context(|| format!("reach the machine at {}", socket.display()))?;
    let begun = Instant::now();
    let mut memory = control.memory(wish)?;
    while wish.is_some() && memory.present != memory.wanted && begun.elapsed() < DEADLINE {
        thread::sleep(PAUSE);
        memory = control.memory(None)?;
    }
    let Memory {
        least,
        most,
        wanted,
        present,
    } = memory;
    println!("{present} bytes of {wanted} that are wanted; {least} to {most} are possible");
    Ok(if wish.is_some() && present != wanted {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
