//! The workspace's own tests: cargo runs them, this passes on what it says and counts it.

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    paths::{repository, target},
    progress::say,
    suite::Summary,
};

/// Runs all of them, in the profile of the programs, so that what both need is built once.
pub fn run() -> Result<Summary> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(repository())
        .args(["test", "--release", "--workspace", "--no-fail-fast", "--target-dir"])
        .arg(target()?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = cargo.spawn().context("run cargo test")?;
    let output = child.stdout.take().expect("stdout is a pipe");
    let mut summary = Summary::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("read what cargo test says")?;
        println!("{line}");
        if let Some(counted) = count(&line) {
            summary += counted;
        }
    }
    let status = child.wait().context("wait for cargo test")?;
    if !status.success() && summary.failed == 0 {
        say(format_args!(
            "cargo test: {status}: a test program was not built, or did not come to its end"
        ));
        summary.failed = 1;
    }
    Ok(summary)
}

/// What a test program says at its end: `test result: ok. 3 passed; 0 failed; …`.
fn count(line: &str) -> Option<Summary> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| counts.split("; ").find_map(|part| part.strip_suffix(word)?.trim_end().parse().ok());
    Some(Summary {
        passed: number("passed")?,
        failed: number("failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_test_program_is_counted_and_no_other() {
        let line = "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s";
        assert_eq!(count(line), Some(Summary { passed: 12, failed: 0 }));
        let line = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.02s";
        assert_eq!(count(line), Some(Summary { passed: 3, failed: 2 }));
        for other in ["running 12 tests", "test result: it was ok", "2 passed, 0 failed"] {
            assert_eq!(count(other), None, "{other}");
        }
    }
}
