//! What the file may say.

use super::*;

pub(crate) const GOOD: &str = "apiVersion: kvmlet.io/v1alpha1\nkind: KvmletConfiguration\nnodeName: n\nnodeIP: 10.0.0.1\n\
    kubeconfig: /k\ntls: {certFile: /c, keyFile: /y, clientCAFile: /a}\n";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("config.yaml"), text).map_err(|e| e.to_string())
}

#[test]
fn the_smallest_configuration_has_defaults_for_the_rest() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.port, 10250);
    assert_eq!(config.pod_defaults.memory.value(), 256 << 20);
    assert_eq!(config.seccomp_dir(), Path::new("/var/lib/kvmlet/seccomp"));
    let config = parse(&format!("{GOOD}seccompProfileRoot: /var/lib/kubelet/seccomp\n")).unwrap();
    assert_eq!(config.seccomp_dir(), Path::new("/var/lib/kubelet/seccomp"));
}

#[test]
fn the_example_of_the_package_is_a_configuration() {
    let config = parse(include_str!("../../../manifests/systemd/config.yaml.example")).unwrap();
    assert!(config.server_tls_bootstrap && config.bootstrap_kubeconfig.is_some());
    assert_eq!(config.shutdown_grace_periods().len(), 2);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let error = parse(&format!("{GOOD}nodeNmae: oops\n")).unwrap_err();
    assert!(error.contains("nodeNmae") && error.contains("line 7"), "{error}");
    let error = parse(&format!("{GOOD}guest:\n  kernal: /x\n")).unwrap_err();
    assert!(error.contains("kernal") && error.contains("line 8"), "{error}");
}

#[test]
fn users_of_machines_are_enough_and_never_root() {
    for (users, key) in [
        ("first: 0", "machineUIDs.first"),
        ("first: 4294967295", "machineUIDs.first"),
        ("count: 5", "machineUIDs.count"),
    ] {
        let error = parse(&format!("{GOOD}machineUIDs: {{{users}}}\n")).unwrap_err();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn what_machines_have_is_checked_and_named() {
    let machines = parse(&format!("{GOOD}machines: {{io: {{readBytesPerSecond: 10Mi, weight: 50}}}}\n"))
        .unwrap()
        .machines;
    assert_eq!(
        (machines.watchdog_seconds, machines.network_queues, machines.io.weight),
        (0, 1, Some(50))
    );
    for (keys, key) in [
        ("watchdogSeconds: 5", "machines.watchdogSeconds"),
        ("networkQueues: 0", "machines.networkQueues"),
        ("networkQueues: 9", "machines.networkQueues"),
        ("io: {readBytesPerSecond: 1Ki}", "machines.io.readBytesPerSecond"),
        ("io: {writeBytesPerSecond: 0}", "machines.io.writeBytesPerSecond"),
        ("io: {readOperationsPerSecond: 9}", "machines.io.readOperationsPerSecond"),
        ("io: {writeOperationsPerSecond: 0}", "machines.io.writeOperationsPerSecond"),
        ("io: {weight: 0}", "machines.io.weight"),
        ("io: {speed: 1}", "speed"),
    ] {
        let error = parse(&format!("{GOOD}machines: {{{keys}}}\n")).unwrap_err();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn images_grow_older_than_they_must_before_they_are_too_old() {
    let of = |keys: &str| parse(&format!("{GOOD}images: {{gc: {{{keys}}}}}\n"));
    assert_eq!(of("maxAgeSeconds: 604800").unwrap().images.gc.max_age_seconds, 604_800);
    for keys in ["maxAgeSeconds: 120", "minAgeSeconds: 10, maxAgeSeconds: 5"] {
        assert!(of(keys).unwrap_err().contains("images.gc.maxAgeSeconds"), "{keys}");
    }
}

#[test]
fn what_pods_may_mount_of_the_host_is_named_from_its_root() {
    assert!(parse(GOOD).unwrap().volumes.host_path.allowed.is_empty());
    let allowed = |prefix: &str| {
        parse(&format!(
            "{GOOD}volumes:\n  hostPath:\n    allowed: [{{prefix: {prefix}, readOnly: true}}]\n"
        ))
    };
    assert!(allowed("/srv/data").unwrap().volumes.host_path.allowed[0].read_only);
    for prefix in ["srv", "/srv/../etc", "''"] {
        assert!(allowed(prefix).unwrap_err().contains("volumes.hostPath.allowed"), "{prefix}");
    }
}

#[test]
fn an_address_that_the_api_server_cannot_reach_is_refused() {
    let error = parse(&GOOD.replace("10.0.0.1", "127.0.0.1")).unwrap_err();
    assert!(error.contains("nodeIP"), "{error}");
}
