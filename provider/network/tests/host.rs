//! Routes, forwarding and masquerading of a real host, as root, each test on a host of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use kvmlet_network::{NodeRoute, host};

use support::{on_a_host, run};

fn route(pod_cidr: &str, via: &str) -> NodeRoute {
    NodeRoute {
        pod_cidr: pod_cidr.parse().unwrap(),
        via: via.parse().unwrap(),
    }
}

fn uplink() {
    run(
        "ip",
        &["link", "add", "up0", "mtu", "1450", "type", "veth", "peer", "name", "wire0"],
    );
    run("ip", &["addr", "add", "10.89.0.11/24", "dev", "up0"]);
    run("ip", &["link", "set", "wire0", "up"]);
    run("ip", &["link", "set", "up0", "up"]);
}

#[test]
fn routes_to_other_nodes_follow_the_list_and_leave_foreign_ones_alone() {
    on_a_host(async |_| {
        uplink();
        run("ip", &["route", "add", "10.250.0.0/24", "via", "10.89.0.99"]);
        host::sync_node_routes(&[route("10.244.1.0/24", "10.89.0.12"), route("10.244.2.0/24", "10.89.0.13")])
            .await
            .unwrap();
        host::sync_node_routes(&[route("10.244.1.0/24", "10.89.0.14"), route("10.244.3.0/24", "10.89.0.15")])
            .await
            .unwrap();
        let own = run("ip", &["route", "show", "proto", &host::ROUTE_PROTOCOL.to_string()]);
        let own: Vec<&str> = own.lines().map(str::trim).collect();
        assert_eq!(
            own,
            ["10.244.1.0/24 via 10.89.0.14 dev up0", "10.244.3.0/24 via 10.89.0.15 dev up0"]
        );
        assert!(run("ip", &["route"]).contains("10.250.0.0/24 via 10.89.0.99"));

        // One that cannot be made does not keep the others from being made.
        let wanted = [route("10.244.4.0/24", "192.0.2.1"), route("10.244.5.0/24", "10.89.0.16")];
        assert!(host::sync_node_routes(&wanted).await.unwrap_err().to_string().contains("routes"));
        let own = run("ip", &["route", "show", "proto", &host::ROUTE_PROTOCOL.to_string()]);
        assert_eq!(own.trim(), "10.244.5.0/24 via 10.89.0.16 dev up0");
    });
}

#[test]
fn what_a_host_had_for_pods_can_be_taken_away_and_nothing_else() {
    on_a_host(async |config| {
        uplink();
        run("ip", &["route", "add", "10.250.0.0/24", "via", "10.89.0.99"]);
        run("nft", &["add", "table", "ip", "other"]);
        host::prepare(&config).await.unwrap();
        run("ip", &["link", "add", "kvmlet0", "type", "bridge"]);
        host::sync_node_routes(&[route("10.244.1.0/24", "10.89.0.12")]).await.unwrap();
        for _ in 0..2 {
            host::clear(&config).await.unwrap();
            assert_eq!(run("nft", &["list", "tables"]).trim(), "table ip other");
            assert_eq!(run("ip", &["route", "show", "proto", &host::ROUTE_PROTOCOL.to_string()]), "");
            assert!(!run("ip", &["link"]).contains("kvmlet0"));
        }
        assert!(run("ip", &["route"]).contains("10.250.0.0/24 via 10.89.0.99"));
    });
}

#[test]
fn a_host_is_prepared_twice_with_one_masquerading_rule() {
    on_a_host(async |config| {
        host::prepare(&config).await.unwrap();
        host::prepare(&config).await.unwrap();
        let rules = run("nft", &["list", "table", "ip", "kvmlet"]);
        assert_eq!(rules.matches("masquerade").count(), 1, "{rules}");
        assert!(rules.contains("ip saddr 10.244.7.0/24"), "{rules}");
        assert_eq!(run("cat", &["/proc/sys/net/ipv4/ip_forward"]).trim(), "1");
    });
}

#[test]
fn the_mtu_is_that_of_the_interface_with_the_nodes_address() {
    on_a_host(async |_| {
        uplink();
        assert_eq!(host::mtu_of("10.89.0.11".parse().unwrap()).await.unwrap(), 1450);
        assert!(host::mtu_of("10.89.0.12".parse().unwrap()).await.is_err());
    });
}
