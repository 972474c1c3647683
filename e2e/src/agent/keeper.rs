//! What keeps an emulated host's kernel from patching itself, for as long as the host lives. Linux patches its own code (static keys) when the
//! first of something comes or the last one goes. QEMU's software emulation now and then has one processor run what another has just
//! patched, and the host dies of an `int3` or of an instruction left out. While one of each is there, the keys stay as they are.

use std::{
    io,
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use nix::sys::socket::{setsockopt, sockopt};

/// A control group with a limit on processor time (`__cfs_bandwidth_used`), and a link with a filter (`ingress_needed_key`,
/// `tcf_sw_enabled_key`), as the first pod would bring them.
const IDLE: &str = "set -e
    mkdir -p /sys/fs/cgroup/rig-keeper
    echo 1000000 1000000 >/sys/fs/cgroup/rig-keeper/cpu.max
    ip link add rig-keeper type bridge
    tc qdisc add dev rig-keeper ingress
    tc filter add dev rig-keeper parent ffff: protocol all u32 match u8 0 0 action mirred egress redirect dev rig-keeper";

/// An idle machine, which never runs: of KVM's keys those that follow machines and processors whose APIC nobody has enabled
/// (`preempt_notifier_key`, `apic_sw_disabled`).
pub(super) struct Keeper {
    _processor: VcpuFd,
    _machine: VmFd,
    /// Wants to know when packets came, as each `ping` does and each packet socket (`netstamp_needed_key`).
    _stamped: UdpSocket,
}

/// For the kernel to do what it has put off.
const PATCHING: Duration = Duration::from_millis(200);

/// What Linux draws at the first connection of each kind, and then patches the question away (`DO_ONCE`): now, while nothing else runs.
fn first_connections() -> io::Result<()> {
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(any)?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        drop((listener.accept()?, client));
        UdpSocket::bind(any)?.connect(listener.local_addr()?)?;
    }
    thread::sleep(PATCHING);
    Ok(())
}

impl Keeper {
    pub(super) fn new() -> Result<Self> {
        let stamped = UdpSocket::bind("127.0.0.1:0").context("make a socket")?;
        setsockopt(&stamped, sockopt::ReceiveTimestamp, &true).context("ask for packets' times")?;
        first_connections().context("make the first connections")?;
        let idle = Command::new("sh").args(["-c", IDLE]).output().context("run sh")?;
        ensure!(
            idle.status.success(),
            "make an idle group and link: {}",
            String::from_utf8_lossy(&idle.stderr)
        );
        let machine = Kvm::new().context("open /dev/kvm")?.create_vm().context("make a machine")?;
        // Without it in the kernel there is no APIC there.
        machine.create_irq_chip().context("make an interrupt controller")?;
        let processor = machine.create_vcpu(0).context("make a processor")?;
        Ok(Self {
            _processor: processor,
            _machine: machine,
            _stamped: stamped,
        })
    }
}
