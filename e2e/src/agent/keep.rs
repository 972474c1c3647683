//! What each emulated host keeps, by a process that `rig-init` starts before anything else runs there.

use std::{
    net::{Ipv4Addr, UdpSocket},
    thread,
};

use anyhow::{Context, Result};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimestamp};

/// Keeps it, says so in one line, and does not end.
pub fn keep() -> Result<()> {
    let _kept = Kept::new()?;
    println!("kept");
    loop {
        thread::park();
    }
}

/// What a host has for as long as it is, and never uses: with the first of such and after the last one the host's kernel rewrites its own text,
/// and an emulated processor may still take the old text for good when that is done: an oops at an int3 that is no longer there. A machine
/// (KVM's `preempt_notifier_key`, in the middle of every task switch), a processor whose interrupt controller is off (`apic_sw_disabled`), and
/// a socket that wants to know when packets came (`netstamp_needed_key`). `rig-init` has the others.
#[derive(Debug)]
struct Kept {
    _machine: VmFd,
    _processor: VcpuFd,
    _socket: UdpSocket,
}

impl Kept {
    fn new() -> Result<Self> {
        let machine = Kvm::new().and_then(|kvm| kvm.create_vm()).context("make a machine")?;
        machine.create_irq_chip().context("make its interrupt controllers")?;
        let processor = machine.create_vcpu(0).context("make its processor")?;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("make a socket")?;
        setsockopt(&socket, ReceiveTimestamp, &true).context("ask for timestamps")?;
        Ok(Self {
            _machine: machine,
            _processor: processor,
            _socket: socket,
        })
    }
}
