//! Hooks after the start and before the end, sidecars, and containers with restart policies of their own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    workload::{STAY, condition, container, pod, pod_of, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "postStart hooks run before anybody hears of the container, and one that fails ends it",
        hosts: 1,
        kvmlet: true,
        run: post_start,
    },
    Test {
        name: "preStop hooks run before the stop signal, within the grace period",
        hosts: 1,
        kvmlet: true,
        run: pre_stop,
    },
    Test {
        name: "sidecars start in order before the main containers, are always restarted, and end in reverse after them",
        hosts: 1,
        kvmlet: true,
        run: sidecars,
    },
    Test {
        name: "a container's own restartPolicy and rules win over the pod's",
        hosts: 1,
        kvmlet: true,
        run: rules,
    },
];

fn post_start(cluster: &Cluster) -> Result<()> {
    let hook = |handler: Value| ("/lifecycle/postStart", handler);
    let first = with(
        sh(STAY),
        &[
            ("/name", json!("first")),
            hook(json!({"exec": {"command": ["sh", "-c", "sleep 3; echo hook >/v/hook"]}})),
            ("/volumeMounts", json!([{"name": "v", "mountPath": "/v"}])),
        ],
    );
    let second = with(
        sh(&format!("cat /v/hook && echo after; {STAY}")),
        &[
            ("/name", json!("second")),
            ("/volumeMounts", json!([{"name": "v", "mountPath": "/v"}])),
        ],
    );
    let fails = with(sh(STAY), &[hook(json!({"exec": {"command": ["sh", "-c", "echo why; exit 3"]}}))]);
    within(cluster, "hooks-start", |place| {
        place.create(&[
            with(
                pod_of("ordered", json!([first, second])),
                &[("/spec/volumes", json!([{"name": "v", "emptyDir": {}}]))],
            ),
            pod("fails", fails),
        ])?;
        place.until_ready("ordered")?;
        let said = place.kubectl(&["logs", "ordered", "-c", "second"])?;
        ensure!(said == "hook\nafter", "{said:?}");
        let found = place.until("fails", "be restarted", |found| container(found, "main")["restartCount"] != 0)?;
        ensure!(condition(&found, "Ready")["status"] == "False", "{}", found["status"]);
        place.until_event("fails", "FailedPostStartHook", "PostStartHook failed")?;
        place.until_event("fails", "Killing", "FailedPostStartHook")
    })
}

fn pre_stop(cluster: &Cluster) -> Result<()> {
    let told = "trap 'echo TERM; exit 0' TERM; while :; do sleep 1 & wait $!; done";
    let hook = |handler: Value| with(sh(told), &[("/lifecycle/preStop", handler)]);
    let patient = |pod: Value, grace: u32| with(pod, &[("/spec/terminationGracePeriodSeconds", json!(grace))]);
    // What is said last is read by one who follows.
    let exec = hook(json!({"exec": {"command": ["sh", "-c", "echo hook >/proc/1/fd/1; sleep 2"]}}));
    let sleeps = hook(json!({"sleep": {"seconds": 3}}));
    let hangs = hook(json!({"exec": {"command": ["sleep", "1000"]}}));
    let fails = hook(json!({"exec": {"command": ["false"]}}));
    let answers = "trap 'exit 0' TERM
        while :; do printf 'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n' | nc -l -p 8080; done & wait";
    let request = json!({"httpGet": {"path": "/bye", "port": 8080, "httpHeaders": [{"name": "X-Hook", "value": "yes"}]}});
    // Nobody listens there in the pod.
    let elsewhere = json!({"tcpSocket": {"host": cluster.host(0)?.address.to_string(), "port": 10250}});
    let http = with(
        sh(answers),
        &[("/lifecycle", json!({"preStop": request})), ("/readinessProbe", elsewhere)],
    );
    within(cluster, "hooks-stop", |place| {
        place.create(&[
            patient(pod("http", http), 60),
            patient(pod("exec", exec), 60),
            patient(pod("sleeps", sleeps), 60),
            patient(pod("hangs", hangs), 5),
            patient(pod("fails", fails), 60),
        ])?;
        for name in ["http", "exec", "sleeps", "hangs", "fails"] {
            place.until_ready(name)?;
        }
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let logs: Vec<_> = [("exec", "hook\nTERM"), ("sleeps", "TERM"), ("hangs", "TERM")]
                .map(|(name, expected)| (name, expected, scope.spawn(move || place.kubectl(&["logs", "-f", name]))))
                .into();
            let asked = scope.spawn(|| place.kubectl(&["logs", "-f", "http"]));
            // So that whoever follows is there before the end.
            for (name, ..) in &logs {
                place.kubectl(&["logs", name])?;
            }
            place.kubectl(&["delete", "pods", "--all", "--timeout=110s"])?;
            for (name, expected, log) in logs {
                let said = log.join().expect("kubectl does not panic")?;
                ensure!(said == expected, "{name} said {said:?}");
            }
            let asked = asked.join().expect("kubectl does not panic")?.to_lowercase();
            ensure!(
                asked.starts_with("get /bye http/1.1") && asked.contains("x-hook: yes"),
                "the hook asked {asked:?}"
            );
            Ok(())
        })?;
        let took = begun.elapsed();
        ensure!(took >= Duration::from_secs(5), "the hook that hangs had its grace: {took:?}");
        ensure!(took < Duration::from_secs(55), "no hook took the whole grace: {took:?}");
        place.until_event("fails", "FailedPreStopHook", "PreStopHook failed")
    })
}

/// Says something with the guest's time before it, as `12.34 one begins`.
fn say(text: &str) -> String {
    format!("read up rest </proc/uptime; echo $up {text}")
}

fn sidecar(name: &str) -> Value {
    let script = format!(
        "{}; trap '{}; exit 0' TERM; sleep 1; touch /tmp/up; while :; do sleep 1 & wait $!; done",
        say(&format!("{name} begins")),
        say(&format!("{name} ends"))
    );
    let probe = json!({"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 60});
    with(
        sh(&script),
        &[
            ("/name", json!(name)),
            ("/image", json!("busybox")),
            ("/restartPolicy", json!("Always")),
            ("/startupProbe", probe),
        ],
    )
}

fn sidecars(cluster: &Cluster) -> Result<()> {
    let init = with(sh(&say("init runs")), &[("/name", json!("init")), ("/image", json!("busybox"))]);
    let main = sh(&format!("{}; sleep 3; {}", say("main begins"), say("main ends")));
    let mount = ("/volumeMounts", json!([{"name": "v", "mountPath": "/v"}]));
    let crashes = with(
        sh(&format!("[ -e /v/seen ] || {{ touch /v/seen; exit 1; }}; {STAY}")),
        &[
            ("/name", json!("crashes")),
            ("/image", json!("busybox")),
            ("/restartPolicy", json!("Always")),
            mount,
        ],
    );
    let never = ("/spec/restartPolicy", json!("Never"));
    within(cluster, "hooks-sidecars", |place| {
        place.create(&[
            with(
                pod("job", main),
                &[
                    ("/spec/initContainers", json!([sidecar("one"), init, sidecar("two")])),
                    ("/spec/terminationGracePeriodSeconds", json!(30)),
                    never.clone(),
                ],
            ),
            with(
                pod("crash", sh(STAY)),
                &[
                    ("/spec/initContainers", json!([crashes])),
                    ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}])),
                    never,
                ],
            ),
        ])?;
        let found = place.until_phase("job", "Succeeded")?;
        ensure!(
            container(&found, "one")["state"]["terminated"]["exitCode"] == 0,
            "{}",
            found["status"]
        );
        let mut said = Vec::new();
        for name in ["one", "init", "two", "main"] {
            for line in place.kubectl(&["logs", "job", "-c", name])?.lines() {
                let (time, text) = line.split_once(' ').with_context(|| format!("{name} said {line:?}"))?;
                said.push((time.parse::<f64>()?, text.to_owned()));
            }
        }
        said.sort_by(|a, b| a.0.total_cmp(&b.0));
        let order: Vec<_> = said.iter().map(|(_, text)| text.as_str()).collect();
        let expected = [
            "one begins",
            "init runs",
            "two begins",
            "main begins",
            "main ends",
            "two ends",
            "one ends",
        ];
        ensure!(order == expected, "{said:?}");
        let found = place.until("crash", "have its sidecar restarted and be ready", |found| {
            container(found, "crashes")["restartCount"] == 1 && condition(found, "Ready")["status"] == "True"
        })?;
        let side = container(&found, "crashes");
        ensure!(
            side["lastState"]["terminated"]["exitCode"] == 1 && side["started"] == true,
            "{side}"
        );
        Ok(())
    })
}

fn rules(cluster: &Cluster) -> Result<()> {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let script = "[ -e /v/seen ] && exit 7; touch /v/seen; exit 42";
    let again = with(
        sh(script),
        &[
            ("/restartPolicy", json!("Never")),
            ("/restartPolicyRules", rules),
            ("/volumeMounts", json!([{"name": "v", "mountPath": "/v"}])),
        ],
    );
    within(cluster, "hooks-rules", |place| {
        place.create(&[with(
            pod("again", again),
            &[
                ("/spec/restartPolicy", json!("Always")),
                ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}])),
            ],
        )])?;
        let found = place.until_phase("again", "Failed")?;
        let main = container(&found, "main");
        ensure!(
            main["restartCount"] == 1 && main["state"]["terminated"]["exitCode"] == 7 && main["lastState"]["terminated"]["exitCode"] == 42,
            "{main}"
        );
        Ok(())
    })
}
