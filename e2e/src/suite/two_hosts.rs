//! Two hosts are one cluster: pods, services and host ports are reached across them, and routes follow the nodes.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    workload::{PATIENCE, Place, STAY, condition, container, pod, sh, with, within},
};
use crate::{Cluster, Host, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "pods on two hosts are spread by the scheduler, reach each other by address and answer one service together",
        hosts: 2,
        kvmlet: true,
        run: reach,
    },
    Test {
        name: "a host port leads to its pod from everywhere, is taken once a host, and is closed when the pod is gone",
        hosts: 2,
        kvmlet: true,
        run: host_port,
    },
    Test {
        name: "a node whose daemon is silent becomes NotReady while its pods go on, and is Ready again with the daemon",
        // Seen from the control plane: it waits for most of a minute, beside others.
        hosts: 1,
        kvmlet: true,
        run: silent,
    },
    Test {
        name: "a host's routes to other nodes' pods go with the Node and come with it",
        hosts: 2,
        kvmlet: true,
        run: routes,
    },
];

/// What an HTTP server offers besides its name: who asks, and 20 MB that nothing on the way can make smaller.
const OFFERS: &str = "mkdir cgi-bin && printf '#!/bin/sh\\necho; echo $REMOTE_ADDR\\n' > cgi-bin/who && chmod 755 cgi-bin/who
dd if=/dev/urandom of=big bs=1000000 count=20 2>/dev/null && md5sum < big > sum";

/// A pod with an HTTP server that says the pod's name, on whichever host the scheduler takes.
fn server(name: &str, offers: &str) -> Value {
    let script = format!("mkdir /www && cd /www && hostname > index.html\n{offers}\nhttpd -p 80 -h /www; {STAY}");
    with(
        pod(name, sh(&script)),
        &[("/spec/nodeSelector", json!({"type": "virtual-kubelet"}))],
    )
}

/// The same on one node.
fn server_on(name: &str, node: &str) -> Value {
    let selector = json!({"type": "virtual-kubelet", "kubernetes.io/hostname": node});
    with(server(name, ""), &[("/spec/nodeSelector", selector)])
}

/// Where a pod runs.
struct Placed {
    name: &'static str,
    node: String,
    address: String,
}

/// Waits until the pod's server answers.
fn placed(place: &Place<'_>, name: &'static str) -> Result<Placed> {
    let found = place.until_ready(name)?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a ready pod has no node or address");
    let address = text(&found["status"]["podIP"])?;
    wait_for(&format!("{name} to answer"), PATIENCE, || {
        place.cluster.http_get(&format!("http://{address}/")).map(Some)
    })?;
    Ok(Placed {
        name,
        node: text(&found["spec"]["nodeName"])?,
        address,
    })
}

/// The host that is a Node.
fn host<'a>(cluster: &'a Cluster, node: &str) -> Result<&'a Host> {
    let mut hosts = cluster.hosts.iter();
    hosts.find(|host| host.name == node).with_context(|| format!("no host is {node}"))
}

/// What a host gets.
fn fetched(host: &Host, url: &str) -> Result<String> {
    host.sh(&format!("curl -sS --fail --max-time 20 {url}"))
}

fn reach(cluster: &Cluster) -> Result<()> {
    within(cluster, "two-hosts-reach", |place| {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
        let spread = json!([{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}}}]);
        let pod = |name: &str| {
            let labels = json!({"app": "web"});
            with(
                server(name, OFFERS),
                &[("/metadata/labels", labels), ("/spec/topologySpreadConstraints", spread.clone())],
            )
        };
        place.create(&[pod("web-1"), pod("web-2"), service])?;
        let pods = [placed(place, "web-1")?, placed(place, "web-2")?];
        ensure!(pods[0].node != pods[1].node, "both pods are on {}", pods[0].node);

        for (here, there) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
            let base = format!("http://{}", there.address);
            let get = |path: &str| place.exec(here.name, &format!("timeout 60 wget -q -O - {base}/{path}"));
            ensure!(get("")? == there.name, "{} reaches somebody else at {base}", here.name);
            // busybox writes an IPv4 address as its socket knows it: [::ffff:A.B.C.D].
            let who = get("cgi-bin/who")?;
            let who = who.trim_start_matches("[::ffff:").trim_end_matches(']');
            ensure!(who == here.address, "{} is seen as {who} by a pod on another host", here.address);
            let (sum, want) = (get("big | md5sum")?, get("sum")?);
            ensure!(
                sum == want && !want.is_empty(),
                "20 MB from {} arrive as {sum}, not {want}",
                there.name
            );
            for host in &cluster.hosts {
                ensure!(fetched(host, &base)? == there.name, "{} reaches somebody else at {base}", host.name);
            }
            ensure!(
                cluster.http_get(&base)? == there.name,
                "the control plane reaches somebody else at {base}"
            );
        }
        let service = cluster.kubectl_json(&["get", "service", "web", "-n", &place.name])?;
        let address = service["spec"]["clusterIP"].as_str().context("a service without an address")?;
        let all: BTreeSet<String> = pods.iter().map(|pod| pod.name.to_owned()).collect();
        let ask = format!("for i in $(seq 30); do timeout 10 wget -q -O - http://{address}/ || exit 1; done | sort -u");
        // Itself too: a pod may be its own service's answer.
        for pod in &pods {
            wait_for(&format!("the service to answer {} with both pods", pod.name), PATIENCE, || {
                let answers: BTreeSet<String> = place.exec(pod.name, &ask)?.lines().map(str::to_owned).collect();
                ensure!(answers == all, "{answers:?}");
                Ok(Some(()))
            })?;
        }
        for host in &cluster.hosts {
            fetched(host, &format!("http://{address}/")).with_context(|| format!("{} asks the service", host.name))?;
        }
        Ok(())
    })
}

fn host_port(cluster: &Cluster) -> Result<()> {
    const PORT: u16 = 8088;
    let url = |host: &Host| format!("http://{}:{PORT}/", host.address);
    within(cluster, "two-hosts-port", |place| {
        let pod = |name: &str| {
            let ports = json!([{"containerPort": 80, "hostPort": PORT}]);
            with(server(name, ""), &[("/spec/containers/0/ports", ports)])
        };
        let names = ["port-1", "port-2"];
        place.create(&names.map(pod))?;
        let pods = [placed(place, names[0])?, placed(place, names[1])?];
        ensure!(pods[0].node != pods[1].node, "a host's port is taken twice on {}", pods[0].node);
        place.create(&[pod("port-3")])?;
        place.until_event("port-3", "FailedScheduling", "free ports")?;
        for there in &pods {
            let at = url(host(cluster, &there.node)?);
            ensure!(
                cluster.http_get(&at)? == there.name,
                "the control plane reaches somebody else at {at}"
            );
            for host in &cluster.hosts {
                ensure!(fetched(host, &at)? == there.name, "{} reaches somebody else at {at}", host.name);
            }
            for here in &pods {
                let answer = place.exec(here.name, &format!("timeout 20 wget -q -O - {at}"))?;
                ensure!(answer == there.name, "{} reaches {answer} at {at}", here.name);
            }
        }
        place.kubectl(&["delete", "pod", "--all", "--timeout=110s"])?;
        for host in &cluster.hosts {
            ensure!(cluster.http_get(&url(host)).is_err(), "{} still answers", url(host));
        }
        Ok(())
    })
}

fn silent(cluster: &Cluster) -> Result<()> {
    let quiet = cluster.host(0)?;
    let ready = |wanted: &str| {
        wait_for(&format!("{} to be Ready: {wanted}", quiet.name), PATIENCE, || {
            let node = cluster.kubectl_json(&["get", "node", &quiet.name])?;
            let found = condition(&node, "Ready").clone();
            ensure!(found["status"] == wanted, "{found}");
            Ok(Some(()))
        })
    };
    within(cluster, "two-hosts-silent", |place| {
        place.create(&[server_on("web", &quiet.name)])?;
        let web = placed(place, "web")?;
        let before = container(&place.get("web")?, "main").clone();
        quiet.stop_daemon()?;
        let seen = ready("Unknown").and_then(|()| {
            let pod = place.get("web")?;
            ensure!(
                condition(&pod, "Ready")["status"] == "False",
                "a pod of a silent node is ready: {}",
                pod["status"]
            );
            let answer = cluster.http_get(&format!("http://{}/", web.address))?;
            ensure!(answer == "web", "{answer}");
            Ok(())
        });
        quiet.start_daemon()?;
        seen?;
        ready("True")?;
        let after = container(&place.until_ready("web")?, "main").clone();
        ensure!(after == before, "the container was {before}, is {after}");
        Ok(())
    })
}

/// kvmlet's routes on a host, as `CIDR ADDRESS`.
fn own_routes(host: &Host) -> Result<BTreeSet<String>> {
    let routes = host.sh("ip route show proto 75")?;
    Ok(routes
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.get(1) == Some(&"via")).then(|| format!("{} {}", words[0], words[2]))
        })
        .collect())
}

fn routes(cluster: &Cluster) -> Result<()> {
    let [first, second] = [cluster.host(0)?, cluster.host(1)?];
    let led = |from: &Host, to: &Host| {
        wait_for(
            &format!("{} to have a route to the pods of {}", from.name, to.name),
            PATIENCE,
            || {
                let cidr = cluster.kubectl(&["get", "node", &to.name, "-o", "jsonpath={.spec.podCIDR}"])?;
                let (routes, wanted) = (own_routes(from)?, format!("{cidr} {}", to.address));
                ensure!(routes.contains(&wanted), "{routes:?} has no {wanted}");
                let stale = routes
                    .iter()
                    .any(|route| *route != wanted && route.ends_with(&format!(" {}", to.address)));
                ensure!(!stale, "{routes:?} has more than {wanted}");
                Ok(Some(()))
            },
        )
    };
    led(first, second)?;
    led(second, first)?;
    second.stop_daemon()?;
    let deleted = cluster.kubectl(&["delete", "node", &second.name]).and_then(|_| {
        wait_for("the route of a Node that is gone to be removed", Duration::from_secs(60), || {
            let routes = own_routes(first)?;
            let left = routes.iter().any(|route| route.ends_with(&format!(" {}", second.address)));
            ensure!(!left, "{routes:?}");
            Ok(Some(()))
        })
    });
    second.start_daemon()?;
    deleted?;
    cluster.wait_until_nodes_are_ready(PATIENCE)?;
    led(first, second)?;
    led(second, first)?;
    // Its pods may have another range now: they must work all the same.
    within(cluster, "two-hosts-routes", |place| {
        place.create(&[server_on("back", &second.name)])?;
        let back = placed(place, "back")?;
        let answer = fetched(first, &format!("http://{}/", back.address))?;
        ensure!(answer == "back", "{answer}");
        Ok(())
    })
}
