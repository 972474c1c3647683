//! Pod networks with Debian's plugins, as root, each test on a host of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use kvmlet_network::{HostPort, NetworkConfig, NetworkError, PodInterface, PodNetworkRequest, PodNetworks, Protocol};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use support::{on_a_host, run};

/// Length of the virtio-net header before each frame of a tap.
const HEADER: usize = 12;

/// A pod without host ports.
fn pod(uid: &str) -> PodNetworkRequest {
    PodNetworkRequest {
        uid: uid.to_owned(),
        namespace: "default".to_owned(),
        name: format!("pod-{uid}"),
        host_ports: Vec::new(),
        queues: 1,
    }
}

fn ipv4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is not IPv4"),
    }
}

/// "Who has `target`?", as the guest would ask.
fn arp_request(interface: &PodInterface, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend([0xff; 6]);
    frame.extend(interface.mac);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1]);
    frame.extend(interface.mac);
    frame.extend(ipv4(interface.addresses[0].addr()).octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// Is it an answer to `arp_request`, and to us?
fn is_arp_answer(frame: &[u8], interface: &PodInterface, target: Ipv4Addr) -> bool {
    let frame = &frame[HEADER..];
    frame.len() >= 42 && frame[..6] == interface.mac && frame[12..14] == [0x08, 0x06] && frame[21] == 2 && frame[28..32] == target.octets()
}

/// Waits for a frame that `wanted` accepts.
fn receive(tap: &OwnedFd, wanted: impl Fn(&[u8]) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "the frame did not come through the tap");
        let mut ready = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut ready, PollTimeout::try_from(left).unwrap()).unwrap();
        match nix::unistd::read(tap, &mut buffer) {
            Ok(length) if wanted(&buffer[..length]) => return,
            Ok(_) | Err(nix::errno::Errno::EAGAIN) => {}
            Err(error) => panic!("reading the tap: {error}"),
        }
    }
}

/// What a pod leaves behind: namespaces, records, leases, interfaces, port rules.
fn traces(config: &NetworkConfig) -> Vec<String> {
    let list = |path: std::path::PathBuf| -> Vec<String> {
        fs::read_dir(path)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let mut traces = list(config.netns_dir.clone());
    traces.extend(list(config.state_dir.join("pods")));
    traces.extend(
        list(config.state_dir.join("leases/kvmlet"))
            .into_iter()
            .filter(|name| name.starts_with("10.")),
    );
    let links = run("ip", &["-o", "link", "show", "type", "veth"]);
    traces.extend(links.lines().map(str::to_owned));
    let rules = run("iptables-save", &["-t", "nat"]);
    traces.extend(rules.lines().filter(|rule| rule.contains("CNI-DN-")).map(str::to_owned));
    traces
}

#[test]
fn a_pod_reaches_the_bridge_through_its_tap_and_leaves_nothing() {
    on_a_host(async |config| {
        let networks = PodNetworks::new(config.clone());
        let network = networks.setup(&pod("a1")).await.unwrap();
        let interface = network.interface.clone();
        let gateway = ipv4(interface.gateway.unwrap());
        assert_eq!(gateway, Ipv4Addr::new(10, 244, 7, 1));
        assert_eq!(interface.mtu, 1400);
        assert_eq!(interface.addresses[0].prefix_len(), 24);
        assert_eq!(interface.routes[0].destination.to_string(), "0.0.0.0/0");
        assert_eq!(interface.routes[0].via, interface.gateway);

        let tap = network.tap;
        nix::unistd::write(&tap, &arp_request(&interface, gateway)).unwrap();
        receive(&tap, |frame| is_arp_answer(frame, &interface, gateway));

        networks.check("a1").await.unwrap();
        assert_eq!(networks.recall("a1").unwrap(), Some(interface));
        assert!(matches!(networks.setup(&pod("a1")).await, Err(NetworkError::Exists(_))));

        drop(tap);
        networks.teardown("a1").await.unwrap();
        networks.teardown("a1").await.unwrap();
        assert_eq!(traces(&config), Vec::<String>::new());
        assert_eq!(networks.recall("a1").unwrap(), None);
    });
}

#[test]
fn a_tap_with_several_queues_reaches_the_bridge_by_each_of_them_and_leaves_nothing() {
    on_a_host(async |config| {
        let networks = PodNetworks::new(config.clone());
        let request = PodNetworkRequest { queues: 3, ..pod("q1") };
        let network = networks.setup(&request).await.unwrap();
        let interface = network.interface.clone();
        let gateway = ipv4(interface.gateway.unwrap());
        let queues: Vec<_> = [network.tap].into_iter().chain(network.more_queues).collect();
        assert_eq!(queues.len(), 3);
        for queue in &queues {
            // The kernel answers a flow where it last came from.
            nix::unistd::write(queue, &arp_request(&interface, gateway)).unwrap();
            let answered = || queues.iter().any(|queue| answered(queue, &interface, gateway));
            let deadline = Instant::now() + Duration::from_secs(20);
            while !answered() {
                assert!(Instant::now() < deadline, "no answer came by any queue");
                std::thread::yield_now();
            }
        }
        networks.check("q1").await.unwrap();
        drop(queues);
        networks.teardown("q1").await.unwrap();
        assert_eq!(traces(&config), Vec::<String>::new());
    });
}

/// Whether an answer has come by now; takes what came before it.
fn answered(queue: &OwnedFd, interface: &PodInterface, gateway: Ipv4Addr) -> bool {
    let mut buffer = [0; 2048];
    while let Ok(length) = nix::unistd::read(queue, &mut buffer) {
        if is_arp_answer(&buffer[..length], interface, gateway) {
            return true;
        }
    }
    false
}

#[test]
fn what_the_host_sends_to_a_pod_arrives_at_its_tap() {
    on_a_host(async |config| {
        let networks = PodNetworks::new(config);
        let network = networks.setup(&pod("a2")).await.unwrap();
        let address = ipv4(network.interface.addresses[0].addr());
        let tap = network.tap;
        // The namespace's own stack has the address too, and must stay silent: only the guest may answer.
        let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap();
        socket.send_to(b"hello", (address, 9)).await.unwrap();
        receive(&tap, |frame| {
            frame[HEADER..][12..14] == [0x08, 0x06] && frame[HEADER..][38..42] == address.octets()
        });
        let neighbours = run("ip", &["neigh", "show", &address.to_string()]);
        assert!(!neighbours.contains("lladdr"), "someone else answered for the guest: {neighbours}");
        drop(tap);
        networks.teardown("a2").await.unwrap();
    });
}

#[test]
fn many_pods_at_once_get_addresses_of_their_own_and_a_sweep_keeps_the_living() {
    on_a_host(async |config| {
        let networks = PodNetworks::new(config.clone());
        let uids: Vec<String> = (0..10).map(|number| format!("m{number}")).collect();
        let setups = uids.iter().map(|uid| {
            let networks = networks.clone();
            async move { networks.setup(&pod(uid)).await.unwrap() }
        });
        let made = futures_util::future::join_all(setups).await;
        let addresses: HashSet<_> = made.iter().map(|network| network.interface.addresses[0]).collect();
        assert_eq!(addresses.len(), uids.len());
        let macs: HashSet<_> = made.iter().map(|network| network.interface.mac).collect();
        assert_eq!(macs.len(), uids.len());

        // A daemon that starts again knows only the directories.
        let networks = PodNetworks::new(config.clone());
        let live: HashSet<String> = uids[..2].iter().cloned().collect();
        let swept = networks.sweep(&live).await.unwrap();
        assert!(swept.failed.is_empty(), "{:?}", swept.failed);
        assert_eq!(swept.removed.len(), 8);
        networks.check("m0").await.unwrap();
        networks.check("m1").await.unwrap();
        drop(made);
        networks.sweep(&HashSet::new()).await.unwrap();
        assert_eq!(traces(&config), Vec::<String>::new());
    });
}

#[test]
fn a_host_port_is_opened_and_closed_with_its_pod() {
    on_a_host(async |config| {
        let networks = PodNetworks::new(config.clone());
        let mut request = pod("p1");
        request.host_ports = vec![HostPort {
            host_ip: None,
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
        }];
        let network = networks.setup(&request).await.unwrap();
        let target = format!("--to-destination {}:80", network.interface.addresses[0].addr());
        let rules = run("iptables-save", &["-t", "nat"]);
        assert!(rules.contains("--dport 8080") && rules.contains(&target), "{rules}");
        networks.check("p1").await.unwrap();
        networks.teardown("p1").await.unwrap();
        assert_eq!(traces(&config), Vec::<String>::new());
    });
}

#[test]
fn a_setup_that_its_caller_gave_up_is_torn_down_whole() {
    on_a_host(async |config| {
        let networks = PodNetworks::new(config.clone());
        let request = pod("g1");
        let abandoned = tokio::time::timeout(Duration::from_millis(1), networks.setup(&request)).await;
        drop(abandoned);
        networks.teardown("g1").await.unwrap();
        assert_eq!(traces(&config), Vec::<String>::new());
    });
}

#[test]
fn a_network_whose_namespace_vanished_gives_its_address_back() {
    on_a_host(async |config| {
        let networks = PodNetworks::new(config.clone());
        let network = networks.setup(&pod("v1")).await.unwrap();
        nix::mount::umount2(&network.interface.netns, nix::mount::MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(&network.interface.netns).unwrap();
        drop(network.tap);
        assert!(networks.check("v1").await.is_err());
        networks.teardown("v1").await.unwrap();
        assert!(!config.state_dir.join("leases/kvmlet/10.244.7.2").exists());
    });
}

#[test]
fn a_machine_that_lost_its_tap_fails_the_check() {
    on_a_host(async |config| {
        let networks = PodNetworks::new(config);
        drop(networks.setup(&pod("t1")).await.unwrap().tap);
        assert!(matches!(networks.check("t1").await, Err(NetworkError::Join(_))));
        networks.teardown("t1").await.unwrap();
    });
}

#[test]
fn a_range_without_a_free_address_is_told_in_the_plugins_words_and_leaves_nothing() {
    on_a_host(async |mut config| {
        config.pod_cidr = "10.244.7.0/30".parse().unwrap();
        let networks = PodNetworks::new(config.clone());
        let first = networks.setup(&pod("f1")).await.unwrap();
        let error = networks.setup(&pod("f2")).await.unwrap_err();
        let NetworkError::Cni(source) = &error else { panic!("{error:?}") };
        assert!(source.to_string().contains("no IP addresses available"), "{source}");
        drop(first);
        networks.teardown("f1").await.unwrap();
        assert_eq!(traces(&config), Vec::<String>::new());
    });
}
