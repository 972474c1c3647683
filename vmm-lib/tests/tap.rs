//! A guest whose host takes its tap away: its frames are lost, its machine and its other devices go on, and a driver that begins anew is told.

mod support;

use support::drive::*;
use support::network::{Network, frame, in_a_network};
use support::script::Script;
use vmm_lib::exit::MachineExit;
use vmm_lib::spec::{FileSource, Net, NetLimits};

/// Rings of the receive queue, in which nothing is ever offered; those of the transmit queue are the usual ones.
const RECEIVE: [u64; 3] = [TABLE + 0x8000, AVAILABLE + 0x8000, USED + 0x8000];
/// Where a device appears that is attached beside the bridge and the network.
const SLOT: u8 = 2;
const CAPABILITIES: u64 = ECAM + SLOT as u64 * 0x8000 + 0x34;
/// A frame and its header, 12 bytes of zeros.
const FRAME: u64 = DATA + 4;

/// Brings the network up with both of its queues.
fn bring_network_up(script: &mut Script) {
    for value in [0, 1, 3] {
        script.write(1, BAR + STATUS, value);
    }
    script.write(4, BAR + 8, 1).write(4, BAR + 0xc, 1).write(1, BAR + STATUS, 11);
    for (queue, rings) in [(0, RECEIVE), (1, [TABLE, AVAILABLE, USED])] {
        script.write(2, BAR + 0x16, queue).write(2, BAR + 0x18, 8);
        for (register, ring) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
            script.write(8, BAR + register, ring);
        }
        script.write(4, rings[1], 0).write(4, rings[2], 0).write(2, BAR + 0x1c, 1);
    }
    script.write(1, BAR + STATUS, u64::from(READY));
}

/// Sends the frame as the `count`-th, and waits until the device is done with it.
fn send(script: &mut Script, count: u64) {
    offer(script, BAR, count, 0);
    script.write(2, BAR + NOTIFY + 4, 1);
    script.wait(USED + 2, (count & !(count - 1)) as u8);
}

#[test]
fn a_machine_whose_tap_is_taken_away_goes_on_and_its_driver_is_told_when_it_begins_anew() {
    in_a_network(|network| for_away(&network));
}

fn for_away(network: &Network) {
    network.up();
    let mut wire = network.wire();
    let mut script = Script::default();
    place(&mut script, 1, BAR);
    for (index, word) in frame(3).chunks(4).enumerate() {
        let word = u32::from_le_bytes(word.try_into().expect("60 bytes"));
        script.write(4, FRAME + 12 + 4 * index as u64, u64::from(word));
    }
    bring_network_up(&mut script);
    descriptor(&mut script, TABLE, 0, (FRAME, 72, 0, 0));
    send(&mut script, 1);
    script.say(BAR + STATUS);
    // The host says by another device that it has taken the tap away.
    script.wait(CAPABILITIES, 0x40);
    for count in 2..=64 {
        send(&mut script, count);
    }
    script.say(BAR + STATUS);
    bring_network_up(&mut script);
    script.say(BAR + STATUS);
    let tap = network.tap.try_clone().expect("it is open");
    let running = script.begin_with(vec![tap], |spec| {
        spec.rng = false;
        spec.nets = vec![Net {
            tap: FileSource::Passed(0),
            more_queues: Vec::new(),
            mac: [2, 0xda, 0, 0, 0, 2],
            mtu: 1500,
            limits: NetLimits::default(),
        }];
    });
    assert_eq!(running.said(1), [READY]);
    assert_eq!(wire.receive(), frame(3));
    network.delete();
    let (attachment, files) = disk("signal", 7);
    assert_eq!(running.handle.attach(attachment, files).expect("there is a place"), SLOT);
    let (report, said) = running.end();
    assert_eq!(report.exit, MachineExit::PoweredOff);
    assert_eq!(said, [READY, READY, READY | NEEDS_RESET]);
}
