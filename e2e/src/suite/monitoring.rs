//! manifests/monitoring with Debian's Prometheus: alert rules by promtool, and each query of the dashboard and of the rules asked of a
//! Prometheus that scrapes a real node with the rights that rbac.yaml gives.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    workload::{PATIENCE, STAY, pod, sh, with, within},
};
use crate::{
    Cluster, artifacts, command,
    paths::{GATEWAY, manifest, write},
    process::Process,
    wait::wait_while,
    wait_for,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "alert rules are what promtool takes, fire for a made-up node in trouble, and are silent for one that is well",
        hosts: 1,
        kvmlet: false,
        run: rules,
    },
    Test {
        name: "each query of the dashboard and of the alerts finds what a node tells Debian's Prometheus",
        hosts: 1,
        kvmlet: true,
        run: queries,
    },
];

/// The port of Prometheus, inside the cluster's network.
const PORT: u16 = 9090;
/// Whose rights it has (rbac.yaml).
const SYSTEM: &str = "kvmlet-monitoring";
/// What a Prometheus without Kubernetes discovery has in place of it, as the label that discovery would set.
const DISCOVERED: &str = "__meta_kubernetes_node_name";

fn rules(_: &Cluster) -> Result<()> {
    let promtool = artifacts::prometheus()?.join("promtool");
    let run = |arguments: &[&str]| command::run(Command::new(&promtool).args(arguments));
    run(&["check", "rules", &manifest("monitoring/rules.yaml")])?;
    run(&["test", "rules", &manifest("monitoring/rules.test.yaml")]).map(drop)
}

/// A query, where it is from, and whether it may be empty on a node that is well.
#[derive(Debug)]
struct Query {
    from: String,
    expr: String,
    may_be_empty: bool,
}

/// All of the dashboard's, as Grafana would ask them for one node, a namespace and its pods.
fn of_dashboard(dashboard: &Value, node: &str, namespace: &str) -> Result<Vec<Query>> {
    let filled = |expr: &str| -> Result<String> {
        let filled = [
            ("$__rate_interval", "1m"),
            ("$node", node),
            ("$namespace", namespace),
            ("$pod", ".*"),
        ];
        let filled = filled.iter().fold(expr.to_owned(), |expr, (name, value)| expr.replace(name, value));
        ensure!(!filled.contains('$'), "{filled} has a variable that the dashboard has not");
        Ok(filled)
    };
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let title = panel["title"].as_str().context("a panel without a title")?;
        let description = panel["description"].as_str().unwrap_or_default();
        let may_be_empty = description.split(". ").any(|sentence| sentence.starts_with("Empty "));
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = filled(target["expr"].as_str().context("a target without an expression")?)?;
            let from = format!("panel {title:?}");
            queries.push(Query { from, expr, may_be_empty });
        }
    }
    for variable in dashboard["templating"]["list"].as_array().context("no variables")? {
        let Some(query) = variable["query"]["query"].as_str() else {
            continue;
        };
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(", "));
        let (series, label) = inner.with_context(|| format!("{query} is no label_values"))?;
        queries.push(Query {
            from: format!("variable {}", variable["name"]),
            expr: filled(&format!("count by ({}) ({series})", label.trim_end_matches(')')))?,
            may_be_empty: false,
        });
    }
    Ok(queries)
}

/// What stands before the comparison that an alert's expression ends with.
fn compared(expr: &str) -> Option<&str> {
    let (rest, number) = expr.trim_end().rsplit_once(' ')?;
    number.parse::<f64>().ok()?;
    let (value, operator) = rest.trim_end().rsplit_once(' ')?;
    ["==", "!=", ">", "<", ">=", "<="].contains(&operator).then_some(value)
}

/// A Prometheus by the project's own configuration; it ends with the test.
struct Prometheus<'a> {
    cluster: &'a Cluster,
    process: Process,
}

impl<'a> Prometheus<'a> {
    fn start(cluster: &'a Cluster) -> Result<Self> {
        let programs = artifacts::prometheus()?;
        let folder = cluster.state.root.join("prometheus");
        let _ = fs::remove_dir_all(&folder);
        let token = cluster.kubectl(&["-n", SYSTEM, "create", "token", "prometheus"])?;
        write(&folder.join("token"), token)?;
        fs::copy(cluster.state.pki().join("ca.crt"), folder.join("ca.crt")).context("copy the authority")?;
        fs::copy(manifest("monitoring/rules.yaml"), folder.join("rules.yaml")).context("copy the rules")?;
        let text = fs::read_to_string(manifest("monitoring/prometheus.yaml")).context("read prometheus.yaml")?;
        let text = text.replace("/var/run/secrets/kubernetes.io/serviceaccount", &folder.to_string_lossy());
        let file = folder.join("prometheus.yaml");
        write(&file, configuration(&text, &Self::targets(cluster)?)?)?;
        command::run(Command::new(programs.join("promtool")).args(["check", "config"]).arg(&file))?;
        let mut prometheus = cluster.inside(&programs.join("prometheus").to_string_lossy());
        prometheus
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={GATEWAY}:{PORT}"));
        let process = Process::spawn(&cluster.state, "prometheus", &mut prometheus)?;
        Ok(Self { cluster, process })
    }

    /// The first host's kubelet port, as discovery would say it.
    fn targets(cluster: &Cluster) -> Result<Value> {
        let host = cluster.host(0)?;
        Ok(json!([{"targets": [host.kubelet()], "labels": {DISCOVERED: host.name}}]))
    }

    fn end(self) -> Result<()> {
        self.process.end(&self.cluster.state)
    }

    /// What the HTTP API answers, its data.
    fn ask(&self, path: &str, query: Option<&str>) -> Result<Value> {
        let mut curl = self.cluster.inside("curl");
        curl.args(["-sS", "--max-time", "20", "--get"]);
        if let Some(query) = query {
            curl.arg("--data-urlencode").arg(format!("query={query}"));
        }
        curl.arg(format!("http://{GATEWAY}:{PORT}/api/v1/{path}"));
        let text = command::text(&command::run(&mut curl)?.stdout);
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))?;
        ensure!(answer["status"] == "success", "{}: {}", query.unwrap_or(path), answer["error"]);
        Ok(answer["data"].clone())
    }

    /// How many series a query has.
    fn series(&self, expr: &str) -> Result<usize> {
        Ok(self.ask("query", Some(expr))?["result"].as_array().context("no result")?.len())
    }

    /// Waits until each of them has a series; those that may be empty need only be understood.
    fn answers(&self, queries: &[Query]) -> Result<()> {
        for query in queries {
            let found = || -> Result<Option<()>> {
                let series = self.series(&query.expr).with_context(|| query.from.clone())?;
                ensure!(
                    series > 0 || query.may_be_empty,
                    "{}: nothing is found by {}",
                    query.from,
                    query.expr
                );
                Ok(Some(()))
            };
            wait_while(&query.from, PATIENCE, || self.process.check(&self.cluster.state), found)?;
        }
        Ok(())
    }
}

/// The project's configuration for nodes that are named instead of discovered, scraped more often.
fn configuration(text: &str, targets: &Value) -> Result<String> {
    let (before, rest) = text.split_once("    kubernetes_sd_configs: &nodes\n").context("no discovery")?;
    let (_, after) = rest
        .split_once("    relabel_configs: &names\n")
        .context("nothing after discovery")?;
    let named = format!("{before}    static_configs: &nodes {targets}\n    relabel_configs: &names\n{after}");
    let named = named.replace("kubernetes_sd_configs: *nodes", "static_configs: *nodes");
    Ok(named.replace("_interval: 15s", "_interval: 5s"))
}

fn queries(cluster: &Cluster) -> Result<()> {
    let rbac = manifest("monitoring/rbac.yaml");
    cluster.kubectl(&["apply", "-f", &rbac])?;
    let found = within(cluster, "monitoring", |place| {
        let user = format!("--as=system:serviceaccount:{SYSTEM}:prometheus");
        for verb in ["list", "watch"] {
            cluster.kubectl(&["auth", "can-i", verb, "nodes", &user])?;
        }
        let seen = with(
            sh(STAY),
            &[
                (
                    "/livenessProbe",
                    json!({"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 30}),
                ),
                ("/resources", json!({"limits": {"cpu": "500m", "memory": "64Mi"}})),
            ],
        );
        place.create(&[pod("seen", seen)])?;
        place.until_ready("seen")?;
        let prometheus = Prometheus::start(cluster)?;
        let answered = shown(&prometheus, &cluster.host(0)?.name, &place.name);
        prometheus.end()?;
        answered
    });
    cluster.kubectl(&["delete", "-f", &rbac, "--timeout=110s"])?;
    found
}

fn shown(prometheus: &Prometheus<'_>, node: &str, namespace: &str) -> Result<()> {
    let text = fs::read_to_string(manifest("monitoring/dashboard.json")).context("read the dashboard")?;
    let dashboard: Value = serde_json::from_str(&text).context("the dashboard is no JSON")?;
    prometheus.answers(&of_dashboard(&dashboard, node, namespace)?)?;
    let rules = wait_for("each alert to be evaluated", PATIENCE, || {
        let groups = prometheus.ask("rules", None)?;
        let rules = groups["groups"][0]["rules"].as_array().cloned().context("no rules")?;
        for rule in &rules {
            ensure!(rule["health"] == "ok", "{}: {} {}", rule["name"], rule["health"], rule["lastError"]);
        }
        Ok(Some(rules))
    })?;
    let mut queries = Vec::new();
    for rule in &rules {
        let expr = rule["query"].as_str().context("an alert without an expression")?;
        let Some(value) = compared(expr) else {
            bail!("{} does not end with a comparison: {expr}", rule["name"]);
        };
        queries.push(Query {
            from: format!("alert {}", rule["name"]),
            expr: value.to_owned(),
            may_be_empty: rule["annotations"]["absent"].is_string(),
        });
    }
    prometheus.answers(&queries)?;
    // Nor is a page left out of which no query asks.
    let doubtful = prometheus.ask("query", Some("up == 0"))?;
    ensure!(doubtful["result"] == json!([]), "not all pages are scraped: {doubtful}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::repository;

    fn read(path: &str) -> String {
        fs::read_to_string(repository().join(path)).unwrap()
    }

    fn dashboard() -> Value {
        serde_json::from_str(&read("manifests/monitoring/dashboard.json")).unwrap()
    }

    /// Names in an expression that are a metric's by their first word.
    fn metrics(expr: &str) -> Vec<String> {
        let first = [
            "kvmlet_",
            "kubelet_",
            "container_",
            "rest_",
            "prober_",
            "resource_",
            "node_",
            "machine_",
            "process_",
        ];
        let words = expr.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let metrics = words.filter(|word| first.iter().any(|first| word.starts_with(first)));
        let labels = ["container_state"];
        let whole = |name: &str| {
            ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .unwrap_or(name)
                .to_owned()
        };
        metrics.filter(|name| !labels.contains(name)).map(whole).collect()
    }

    #[test]
    fn a_query_that_may_find_nothing_names_metrics_that_the_node_has() {
        let figures = repository().join("provider/src/figures");
        let sources = fs::read_dir(figures)
            .unwrap()
            .map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
        let source: String = sources.collect();
        let queries = of_dashboard(&dashboard(), "kvm-1", "default").unwrap();
        let panels = queries.into_iter().filter(|query| query.may_be_empty).map(|query| query.expr);
        let rules = read("manifests/monitoring/rules.yaml");
        let mut checked = 0;
        for expr in panels.chain([rules]) {
            for name in metrics(&expr) {
                assert!(source.contains(&format!("\"{name}\"")), "{name}");
                checked += 1;
            }
        }
        assert!(checked > 20, "{checked}");
    }

    #[test]
    fn each_alert_has_figures_for_which_it_fires_and_a_node_for_which_it_does_not() {
        let (rules, tests) = (
            read("manifests/monitoring/rules.yaml"),
            read("manifests/monitoring/rules.test.yaml"),
        );
        let named = |text: &str, key: &str| -> Vec<String> {
            let names = text
                .lines()
                .filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
            names.map(|name| name.trim().to_owned()).collect()
        };
        let alerts = named(&rules, "alert:");
        assert!(alerts.len() > 10);
        assert_eq!(alerts, named(&tests, "alertname:"));
        for case in tests.split("  - interval:").skip(1) {
            assert!(
                case.contains("node=\"kvm-good\"") && case.contains("exp_labels: {node: \"kvm-bad\""),
                "{case}"
            );
            assert!(!case.contains("exp_labels: {node: \"kvm-good\""), "{case}");
        }
    }

    #[test]
    fn queries_are_asked_with_the_dashboards_variables_filled_in() {
        let queries = of_dashboard(&dashboard(), "kvm-1", "n").unwrap();
        assert!(queries.len() > 40, "{}", queries.len());
        let nodes = queries.iter().find(|query| query.from == "variable \"node\"").unwrap();
        assert_eq!(nodes.expr, "count by (node) (up{job=\"kvmlet\"})");
        let unknown = json!({"panels": [{"title": "t", "targets": [{"expr": "up{a=\"$b\"}"}]}], "templating": {"list": []}});
        assert!(of_dashboard(&unknown, "kvm-1", "n").is_err());
    }

    #[test]
    fn what_an_alert_compares_stands_before_its_last_comparison() {
        assert_eq!(compared("a / (b > 0) >= 0.5"), Some("a / (b > 0)"));
        assert_eq!(compared("a == 1"), Some("a"));
        assert_eq!(compared("a > b"), None);
        assert_eq!(compared("a + 1"), None);
    }

    #[test]
    fn nodes_that_are_named_stand_where_discovery_stood() {
        let text = configuration(&read("manifests/monitoring/prometheus.yaml"), &json!([{"targets": ["a:1"]}])).unwrap();
        assert!(!text.contains("kubernetes_sd_configs"), "{text}");
        assert_eq!(text.matches("static_configs: *nodes").count(), 3, "{text}");
        assert!(
            text.contains("static_configs: &nodes [{\"targets\":[\"a:1\"]}]\n    relabel_configs: &names\n"),
            "{text}"
        );
    }
}
