//! What a pod gets from the API: volumes of files, environment, an identity, names.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::slice::from_ref;

use super::{
    Test,
    workload::{Place, STAY, container, line, pod, pod_of, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "config maps, secrets, the downward API and projections are files with the right modes, items and content",
        hosts: 1,
        kvmlet: true,
        run: files,
    },
    Test {
        name: "the environment comes from the pod, config maps, secrets, fields, resources and services",
        hosts: 1,
        kvmlet: true,
        run: environment,
    },
    Test {
        name: "a pod waits for the config map it needs, says so, and goes on when it is there",
        hosts: 1,
        kvmlet: true,
        run: missing,
    },
    Test {
        name: "the token of the default service account is good for the API server from inside the pod",
        hosts: 1,
        kvmlet: true,
        run: token,
    },
    Test {
        name: "host name, /etc/hosts and /etc/resolv.conf are as the pod's spec says",
        hosts: 1,
        kvmlet: true,
        run: names,
    },
];

fn objects() -> [Value; 2] {
    [
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
            "data": {"colour": "green", "shape": "round"}, "binaryData": {"binary": "AAEC/w=="}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"password": "let me in", "user": "me"}}),
    ]
}

fn files(cluster: &Cluster) -> Result<()> {
    within(cluster, "pods-files", |place| {
        let volumes = json!([
            {"name": "map", "configMap": {"name": "settings", "defaultMode": 0o440}},
            {"name": "items", "configMap": {"name": "settings", "items": [{"key": "colour", "path": "deep/down", "mode": 0o600}]}},
            {"name": "secret", "secret": {"secretName": "keys"}},
            {"name": "none", "configMap": {"name": "not-there", "optional": true}},
            {"name": "down", "downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}, "mode": 0o400},
                {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu", "divisor": "1m"}}]}},
            {"name": "all", "projected": {"defaultMode": 0o444, "sources": [
                {"configMap": {"name": "settings", "items": [{"key": "shape", "path": "map/shape"}]}},
                {"secret": {"name": "keys", "items": [{"key": "user", "path": "secret/user", "mode": 0o400}]}},
                {"downwardAPI": {"items": [{"path": "uid", "fieldRef": {"fieldPath": "metadata.uid"}}]}},
                {"serviceAccountToken": {"path": "token", "audience": "somebody", "expirationSeconds": 3600}}]}}
        ]);
        let mounts: Vec<_> = ["map", "items", "secret", "none", "down", "all"]
            .iter()
            .map(|name| json!({"name": name, "mountPath": format!("/v/{name}")}))
            .chain([json!({"name": "map", "mountPath": "/etc/colour", "subPath": "colour"})])
            .collect();
        let script = "cd /v; for f in map/colour map/shape map/binary items/deep/down secret/password down/labels down/name down/cpu \
            all/map/shape all/secret/user all/uid all/token; do
              echo \"$f=$(stat -L -c %a $f):$(head -c 300 $f | tr '\\n' ';')\"; done
            echo items=$(find -L items -name down | wc -l)$(ls items) none=[$(ls none)] subpath=$(cat /etc/colour)
            echo binary=$(od -An -tx1 map/binary); touch map/new 2>&1; echo x 2>/dev/null > secret/user && echo writable; \
            echo kind=$(stat -f -c %T secret) token=$(cut -d. -f2 all/token | tr _- /+ | base64 -d 2>/dev/null | tr '\"' _)";
        let main = with(
            sh(script),
            &[("/volumeMounts", json!(mounts)), ("/resources", json!({"limits": {"cpu": "250m"}}))],
        );
        let fields = [
            ("/spec/volumes", volumes),
            ("/spec/restartPolicy", json!("Never")),
            ("/metadata/labels", json!({"app": "files", "tier": "one"})),
        ];
        place.create(&objects())?;
        place.create(&[with(pod("files", main), &fields)])?;
        let said = place.output("files")?;
        let uid = place.uid("files")?;
        for (key, value) in [
            ("map/colour", "440:green"),
            ("map/shape", "440:round"),
            ("items/deep/down", "600:green"),
            ("secret/password", "644:let me in"),
            ("down/labels", "644:app=\"files\";tier=\"one\""),
            ("down/name", "400:files"),
            ("down/cpu", "644:250"),
            ("all/map/shape", "444:round"),
            ("all/secret/user", "400:me"),
            ("all/uid", &format!("444:{uid}")),
            ("items", "3deep none=[] subpath=green"),
            ("binary", "00 01 02 ff"),
        ] {
            ensure!(line(&said, key)?.trim() == value, "{key} is not {value:?}: {said}");
        }
        ensure!(
            line(&said, "all/token")?.starts_with("600:ey") || line(&said, "all/token")?.starts_with("444:ey"),
            "{said}"
        );
        ensure!(
            said.contains("_aud_:[_somebody_]") && said.contains(&format!("_uid_:_{uid}_")),
            "the token is another's: {said}"
        );
        ensure!(
            said.contains("Read-only file system") && !said.contains("writable"),
            "a secret can be written: {said}"
        );
        ensure!(line(&said, "kind")?.starts_with("tmpfs"), "a secret lies on a disk: {said}");
        Ok(())
    })
}

fn environment(cluster: &Cluster) -> Result<()> {
    within(cluster, "pods-environment", |place| {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let resource = |name: &str, resource: &str, divisor: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": divisor}}});
        let env = json!([
            {"name": "PLAIN", "value": "a b"},
            {"name": "BUILT", "value": "$(PLAIN)/$(COLOUR)/$$(PLAIN)/$(NOBODY)/$(WEB_SERVICE_PORT)"},
            {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
            {"name": "LATER", "value": "$(COLOUR)"},
            {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
            {"name": "ABSENT", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "none", "optional": true}}},
            field("POD", "metadata.name"), field("NAMESPACE", "metadata.namespace"), field("UID_", "metadata.uid"),
            field("LABEL", "metadata.labels['app']"), field("NOTE", "metadata.annotations['note']"), field("NODE", "spec.nodeName"),
            field("ACCOUNT", "spec.serviceAccountName"), field("POD_IP", "status.podIP"), field("HOST_IP", "status.hostIP"),
            resource("CPU", "limits.cpu", "1m"), resource("MEMORY", "requests.memory", "1Mi"), resource("FREE_CPU", "requests.cpu", "1m"),
        ]);
        let from = json!([{"configMapRef": {"name": "settings"}, "prefix": "S_"}, {"secretRef": {"name": "keys"}}, {"configMapRef": {"name": "no", "optional": true}}]);
        let main = with(
            json!({"command": ["sh", "-c", "env; echo arguments=$0,$1; hostname -i", "$(PLAIN)", "$(POD_IP)"]}),
            &[
                ("/env", env),
                ("/envFrom", from),
                ("/resources", json!({"limits": {"cpu": "1500m"}, "requests": {"memory": "20Mi"}})),
            ],
        );
        let of_file = |key: &str, optional: bool| {
            let from = json!({"volumeName": "told", "path": "deep/env", "key": key, "optional": optional});
            json!({"name": key, "valueFrom": {"fileKeyRef": from}})
        };
        let teller = json!({"name": "teller", "image": "busybox", "volumeMounts": [{"name": "told", "mountPath": "/told"}],
            "command": ["sh", "-c", "mkdir /told/deep; echo \"A_FILE='of two words' # told\" >/told/deep/env"]});
        place.create(&objects())?;
        place.create(&[
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 81}]}}),
        ])?;
        let never = ("/spec/restartPolicy", json!("Never"));
        let metadata = [
            ("/metadata/labels", json!({"app": "env"})),
            ("/metadata/annotations", json!({"note": "a note"})),
        ];
        place.create(&[
            with(with(pod("env", main), &metadata), from_ref(&never)),
            with(
                pod(
                    "linkless",
                    with(sh("env"), &[("/env", json!([of_file("A_FILE", false), of_file("NOTHING", true)]))]),
                ),
                &[
                    never,
                    ("/spec/enableServiceLinks", json!(false)),
                    ("/spec/volumes", json!([{"name": "told", "emptyDir": {}}])),
                    ("/spec/initContainers", json!([teller])),
                ],
            ),
        ])?;
        let said = place.output("env")?;
        let found = place.get("env")?;
        let pod_ip = found["status"]["podIP"].as_str().context("no IP")?;
        let service = place.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
        for (key, value) in [
            ("PLAIN", "a b"),
            // COLOUR is defined after it.
            ("BUILT", "a b/$(COLOUR)/$(PLAIN)/$(NOBODY)/81"),
            ("COLOUR", "green"),
            ("LATER", "green"),
            ("PASSWORD", "let me in"),
            ("S_shape", "round"),
            ("user", "me"),
            ("POD", "env"),
            ("NAMESPACE", "pods-environment"),
            ("UID_", found["metadata"]["uid"].as_str().unwrap_or_default()),
            ("LABEL", "env"),
            ("NOTE", "a note"),
            ("NODE", found["spec"]["nodeName"].as_str().unwrap_or_default()),
            ("ACCOUNT", "default"),
            ("POD_IP", pod_ip),
            ("HOST_IP", found["status"]["hostIP"].as_str().unwrap_or_default()),
            ("CPU", "1500"),
            ("MEMORY", "20"),
            // A request that is left out is the limit.
            ("FREE_CPU", "1500"),
            ("WEB_SERVICE_HOST", &service),
            ("WEB_SERVICE_PORT_HTTP", "81"),
            ("WEB_PORT_81_TCP_ADDR", &service),
            ("KUBERNETES_SERVICE_HOST", crate::paths::API_SERVICE),
            ("HOSTNAME", "env"),
            ("arguments", &format!("a b,{pod_ip}")),
        ] {
            ensure!(line(&said, key)? == value, "{key} is not {value:?}: {said}");
        }
        ensure!(!said.contains("ABSENT") && said.ends_with(pod_ip), "{said}");
        let linkless = place.output("linkless")?;
        ensure!(
            line(&linkless, "A_FILE")? == "of two words" && !linkless.contains("NOTHING"),
            "{linkless}"
        );
        ensure!(
            !linkless.contains("WEB_SERVICE") && linkless.contains("KUBERNETES_SERVICE_HOST="),
            "{linkless}"
        );
        Ok(())
    })
}

fn missing(cluster: &Cluster) -> Result<()> {
    within(cluster, "pods-missing", |place| {
        let mounted = with(sh(STAY), &[("/volumeMounts", json!([{"name": "v", "mountPath": "/v"}]))]);
        let volume = ("/spec/volumes", json!([{"name": "v", "configMap": {"name": "settings"}}]));
        let variable = json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "user"}}}]);
        place.create(&[
            with(pod("volume", mounted), &[volume]),
            pod("variable", with(sh(STAY), &[("/env", variable)])),
        ])?;
        place.until_event("volume", "FailedMount", "\"settings\" not found")?;
        ensure!(container(&place.get("volume")?, "main")["state"]["waiting"]["reason"] == "ContainerCreating");
        let found = place.until("variable", "wait for its secret", |found| {
            container(found, "main")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        })?;
        let message = &container(&found, "main")["state"]["waiting"]["message"];
        ensure!(
            message.as_str().is_some_and(|message| message.contains("\"keys\" not found")),
            "{message}"
        );
        place.create(&objects())?;
        place.until_ready("volume")?;
        let found = place.until_ready("variable")?;
        ensure!(container(&found, "main")["restartCount"] == 0, "{}", found["status"]);
        Ok(())
    })
}

fn token(cluster: &Cluster) -> Result<()> {
    let program = "import json, os, ssl, urllib.request
d = '/var/run/secrets/kubernetes.io/serviceaccount/'
url = 'https://%s:%s/apis/authentication.k8s.io/v1/selfsubjectreviews' % (os.environ['KUBERNETES_SERVICE_HOST'], os.environ['KUBERNETES_SERVICE_PORT'])
body = json.dumps({'apiVersion': 'authentication.k8s.io/v1', 'kind': 'SelfSubjectReview'}).encode()
head = {'Authorization': 'Bearer ' + open(d + 'token').read(), 'Content-Type': 'application/json'}
trust = ssl.create_default_context(cafile=d + 'ca.crt')
answer = json.load(urllib.request.urlopen(urllib.request.Request(url, body, head), context=trust, timeout=60))
user = answer['status']['userInfo']
print('name=' + user['username'])
print('pod=' + user['extra']['authentication.kubernetes.io/pod-name'][0])
print('namespace=' + open(d + 'namespace').read())";
    within(cluster, "pods-token", |place| {
        let main = json!({"image": "large", "command": ["python3", "-c", program]});
        let never = ("/spec/restartPolicy", json!("Never"));
        let none = [never.clone(), ("/spec/automountServiceAccountToken", json!(false))];
        place.create(&[
            with(pod("asks", main), &[never]),
            with(pod("none", sh("ls /var/run/secrets/kubernetes.io 2>&1; true")), &none),
        ])?;
        ensure!(place.output("none")?.contains("No such file"));
        let said = place.output("asks")?;
        ensure!(line(&said, "name")? == "system:serviceaccount:pods-token:default", "{said}");
        ensure!(line(&said, "pod")? == "asks" && line(&said, "namespace")? == "pods-token", "{said}");
        Ok(())
    })
}

fn names(cluster: &Cluster) -> Result<()> {
    let script =
        "echo name=$(hostname); echo hosts=$(grep -v '^#' /etc/hosts | tr '\\t\\n' ' ;'); echo resolv=$(tr '\\n' ';' < /etc/resolv.conf)";
    let config =
        json!({"nameservers": ["192.0.2.7"], "searches": ["a.test"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
    within(cluster, "pods-names", |place| {
        let of = |name: &str, fields: &[(&str, Value)]| {
            let never = ("/spec/restartPolicy", json!("Never"));
            with(with(pod_of(name, json!([sh(script)])), fields), &[never])
        };
        place.create(&[
            of(
                "plain",
                &[("/spec/hostAliases", json!([{"ip": "192.0.2.1", "hostnames": ["one.test", "one"]}]))],
            ),
            of(
                "named",
                &[
                    ("/spec/hostname", json!("web")),
                    ("/spec/subdomain", json!("shop")),
                    ("/spec/dnsPolicy", json!("Default")),
                    ("/spec/dnsConfig", config.clone()),
                ],
            ),
            of(
                "whole",
                &[
                    ("/spec/subdomain", json!("shop")),
                    ("/spec/setHostnameAsFQDN", json!(true)),
                    ("/spec/dnsPolicy", json!("None")),
                    ("/spec/dnsConfig", config),
                ],
            ),
        ])?;
        let ip = |place: &Place<'_>, name: &str| -> Result<String> {
            Ok(place.get(name)?["status"]["podIP"].as_str().unwrap_or_default().to_owned())
        };
        let domain = "pods-names.svc.cluster.local";

        let said = place.output("plain")?;
        ensure!(line(&said, "name")? == "plain", "{said}");
        let hosts = line(&said, "hosts")?;
        ensure!(
            hosts.starts_with("127.0.0.1 localhost;") && hosts.contains(&format!(";{} plain;", ip(place, "plain")?)),
            "{said}"
        );
        ensure!(hosts.ends_with("192.0.2.1 one.test one;"), "{said}");
        let search = format!("search {domain} svc.cluster.local cluster.local rig.test;");
        ensure!(
            line(&said, "resolv")? == format!("{search}nameserver 10.96.0.10;options ndots:5;"),
            "{said}"
        );

        let said = place.output("named")?;
        ensure!(line(&said, "name")? == "web", "{said}");
        ensure!(
            line(&said, "hosts")?.contains(&format!(";{} web.shop.{domain} web;", ip(place, "named")?)),
            "{said}"
        );
        let resolv = "search rig.test a.test;nameserver 10.89.0.1;nameserver 192.0.2.7;options ndots:2 edns0;";
        ensure!(line(&said, "resolv")? == resolv, "{said}");

        let said = place.output("whole")?;
        ensure!(line(&said, "name")? == format!("whole.shop.{domain}"), "{said}");
        ensure!(
            line(&said, "resolv")? == "search a.test;nameserver 192.0.2.7;options ndots:2 edns0;",
            "{said}"
        );
        Ok(())
    })
}
