//! Probes: who has started, who takes traffic, who is ended; and readiness gates.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    workload::{Place, STAY, condition, container, pod, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a pod is ready while its readiness probe says so, and no longer",
        hosts: 1,
        kvmlet: true,
        run: readiness,
    },
    Test {
        name: "a container whose liveness or startup probe fails is ended and restarted, with the kubelet's words",
        hosts: 1,
        kvmlet: true,
        run: liveness,
    },
    Test {
        name: "probes ask over HTTPS, gRPC and TCP, and a closed port is said",
        hosts: 1,
        kvmlet: true,
        run: ways,
    },
    Test {
        name: "a pod with a readiness gate is ready when somebody else says so too",
        hosts: 1,
        kvmlet: true,
        run: gate,
    },
];

/// A probe that needs no patience but has some: an emulated host is slow.
fn probe(handler: Value, more: Value) -> Value {
    let mut probe = json!({"periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 1});
    for part in [handler, more] {
        for (key, value) in part.as_object().into_iter().flatten() {
            probe[key] = value.clone();
        }
    }
    probe
}

fn readiness(cluster: &Cluster) -> Result<()> {
    let get = json!({"httpGet": {"path": "/ok", "port": "web", "httpHeaders": [{"name": "X-Probe", "value": "yes"}]}});
    let served = with(
        sh(&format!("mkdir /www; httpd -p 8080 -h /www; {STAY}")),
        &[
            ("/ports", json!([{"name": "web", "containerPort": 8080}])),
            ("/readinessProbe", probe(get, json!({"successThreshold": 2}))),
        ],
    );
    within(cluster, "probes-readiness", |place| {
        place.create(&[pod("served", served)])?;
        let found = place.until("served", "run", |found| container(found, "main")["state"]["running"].is_object())?;
        let main = container(&found, "main");
        ensure!(main["ready"] == false && main["started"] == true, "{main}");
        place.until_event(
            "served",
            "Unhealthy",
            "Readiness probe failed: HTTP probe failed with statuscode: 404",
        )?;
        let found = place.get("served")?;
        let ready = condition(&found, "Ready");
        ensure!(
            ready["status"] == "False" && ready["message"] == "containers with unready status: [main]",
            "{ready}"
        );
        place.exec("served", "echo well >/www/ok")?;
        place.until_ready("served")?;
        place.exec("served", "rm /www/ok")?;
        let found = place.until("served", "be unready again", |found| condition(found, "Ready")["status"] == "False")?;
        ensure!(container(&found, "main")["restartCount"] == 0, "{}", found["status"]);
        Ok(())
    })
}

fn liveness(cluster: &Cluster) -> Result<()> {
    let file = json!({"exec": {"command": ["cat", "$(WHERE)/well"]}});
    let sick = with(
        sh(&format!("touch /tmp/well; sleep 8; rm /tmp/well; {STAY}")),
        &[
            ("/env", json!([{"name": "WHERE", "value": "/tmp"}])),
            ("/livenessProbe", probe(file, json!({"initialDelaySeconds": 3}))),
        ],
    );
    let hangs = with(
        sh("trap '' TERM; while :; do sleep 1; done"),
        &[(
            "/livenessProbe",
            probe(
                json!({"exec": {"command": ["sleep", "1000"]}}),
                json!({"timeoutSeconds": 2, "failureThreshold": 2, "terminationGracePeriodSeconds": 1}),
            ),
        )],
    );
    let slow = with(
        sh(&format!("sleep 6; touch /tmp/up; {STAY}")),
        &[
            (
                "/startupProbe",
                probe(
                    json!({"exec": {"command": ["test", "-e", "/tmp/up"]}}),
                    json!({"failureThreshold": 60}),
                ),
            ),
            (
                "/livenessProbe",
                probe(json!({"exec": {"command": ["test", "-e", "/tmp/up"]}}), json!({})),
            ),
        ],
    );
    let never = with(
        pod(
            "never",
            with(
                // It does not hear TERM.
                sh("exec sleep 1000"),
                &[("/startupProbe", probe(json!({"exec": {"command": ["false"]}}), json!({})))],
            ),
        ),
        &[("/spec/restartPolicy", json!("Never"))],
    );
    within(cluster, "probes-liveness", |place| {
        let patient = |pod: Value| with(pod, &[("/spec/terminationGracePeriodSeconds", json!(30))]);
        place.create(&[pod("sick", sick), patient(pod("hangs", hangs)), pod("slow", slow), never])?;
        place.until("slow", "be started and not before", |found| {
            container(found, "main")["started"] == true && condition(found, "Ready")["status"] == "True"
        })?;
        place.exec("slow", "test -e /tmp/up").context("it counted as started too early")?;
        place.until("sick", "be restarted", |found| container(found, "main")["restartCount"] != 0)?;
        place.until_event(
            "sick",
            "Unhealthy",
            "Liveness probe failed: cat: can't open '/tmp/well': No such file or directory",
        )?;
        place.until_event("sick", "Killing", "Container main failed liveness probe, will be restarted")?;
        let found = place.until("hangs", "be killed within the probe's grace", |found| {
            container(found, "main")["lastState"]["terminated"].is_object()
        })?;
        let end = &container(&found, "main")["lastState"]["terminated"];
        ensure!(end["exitCode"] == 137, "{end}");
        place.until_event(
            "hangs",
            "Unhealthy",
            "Liveness probe failed: command timed out: \"sleep 1000\" timed out after 2s",
        )?;
        place.until_phase("never", "Failed")?;
        place.until_event("never", "Killing", "Container main failed startup probe")?;
        let found = place.get("slow")?;
        ensure!(container(&found, "main")["restartCount"] == 0, "{}", found["status"]);
        Ok(())
    })
}

/// A server of each kind; the gRPC answer is a file: a frame with the message SERVING.
const SERVERS: &str =
    "server { listen 8443 ssl; ssl_certificate conf.d/cert.pem; ssl_certificate_key conf.d/key.pem; location / { return 200; } }
server { listen 50051 http2; root /etc/nginx/conf.d;
  location = /grpc.health.v1.Health/Check { error_page 404 405 =200 /serving; }
  location = /serving { types { } default_type application/grpc; add_trailer grpc-status 0; } }
";

fn ways(cluster: &Cluster) -> Result<()> {
    let own = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).context("make a certificate")?;
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "servers"},
        "data": {"servers.conf": SERVERS, "cert.pem": own.cert.pem(), "key.pem": own.signing_key.serialize_pem()},
        "binaryData": {"serving": "AAAAAAIIAQ=="}});
    let served = json!({"image": "nginx", "volumeMounts": [{"name": "v", "mountPath": "/etc/nginx/conf.d"}],
        "startupProbe": probe(json!({"tcpSocket": {"port": 8443}}), json!({"failureThreshold": 60})),
        "livenessProbe": probe(json!({"httpGet": {"path": "/", "port": 8443, "scheme": "HTTPS"}}), json!({"failureThreshold": 5})),
        "readinessProbe": probe(json!({"grpc": {"port": 50051}}), json!({}))});
    let closed = |handler| with(sh(STAY), &[("/readinessProbe", probe(handler, json!({"timeoutSeconds": 3})))]);
    within(cluster, "probes-ways", |place| {
        place.create(&[
            config,
            with(
                pod("served", served),
                &[("/spec/volumes", json!([{"name": "v", "configMap": {"name": "servers"}}]))],
            ),
            pod("closed", closed(json!({"tcpSocket": {"port": 81}}))),
            pod("silent", closed(json!({"grpc": {"port": 81}}))),
        ])?;
        place.until_ready("served")?;
        closed_ports(place)?;
        let found = place.get("served")?;
        ensure!(container(&found, "main")["restartCount"] == 0, "{}", found["status"]);
        Ok(())
    })
}

fn closed_ports(place: &Place<'_>) -> Result<()> {
    place.until_event("closed", "Unhealthy", "Readiness probe failed: dial tcp ")?;
    place.until_event("closed", "Unhealthy", ":81: connect: connection refused")?;
    place.until_event("silent", "Unhealthy", "Readiness probe failed: timeout: failed to connect service ")?;
    place.until_event("silent", "Unhealthy", ":81\" within 3s: context deadline exceeded")
}

fn gate(cluster: &Cluster) -> Result<()> {
    within(cluster, "probes-gate", |place| {
        let gates = json!([{"conditionType": "example.com/lit"}]);
        place.create(&[with(pod("gated", sh(STAY)), &[("/spec/readinessGates", gates)])])?;
        let found = place.until("gated", "have ready containers", |found| {
            condition(found, "ContainersReady")["status"] == "True"
        })?;
        let ready = condition(&found, "Ready");
        ensure!(
            ready["status"] == "False"
                && ready["reason"] == "ReadinessGatesNotReady"
                && ready["message"] == "corresponding condition of pod readiness gate \"example.com/lit\" does not exist.",
            "{ready}"
        );
        for (value, expected) in [("True", "True"), ("False", "False"), ("True", "True")] {
            let patch = json!({"status": {"conditions": [{"type": "example.com/lit", "status": value}]}});
            place.kubectl(&["patch", "pod", "gated", "--subresource=status", "-p", &patch.to_string()])?;
            let found = place.until("gated", &format!("be {expected}"), |found| {
                condition(found, "Ready")["status"] == expected
            })?;
            // Whose condition it is, says it: nobody writes over it.
            ensure!(condition(&found, "example.com/lit")["status"] == value, "{}", found["status"]);
        }
        Ok(())
    })
}
