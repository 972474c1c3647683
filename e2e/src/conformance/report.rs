//! Ginkgo's JSON report, as far as it says what ran and how it ended.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Spec;

/// A run of the suite.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Report {
    #[serde(default)]
    spec_reports: Vec<SpecReport>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    #[serde(default)]
    leaf_node_text: String,
    state: String,
    failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// Reads one.
pub(super) fn read(bytes: &[u8]) -> Result<Report> {
    let suites: Vec<Report> = serde_json::from_slice(bytes).context("read Ginkgo's report")?;
    suites.into_iter().next().context("Ginkgo's report has no suite")
}

/// Specifications that were in focus.
pub(super) fn ran(report: &Report) -> Vec<Spec> {
    chosen(report).map(SpecReport::name).collect()
}

/// Whether the one specification in focus passed. Anything else is an error: none that ran, one that was skipped by itself.
pub(super) fn verdict(report: &Report) -> Result<()> {
    // A failure before or after all specifications is told under another node's name.
    let around = report.spec_reports.iter().find(|one| one.leaf_node_type != "It" && one.failed());
    if let Some(one) = around {
        bail!("{} {}: {}", one.leaf_node_type, one.state, one.message());
    }
    let all: Vec<_> = chosen(report).collect();
    let [one] = all[..] else {
        bail!("{} specifications ran instead of one", all.len())
    };
    if one.state != "passed" {
        bail!("{}: {}", one.state, one.message());
    }
    Ok(())
}

fn chosen(report: &Report) -> impl Iterator<Item = &SpecReport> {
    let all = report.spec_reports.iter().filter(|one| one.leaf_node_type == "It");
    // One out of focus is skipped without a word.
    all.filter(|one| one.state != "skipped" || !one.message().is_empty())
}

impl SpecReport {
    fn name(&self) -> Spec {
        let mut words = self.container_hierarchy_texts.clone().unwrap_or_default();
        words.push(self.leaf_node_text.clone());
        Spec(words.join(" "))
    }

    fn failed(&self) -> bool {
        !matches!(self.state.as_str(), "passed" | "skipped")
    }

    fn message(&self) -> &str {
        self.failure.as_ref().map_or("", |failure| &failure.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(specs: &str) -> Report {
        read(format!(r#"[{{"SpecReports": [{specs}]}}]"#).as_bytes()).unwrap()
    }

    fn spec(state: &str, message: &str) -> String {
        format!(
            r#"{{"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "should run", "State": "{state}",
                "Failure": {{"Message": "{message}"}}}}"#
        )
    }

    #[test]
    fn one_that_passed_has_passed() {
        let report = report(&[spec("skipped", ""), spec("passed", "")].join(","));
        verdict(&report).unwrap();
        assert_eq!(ran(&report), [Spec("[sig-node] Pods should run".into())]);
    }

    #[test]
    fn nothing_that_ran_is_no_pass() {
        assert!(verdict(&report(&spec("skipped", ""))).is_err());
        assert!(verdict(&report("")).is_err());
        assert!(read(b"[]").is_err());
    }

    #[test]
    fn one_that_failed_or_skipped_itself_says_why() {
        for state in ["failed", "skipped", "timedout"] {
            let error = verdict(&report(&spec(state, "no route"))).unwrap_err().to_string();
            assert_eq!(error, format!("{state}: no route"));
        }
    }

    #[test]
    fn a_failure_before_the_suite_is_told() {
        let setup = r#"{"LeafNodeType": "SynchronizedBeforeSuite", "State": "failed", "Failure": {"Message": "no node"}}"#;
        let error = verdict(&report(&[setup.to_owned(), spec("skipped", "")].join(",")))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "SynchronizedBeforeSuite failed: no node");
    }
}
