//! The program of machines: small, since each machine is a process of its own and what the dynamic linker writes into a program is each
//! process's own memory. The node starts it; people reach it as `kvmlet vm`.

mod cli;
mod vm;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The node starts it by a descriptor, of which the kernel makes a number for a name.
    let _ = rustix::thread::set_name(c"kvmlet-machine");
    let result = match cli::Cli::parse().command {
        cli::Command::Vm(arguments) => vm::run(&arguments),
        cli::Command::Fs => kvmlet_machine::run_share().map(|()| ExitCode::SUCCESS).map_err(Into::into),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kvmlet: {error:#}");
            ExitCode::FAILURE
        }
    }
}
