//! A pod's names for itself and for others: host name, /etc/hosts, /etc/resolv.conf, as the kubelet's pkg/kubelet/network/dns. Pure.

use std::net::IpAddr;

use crate::desired::DesiredPod;

/// What the host and the cluster say about names.
#[derive(Debug, Clone, Default)]
pub struct Dns {
    /// The cluster's resolvers.
    pub servers: Vec<IpAddr>,
    /// The cluster's domain.
    pub domain: String,
    /// The host's own resolv.conf.
    pub host: String,
}

/// Most name servers and search domains, as the kubelet's limits.
const MAX_SERVERS: usize = 3;
const MAX_SEARCH: usize = 32;
/// Longest host name.
const MAX_HOSTNAME: usize = 63;

/// The pod's host name and its domain: empty without a subdomain, and with hostnameOverride, which is all of the name
/// (pkg/kubelet/kubelet_pods.go, GeneratePodHostNameAndDomain).
pub fn hostname(pod: &DesiredPod, domain: &str) -> (String, String) {
    let spec = pod.pod.spec.as_ref();
    let short = |mut name: String| {
        name.truncate(MAX_HOSTNAME);
        name.trim_end_matches(['-', '.']).to_owned()
    };
    if let Some(name) = spec.and_then(|s| s.hostname_override.clone()) {
        return (short(name), String::new());
    }
    let name = spec.and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
    let name = short(name.unwrap_or_else(|| pod.name.clone()));
    let domain = spec
        .and_then(|s| s.subdomain.as_deref())
        .filter(|s| !s.is_empty())
        .map(|sub| format!("{sub}.{}.svc.{domain}", pod.namespace))
        .unwrap_or_default();
    (name, domain)
}

/// What `hostname` prints: with setHostnameAsFQDN the whole name.
pub fn kernel_hostname(pod: &DesiredPod, domain: &str) -> String {
    let (name, sub) = hostname(pod, domain);
    let whole = pod.pod.spec.as_ref().and_then(|s| s.set_hostname_as_fqdn).unwrap_or(false) && !sub.is_empty();
    if whole { format!("{name}.{sub}") } else { name }
}

/// Content of /etc/hosts.
pub fn hosts(pod: &DesiredPod, domain: &str, ips: &[String]) -> String {
    let (name, sub) = hostname(pod, domain);
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        if sub.is_empty() {
            text.push_str(&format!("{ip}\t{name}\n"));
        } else {
            text.push_str(&format!("{ip}\t{name}.{sub}\t{name}\n"));
        }
    }
    let aliases = pod.pod.spec.as_ref().and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            text.push_str(&format!(
                "{}\t{}\n",
                alias.ip,
                alias.hostnames.clone().unwrap_or_default().join("\t")
            ));
        }
    }
    text
}

/// Content of /etc/resolv.conf, by dnsPolicy and dnsConfig.
pub fn resolv_conf(pod: &DesiredPod, dns: &Dns) -> String {
    let spec = pod.pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host = Resolver::parse(&dns.host);
    let mut resolver = match policy {
        "None" => Resolver::default(),
        // Without a cluster resolver the kubelet falls back to the host's.
        "ClusterFirst" | "ClusterFirstWithHostNet" if !dns.servers.is_empty() && policy == "ClusterFirst" => {
            let mut search = vec![
                format!("{}.svc.{}", pod.namespace, dns.domain),
                format!("svc.{}", dns.domain),
                dns.domain.clone(),
            ];
            search.extend(host.search);
            Resolver {
                servers: dns.servers.iter().map(ToString::to_string).collect(),
                search,
                options: vec!["ndots:5".into()],
            }
        }
        _ => host,
    };
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        resolver.servers.extend(config.nameservers.iter().flatten().cloned());
        resolver.search.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            resolver.options.retain(|o| o.split(':').next() != Some(&name));
            resolver.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    resolver.write()
}

#[derive(Default)]
struct Resolver {
    servers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.servers.extend(words.next()),
                Some("search" | "domain") => resolver.search = words.collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }

    fn write(self) -> String {
        let unique = |list: Vec<String>, most: usize| {
            let mut seen = Vec::new();
            for item in list {
                if !seen.contains(&item) && seen.len() < most {
                    seen.push(item);
                }
            }
            seen
        };
        let mut text = String::new();
        let search = unique(self.search, MAX_SEARCH);
        if !search.is_empty() {
            text.push_str(&format!("search {}\n", search.join(" ")));
        }
        for server in unique(self.servers, MAX_SERVERS) {
            text.push_str(&format!("nameserver {server}\n"));
        }
        let options = unique(self.options, usize::MAX);
        if !options.is_empty() {
            text.push_str(&format!("options {}\n", options.join(" ")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn pod(spec: Value) -> DesiredPod {
        let pod = json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec});
        DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0
    }

    fn dns() -> Dns {
        Dns {
            servers: vec!["10.96.0.10".parse().unwrap()],
            domain: "cluster.local".into(),
            host: "nameserver 9.9.9.9\nsearch corp\n".into(),
        }
    }

    #[test]
    fn the_cluster_comes_first_by_default() {
        let text = resolv_conf(&pod(json!({"containers": []})), &dns());
        assert_eq!(
            text,
            "search shop.svc.cluster.local svc.cluster.local cluster.local corp\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
    }

    #[test]
    fn default_is_the_host_and_none_is_only_what_the_pod_says() {
        let text = resolv_conf(&pod(json!({"containers": [], "dnsPolicy": "Default"})), &dns());
        assert_eq!(text, "search corp\nnameserver 9.9.9.9\n");
        let config =
            json!({"nameservers": ["1.1.1.1"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        let text = resolv_conf(&pod(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": config})), &dns());
        assert_eq!(text, "search a\nnameserver 1.1.1.1\noptions ndots:2 edns0\n");
    }

    #[test]
    fn a_subdomain_and_aliases_stand_in_hosts() {
        let pod = pod(
            json!({"containers": [], "hostname": "h", "subdomain": "db", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x", "y"]}],
            "setHostnameAsFQDN": true}),
        );
        let text = hosts(&pod, "cluster.local", &["10.0.0.5".into()]);
        assert!(text.contains("10.0.0.5\th.db.shop.svc.cluster.local\th\n"), "{text}");
        assert!(text.ends_with("1.2.3.4\tx\ty\n"), "{text}");
        assert_eq!(kernel_hostname(&pod, "cluster.local"), "h.db.shop.svc.cluster.local");
    }

    #[test]
    fn a_name_that_overrides_is_all_of_it() {
        let spec = json!({"containers": [], "hostnameOverride": "db.example.org", "hostname": "h", "subdomain": "sub"});
        let pod = pod(spec);
        assert_eq!(hostname(&pod, "cluster.local"), ("db.example.org".into(), String::new()));
        assert!(hosts(&pod, "cluster.local", &["10.0.0.1".into()]).contains("10.0.0.1\tdb.example.org\n"));
    }
}
