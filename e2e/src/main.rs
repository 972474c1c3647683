//! `kvmlet-e2e`: brings clusters up and down, runs the tests in them, lets a person in.

use std::{
    env, fs, io,
    io::IsTerminal,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{ExitCode, exit},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use kvmlet_e2e::{
    Cluster, ClusterOptions, agent, artifacts, bench, cargo_tests, conformance, demo, packages, paths, preflight,
    progress::say,
    sequences,
    suite::{self, Summary},
};

/// A real cluster with real KVM hosts.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring up control plane, registry and hosts with kvmlet on them; they stay.
    Up(Up),
    /// Take down what `up` started.
    Down,
    /// Run the end-to-end tests whose name contains FILTER, in the running cluster or one of their own.
    Test {
        /// Part of a test's name.
        #[arg(default_value = "")]
        filter: String,
        /// First run the workspace's own tests, and count both.
        #[arg(long, conflicts_with = "filter", conflicts_with = "list")]
        all: bool,
        /// Leave a cluster running that was started for the tests.
        #[arg(long)]
        keep: bool,
        /// Say what would run.
        #[arg(long)]
        list: bool,
    },
    /// Make a Debian package of kvmlet and its guest.
    Deb {
        /// Its version.
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        version: String,
        /// The folder that it is put in.
        folder: PathBuf,
    },
    /// Make kvmlet's image, an OCI layout; the last line is its digest.
    Image {
        /// Its version.
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        version: String,
        /// The folder of the layout, which is made anew.
        folder: PathBuf,
    },
    /// Say which kind of KVM host this machine can be, and why.
    ProbeHost {
        /// A kvmlet program to boot a canary machine with.
        #[arg(long, requires = "kernel", requires = "initramfs")]
        kvmlet: Option<PathBuf>,
        /// The canary's kernel.
        #[arg(long)]
        kernel: Option<PathBuf>,
        /// The canary's initramfs.
        #[arg(long)]
        initramfs: Option<PathBuf>,
    },
    /// Show one pod's whole path on two hosts, in the running cluster or one of its own.
    Demo,
    /// Measure speed and memory, beside peers; a figure over its limit is a failure.
    Bench {
        /// Pods to create at once.
        #[arg(long, default_value_t = 50)]
        pods: usize,
        /// Times to start a machine and its peer, in turn.
        #[arg(long, default_value_t = 5)]
        starts: usize,
        /// Only parts whose name contains this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Run Kubernetes' own specifications of a node, in the running cluster or one of two hosts of their own.
    Conformance {
        /// How many at once.
        #[arg(long, default_value_t = 4)]
        jobs: usize,
        /// Those that wait for many minutes as well.
        #[arg(long)]
        slow: bool,
        /// Only those whose name contains this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Writes source address and sequence number of each TCP connection that begins, as it is seen; only ever inside a host.
    #[command(hide = true)]
    WatchSequences,
    /// The bench's stopwatches; only ever inside a host.
    #[command(hide = true, subcommand)]
    Measure(bench::Measure),
    /// Run a command on a host of the running cluster.
    Exec {
        /// The host's number (1) or name (kvm-1).
        host: String,
        /// The command.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// kubectl as the running cluster's administrator.
    Kubectl {
        /// What kubectl is told.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a program of this machine on the first host, as cargo's runner: `CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER`.
    Runner {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// What an emulated host keeps; only ever inside one.
    #[command(hide = true)]
    HostKeep,
    /// The rig's agent; only ever inside a host.
    #[command(hide = true)]
    HostAgent {
        /// The host's own address.
        #[arg(long)]
        listen: SocketAddr,
    },
}

#[derive(Args)]
struct Up {
    /// KVM hosts.
    #[arg(long, default_value_t = 1)]
    hosts: usize,
    /// Processors of each emulated host.
    #[arg(long, default_value_t = 2)]
    cpus: usize,
    /// MiB of memory of each emulated host (default: 6144, with several hosts 4096).
    #[arg(long)]
    memory: Option<usize>,
    /// Bare hosts: no kvmlet is built or started.
    #[arg(long)]
    bare: bool,
    /// Start anew even when a cluster runs that would do.
    #[arg(long)]
    fresh: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kvmlet-e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(up) => bring_up(&up).map(|()| ExitCode::SUCCESS),
        Command::Down => {
            Cluster::down()?;
            say("no cluster is left");
            Ok(ExitCode::SUCCESS)
        }
        Command::Test { list: true, filter, .. } => {
            suite::select(&filter).iter().for_each(|test| println!("{}", test.name));
            Ok(ExitCode::SUCCESS)
        }
        Command::Test { all, filter, keep, .. } => Ok(test(all, &filter, keep)),
        Command::Deb { version, folder } => {
            packages::ensure()?;
            let (kvmlet, guest) = (artifacts::kvmlet()?, artifacts::guest()?);
            println!("{}", artifacts::deb((&kvmlet, &guest), &version, &folder, false)?.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Image { version, folder } => {
            packages::ensure()?;
            let (kvmlet, guest) = (artifacts::kvmlet()?, artifacts::guest()?);
            println!("{}", artifacts::image((&kvmlet, &guest), &version, &folder, None, false)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::ProbeHost { kvmlet, kernel, initramfs } => {
            let guest = kernel
                .zip(initramfs)
                .map(|(kernel, initramfs)| artifacts::Guest { kernel, initramfs });
            let verdict = preflight::decide(kvmlet.as_deref().zip(guest.as_ref()))?;
            println!("{}", verdict.line());
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo => demo::run(),
        Command::Bench { pods, starts, filter } => measure(&bench::Options { pods, starts, filter }),
        Command::Conformance { jobs, slow, filter } => conform(&conformance::Options { filter, jobs, slow }),
        Command::WatchSequences => sequences::watch().map(|()| ExitCode::SUCCESS),
        Command::Measure(stopwatch) => stopwatch.run().map(|()| ExitCode::SUCCESS),
        Command::Exec { host, argv } => exec(&host, &argv),
        Command::Kubectl { arguments } => {
            let status = Cluster::running()?
                .kubectl_command()
                .args(arguments)
                .status()
                .context("run kubectl")?;
            exit(status.code().unwrap_or(1));
        }
        Command::Runner { program, arguments } => exit(Cluster::running()?.host(0)?.run_program(&program, &arguments)?),
        Command::HostKeep => agent::keep().map(|()| ExitCode::SUCCESS),
        Command::HostAgent { listen } => agent::serve(listen).map(|()| ExitCode::SUCCESS),
    }
}

fn bring_up(up: &Up) -> Result<()> {
    let options = ClusterOptions {
        hosts: up.hosts,
        cpus: up.cpus,
        memory: up.memory,
        kvmlet: !up.bare,
        reuse: !up.fresh,
    };
    let cluster = Cluster::up(&options)?;
    let wrapper = cluster.state.root.join("kubectl");
    let (namespace, kubeconfig) = (&cluster.state.namespace, cluster.state.kubeconfig());
    let kubectl = cluster.programs.join("kubectl");
    let script = format!(
        "#!/bin/sh\n# kubectl as the administrator of this cluster, inside its network.\nKUBECONFIG={} exec ip netns exec {namespace} {} \"$@\"\n",
        kubeconfig.display(),
        kubectl.display(),
    );
    paths::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).context("make the kubectl wrapper executable")?;
    let program = env::current_exe().context("find this program")?;
    say("the cluster is up");
    println!(
        "\nA cluster with {} KVM host(s) runs. {}.",
        cluster.hosts.len(),
        cluster.verdict.line()
    );
    println!("  kubectl:   {} get nodes", wrapper.display());
    println!(
        "  by hand:   KUBECONFIG={} ip netns exec {namespace} {} get nodes",
        kubeconfig.display(),
        kubectl.display()
    );
    println!("  any tool:  ip netns exec {namespace} COMMAND   (API server, registry, hosts and pods are reachable in there)");
    println!("  on a host: {} exec 1 -- COMMAND", program.display());
    println!("  logs:      {}", cluster.state.logs().display());
    println!("  the end:   make cluster-down");
    Ok(())
}

/// Runs suites and says the sum in one line, the last; a suite that could not run counts as a failure.
fn test(all: bool, filter: &str, keep: bool) -> ExitCode {
    let mut sum = Summary::default();
    let mut add = |suite: &str, result: Result<Summary>| {
        sum += match result {
            Ok(summary) => {
                say(format_args!("{suite}: {} passed, {} failed", summary.passed, summary.failed));
                summary
            }
            Err(error) => {
                say(format_args!("{suite} could not run: {error:#}"));
                Summary { passed: 0, failed: 1 }
            }
        }
    };
    if all {
        add("workspace tests", packages::ensure().and_then(|()| cargo_tests::run()));
    }
    add("end-to-end tests", end_to_end(filter, keep));
    println!("{} passed, {} failed", sum.passed, sum.failed);
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn end_to_end(filter: &str, keep: bool) -> Result<Summary> {
    let tests = suite::select(filter);
    ensure!(!tests.is_empty(), "no test's name contains {filter:?}");
    let was_running = Cluster::running().is_ok();
    let hosts = tests.iter().map(|test| test.hosts).max().unwrap_or(1);
    let kvmlet = tests.iter().any(|test| test.kvmlet);
    suite::build(&tests)?;
    let started = Cluster::up(&ClusterOptions {
        hosts,
        kvmlet,
        ..ClusterOptions::default()
    });
    let summary = started.map(|cluster| suite::run(&cluster, &tests));
    if !keep && !was_running {
        Cluster::down()?;
    }
    summary
}

fn measure(options: &bench::Options) -> Result<ExitCode> {
    let was_running = Cluster::running().is_ok();
    let within = bench::run(options);
    if !was_running {
        Cluster::down()?;
    }
    Ok(if within? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn conform(options: &conformance::Options) -> Result<ExitCode> {
    let was_running = Cluster::running().is_ok();
    let hosts = ClusterOptions {
        hosts: 2,
        ..ClusterOptions::default()
    };
    // What takes a compiler comes before the cluster.
    artifacts::specs()?;
    let ran = Cluster::up(&hosts).and_then(|cluster| conformance::run(&cluster, options));
    if !was_running {
        Cluster::down()?;
    }
    let tally = ran?;
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn exec(host: &str, argv: &[String]) -> Result<ExitCode> {
    let cluster = Cluster::running()?;
    let found = cluster
        .hosts
        .iter()
        .enumerate()
        .find(|(index, known)| known.name == host || (index + 1).to_string() == host);
    let (_, host) = found.with_context(|| format!("no host {host}; there are {}", cluster.hosts.len()))?;
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    // A person's terminal is not the command's input: it would wait for an end that never comes.
    let code = if io::stdin().is_terminal() {
        host.attach(&argv, io::empty())
    } else {
        host.attach(&argv, io::stdin())
    }?;
    exit(code);
}
