//! What becomes of a container that ends: restarted after a wait or not, counted, and its last words kept.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    workload::{Place, STAY, condition, container, pod, pod_of, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "restartPolicy decides whether a container that ends runs again, with the kubelet's waits and phases",
        hosts: 1,
        kvmlet: true,
        run: policies,
    },
    Test {
        name: "a container's last words are its termination message file or, on error, the end of its log",
        hosts: 1,
        kvmlet: true,
        run: messages,
    },
    Test {
        name: "a pod past its activeDeadlineSeconds fails, with its containers ended, and one before it does not",
        hosts: 1,
        kvmlet: true,
        run: deadline,
    },
];

fn deadline(cluster: &Cluster) -> Result<()> {
    let until = |name: &str, seconds: u32| with(pod(name, sh(STAY)), &[("/spec/activeDeadlineSeconds", json!(seconds))]);
    within(cluster, "pods-deadline", |place| {
        place.create(&[until("late", 10), until("early", 3600)])?;
        let late = place.until_phase("late", "Failed")?;
        ensure!(
            late["status"]["reason"] == "DeadlineExceeded"
                && late["status"]["message"] == "Pod was active on the node longer than the specified deadline",
            "{}",
            late["status"]
        );
        ensure!(container(&late, "main")["state"]["running"].is_null(), "{}", late["status"]);
        place.until_ready("early").map(drop)
    })
}

fn ended(pod: &Value, name: &str) -> Value {
    container(pod, name)["state"]["terminated"].clone()
}

fn policies(cluster: &Cluster) -> Result<()> {
    let policy = |value: &str| ("/spec/restartPolicy", json!(value));
    let memory = ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}]));
    let mounted = |script: &str| with(sh(script), &[("/volumeMounts", json!([{"name": "v", "mountPath": "/v"}]))]);
    within(cluster, "pods-restarts", |place| {
        place.create(&[
            with(pod("never", sh("exit 0")), &[policy("Never")]),
            with(
                pod_of(
                    "never-fails",
                    json!([
                        with(sh("exit 3"), &[("/name", json!("bad"))]),
                        with(sh("exit 0"), &[("/name", json!("good"))])
                    ]),
                ),
                &[policy("Never")],
            ),
            with(
                pod("onfailure", mounted("[ -e /v/seen ] && exit 0; touch /v/seen; exit 5")),
                &[policy("OnFailure"), memory.clone()],
            ),
            pod("crashes", sh("echo crash; exit 4")),
            with(
                pod(
                    "always",
                    mounted(&format!("[ -e /v/seen ] && {{ {STAY}; }}; touch /v/seen; exit 0")),
                ),
                &[memory],
            ),
            with(pod("signalled", sh("sh -c 'kill -SEGV $$$$'; exit $?")), &[policy("Never")]),
            all_anew(&mounted),
        ])?;
        never(place)?;
        let found = place.until("anew", "have begun anew as a whole", |found| {
            condition(found, "Ready")["status"] == "True" && container(found, "one")["restartCount"] == 1
        })?;
        for name in ["first", "one", "other"] {
            let status = container(&found, name);
            ensure!(
                status["restartCount"] == 1 && status["lastState"]["terminated"]["reason"] == "RestartingAllContainers",
                "{name}: {status}"
            );
        }
        ensure!(
            condition(&found, "AllContainersRestarting")["status"] == "False",
            "{}",
            found["status"]
        );
        ensure!(place.kubectl(&["exec", "anew", "-c", "one", "--", "cat", "/v/seen"])? == "first\none\nfirst\none");
        again(place)
    })
}

/// A pod whose init container has written its first line when a container writes the second, and starts everything anew.
fn all_anew(mounted: &dyn Fn(&str) -> Value) -> Value {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let one = format!("echo one >>/v/seen; [ $(wc -l </v/seen) -gt 2 ] || exit 42; {STAY}");
    let one = with(
        mounted(&one),
        &[
            ("/name", json!("one")),
            ("/restartPolicy", json!("Never")),
            ("/restartPolicyRules", rules),
        ],
    );
    let first = with(
        mounted("echo first >>/v/seen"),
        &[("/name", json!("first")), ("/image", json!("busybox"))],
    );
    with(
        pod_of("anew", json!([one, with(sh(STAY), &[("/name", json!("other"))])])),
        &[
            ("/spec/restartPolicy", json!("Never")),
            ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}])),
            ("/spec/initContainers", json!([first])),
        ],
    )
}

fn never(place: &Place<'_>) -> Result<()> {
    let found = place.until_phase("never", "Succeeded")?;
    let (end, status) = (ended(&found, "main"), container(&found, "main"));
    ensure!(
        end["reason"] == "Completed" && end["exitCode"] == 0 && status["restartCount"] == 0,
        "{status}"
    );
    ensure!(
        end["startedAt"].is_string() && end["finishedAt"].as_str() >= end["startedAt"].as_str(),
        "{end}"
    );
    ensure!(end["containerID"] == status["containerID"] && status["ready"] == false, "{status}");
    ensure!(condition(&found, "Ready")["reason"] == "PodCompleted", "{}", found["status"]);

    let found = place.until_phase("never-fails", "Failed")?;
    let (bad, good) = (ended(&found, "bad"), ended(&found, "good"));
    ensure!(
        bad["reason"] == "Error" && bad["exitCode"] == 3 && good["reason"] == "Completed",
        "{bad} {good}"
    );
    ensure!(condition(&found, "Ready")["reason"] == "PodFailed", "{}", found["status"]);

    let end = ended(&place.until_phase("signalled", "Failed")?, "main");
    ensure!(end["exitCode"] == 128 + 11 && end["reason"] == "Error", "{end}");
    Ok(())
}

fn again(place: &Place<'_>) -> Result<()> {
    let found = place.until_phase("onfailure", "Succeeded")?;
    let main = container(&found, "main");
    ensure!(
        main["restartCount"] == 1 && main["lastState"]["terminated"]["exitCode"] == 5,
        "{main}"
    );

    let found = place.until("always", "run again after success", |found| {
        container(found, "main")["restartCount"] == 1
    })?;
    ensure!(
        container(&found, "main")["lastState"]["terminated"]["exitCode"] == 0,
        "{}",
        found["status"]
    );

    // At once the first time, after 10 s the second time.
    let found = place.until("crashes", "be in its second backoff", |found| {
        let main = container(found, "main");
        main["restartCount"] == 2 && main["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })?;
    let main = container(&found, "main");
    ensure!(
        found["status"]["phase"] == "Running" && main["ready"] == false,
        "{}",
        found["status"]
    );
    let message = main["state"]["waiting"]["message"].as_str().unwrap_or_default();
    ensure!(
        message.starts_with("back-off 20s restarting failed container=main pod=crashes_pods-restarts("),
        "{message}"
    );
    ensure!(main["lastState"]["terminated"]["exitCode"] == 4, "{main}");
    ensure!(condition(&found, "Ready")["reason"] == "ContainersNotReady", "{}", found["status"]);
    place.until_event(
        "crashes",
        "BackOff",
        "Back-off restarting failed container main in pod crashes_pods-restarts(",
    )?;
    ensure!(place.kubectl(&["logs", "crashes", "--previous"])? == "crash");
    Ok(())
}

fn messages(cluster: &Cluster) -> Result<()> {
    let container_of = |name: &str, script: &str, path: Option<&str>, policy: &str| {
        let mut fields = vec![("/name", json!(name)), ("/terminationMessagePolicy", json!(policy))];
        fields.extend(path.map(|path| ("/terminationMessagePath", json!(path))));
        with(sh(script), &fields)
    };
    within(cluster, "pods-messages", |place| {
        let (file, log) = ("File", "FallbackToLogsOnError");
        let containers = json!([
            container_of("file", "echo log; echo words > /dev/termination-log; exit 1", None, file),
            container_of("elsewhere", "echo elsewhere > /run/last; exit 0", Some("/run/last"), file),
            container_of("log", "for i in $(seq 200); do echo line $i; done; exit 2", None, log),
            container_of("log-but-file", "echo log; printf file > /dev/termination-log; exit 2", None, log),
            container_of("log-no-error", "echo log; exit 0", None, log),
            container_of(
                "long",
                "head -c 9000 /dev/zero | tr '\\0' x > /dev/termination-log; exit 1",
                None,
                file
            ),
        ]);
        place.create(&[with(pod_of("words", containers), &[("/spec/restartPolicy", json!("Never"))])])?;
        let found = place.until_phase("words", "Failed")?;
        let said = |name: &str| ended(&found, name)["message"].as_str().unwrap_or_default().to_owned();
        for (name, message) in [
            ("file", "words\n"),
            ("elsewhere", "elsewhere\n"),
            ("log-but-file", "file"),
            ("log-no-error", ""),
        ] {
            ensure!(said(name) == message, "{name}: {:?}", said(name));
        }
        let fallback = said("log");
        let lines: Vec<_> = fallback.lines().collect();
        ensure!(
            lines.last() == Some(&"line 200") && lines.len() <= 80 && fallback.len() <= 2048,
            "{fallback:?}"
        );
        let long = said("long");
        ensure!((1000..=4096).contains(&long.len()), "{} bytes of 9,000 are kept", long.len());
        Ok(())
    })
}
