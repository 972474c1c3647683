//! A host for one test: a thread with network and mount namespaces of its own, in which the real plugins run.

use std::future::Future;
use std::path::Path;
use std::process::Command;

use kvmlet_network::NetworkConfig;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Where Debian's `containernetworking-plugins` are.
const PLUGINS: &str = "/usr/lib/cni";

/// Runs `test` on a host of its own. Fails, and says why, without the rights or the programs it needs.
pub(crate) fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce(NetworkConfig) -> F + Send) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces: run it as root, it is never skipped"
    );
    assert!(
        Path::new(PLUGINS).join("bridge").exists(),
        "this test needs {PLUGINS}/bridge: install containernetworking-plugins, iproute2, iptables and nftables"
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
            run("ip", &["link", "set", "lo", "up"]);
            let dir = tempfile::tempdir().unwrap();
            // iptables keeps its lock here; the machine's own is not ours to hold.
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            let mut config = NetworkConfig::new(
                "10.244.7.0/24".parse().unwrap(),
                "10.244.0.0/16".parse().unwrap(),
                1400,
                dir.path().join("network"),
            );
            config.plugin_dirs = vec![PLUGINS.into()];
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test(config));
        });
    });
}

/// Runs a program on the test's host and returns what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
