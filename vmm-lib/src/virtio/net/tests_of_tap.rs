//! The net device on a tap of the kernel's whose interface goes down, comes back and vanishes while the device runs.

use std::{fs, time::Instant};

use super::{HEADER, MRG_RXBUF, Net};
use crate::virtio::{
    device::{ActivateError, VirtioDevice},
    testing::{BUFFERS, DEADLINE, Driver, Faults, activate, memory, try_activate},
};

#[path = "../../../tests/support/network.rs"]
mod network;

use network::{KIND, Network, Wire, frame, in_a_network};

/// By which its thread is known.
const MAC: [u8; 6] = [2, 0xda, 0, 0, 0, 1];
const THREAD: &str = "net02:da:00:00:";
/// Where the driver has what it sends, behind its receive buffers.
const SENT: u64 = BUFFERS + 0x10_0000;
const BUFFER: u64 = 2048;

struct Rig {
    device: Net,
    receive: Driver,
    transmit: Driver,
    faults: Faults,
}

fn rig(network: &Network) -> Rig {
    let tap = network.tap.try_clone().unwrap();
    let mut device = Net::new(tap.into(), MAC, 1450);
    let memory = memory();
    let (mut receive, transmit) = (Driver::new(&memory, 0, 256), Driver::new(&memory, 1, 256));
    let faults = activate(&mut device, &[&receive, &transmit], MRG_RXBUF);
    for head in 0..64u16 {
        receive.chain(head, &[(BUFFERS + u64::from(head) * BUFFER, BUFFER as u32, true)]);
        receive.offer(head);
    }
    receive.kick();
    Rig {
        device,
        receive,
        transmit,
        faults,
    }
}

impl Rig {
    /// Sends a frame and waits until the device is done with it.
    fn send(&mut self, frame: &[u8]) {
        self.transmit.write(SENT, &[&[0; HEADER], frame].concat());
        self.transmit.chain(0, &[(SENT, (HEADER + frame.len()) as u32, false)]);
        self.transmit.offer(0);
        self.transmit.kick();
        assert_eq!(self.transmit.wait_used(), (0, 0));
    }

    /// The next frame that the test has sent; the host has some of its own.
    fn received(&mut self) -> Vec<u8> {
        loop {
            let (head, length) = self.receive.wait_used();
            let seen = self.receive.read(BUFFERS + u64::from(head) * BUFFER, length as usize);
            self.receive.offer(head);
            self.receive.kick();
            if seen[HEADER + 12..][..2] == KIND {
                return seen[HEADER..].to_vec();
            }
        }
    }

    /// Frames go through either way.
    fn carries(&mut self, wire: &mut Wire, seed: u8) {
        self.send(&frame(seed));
        assert_eq!(wire.receive(), frame(seed));
        wire.send(&frame(!seed));
        assert_eq!(self.received(), frame(!seed));
    }
}

/// Waits until the device's thread sleeps. One that goes round and round without waiting never does.
fn comes_to_rest() {
    let end = Instant::now() + DEADLINE;
    loop {
        let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let mut own = tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == THREAD));
        let own = own.next().expect("the device has its thread");
        let stat = fs::read_to_string(own.join("stat")).unwrap();
        if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')) {
            return;
        }
        assert!(Instant::now() < end, "the thread does not come to rest: {stat}");
        std::thread::yield_now();
    }
}

#[test]
fn a_tap_that_goes_down_and_vanishes_costs_frames_and_neither_the_device_nor_a_processors_time() {
    in_a_network(|network| {
        network.up();
        let mut rig = rig(&network);
        rig.carries(&mut network.wire(), 1);
        for seed in 2..5 {
            network.down();
            // More than its queue has places.
            for _ in 0..300 {
                rig.send(&frame(0));
            }
            comes_to_rest();
            network.up();
            rig.carries(&mut network.wire(), seed);
        }
        network.delete();
        for _ in 0..300 {
            rig.send(&frame(0));
            comes_to_rest();
        }
        assert!(rig.faults.none(), "it goes on without an interface");
        // A driver that begins anew is told that there is nothing to begin with.
        rig.device.reset();
        let refused = try_activate(&mut rig.device, &[&rig.receive, &rig.transmit], MRG_RXBUF);
        let refused = refused.err().expect("there is no interface");
        assert!(
            matches!(
                refused,
                ActivateError::Host {
                    what: "set the tap up",
                    ..
                }
            ),
            "{refused:?}"
        );
    });
}
