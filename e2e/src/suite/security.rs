//! What a container may do in its own guest: all of it, less, or what the kernel itself is told.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Test,
    workload::{STAY, container, line, pod, pod_of, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a privileged container has all of its own guest, and another has not",
        hosts: 1,
        kvmlet: true,
        run: privileged,
    },
    Test {
        name: "a pod's sysctls are its own kernel's, its containers share processes and groups as it says, and a profile of the node holds them",
        hosts: 1,
        kvmlet: true,
        run: own_kernel,
    },
    Test {
        name: "what a security context takes away or leaves is so in the guest: rights, calls, files, groups",
        hosts: 1,
        kvmlet: true,
        run: contexts,
    },
    Test {
        name: "profiles that the node has not, root where it must not be, and unknown sysctls are refused with their reason",
        hosts: 1,
        kvmlet: true,
        run: refused,
    },
];

fn privileged(cluster: &Cluster) -> Result<()> {
    let script = "echo capabilities=$(sed -n 's/CapEff:\\t//p' /proc/self/status)
        ls /dev/vda /dev/kmsg >/dev/null 2>&1 && echo devices=all || echo devices=few
        mkdir /mnt && mount -t tmpfs none /mnt 2>/dev/null && echo mount=yes || echo mount=no
        echo 1 >/proc/sys/net/ipv4/ip_forward 2>/dev/null && echo sysctl=yes || echo sysctl=no
        mkdir /sys/fs/cgroup/mine 2>/dev/null && echo cgroup=yes || echo cgroup=no
        mknod /tmp/null c 1 3 && { echo x >/tmp/null; } 2>/dev/null && echo node=yes || echo node=no";
    within(cluster, "security-privileged", |place| {
        let never = |pod| with(pod, &[("/spec/restartPolicy", json!("Never"))]);
        let all = with(sh(script), &[("/securityContext", json!({"privileged": true}))]);
        place.create(&[never(pod("all", all)), never(pod("less", sh(script)))])?;
        for (name, capabilities, devices, yes) in [("all", "000001ffffffffff", "all", "yes"), ("less", "00000000a80425fb", "few", "no")] {
            let said = place.output(name)?;
            ensure!(
                line(&said, "capabilities")? == capabilities && line(&said, "devices")? == devices,
                "{name}: {said}"
            );
            for what in ["mount", "sysctl", "cgroup", "node"] {
                ensure!(line(&said, what)? == yes, "{name}: {what} in {said}");
            }
        }
        Ok(())
    })
}

fn own_kernel(cluster: &Cluster) -> Result<()> {
    within(cluster, "security-kernel", |place| {
        let security = json!({"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}, {"name": "vm.swappiness", "value": "7"}],
            "runAsUser": 1000, "runAsGroup": 3000, "supplementalGroups": [4000], "supplementalGroupsPolicy": "Strict",
            "seccompProfile": {"type": "Localhost", "localhostProfile": "kvmlet-e2e/no-mkdir.json"}});
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
        let host = cluster.host(0)?;
        let dir = "/var/lib/kvmlet/seccomp/kvmlet-e2e";
        host.sh(&format!("mkdir -p {dir} && echo '{profile}' >{dir}/no-mkdir.json"))?;
        let side = with(sh("exec sleep 4711"), &[("/name", json!("side"))]);
        let script = format!(
            "echo $(sysctl -n kernel.shm_rmid_forced) $(sysctl -n vm.swappiness); id -G; mkdir /made 2>&1 | sed 's/.*: //'
            until cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q 'sleep 471[1]'; do sleep 1; done; echo seen; {STAY}"
        );
        let main = with(sh(&script), &[("/image", json!("users"))]);
        place.create(&[with(
            pod_of("own", json!([main, side])),
            &[
                ("/spec/securityContext", security),
                ("/spec/shareProcessNamespace", json!(true)),
                ("/spec/hostUsers", json!(false)),
            ],
        )])?;
        place.until_ready("own")?;
        // The image has this user in the groups staff and video: not with this policy.
        place.until_logs("own", "1 7\n3000 4000\nOperation not supported\nseen")?;
        let groups = place.kubectl(&["exec", "own", "-c", "main", "--", "id", "-G"])?;
        ensure!(groups.trim() == "3000 4000", "{groups}");
        let said = place.kubectl_fails(&["exec", "own", "-c", "main", "--", "mkdir", "/made"])?;
        ensure!(said.contains("Operation not supported"), "{said}");
        let user = container(&place.get("own")?, "main")["user"].clone();
        ensure!(
            user == json!({"linux": {"uid": 1000, "gid": 3000, "supplementalGroups": [3000, 4000]}}),
            "{user}"
        );
        host.sh(&format!("rm -r {dir}")).map(drop)
    })
}

fn contexts(cluster: &Cluster) -> Result<()> {
    let script = "of() { sed -n \"s/^$1:[[:space:]]*//p\" /proc/self/status; }
        echo rights=$(of CapEff) filter=$(of Seccomp) escalates=$(of NoNewPrivs)
        touch /own 2>/dev/null && echo root=open || echo root=closed
        echo 1 2>/dev/null >/proc/sys/kernel/printk_delay && echo kernel=open || echo kernel=closed
        touch /fixed/own 2>/dev/null && echo fixed=open || echo fixed=closed
        touch /data/$NAME && echo group=$(stat -c %g /data/$NAME) member=$(id -G | grep -wc 5000)";
    let of = |name: &str, security| {
        let fixed = json!({"name": "data", "mountPath": "/fixed", "readOnly": true, "recursiveReadOnly": "Enabled"});
        let mounts = json!([{"name": "data", "mountPath": "/data"}, fixed]);
        let changes = [
            ("/name", json!(name)),
            ("/securityContext", security),
            ("/volumeMounts", mounts),
            ("/env", json!([{"name": "NAME", "value": name}])),
        ];
        with(sh(script), &changes)
    };
    let strict = json!({"capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
        "seccompProfile": {"type": "RuntimeDefault"}, "runAsUser": 1000, "runAsGroup": 3000});
    let some = json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}});
    let loose = json!({"seccompProfile": {"type": "Unconfined"}, "procMount": "Unmasked"});
    within(cluster, "security-contexts", |place| {
        let containers = json!([of("strict", strict), of("some", some), of("loose", loose)]);
        place.create(&[with(
            pod_of("all", containers),
            &[
                ("/spec/restartPolicy", json!("Never")),
                ("/spec/hostUsers", json!(false)),
                (
                    "/spec/securityContext",
                    json!({"fsGroup": 5000, "fsGroupChangePolicy": "OnRootMismatch"}),
                ),
                ("/spec/volumes", json!([{"name": "data", "emptyDir": {}}])),
            ],
        )])?;
        let found = place.until_phase("all", "Succeeded")?;
        let mounts = container(&found, "some")["volumeMounts"].as_array().cloned().unwrap_or_default();
        let fixed = json!({"name": "data", "mountPath": "/fixed", "readOnly": true, "recursiveReadOnly": "Enabled"});
        ensure!(mounts.contains(&fixed), "{mounts:?}");
        for (name, said) in [
            (
                "strict",
                "rights=0000000000000000 filter=2 escalates=1\nroot=closed\nkernel=closed\nfixed=closed\ngroup=5000 member=1",
            ),
            (
                "some",
                "rights=0000000000000400 filter=0 escalates=0\nroot=open\nkernel=closed\nfixed=closed\ngroup=5000 member=1",
            ),
            (
                "loose",
                "rights=00000000a80425fb filter=0 escalates=0\nroot=open\nkernel=open\nfixed=closed\ngroup=5000 member=1",
            ),
        ] {
            let found = place.kubectl(&["logs", "all", "-c", name])?;
            ensure!(found.trim() == said, "{name} says {found:?}");
        }
        Ok(())
    })
}

fn refused(cluster: &Cluster) -> Result<()> {
    within(cluster, "security-refused", |place| {
        let with_security = |name: &str, security| pod(name, with(sh(STAY), &[("/securityContext", security)]));
        place.create(&[
            with_security(
                "seccomp",
                json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}}),
            ),
            with_security("root", json!({"runAsNonRoot": true})),
            with(
                pod("sysctl", sh(STAY)),
                &[(
                    "/spec/securityContext",
                    json!({"sysctls": [{"name": "net.ipv4.nothing_like_it", "value": "1"}]}),
                )],
            ),
        ])?;
        let found = place.until("seccomp", "be refused", |found| {
            container(found, "main")["state"]["waiting"]["reason"] == "CreateContainerError"
        })?;
        let message = &container(&found, "main")["state"]["waiting"]["message"];
        ensure!(
            *message == "cannot load seccomp profile \"/var/lib/kvmlet/seccomp/p.json\": no such file or directory",
            "{message}"
        );
        let found = place.until("root", "be refused", |found| {
            container(found, "main")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        })?;
        let message = container(&found, "main")["state"]["waiting"]["message"]
            .as_str()
            .unwrap_or_default();
        ensure!(
            message.starts_with("container has runAsNonRoot and image will run as root (pod: \"root_security-refused("),
            "{message}"
        );
        place.until_event(
            "sysctl",
            "FailedCreatePodSandBox",
            "set kernel parameter net.ipv4.nothing_like_it to \"1\"",
        )
    })
}
