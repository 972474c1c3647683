//! Images that guests read in place: pods of one image share the host's pages of it, and their guests keep no copy.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Test,
    daemon::{self, Identity},
    workload::{PATIENCE, STAY, line, pod, sh, within},
};
use crate::{Cluster, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "two pods that read all of one large image have its pages once, and no copy of their own",
        hosts: 1,
        kvmlet: true,
        run: shared,
    },
    Test {
        name: "pods of two namespaces have no page of their image in common where the node's configuration says so",
        hosts: 1,
        kvmlet: true,
        run: apart,
    },
];

/// Reads every file of the image, which is several times the pod's memory, and says by how much the guest's page cache has grown.
const READ: &str = r#"
import os, time
def cached():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/meminfo") if line.startswith("Cached:"))
before, total, root = cached(), 0, os.stat("/").st_dev
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.lstat(os.path.join(folder, name)).st_dev == root]
    for path in (os.path.join(folder, name) for name in files):
        if os.path.isfile(path) and not os.path.islink(path):
            with open(path, "rb") as file:
                while piece := file.read(1 << 20):
                    total += len(piece)
print(f"bytes={total}\ncached={cached() - before}", flush=True)
time.sleep(100000)
"#;
/// Of a machine's process: what it has of mapped files, in bytes, and its share where others have them too.
const MAPPED: &str = "awk '/^[0-9a-f]+-[0-9a-f]+ /{ on = /\\/images\\// } on && /^Rss:/{ r += $2 } on && /^Pss:/{ p += $2 }
    END { printf \"rss=%d\\npss=%d\\n\", r * 1024, p * 1024 }' /proc/$1/smaps";

fn shared(cluster: &Cluster) -> Result<()> {
    let Pages { image, shares } = pages(cluster, "in-place")?;
    ensure!(
        shares < image / 20 * 21,
        "together {shares} bytes of an image that is {image} in one"
    );
    Ok(())
}

/// What two pods that have read all of one image have of the host's memory for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pages {
    /// The image's pages that one of the two has mapped, bytes.
    pub(crate) image: u64,
    /// What both take of the host for theirs: their shares of them (Pss), bytes.
    pub(crate) shares: u64,
}

/// Two pods of the rig's largest image, in a namespace of their own.
pub(crate) fn pages(cluster: &Cluster, namespace: &str) -> Result<Pages> {
    within(cluster, namespace, |place| {
        let main = json!({"image": "large", "command": ["python3", "-c", READ], "resources": {"limits": {"memory": "64Mi"}}});
        place.create(&[pod("one", main.clone()), pod("two", main)])?;
        let (host, mut all, mut shares, mut image) = (cluster.host(0)?, Vec::new(), 0, 0);
        for name in ["one", "two"] {
            let said = wait_for(&format!("{name} to have read its image"), PATIENCE, || {
                let logs = place.kubectl(&["logs", name])?;
                Ok(logs.contains("cached=").then_some(logs))
            })?;
            let number = |key: &str| -> Result<u64> { Ok(line(&said, key)?.trim().parse()?) };
            let (bytes, cached) = (number("bytes")?, number("cached")?);
            ensure!(bytes > 300 << 20, "the image is not large: {said}");
            ensure!(cached < bytes / 20, "the guest of pod {name} keeps a copy: {said}");
            all.push((name, bytes));
        }
        for (name, bytes) in all {
            let found = host.sh(&format!("set -- {}; {MAPPED}", Identity::of(place, name)?.process))?;
            let number = |key: &str| -> Result<u64> { Ok(line(&found, key)?.trim().parse()?) };
            ensure!(
                number("rss")? > bytes / 10 * 9,
                "pod {name} does not read the host's pages: {found}"
            );
            shares += number("pss")?;
            image = image.max(number("rss")?);
        }
        Ok(Pages { image, shares })
    })
}

/// The files of images that a machine has mapped: device, inode.
const FILES: &str = "awk '$6 ~ /\\/images\\// { print $4, $5 }' /proc/$1/maps | sort -u";

fn apart(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    daemon::with_config(cluster, "sharing: {images: namespace, templates: none}\n", || {
        let mut mapped = Vec::new();
        for (namespace, names) in [("apart-one", &["first", "second"][..]), ("apart-two", &["third"])] {
            within(cluster, namespace, |place| {
                place.create(&names.iter().map(|name| pod(name, sh(STAY))).collect::<Vec<_>>())?;
                for name in names {
                    place.until_ready(name)?;
                    place.until_event(
                        name,
                        "MachineStarted",
                        "s (the node's configuration shares no templates (sharing.templates))",
                    )?;
                    let files = host.sh(&format!("set -- {}; {FILES}", Identity::of(place, name)?.process))?;
                    ensure!(!files.is_empty(), "pod {name} reads no image in place");
                    mapped.push(files);
                }
                Ok(())
            })?;
        }
        ensure!(mapped[0] == mapped[1], "pods of one namespace have other files: {mapped:?}");
        ensure!(
            mapped[2].lines().all(|file| !mapped[0].contains(file)),
            "pods of two namespaces have files in common: {mapped:?}"
        );
        // They go at the next look, as nobody needs them any more.
        let kept = host.sh("ls /var/lib/kvmlet/copies")?;
        ensure!(kept == "apart-one\napart-two", "{kept:?}");
        Ok(())
    })
}
