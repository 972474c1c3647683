//! Several pairs of queues: frames of each keep to its own queue of the tap, and a driver uses what it has asked for.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use super::pairs::{QUEUE_SIZE as CONTROL_SIZE, Taps};
use super::tests::frame;
use super::{CTRL_VQ, HEADER, MQ, Net};
use crate::spec::{Bucket, Limits, NetLimits};
use crate::tap::open_tap_queues;
use crate::virtio::device::VirtioDevice;
use crate::virtio::testing::{BUFFERS, DEADLINE, Driver, Faults, activate, memory};

const PAIRS: usize = 3;
const COMMAND: u64 = BUFFERS + (1 << 20);

struct Rig {
    device: Net,
    /// Receive and transmit queue of each pair, then the control queue.
    drivers: Vec<Driver>,
    wires: Vec<UnixDatagram>,
    faults: Faults,
}

impl Rig {
    fn new(features: u64, limits: NetLimits) -> Self {
        let (ours, wires): (Vec<_>, Vec<_>) = (0..PAIRS).map(|_| UnixDatagram::pair().unwrap()).unzip();
        for wire in &wires {
            wire.set_read_timeout(Some(DEADLINE)).unwrap();
        }
        let mut device = Net::on_sockets(ours).limited(limits);
        let memory = memory();
        let sizes = device.queue_sizes().to_vec();
        let drivers: Vec<_> = (0..).zip(&sizes).map(|(index, size)| Driver::new(&memory, index, *size)).collect();
        let all: Vec<_> = drivers.iter().collect();
        let faults = activate(&mut device, &all, features);
        Self {
            device,
            drivers,
            wires,
            faults,
        }
    }

    fn send(&mut self, pair: usize, bytes: &[u8]) {
        let (at, driver) = (BUFFERS + 0x2000 * pair as u64, &mut self.drivers[2 * pair + 1]);
        driver.write(at, bytes);
        driver.chain(0, &[(at, bytes.len() as u32, false)]);
        driver.offer(0);
        driver.kick();
    }

    fn received(&self, pair: usize) -> Vec<u8> {
        let mut seen = [0; 4096];
        let length = self.wires[pair].recv(&mut seen).unwrap();
        seen[..length].to_vec()
    }

    /// The answer to a command.
    fn command(&mut self, bytes: &[u8]) -> u8 {
        let control = self.drivers.last_mut().unwrap();
        control.write(COMMAND, bytes);
        control.write(COMMAND + 64, &[0xff]);
        control.chain(0, &[(COMMAND, bytes.len() as u32, false), (COMMAND + 64, 1, true)]);
        control.offer(0);
        control.kick();
        assert_eq!(control.wait_used(), (0, 1));
        control.read(COMMAND + 64, 1)[0]
    }
}

#[test]
fn a_device_of_several_pairs_says_how_many_and_one_of_a_single_pair_offers_no_others() {
    let rig = Rig::new(MQ | CTRL_VQ, NetLimits::default());
    let mut config = [0; 12];
    rig.device.read_config(0, &mut config);
    assert_eq!(config[8..10], [PAIRS as u8, 0]);
    assert_eq!(rig.device.features() & (MQ | CTRL_VQ), MQ | CTRL_VQ);
    assert_eq!(rig.device.queue_sizes(), [256, 256, 256, 256, 256, 256, CONTROL_SIZE]);
    let single = Net::on_socket(UnixDatagram::pair().unwrap().0);
    assert_eq!((single.features() & (MQ | CTRL_VQ), single.queue_sizes().len()), (0, 2));
    single.read_config(0, &mut config);
    assert_eq!(config[8..10], [0, 0]);
}

#[test]
fn frames_of_each_pair_leave_and_arrive_by_its_own_queue_of_the_tap() {
    let mut rig = Rig::new(MQ | CTRL_VQ, NetLimits::default());
    assert_eq!(rig.command(&[4, 0, PAIRS as u8, 0]), 0);
    for pair in (0..PAIRS).rev() {
        let bytes = frame(100 + pair, pair as u8);
        rig.send(pair, &bytes);
        assert_eq!(rig.received(pair), bytes);
        assert_eq!(rig.drivers[2 * pair + 1].wait_used(), (0, 0));
        let at = BUFFERS + 0x10_000 + 0x2000 * pair as u64;
        let receive = &mut rig.drivers[2 * pair];
        receive.chain(0, &[(at, 2048, true)]);
        receive.offer(0);
        receive.kick();
        rig.wires[pair].send(&bytes).unwrap();
        assert_eq!(receive.wait_used(), (0, bytes.len() as u32));
        assert_eq!(receive.read(at + HEADER as u64, 100 + pair), bytes[HEADER..]);
    }
    assert!(rig.faults.none());
}

#[test]
fn a_driver_gets_as_many_pairs_as_there_are_and_any_other_command_is_refused() {
    let mut rig = Rig::new(MQ | CTRL_VQ, NetLimits::default());
    assert_eq!(rig.device.taps.used(), 1);
    for (command, answer, used) in [
        ([4, 0, 2, 0], 0, 2),
        ([4, 0, 0, 0], 1, 2),
        ([4, 0, PAIRS as u8 + 1, 0], 1, 2),
        ([4, 0, 1, 1], 1, 2),
        ([4, 1, 1, 0], 1, 2),
        ([0, 0, 1, 0], 1, 2),
        ([4, 0, PAIRS as u8, 0], 0, PAIRS),
        ([4, 0, 1, 0], 0, 1),
    ] {
        assert_eq!((rig.command(&command), rig.device.taps.used()), (answer, used), "{command:?}");
    }
    assert!(rig.faults.none());
    let saved = rig.device.save();
    assert_eq!(saved, [1]);
    assert_eq!(rig.device.restore(&[2]).map(|()| rig.device.taps.used()), Ok(2));
    for state in [&[][..], &[0], &[PAIRS as u8 + 1], &[1, 1]] {
        assert!(rig.device.restore(state).is_err(), "{state:?}");
    }
    rig.drivers
        .last()
        .unwrap()
        .chain(0, &[(COMMAND, 3, false), (COMMAND + 64, 1, true)]);
    let control = rig.drivers.last_mut().unwrap();
    control.write(COMMAND, &[4, 0, 1]);
    control.offer(0);
    control.kick();
    assert!(rig.faults.wait().what.contains("too short"));
}

#[test]
fn a_driver_without_several_pairs_is_served_by_the_first_and_a_reset_begins_with_one() {
    let mut rig = Rig::new(0, NetLimits::default());
    let bytes = frame(64, 1);
    rig.send(0, &bytes);
    assert_eq!(rig.received(0), bytes);
    rig.device.reset();
    rig.drivers.iter_mut().for_each(Driver::restart);
    rig.device.restore(&[PAIRS as u8]).unwrap();
    let all: Vec<_> = rig.drivers.iter().collect();
    let _faults = activate(&mut rig.device, &all, MQ | CTRL_VQ);
    assert_eq!(rig.device.taps.used(), 1);
}

#[test]
fn what_limits_a_device_limits_all_its_pairs_together() {
    let bucket = Bucket {
        size: 4,
        refill: 20,
        burst: 0,
    };
    let transmit = Limits {
        bytes: None,
        operations: Some(bucket),
    };
    let mut rig = Rig::new(
        MQ | CTRL_VQ,
        NetLimits {
            receive: Limits::default(),
            transmit,
        },
    );
    assert_eq!(rig.command(&[4, 0, PAIRS as u8, 0]), 0);
    let begun = Instant::now();
    let rounds = 6;
    for round in 0..rounds {
        for pair in 0..PAIRS {
            rig.send(pair, &frame(60, round));
        }
        for pair in 0..PAIRS {
            rig.received(pair);
            rig.drivers[2 * pair + 1].wait_used();
        }
    }
    // A frame in 50 ms, after the first four; each pair by itself would have had all of its six after 100 ms. A frame of each may be on its way at once.
    let least = (PAIRS as u128 * u128::from(rounds) - 4 - PAIRS as u128) * 50;
    assert!(begun.elapsed().as_millis() >= least, "{:?}", begun.elapsed());
}

/// Where this process may make taps; there is nothing to see elsewhere.
#[test]
fn queues_of_a_real_tap_are_attached_and_detached_as_often_as_one_likes() {
    let queues = match open_tap_queues("kvpairs", PAIRS) {
        Ok(queues) => queues,
        Err(error) => return assert!(matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound), "{error}"),
    };
    let taps = Taps::new(queues.into_iter().map(File::from).collect(), true);
    for used in [1, PAIRS, PAIRS, 1, 2, 1, PAIRS] {
        taps.use_first(used).unwrap();
        assert_eq!(taps.used(), used);
    }
    let other = Taps::new(vec![File::open("/dev/null").unwrap(), File::open("/dev/null").unwrap()], true);
    assert!(other.use_first(1).is_err());
}
