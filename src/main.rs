//! The kvmlet binary: dispatches to its subcommands, one file each.

mod checks;
mod cleanup;
mod cli;
mod ending;
mod images;
mod install;
mod machine;
mod network;
mod node;
mod operate;
mod preflight;
mod print;
mod runtime;
mod switch;
mod systemd;
mod webhook;
mod withdraw;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing has installed a provider before main");
    let result = match cli::Cli::parse().command {
        cli::Command::Node(arguments) => node::run(&arguments),
        cli::Command::Preflight(arguments) => preflight::run(&arguments),
        cli::Command::Cleanup(arguments) => cleanup::run(&arguments.config),
        cli::Command::Install(arguments) => install::run(&arguments),
        cli::Command::Uninstall(arguments) => install::uninstall(&arguments),
        cli::Command::Enable(arguments) => switch::enable(&arguments),
        cli::Command::Disable(arguments) => switch::disable(&arguments),
        cli::Command::Webhook(arguments) => webhook::run(&arguments),
        cli::Command::Ps(arguments) => operate::ps(&arguments),
        cli::Command::Top(arguments) => operate::top(&arguments),
        cli::Command::Inspect(arguments) => operate::inspect(&arguments),
        cli::Command::Console(arguments) => operate::console(&arguments),
        cli::Command::Logs(arguments) => operate::logs(&arguments),
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
