//! What an image says about its containers, and where images come from.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    workload::{PATIENCE, Place, container, line, pod, pod_of, sh, with, within},
};
use crate::{Cluster, registry, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "an image's entry point, command, environment, folder and user hold unless the pod says otherwise",
        hosts: 1,
        kvmlet: true,
        run: configuration,
    },
    Test {
        name: "a private image needs the pod's secret, also where it is on the node already, and says so without",
        hosts: 1,
        kvmlet: true,
        run: private,
    },
    Test {
        name: "a second pod of the same image pulls and converts nothing",
        hosts: 1,
        kvmlet: true,
        run: second,
    },
    Test {
        name: "a large image of many layers runs as it was built",
        hosts: 1,
        kvmlet: true,
        run: large,
    },
];

/// What `/entry.sh` of the image users must say, without its last line: arguments, identity, folder.
struct Said<'a>(&'a str, &'a str, &'a str);

fn configuration(cluster: &Cluster) -> Result<()> {
    let plain = "env: GREETING=hello there EMPTY=[]";
    // Tag, what the pod says, what is seen.
    let cases: Vec<(&str, &str, Value, Said<'_>)> = vec![
        (
            "image-args",
            "latest",
            json!({"args": ["one", "$(GREETING) $$(x) $(NONE)"], "env": [{"name": "GREETING", "value": "hello there"}]}),
            Said(
                "args: one hello there $(x) $(NONE)",
                "id: 1000:1001 groups: 1001 44 50",
                "cwd: /srv/app home: /home/app",
            ),
        ),
        (
            "number",
            "number",
            json!({"args": ["x"]}),
            Said("args: x", "id: 1000:1001 groups: 1001 44 50", "cwd: /srv/app home: /home/app"),
        ),
        ("group", "group", json!({"args": []}), Said("", "", "")),
        (
            "numbers",
            "numbers",
            json!({"args": ["x"]}),
            Said("args: x", "id: 1234:5678 groups: 5678", "cwd: /srv/app home: /"),
        ),
        (
            "root",
            "root",
            json!({"args": ["x"]}),
            Said("args: x", "id: 0:0 groups: 0", "cwd: /srv/app home: /root"),
        ),
        (
            "workdir",
            "workdir",
            json!({"args": ["x"]}),
            Said("args: x", "id: 1000:1001 groups: 1001 44 50", "cwd: /not/there/yet home: /home/app"),
        ),
        (
            "plain",
            "plain",
            json!({}),
            Said("args: plain", "id: 1000:1001 groups: 1001 44 50", "cwd: /srv/app home: /home/app"),
        ),
        (
            "over",
            "latest",
            json!({"command": ["/entry.sh", "own"], "workingDir": "/tmp", "securityContext": {"runAsUser": 2000, "runAsGroup": 50}}),
            Said("args: own", "id: 2000:50 groups: 50", "cwd: /tmp home: /home/other"),
        ),
    ];
    within(cluster, "pods-images", |place| {
        // The image's own command, which serves until its stop signal: with one pod by TERM, with the other by USR1.
        let serve = |tag: &str| {
            with(
                json!({"image": format!("users:{tag}")}),
                &[("/name", json!(tag)), ("/image", json!(format!("users:{tag}")))],
            )
        };
        let mut containers = Vec::new();
        for (name, tag, fields, _) in cases.iter().filter(|case| case.0 != "group") {
            let mut one = fields.clone();
            one["name"] = json!(name);
            one["image"] = json!(format!("users:{tag}"));
            containers.push(one);
        }
        containers.push(json!({"name": "group", "image": "users:group", "args": ["x"]}));
        place.create(&[
            with(
                pod_of("cases", Value::Array(containers)),
                &[("/spec/restartPolicy", json!("Never"))],
            ),
            with(
                pod_of("served", json!([serve("latest"), serve("stop")])),
                &[("/spec/terminationGracePeriodSeconds", json!(60))],
            ),
        ])?;
        place.until_phase("cases", "Succeeded")?;
        for (name, _, _, said) in &cases {
            let logs = place.kubectl(&["logs", "cases", "-c", name])?;
            let said = if *name == "group" {
                Said("args: x", "id: 1000:50 groups: 50 44", "cwd: /srv/app home: /home/app")
            } else {
                Said(said.0, said.1, said.2)
            };
            let mut lines: Vec<_> = logs.lines().collect();
            sort_groups(&mut lines, said.1).with_context(|| format!("{name}: {logs}"))?;
            ensure!(lines == [said.0, said.2, plain], "{name}: {logs}");
        }
        place.until_ready("served")?;
        let listen = |container: &str| -> Result<std::process::Child> {
            let mut logs = cluster.kubectl_command();
            logs.args(["-n", &place.name, "logs", "-f", "served", "-c", container]);
            logs.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
            logs.spawn().context("run kubectl logs -f")
        };
        let listeners = [listen("latest")?, listen("stop")?];
        wait_for("its arguments to be written", PATIENCE, || {
            let logs = place.kubectl(&["logs", "served", "-c", "latest"])?;
            ensure!(logs.starts_with("args: serve with two words"), "{logs:?}");
            Ok(Some(()))
        })?;
        place.kubectl(&["delete", "pod", "served"])?;
        for (listener, last) in listeners.into_iter().zip(["got TERM", "got USR1"]) {
            let heard = listener.wait_with_output().context("wait for kubectl logs -f")?;
            let heard = crate::command::text(&heard.stdout);
            ensure!(heard.ends_with(last), "no {last:?} at the end of {heard:?}");
        }
        Ok(())
    })
}

/// Takes the line of identities out and compares it without the order of its groups.
fn sort_groups(lines: &mut Vec<&str>, wanted: &str) -> Result<()> {
    let at = lines.iter().position(|line| line.starts_with("id: ")).context("no identity")?;
    let parts = |line: &str| -> Option<(String, Vec<String>)> {
        let (identity, groups) = line.split_once(" groups: ")?;
        let mut groups: Vec<_> = groups.split(' ').map(str::to_owned).collect();
        groups.sort();
        Some((identity.to_owned(), groups))
    };
    let found = lines.remove(at);
    ensure!(parts(found) == parts(wanted), "{found:?} is not {wanted:?}");
    Ok(())
}

fn private(cluster: &Cluster) -> Result<()> {
    within(cluster, "pods-private", |place| {
        let server = registry::private();
        for (name, password) in [("right", "let-me-in"), ("wrong", "guess")] {
            place.kubectl(&[
                "create",
                "secret",
                "docker-registry",
                name,
                &format!("--docker-server={server}"),
                "--docker-username=puller",
                &format!("--docker-password={password}"),
            ])?;
        }
        let image = format!("{server}/private/busybox");
        let of = |name: &str, secret: Option<&str>| {
            let secrets: Vec<_> = secret.iter().map(|name| json!({"name": name})).collect();
            let main = with(sh("echo allowed"), &[("/image", json!(image))]);
            with(
                pod(name, main),
                &[("/spec/imagePullSecrets", json!(secrets)), ("/spec/restartPolicy", json!("Never"))],
            )
        };
        place.create(&[of("with", Some("right")), of("without", None), of("mistaken", Some("wrong"))])?;
        ensure!(place.output("with")? == "allowed");
        for name in ["without", "mistaken"] {
            refused(place, name)?;
        }
        // The image is on the node by now; that a pod may have it, it has to show all the same.
        let policy = |name: &str, secret, policy: &str| with(of(name, secret), &[("/spec/containers/0/imagePullPolicy", policy.into())]);
        place.create(&[
            policy("cached", None, "IfNotPresent"),
            policy("guessed", Some("wrong"), "IfNotPresent"),
            policy("never", None, "Never"),
            policy("shown", Some("right"), "Never"),
        ])?;
        ensure!(place.output("shown")? == "allowed");
        for name in ["cached", "guessed"] {
            refused(place, name)?;
        }
        place.until_event("never", "ErrImageNeverPull", "is not present with pull policy of Never")
    })
}

/// The pull has failed, with its reason, and is tried again after a wait.
fn refused(place: &Place<'_>, name: &str) -> Result<()> {
    let found = place.until(name, "wait for its image", |found| {
        ["ErrImagePull", "ImagePullBackOff"]
            .iter()
            .any(|reason| container(found, "main")["state"]["waiting"]["reason"] == *reason)
    })?;
    let message = container(&found, "main")["state"]["waiting"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    ensure!(
        message.to_lowercase().contains("auth") && found["status"]["phase"] == "Pending",
        "{name}: {message:?} does not say why"
    );
    place.until_event(name, "Failed", "Error: ErrImagePull")?;
    place.until_event(name, "BackOff", "Back-off pulling image")?;
    Ok(())
}

fn second(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let store = "cd /var/lib/kvmlet/images && find . -type f -printf '%p %s %C@ %i\\n' | sort | grep -v -e /records -e json";
    within(cluster, "pods-second", |place| {
        let of = |name: &str, policy: &str| {
            let main = with(
                sh("echo here"),
                &[("/image", json!("busybox:docker")), ("/imagePullPolicy", json!(policy))],
            );
            with(pod(name, main), &[("/spec/restartPolicy", json!("Never"))])
        };
        place.create(&[of("first", "IfNotPresent")])?;
        place.output("first")?;
        let before = host.sh(store)?;
        ensure!(!before.is_empty(), "the store is empty");
        place.create(&[of("present", "IfNotPresent"), of("never", "Never"), of("always", "Always")])?;
        for name in ["present", "never", "always"] {
            ensure!(place.output(name)? == "here");
        }
        for name in ["present", "never"] {
            place.until_event(name, "Pulled", "already present on machine")?;
            ensure!(!place.events(name)?.iter().any(|event| event.1 == "Pulling"), "{name} pulled");
        }
        place.until_event("always", "Pulled", "Successfully pulled image")?;
        let after = host.sh(store)?;
        ensure!(before == after, "the store has changed:\n{before}\n{after}");
        Ok(())
    })
}

fn large(cluster: &Cluster) -> Result<()> {
    let script = "cat /etc/kvmlet-large; cd /srv
        echo 'int main(void) { return 42; }' > /tmp/a.c && gcc -o /tmp/a /tmp/a.c && /tmp/a; echo program=$?
        echo hardlink=$(stat -c '%h %u:%g %a' links/first) same=$([ links/first -ef links/below/third ] && echo yes)
        echo long=$(cat long/ll*) gnu=$(cat long/gnu-g*) deep=$(wc -c < long/deep-again)
        echo gone=$(ls -A gone) inside=$(ls gone/folder) opaque=$(ls kept/hidden | tr '\\n' ' ')
        echo turned=$(cat turns/file-to-symlink) $(stat -c %F turns/file-to-folder turns/folder-to-file)
        echo owner=$(stat -c %u:%g owners/large-uid) setuid=$(stat -c %a owners/setuid)
        echo whole=$(wc -c < bulk/whole) bulk=$(python3 -c 'import os; print(sum(len(files) for _, _, files in os.walk(\"bulk\")))')
        echo capability=$(python3 -c 'import os; print(os.getxattr(\"xattrs/capability\", \"security.capability\").hex())')";
    within(cluster, "pods-large", |place| {
        let main = json!({"image": "large", "command": ["bash", "-c", script], "resources": {"limits": {"memory": "512Mi"}}});
        place.create(&[with(pod("large", main), &[("/spec/restartPolicy", json!("Never"))])])?;
        let said = place.output("large")?;
        ensure!(said.starts_with("the last layer was applied"), "{said}");
        for (key, value) in [
            ("program", "42"),
            ("hardlink", "2 7:8 640 same=yes"),
            ("long", "a name of 255 bytes gnu=its name in an entry of GNU's deep=5"),
            ("gone", "folder inside=back opaque=3 new"),
            ("turned", "above directory regular file"),
            ("owner", "4000000000:3999999999 setuid=4755"),
            ("whole", "33554432 bulk=1502"),
            ("capability", "0100000200200000000000000000000000000000"),
        ] {
            ensure!(line(&said, key)?.trim() == value, "{key} is not {value:?}: {said}");
        }
        Ok(())
    })
}
