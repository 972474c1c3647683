//! The kvmlet binary: dispatches to its subcommands, one file each.

mod cli;
mod machine;
mod node;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing has installed a provider before main");
    let result = match cli::Cli::parse().command {
        cli::Command::Node(arguments) => node::run(&arguments),
        cli::Command::Vm { arguments } => machine::become_it(&arguments).map(|never| match never {}),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kvmlet: {error:#}");
            ExitCode::FAILURE
        }
    }
}
