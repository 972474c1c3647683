//! Volumes that are the files of an image.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    workload::{Place, container, line, pod, sh, with, within},
};
use crate::{Cluster, registry};

pub(super) const TESTS: &[Test] = &[Test {
    name: "a volume that is an image has its files, read-only and not executable, and needs the pod's secret as any image",
    hosts: 1,
    kvmlet: true,
    run: volumes,
}];

/// What a container sees of the image nginx at /whole, and of parts of it at /part and /file.
const LOOK: &str = "echo whole=$(head -n 1 /whole/etc/nginx/nginx.conf); echo part=$(head -n 1 /part/nginx.conf)
    echo file=$(head -n 1 /file); touch /whole/new 2>&1 | sed 's/^/write=/'
    /whole/usr/sbin/nginx -v; echo run=$?; echo owner=$(stat -c %u /whole/etc)";

fn volumes(cluster: &Cluster) -> Result<()> {
    within(cluster, "image-volumes", |place| {
        let mount = |path: &str, sub: &str| json!({"name": "image", "mountPath": path, "subPath": sub});
        let nginx = json!({"reference": "nginx", "pullPolicy": "IfNotPresent"});
        let looks = with(
            sh(LOOK),
            &[(
                "/volumeMounts",
                json!([
                    mount("/whole", ""),
                    mount("/part", "etc/nginx"),
                    mount("/file", "etc/nginx/nginx.conf")
                ]),
            )],
        );
        let lost = with(sh("true"), &[("/volumeMounts", json!([mount("/v", "not/there")]))]);
        place.create(&[of("looks", looks, nginx.clone()), of("lost", lost, nginx)])?;
        let said = place.output("looks")?;
        for (key, value) in [
            ("whole", "worker_processes 1;"),
            ("part", "worker_processes 1;"),
            ("file", "worker_processes 1;"),
            ("run", "126"),
            ("owner", "0"),
        ] {
            ensure!(line(&said, key)? == value, "{key} is not {value:?}: {said}");
        }
        ensure!(line(&said, "write")?.contains("Read-only file system"), "{said}");
        let found = place.until("lost", "say that the image has no such part", |found| {
            container(found, "main")["state"]["waiting"]["reason"] == "CreateContainerError"
        })?;
        let message = &container(&found, "main")["state"]["waiting"]["message"];
        let words = |text: &str| text.starts_with("ImageVolumeMountFailed") && text.contains("not/there");
        ensure!(message.as_str().is_some_and(words), "{message}");
        private(place)
    })
}

/// A volume's image is pulled as a container's is: with the pod's credentials, by its policy, with the same words.
fn private(place: &Place<'_>) -> Result<()> {
    let server = registry::private();
    let server = format!("--docker-server={server}");
    let secret = ["create", "secret", "docker-registry", "right", &server, "--docker-username=puller"];
    place.kubectl(&[&secret[..], &["--docker-password=let-me-in"]].concat())?;
    let reference = format!("{}/private/busybox", registry::private());
    let reads = || {
        with(
            sh("ls /v/bin/busybox"),
            &[("/volumeMounts", json!([{"name": "image", "mountPath": "/v"}]))],
        )
    };
    let image = |policy: &str| json!({"reference": reference, "pullPolicy": policy});
    let shown = with(
        of("shown", reads(), image("Always")),
        &[("/spec/imagePullSecrets", json!([{"name": "right"}]))],
    );
    place.create(&[shown])?;
    ensure!(place.output("shown")? == "/v/bin/busybox");
    // It is on the node by now; who has not shown that it may have it has to.
    place.create(&[of("without", reads(), image("IfNotPresent")), of("never", reads(), image("Never"))])?;
    for (name, reasons) in [
        ("without", ["ErrImagePull", "ImagePullBackOff"]),
        ("never", ["ErrImageNeverPull"; 2]),
    ] {
        place.until(name, "wait for the image of its volume", |found| {
            reasons
                .iter()
                .any(|reason| container(found, "main")["state"]["waiting"]["reason"] == *reason)
        })?;
    }
    place.until_event("without", "Failed", "Error: ErrImagePull")
}

/// A pod that runs once, with this image as its volume.
fn of(name: &str, container: Value, image: Value) -> Value {
    with(
        pod(name, container),
        &[
            ("/spec/restartPolicy", json!("Never")),
            ("/spec/volumes", json!([{"name": "image", "image": image}])),
        ],
    )
}
