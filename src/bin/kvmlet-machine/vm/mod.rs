//! `kvmlet vm`: one machine. Without arguments it is started by the node with its order on standard input; by hand it is `kvmlet vm run`,
//! whose memory `kvmlet vm memory` resizes, whose devices `kvmlet vm attach` and `detach` change and of which `kvmlet vm snapshot` takes
//! snapshots, or `--probe` and `--boot-trace` for a guest with our agent.

mod agent;
mod boot_log;
mod by_hand;
mod devices;
mod memory;
mod probe;
mod render;
mod request;
mod run;
mod running;
mod snapshot;
mod terminal;
mod timeline;
mod trace;

use std::process::ExitCode;

use vmm_lib::exit::MachineExit;

use crate::cli::{VmArguments, VmCommand};

/// Runs a machine to its end.
pub(crate) fn run(arguments: &VmArguments) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        Some(VmCommand::Run(arguments)) => return run::run(arguments),
        Some(VmCommand::Memory(arguments)) => return memory::run(arguments),
        Some(VmCommand::Attach(arguments)) => return devices::attach(arguments),
        Some(VmCommand::Detach(arguments)) => return devices::detach(arguments),
        Some(VmCommand::Devices(arguments)) => return devices::list(arguments),
        Some(VmCommand::Snapshot(arguments)) => return snapshot::take(arguments),
        Some(VmCommand::Merge(arguments)) => return snapshot::merge(arguments),
        None => {}
    }
    if arguments.probe || arguments.boot_trace {
        return probe::run(arguments);
    }
    Ok(match kvmlet_machine::run()? {
        MachineExit::PoweredOff | MachineExit::Stopped => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
