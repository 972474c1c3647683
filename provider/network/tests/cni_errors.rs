//! What a plugin can do wrong, with scripts in a plugin's place.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use kvmlet_network::cni::{Attachment, CniError, ConfigList, Plugins};
use serde_json::{Value, json};
use tempfile::TempDir;

fn plugins(dir: &TempDir, scripts: &[(&str, &str)], timeout: Duration) -> (Plugins, ConfigList, Attachment) {
    for (name, script) in scripts {
        let path = dir.path().join(name);
        // By a process of its own: had this one the file open for writing, what another test starts meanwhile would have it open, too, for a
        // moment, and nobody can run a file that is open for writing (ETXTBSY).
        let text = format!("#!/bin/sh\nconfig=$(cat)\n{script}\n");
        let writer = Command::new("sh")
            .args(["-c", r#"printf %s "$2" >"$1" && chmod 755 "$1""#, "sh"])
            .arg(&path)
            .arg(text)
            .status();
        assert!(writer.unwrap().success());
    }
    let list = ConfigList {
        version: "1.0.0".to_owned(),
        name: "net".to_owned(),
        plugins: scripts.iter().map(|(name, _)| json!({ "type": name })).collect(),
    };
    let attachment = Attachment {
        container_id: "id".to_owned(),
        netns: dir.path().join("no-netns"),
        interface: "eth0".to_owned(),
        args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
        runtime_config: serde_json::Map::new(),
    };
    (Plugins::new(vec![dir.path().to_owned()], timeout), list, attachment)
}

const SOON: Duration = Duration::from_secs(20);

async fn add(scripts: &[(&str, &str)], timeout: Duration) -> Result<Value, CniError> {
    let dir = tempfile::tempdir().unwrap();
    let (plugins, list, attachment) = plugins(&dir, scripts, timeout);
    plugins.add(&list, &attachment).await
}

#[tokio::test]
async fn the_answer_of_one_plugin_is_the_previous_result_of_the_next() {
    let result = add(
        &[
            ("one", r#"echo '{"ips":[{"address":"10.0.0.2/24"}]}'"#),
            ("two", r#"echo "$config""#),
        ],
        SOON,
    )
    .await
    .unwrap();
    assert_eq!(result["prevResult"]["ips"][0]["address"], "10.0.0.2/24");
    assert_eq!(result["name"], "net");
}

#[tokio::test]
async fn a_refusal_carries_the_plugins_own_words() {
    let script = r#"echo '{"code":11,"msg":"no lease","details":"range is full"}'; exit 1"#;
    let error = add(&[("full", script)], SOON).await.unwrap_err();
    assert_eq!(error.to_string(), "CNI plugin full failed ADD: no lease: range is full (code 11)");
}

#[tokio::test]
async fn a_plugin_that_only_complains_on_stderr_is_heard_too() {
    let error = add(&[("broken", "echo iptables: not found >&2; exit 3")], SOON).await.unwrap_err();
    assert!(matches!(&error, CniError::Refused { code: 0, message, .. } if message.contains("iptables: not found")));
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_at_its_deadline() {
    let error = add(&[("slow", "exec sleep 1000")], Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, CniError::Deadline { command: "ADD", .. }));
}

#[tokio::test]
async fn an_answer_that_is_no_json_is_refused() {
    let error = add(&[("chatty", "echo hello")], SOON).await.unwrap_err();
    assert!(matches!(error, CniError::ReadAnswer { .. }));
}

#[tokio::test]
async fn a_type_that_is_a_path_or_missing_runs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (plugins, mut list, attachment) = plugins(&dir, &[], SOON);
    list.plugins = vec![json!({ "type": "../bin/sh" })];
    assert!(matches!(plugins.add(&list, &attachment).await, Err(CniError::NameType { .. })));
    list.plugins = vec![json!({ "type": "nowhere" })];
    assert!(matches!(plugins.add(&list, &attachment).await, Err(CniError::FindPlugin { .. })));
}

#[tokio::test]
async fn detaching_without_namespace_says_so_to_each_plugin_in_reverse_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let script = format!(
        r#"echo "$(basename "$0") $CNI_COMMAND [$CNI_NETNS] $CNI_ARGS" >> {}"#,
        log.display()
    );
    let (plugins, list, attachment) = plugins(&dir, &[("one", &script), ("two", &script)], SOON);
    plugins.del(&list, &attachment, None).await.unwrap();
    assert_eq!(
        fs::read_to_string(log).unwrap(),
        "two DEL [] IgnoreUnknown=1\none DEL [] IgnoreUnknown=1\n"
    );
}
