//! `kvmlet preflight`: all checks of this host, to be read or by programs.

use std::{path::Path, process::ExitCode};

use kvmlet_preflight::{Check, canary};
use kvmlet_provider::config::Config;
use serde_json::{Value, json};
use vmm_lib::spec::DiskFormat;

use crate::{
    cli::{CONFIG, Output, PreflightArguments},
    ending::Signals,
    machine, node,
    print::{notice, print, table},
};

/// Looks at the host, boots a canary, prints all of it. Success if all has passed.
pub(crate) fn run(arguments: &PreflightArguments) -> anyhow::Result<ExitCode> {
    let (config, configuration) = configuration(arguments.config.as_deref());
    let program = machine::path()?;
    node::allow_open_files();
    let mut checks = vec![configuration];
    checks.extend(kvmlet_preflight::look(&config, &program, true));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let booted = runtime.block_on(boot(&config, &program, &checks, arguments.image_format.into()))?;
    checks.extend(booted);
    let text = match arguments.output {
        Output::Table => as_table(&checks),
        Output::Json => format!("{:#}\n", as_json(&checks)),
    };
    print(text.as_bytes())?;
    Ok(match all_passed(&checks) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn boot(config: &Config, program: &Path, before: &[Check], disks: DiskFormat) -> anyhow::Result<Vec<Check>> {
    let mut signals = Signals::new()?;
    let stop = async {
        signals.next().await;
    };
    let tell = |so_far: std::time::Duration| {
        notice(format_args!(
            "{}: the guest boots, {} s of at most {} s",
            canary::NAME,
            so_far.as_secs(),
            canary::LIMIT.as_secs()
        ));
    };
    Ok(canary::boot(config, program, before, disks, tell, stop).await)
}

/// The node's configuration, or in place of one that cannot be had the defaults.
fn configuration(named: Option<&Path>) -> (Config, Check) {
    let path = named.unwrap_or(Path::new(CONFIG));
    let (config, found) = if named.is_none() && !path.exists() {
        let found = format!("{CONFIG} is not there yet: its defaults were looked at (docs/configuration.md has the keys)");
        (Config::assumed(), Ok(found))
    } else {
        match Config::load(path) {
            Ok(config) => (config, Ok(format!("{} can be used", path.display()))),
            Err(error) => {
                let why = kvmlet_provider::act::chain(&error);
                (
                    Config::assumed(),
                    Err(format!("{why}; what follows was looked at with the defaults")),
                )
            }
        }
    };
    (config, Check::new("configuration", found))
}

fn all_passed(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.passed)
}

fn as_table(checks: &[Check]) -> String {
    let row = |check: &Check| {
        let passed = if check.passed { "yes" } else { "NO" };
        [check.name.to_owned(), passed.to_owned(), check.message.clone()]
    };
    let rows: Vec<_> = checks.iter().map(row).collect();
    let failed = checks.iter().filter(|check| !check.passed).count();
    let end = match failed {
        0 => "This host can be a node.\n".to_owned(),
        _ => format!("{failed} of {} checks have not passed.\n", checks.len()),
    };
    table(["CHECK", "PASSED", "MESSAGE"], &rows) + &end
}

fn as_json(checks: &[Check]) -> Value {
    json!({"version": env!("CARGO_PKG_VERSION"), "passed": all_passed(checks), "checks": checks})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks() -> Vec<Check> {
        vec![
            Check::new("tun", Err("there is no /dev/net/tun".into())),
            Check::new("kernel", Ok("Linux 6.1".into())),
        ]
    }

    #[test]
    fn a_table_has_one_line_a_check_and_says_how_many_failed() {
        assert_eq!(
            as_table(&checks()),
            "CHECK   PASSED  MESSAGE\ntun     NO      there is no /dev/net/tun\nkernel  yes     Linux 6.1\n1 of 2 checks have not passed.\n"
        );
        assert!(as_table(&checks()[1..]).ends_with("This host can be a node.\n"));
    }

    #[test]
    fn programs_are_told_the_same_by_name() {
        let told = as_json(&checks());
        assert_eq!(told["passed"], false);
        let first = json!({"name": "tun", "passed": false, "message": "there is no /dev/net/tun"});
        assert_eq!(told["checks"][0], first);
        assert_eq!(as_json(&checks()[1..])["passed"], true);
    }

    #[test]
    fn a_configuration_that_is_asked_for_has_to_be_there_and_right() {
        let (_, check) = configuration(Some(Path::new("/nonexistent/config.yaml")));
        assert!(!check.passed && check.message.contains("/nonexistent/config.yaml"), "{check:?}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, "nodeNmae: oops\n").unwrap();
        let (config, check) = configuration(Some(&path));
        assert!(!check.passed && check.message.contains("nodeNmae"), "{check:?}");
        assert_eq!(config.max_pods, 110);
    }
}
