//! `kvmlet vm`: one machine. Started by the node with its order on standard input; with `--probe`, a machine by hand.

use std::process::ExitCode;

use vmm_lib::exit::MachineExit;

use crate::{cli::VmArguments, probe};

/// Runs a machine to its end.
pub(crate) fn run(arguments: &VmArguments) -> anyhow::Result<ExitCode> {
    if arguments.probe {
        return probe::run(arguments);
    }
    Ok(match kvmlet_machine::run()? {
        MachineExit::PoweredOff | MachineExit::Stopped => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
