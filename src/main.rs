//! The kvmlet binary: dispatches to its subcommands, one file each.

mod cli;
mod node;
mod vm;
mod webhook;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing has installed a provider before main");
    let result = match cli::Cli::parse().command {
        cli::Command::Node(arguments) => node::run(&arguments),
        cli::Command::Webhook(arguments) => webhook::run(&arguments),
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
